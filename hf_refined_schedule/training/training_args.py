"""`TrainingArguments` with the options of a refined schedule, for scripts that parse them from the command line."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..norms.sources import WHAT_TO_PASS
from .registration import register
from .scheduler import REFINED_FROM_VARIABLE

register()

SCHEDULER_KWARGS = {"refined_from": "refined_from", "refined_smoothing": "smoothing"}
"""The options here that are written into `lr_scheduler_kwargs`, and their names there."""


@dataclass
class RefinedScheduleArguments(TrainingArguments):
    """`TrainingArguments`, and where a refined schedule comes from.

        --lr_scheduler_type refined --refined_from runs/baseline

    The options are written into `lr_scheduler_kwargs`, so that a stock `Trainer` obeys them; also one that is set later, as
    a hyperparameter search does.

    Args:
        refined_from: the run to refine the schedule from, as `get_refined_schedule` takes it.
        refined_smoothing: tau, the median filter's window as a fraction of the run.
        record_gradient_norms: whether `RefinedScheduleTrainer` records this run.

    Raises:
        ValueError: if `refined_from` is missing with `lr_scheduler_type="refined"`, given without it, or contradicts
            `lr_scheduler_kwargs`.
    """

    refined_from: str | None = field(
        default=None,
        metadata={
            "help": "The run that --lr_scheduler_type refined is made from: its output_dir or gradient_norms.jsonl."
        },
    )
    refined_smoothing: float | None = field(
        default=None,
        metadata={
            "help": "The median filter's window as a fraction of the run (0.1), for --lr_scheduler_type refined."
        },
    )
    record_gradient_norms: bool = field(
        default=True, metadata={"help": "Leave gradient_norms.jsonl in output_dir, to refine a schedule from this run."}
    )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "refined_from" and isinstance(value, os.PathLike):
            value = os.fspath(value)  # JSON has no paths
        super().__setattr__(name, value)
        if name in SCHEDULER_KWARGS and vars(self).get("_options_written"):
            kwargs = {key: old for key, old in self.lr_scheduler_kwargs.items() if key != SCHEDULER_KWARGS[name]}
            self.lr_scheduler_kwargs = kwargs if value is None else {**kwargs, SCHEDULER_KWARGS[name]: value}

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: getattr(self, name) for name in SCHEDULER_KWARGS if getattr(self, name) is not None}
        if self.lr_scheduler_type != "refined":
            if given:
                raise ValueError(
                    f"{' and '.join(given)} cannot be used by lr_scheduler_type={self.lr_scheduler_type.value!r}; pass "
                    "--lr_scheduler_type refined, or leave it out."
                )
            return
        kwargs = self.lr_scheduler_kwargs
        kwargs = dict(json.loads(kwargs) if isinstance(kwargs, str) else kwargs or {})
        for name, value in given.items():
            if kwargs.setdefault(SCHEDULER_KWARGS[name], value) != value:
                raise ValueError(
                    f"{name} is {value!r}, but {SCHEDULER_KWARGS[name]} in lr_scheduler_kwargs is "
                    f"{kwargs[SCHEDULER_KWARGS[name]]!r}; pass one of them."
                )
        if kwargs.get("refined_from") is None and REFINED_FROM_VARIABLE not in os.environ:
            raise ValueError(
                f"lr_scheduler_type='refined' needs --refined_from, the run to refine it from: {WHAT_TO_PASS}."
            )
        self.lr_scheduler_kwargs = kwargs
        self._options_written = True
