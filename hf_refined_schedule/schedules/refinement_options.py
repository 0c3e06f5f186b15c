"""The options for refining a schedule, declared and validated once."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Self

from ..norms.message_text import quoted
from ..norms.size_limits import MAX_STEPS, is_step_number
from ..theory.refinement import DEFAULT_SMOOTHING, NormKind, RisingNorms, checked_limit, checked_smoothing, weight_power


@dataclass(frozen=True)
class RefinementOptions:
    """How a schedule is refined. `None` means: not given, use the default.

    The command line, `lr_scheduler_kwargs`, `RefinedScheduleArguments` and the launcher offer every field of this class.
    The metadata of a field is its help text; its name in `lr_scheduler_kwargs` where `get_refined_schedule` already has a
    parameter of that name; and whether it concerns training alone.

    Raises:
        ValueError: if a value is out of range.
    """

    column: str | None = field(
        default=None,
        metadata={"help": "the norm's name in a log (default: the column that is named like a gradient norm)"},
    )
    norm: NormKind | None = field(
        default=None,
        metadata={
            "help": "the norm to use instead of the optimizer's own; which norm a column is, if its name does not say"
        },
    )
    power: float | None = field(
        default=None, metadata={"help": "the exponent of the weights, negative (adam: -1, sgd: -2)"}
    )
    smoothing: float | None = field(
        default=None,
        metadata={"help": f"the median filter's window as a fraction of the run (default: {DEFAULT_SMOOTHING})"},
    )
    rising_norms: RisingNorms | None = field(
        default=None,
        metadata={
            "help": "ignore: compute weights from the running minimum, so that rising norms do not make the rate fall "
            "early (default: keep)"
        },
    )
    bounded_warmup: bool = field(
        default=False,
        metadata={
            "help": "linear decay after the warm-up that the norms ask for, kept between a twentieth and a fifth of the run; rising norms are "
            "ignored"
        },
    )
    max_grad_norm: float | None = field(
        default=None,
        metadata={
            "help": "for SGD: the L2 norm to which the run to come clips its gradients; its rates are divided by the clip "
            "factors. 0: no clipping (default: that of the source)"
        },
    )
    pilot: bool = field(
        default=False,
        metadata={"help": "accept an unfinished run; its last smoothed norm is repeated to the end"},
    )
    num_training_steps: int | None = field(
        default=None,
        metadata={
            "help": "the updates of the full run, where the source does not say or says otherwise; with pilot, a shorter run "
            "counts as its first part",
            "keyword": "pilot_num_training_steps",
        },
    )
    allow_degenerate: bool = field(
        default=False,
        metadata={"help": "train with a schedule that the check calls degenerate", "training_only": True},
    )

    def __post_init__(self) -> None:
        weight_power("l1" if self.norm is None else self.norm, self.power)
        if self.smoothing is not None:
            checked_smoothing(self.smoothing)
        if self.rising_norms not in ("keep", "ignore", None):
            raise ValueError(f'rising_norms is {quoted(self.rising_norms)}, but must be "keep" or "ignore".')
        if self.bounded_warmup and (self.rising_norms == "keep" or self.max_grad_norm):
            raise ValueError(
                "bounded_warmup ignores rising norms and clipping; leave out --rising-norms keep (rising_norms) and --max-grad-norm "
                "(max_grad_norm) beside it."
            )
        if self.max_grad_norm is not None:
            checked_limit(self.max_grad_norm)
        if not isinstance(self.column, str | None):
            raise ValueError(f"column is {quoted(self.column)}, but must be the name of a column of the log.")
        for name in ("bounded_warmup", "pilot", "allow_degenerate"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {quoted(getattr(self, name))}, but must be true or false.")
        if self.num_training_steps is not None and not is_step_number(self.num_training_steps):
            raise ValueError(
                f"num_training_steps is {quoted(self.num_training_steps)}, but must be an integer from 1 to {MAX_STEPS:,}, the "
                "updates of the full run."
            )

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> Self:
        """Options from `lr_scheduler_kwargs`; a value of None counts as not given.

        Args:
            keywords: option values by keyword.

        Returns:
            The options.

        Raises:
            ValueError: for an unknown keyword, naming the nearest known one, or a value out of range.
        """
        names = {keyword_of(option): option.name for option in fields(cls)}
        for keyword in keywords:
            if keyword not in names:
                known = ["refined_from", "min_lr_ratio", *names]
                near = get_close_matches(keyword, known, n=1)
                hint = f"did you mean {quoted(near[0])}?" if near else f"pass one of {', '.join(known)}."
                raise ValueError(f"The schedule 'refined' has no option {quoted(keyword)}; {hint}")
        return cls(**{names[keyword]: value for keyword, value in keywords.items() if value is not None})

    def as_keywords(self) -> dict[str, Any]:
        """The options that differ from their defaults, as `lr_scheduler_kwargs` holds them.

        Returns:
            JSON values by keyword.
        """
        return {
            keyword_of(option): getattr(self, option.name)
            for option in fields(self)
            if getattr(self, option.name) != option.default
        }


def keyword_of(option: Field[Any]) -> str:
    """The name of an option in `lr_scheduler_kwargs`.

    Args:
        option: a field of `RefinementOptions`.

    Returns:
        The name.
    """
    return str(option.metadata.get("keyword", option.name))
