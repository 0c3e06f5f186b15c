"""Trainers that record gradient norms and know the refined schedule."""

from typing import Any

from transformers import Trainer

from .callback import GradientNormCallback
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


class RefinedScheduleTrainer(RefinedScheduleMixin, Trainer):
    """`Trainer`, recording gradient norms; `lr_scheduler_type="refined"` uses those of an earlier run.

    It takes the arguments of `Trainer`. See `GradientNormCallback` for what is recorded, `RefinedScheduleArguments` for
    the options.
    """
