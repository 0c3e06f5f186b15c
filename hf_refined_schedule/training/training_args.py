"""`TrainingArguments` with the options of a refined schedule, for scripts that parse them from the command line."""

import os
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from ..norms.sources import EXPECTED_SOURCE
from ..schedules.refinement_options import RefinementOptions, keyword_of
from .registration import register
from .scheduler import REFINED_FROM_VARIABLE
from .scheduler_kwargs import NEEDS_SOURCE, parse_scheduler_kwargs

register()

_OPTION_KEYWORDS = {f"refined_{keyword_of(option)}": keyword_of(option) for option in fields(RefinementOptions)}

KEYWORDS = {"refined_from": "refined_from", **_OPTION_KEYWORDS}
"""The arguments that are written into `lr_scheduler_kwargs`, and their keywords there."""

_types = get_type_hints(RefinementOptions)

_OptionFields = make_dataclass(
    "_OptionFields",
    [
        (
            f"refined_{keyword_of(option)}",
            _types[option.name],
            field(
                default=option.default,
                metadata={"help": f"For --lr_scheduler_type refined: {option.metadata['help']}."},
            ),
        )
        for option in fields(RefinementOptions)
    ],
)


@dataclass
class RefinedScheduleArguments(_OptionFields, TrainingArguments):  # type: ignore[misc, valid-type]  # fields made above
    """`TrainingArguments`, and how a refined schedule is made.

        --lr_scheduler_type refined --refined_from runs/baseline

    There is an argument for each field of `RefinementOptions`: `refined_column`, `refined_norm`, `refined_power`,
    `refined_smoothing`, `refined_rising_norms`, `refined_bounded_warmup`, `refined_max_grad_norm`, `refined_pilot`,
    `refined_pilot_num_training_steps` and `refined_allow_degenerate`. They are written into `lr_scheduler_kwargs`, so that a stock `Trainer` obeys them, also when
    they are set later, as a hyperparameter search does.

    Args:
        refined_from: the run to refine the schedule from, as `get_refined_schedule` takes it.
        record_gradient_norms: whether `RefinedScheduleTrainer` records this run.

    Raises:
        ValueError: if `refined_from` is missing with `lr_scheduler_type="refined"`; if an argument for a refined schedule
            is given with another scheduler, contradicts `lr_scheduler_kwargs` or is out of range.
    """

    refined_from: str | None = field(
        default=None,
        metadata={
            "help": "For --lr_scheduler_type refined: the run to refine from, its output_dir or gradient_norms.jsonl."
        },
    )
    record_gradient_norms: bool = field(
        default=True, metadata={"help": "Leave gradient_norms.jsonl in output_dir, to refine a schedule from this run."}
    )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "refined_from" and isinstance(value, os.PathLike):
            value = os.fspath(value)  # JSON has no paths
        previous_type = vars(self).get("lr_scheduler_type")
        super().__setattr__(name, value)
        if not vars(self).get("_is_initialized"):
            return
        if name == "lr_scheduler_type":
            self._swap_scheduler_kwargs(previous_type, value)
        elif name in KEYWORDS:
            if self.lr_scheduler_type == "refined" and (kwargs := self._refined_kwargs()) is not None:
                self._options.clear()
                self._options.update(kwargs)
            self._options.pop(KEYWORDS[name], None)
            if value != _default_of(name):
                self._options[KEYWORDS[name]] = value
            if self.lr_scheduler_type == "refined":
                self.lr_scheduler_kwargs = dict(self._options)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._options: dict[str, Any] = {}
        self._is_initialized = True
        given = {name: getattr(self, name) for name in KEYWORDS if getattr(self, name) != _default_of(name)}
        if self.lr_scheduler_type != "refined":
            if given:
                raise ValueError(
                    f"{' and '.join(given)} cannot be used by lr_scheduler_type={SchedulerType(self.lr_scheduler_type).value!r}; pass "
                    "--lr_scheduler_type refined, or leave it out."
                )
            return
        kwargs = self._scheduler_kwargs()
        for name, value in given.items():
            if kwargs.setdefault(KEYWORDS[name], value) != value:
                raise ValueError(
                    f"{name} is {value!r}, but {KEYWORDS[name]} in lr_scheduler_kwargs is "
                    f"{kwargs[KEYWORDS[name]]!r}; pass one of them."
                )
        if kwargs.get("refined_from") is None and REFINED_FROM_VARIABLE not in os.environ:
            raise ValueError(f"lr_scheduler_type='refined' {NEEDS_SOURCE}; {EXPECTED_SOURCE}.")
        RefinementOptions.from_keywords(
            {key: value for key, value in kwargs.items() if key not in ("refined_from", "min_lr_ratio")}
        )
        self.lr_scheduler_kwargs = kwargs
        self._options = dict(kwargs)

    def _swap_scheduler_kwargs(self, previous: SchedulerType | str | None, chosen: SchedulerType | str) -> None:
        """Keep the options of a refined schedule while another one is chosen, as by a trial of a search.

        A trial may set `lr_scheduler_kwargs` before or after the type. Those of another schedule are left to it.
        """
        if (previous == "refined") == (chosen == "refined"):
            return
        kwargs = self._refined_kwargs()
        if chosen != "refined" and kwargs is not None:
            self._options, self.lr_scheduler_kwargs = kwargs, {}
        elif chosen == "refined" and (kwargs is None or "refined_from" not in kwargs):
            self.lr_scheduler_kwargs = dict(self._options)

    def _refined_kwargs(self) -> dict[str, Any] | None:
        """A copy of `lr_scheduler_kwargs`, or None if they are those of another schedule, which may share names: both have a `power`."""
        try:
            kwargs = self._scheduler_kwargs()
        except ValueError:
            return None
        return kwargs if "refined_from" in kwargs or REFINED_FROM_VARIABLE in os.environ else None

    def _scheduler_kwargs(self) -> dict[str, Any]:
        """A copy of `lr_scheduler_kwargs`, which the command line gives as JSON text."""
        return parse_scheduler_kwargs(self.lr_scheduler_kwargs)


def _default_of(name: str) -> Any:
    return RefinedScheduleArguments.__dataclass_fields__[name].default
