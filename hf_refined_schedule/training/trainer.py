"""Trainers that record gradient norms and accept the refined schedule."""

from typing import TYPE_CHECKING, Any

from transformers import Trainer

from .callback import GradientNormCallback
from .checkpoints import last_complete_checkpoint
from .model_card import add_schedule_section
from .registration import register

register()

# At run time the mixin has no base. A type checker needs the class that provides `args` and `train`.
if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class RefinedScheduleMixin(_Base):
    """Makes any Trainer record its gradient norms, unless its arguments have `record_gradient_norms=False`.

    The model card of a refined run says which schedule it had.

        class RefinedSFTTrainer(RefinedScheduleMixin, SFTTrainer):
            pass

    List it before the Trainer among the bases. Its arguments are those of the Trainer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        callbacks = self.callback_handler.callbacks
        if getattr(self.args, "record_gradient_norms", True) and not any(
            isinstance(callback, GradientNormCallback) for callback in callbacks
        ):
            self.add_callback(GradientNormCallback())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, but resume from the newest complete checkpoint for `True`.

        Args:
            resume_from_checkpoint: a path, or `True` for the newest complete checkpoint in `output_dir`.
            *args: passed to the Trainer.
            **kwargs: passed to the Trainer.

        Returns:
            The Trainer's result.

        Raises:
            ValueError: if `output_dir` holds no complete checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(
                str(self.args.output_dir), save_on_each_node=self.args.save_on_each_node
            )
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no complete checkpoint in the output directory {self.args.output_dir!r}; train without "
                    "resume_from_checkpoint to start from the beginning."
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's model card and, after a refined run, which schedule it had, from which run, and the verdict.

        `push_to_hub` calls this, too.

        Args:
            *args: passed to the Trainer.
            **kwargs: passed to the Trainer.
        """
        super().create_model_card(*args, **kwargs)
        add_schedule_section(self)


class RefinedScheduleTrainer(RefinedScheduleMixin, Trainer):
    """A `Trainer` that records gradient norms and accepts `lr_scheduler_type="refined"`.

    Its arguments are those of `Trainer`. `GradientNormCallback` describes the recording, `RefinedScheduleArguments` the
    options.
    """
