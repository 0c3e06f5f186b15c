"""From the sources of an earlier run to its refined schedule: the one route that training, commands and scripts take."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..norms.gradient_norms import GradientNorms
from ..norms.sources import WHAT_TO_PASS, find_source_file, is_schedule_file, load_norms
from ..theory.refinement import NormKind, RisingNorms
from .health import DegenerateScheduleError, check_health, check_shape
from .refined_schedule import OptimizerFamily, RefinedSchedule
from .schedule_file import read_schedule

Source = str | os.PathLike[str] | GradientNorms
"""What a schedule is refined from: where norms lie, or norms themselves."""


def listed_sources(source: Source | Sequence[Source]) -> list[Source]:
    """One source or several, as a list.

    Args:
        source: what `load_schedule` takes.

    Returns:
        The sources.

    Raises:
        ValueError: if one of them is of another type.
    """
    several = isinstance(source, Sequence) and not isinstance(source, str)
    sources = list(source) if several else [source]
    for one in sources:
        if not isinstance(one, (str, os.PathLike, GradientNorms)):
            raise ValueError(f"refined_from is {source!r:.80}, which is no run to refine from; {WHAT_TO_PASS}.")
    return sources


def load_schedule(
    source: Source | Sequence[Source],
    optimizer: OptimizerFamily,
    *,
    column: str | None = None,
    norm: NormKind | None = None,
    power: float | None = None,
    smoothing: float | None = None,
    rising_norms: RisingNorms | None = None,
    allow_degenerate: bool = False,
) -> RefinedSchedule:
    """The refined schedule of a source, as training uses it; what is doubtful about it is in its notes.

    Args:
        source: what `load_norms` takes, a schedule file, or norms; or several runs, whose smoothed norms are averaged.
        optimizer: the family of the optimizer to schedule.
        column: as in `load_norms`.
        norm: the norm to use instead of the optimizer's own.
        power: the exponent to use instead of the optimizer's own.
        smoothing: tau, by default 0.1.
        rising_norms: as in `refine_schedule`, by default `"keep"`.
        allow_degenerate: take a schedule that hardly trains but for a moment, too.

    Returns:
        The schedule.

    Raises:
        DegenerateScheduleError: for such a schedule, unless it is allowed.
        ValueError: as `load_norms` and `RefinedSchedule.from_norms`; for a schedule file, if it was made for other
            optimizers, or if another argument on its making is given beside it.
        MissingSourceError: if there is nothing at `source`.
    """
    making = {"norm": norm, "power": power, "smoothing": smoothing, "rising_norms": rising_norms}
    located = [one if isinstance(one, GradientNorms) else find_source_file(one) for one in listed_sources(source)]
    files = [one for one in located if not isinstance(one, GradientNorms) and is_schedule_file(one)]
    if files and len(located) > 1:
        raise ValueError(f"{files[0]} is a schedule file, and stands alone; pass the runs that are to be averaged.")
    if files:
        beside = [name for name, value in {"column": column, **making}.items() if value is not None]
        schedule, doubts = _baked_in(files[0], optimizer, beside), []
    else:
        runs = [one if isinstance(one, GradientNorms) else load_norms(one, column=column, norm=norm) for one in located]
        schedule = RefinedSchedule.from_norms(runs, optimizer, **making)
        doubts = check_health(runs, schedule).doubts
    degenerate = check_shape(schedule.multipliers)
    if degenerate and not allow_degenerate:
        raise DegenerateScheduleError(
            f"The schedule from {schedule.source} is degenerate: {'; '.join(degenerate)}. Use linear decay, a larger smoothing, "
            "or allow_degenerate=True."
        )
    if degenerate or doubts:
        schedule = replace(schedule, notes=(*schedule.notes, f"It is doubtful: {'; '.join([*degenerate, *doubts])}."))
    return schedule


def _baked_in(path: Path, optimizer: OptimizerFamily, beside: list[str]) -> RefinedSchedule:
    """The schedule of a schedule file, whose weights cannot be changed any more."""
    if beside:
        raise ValueError(
            f"{path} is a schedule with its weights baked in, so {' and '.join(beside)} cannot be set beside it; "
            "set it in 'hf-refined-schedule refine', or pass the norms themselves."
        )
    schedule = read_schedule(path)
    if schedule.optimizer != optimizer:
        raise ValueError(
            f"{path} was refined for {schedule.optimizer}, but the optimizer is of the {optimizer} family; refine it "
            f"again with --optimizer {optimizer}."
        )
    return schedule
