"""`lr_scheduler_kwargs` for the schedule `refined`: from text or a dictionary to values that JSON can hold."""

import json
import os
from collections.abc import Mapping
from typing import Any

from ..norms.gradient_norms import GradientNorms
from ..schedules.refinement_options import RefinementOptions

EXAMPLE = """--lr_scheduler_kwargs '{"refined_from": "runs/baseline"}'"""

NEEDS_SOURCE = (
    "needs the run to refine it from: refined_from in lr_scheduler_kwargs, --refined_from of RefinedScheduleArguments, or "
    "--refined-from of 'hf-refined-schedule launch'"
)
"""The part of an error message that names every way to give the source."""


def parse_scheduler_kwargs(kwargs: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Read `lr_scheduler_kwargs` as `TrainingArguments` accepts them.

    Args:
        kwargs: a dictionary, JSON text, or None.

    Returns:
        A dictionary of the options, in which paths are text.

    Raises:
        ValueError: if the text is not a JSON object, an option does not exist, or the source is `GradientNorms`.

    Example:
        >>> parse_scheduler_kwargs('{"refined_from": "runs/baseline"}')
        {'refined_from': 'runs/baseline'}
    """
    options: Any = kwargs or {}
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except (ValueError, RecursionError):
            options = None
    if not isinstance(options, Mapping):
        raise ValueError(
            f"lr_scheduler_kwargs is {kwargs!r:.80}, but must be a JSON object with names in double quotes; pass {EXAMPLE}."
        )
    options = {name: _as_text(value) for name, value in options.items()}
    # None counts as not given: only the names are checked, because arguments may still join the values.
    RefinementOptions.from_keywords({name: None for name in options if name not in ("refined_from", "min_lr_ratio")})
    return options


def _as_text(value: Any) -> Any:
    """A path as text, because arguments are written as JSON to checkpoints and trackers.

    Raises:
        ValueError: if the value is `GradientNorms`.
    """
    if isinstance(value, GradientNorms):
        raise ValueError(
            "refined_from in lr_scheduler_kwargs is GradientNorms, which arguments cannot hold as JSON; pass the path of the run, or "
            "create the scheduler with get_refined_schedule."
        )
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_as_text(one) for one in value]
    return value
