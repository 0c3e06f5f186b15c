"""Trainers that record gradient norms and know the refined schedule."""

from typing import Any

from transformers import Trainer

from .callback import GradientNormCallback
from .checkpoints import last_complete_checkpoint
from .registration import register

register()


class RefinedScheduleMixin:
    """Makes any Trainer record its gradient norms, unless its arguments say `record_gradient_norms=False`.

        class RefinedSFTTrainer(RefinedScheduleMixin, SFTTrainer):
            pass

    It takes the arguments of the Trainer that it is mixed into, and comes before it in the list of bases.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        callbacks = self.callback_handler.callbacks
        if getattr(self.args, "record_gradient_norms", True) and not any(
            isinstance(callback, GradientNormCallback) for callback in callbacks
        ):
            self.add_callback(GradientNormCallback())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as the Trainer does; `True` resumes from the newest checkpoint that was written to its end.

        Args:
            resume_from_checkpoint: as for any Trainer.
            *args: likewise.
            **kwargs: likewise.

        Returns:
            What the Trainer returns.

        Raises:
            ValueError: if there is no such checkpoint in `output_dir`.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no complete checkpoint in the output directory {self.args.output_dir!r}; train without "
                    "resume_from_checkpoint to start from the beginning."
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)


class RefinedScheduleTrainer(RefinedScheduleMixin, Trainer):
    """`Trainer`, recording gradient norms; `lr_scheduler_type="refined"` uses those of an earlier run.

    It takes the arguments of `Trainer`. See `GradientNormCallback` for what is recorded, `RefinedScheduleArguments` for
    the options.
    """
