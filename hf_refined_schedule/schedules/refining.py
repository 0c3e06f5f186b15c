"""From the sources of an earlier run to its refined schedule: the one route that training, commands and scripts take."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..norms.gradient_norms import GradientNorms, OptimizerFamily, UnfinishedRunError
from ..norms.message_text import quoted, shown
from ..norms.sources import EXPECTED_SOURCE, find_source, read_norms
from .health import DegenerateScheduleError, Health, check_health, check_shape
from .refined_schedule import RefinedSchedule
from .refinement_options import RefinementOptions
from .schedule_file import read_schedule

Source = str | os.PathLike[str] | GradientNorms
"""A path to the record of an earlier run, or norms in memory."""


ASSUMED_ADAM = (
    "The log does not say which optimizer it used; adam is assumed, because Trainer's default is AdamW. Pass --optimizer sgd "
    "for SGD."
)


class Refinement(NamedTuple):
    """A schedule with the norms it was made from, and how far it can be trusted."""

    schedule: RefinedSchedule
    runs: list[GradientNorms]
    """The norms of each source; empty for a schedule file."""
    health: Health | None
    """None for a schedule file, whose norms are not known."""

    def trainable_schedule(self, options: RefinementOptions) -> RefinedSchedule:
        """The schedule for training, with the doubts about it in its notes.

        Args:
            options: `allow_degenerate` accepts a degenerate schedule.

        Returns:
            The schedule.

        Raises:
            DegenerateScheduleError: if the schedule is degenerate and that is not allowed.
        """
        schedule = self.schedule
        degenerate = () if schedule.extension is not None else check_shape(schedule.grid)
        if degenerate and not options.allow_degenerate:
            raise DegenerateScheduleError(
                f"The schedule from {shown(schedule.source)} is degenerate: {'; '.join(degenerate)}. Use bounded_warmup, linear "
                "decay, a larger smoothing, or allow_degenerate=True."
            )
        notes = [*schedule.notes]
        doubts = [*degenerate, *(self.health.doubts if self.health else ())]
        if doubts:
            notes.append(f"It is doubtful: {'; '.join(doubts)}.")
        return replace(schedule, notes=tuple(notes))


def refine_sources(
    source: Source | Sequence[Source],
    optimizer: OptimizerFamily | None = None,
    options: RefinementOptions = RefinementOptions(),  # noqa: B008 - a frozen value
) -> Refinement:
    """Refine the schedule of an earlier run, and check how far it can be trusted.

    Args:
        source: what `load_norms` takes, a schedule file, or norms in memory; or a list of runs, to average.
        optimizer: the family of the optimizer to schedule; by default that of the source.
        options: how to refine.

    Returns:
        The schedule, the norms of each source, and the verdict.

    Raises:
        MissingSourceError: if nothing exists at a path.
        UnfinishedRunError: if a run covers too little of its planned updates and `pilot` is False.
        ValueError: as `load_norms` and `RefinedSchedule.from_norms`; for a schedule file, if it was made for another
            family of optimizers, or if an option for making a schedule is given beside it.
    """
    located = [one if isinstance(one, GradientNorms) else find_source(one) for one in listed_sources(source)]
    files = [one.path for one in located if not isinstance(one, GradientNorms) and one.kind == "schedule file"]
    if files and len(located) > 1:
        raise ValueError(f"{files[0]} is a schedule file, and stands alone; pass the runs that are to be averaged.")
    if files:
        return Refinement(_load_schedule_file(files[0], optimizer, options), [], None)
    runs = [
        one if isinstance(one, GradientNorms) else read_norms(one, column=options.column, norm=options.norm)
        for one in located
    ]
    if options.num_training_steps is not None:
        runs = [_with_length(run, options.num_training_steps) for run in runs]
    family = optimizer or _common_family(runs)
    schedule = RefinedSchedule.from_norms(runs, family or "adam", options)
    if family is None:
        schedule = replace(schedule, notes=(ASSUMED_ADAM, *schedule.notes))
    return Refinement(schedule, runs, check_health(runs, schedule))


def refine_or_pilot(
    source: Source | Sequence[Source],
    optimizer: OptimizerFamily | None = None,
    options: RefinementOptions = RefinementOptions(),  # noqa: B008 - a frozen value
) -> tuple[Refinement, RefinementOptions]:
    """Refine the schedule of a run, and take an unfinished run as a pilot.

    Args:
        source: as in `refine_sources`.
        optimizer: as in `refine_sources`.
        options: as in `refine_sources`.

    Returns:
        What `refine_sources` returns, and the options with which it did.

    Raises:
        ValueError: as `refine_sources`.
    """
    try:
        return refine_sources(source, optimizer, options), options
    except UnfinishedRunError:
        pilot = replace(options, pilot=True)
        return refine_sources(source, optimizer, pilot), pilot


def listed_sources(source: Source | Sequence[Source]) -> list[Source]:
    """One source or several, as a list.

    Args:
        source: what `refine_sources` takes.

    Returns:
        The sources.

    Raises:
        ValueError: if one of them is of another type.
    """
    sources: list[Source] = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    for one in sources:
        if not isinstance(one, str | os.PathLike | GradientNorms) or one == "":
            raise ValueError(f"refined_from is {quoted(source)}, which is not a run to refine from; {EXPECTED_SOURCE}.")
    return sources


def _load_schedule_file(path: Path, optimizer: OptimizerFamily | None, options: RefinementOptions) -> RefinedSchedule:
    """The schedule of a file, whose weights can no longer be changed."""
    beside = [name for name in options.as_keywords() if name != "allow_degenerate"]
    if beside:
        raise ValueError(
            f"{path} is a schedule with its weights baked in, so {' and '.join(beside)} cannot be set beside it; "
            "set it in 'hf-refined-schedule refine', or pass the norms themselves."
        )
    schedule = read_schedule(path)
    if schedule.weights is not None and optimizer not in (schedule.optimizer, None):
        raise ValueError(
            f"{path} was refined for {schedule.optimizer}, but the optimizer is of the {optimizer} family; refine it "
            f"again with --optimizer {optimizer}."
        )
    return schedule


def _with_length(run: GradientNorms, num_training_steps: int) -> GradientNorms:
    """The run as one of this many planned updates, whatever its source says."""
    if num_training_steps < run.last_step:
        raise ValueError(
            f"--num-training-steps (num_training_steps) is {num_training_steps}, but {shown(run.source)} has norms up to update {run.last_step}; "
            f"pass at least {run.last_step}, the updates of the full run."
        )
    return replace(run, num_training_steps=num_training_steps)


def _common_family(runs: Sequence[GradientNorms]) -> OptimizerFamily | None:
    """The family of the optimizers that the runs used; None if a Trainer's log does not say."""
    families = {run.optimizer for run in runs if run.optimizer is not None}
    if len(families) > 1:
        raise ValueError("The runs used optimizers of different families; pass --optimizer adam or --optimizer sgd.")
    if not families and not all(run.logged_by_trainer for run in runs):
        raise ValueError(
            f"{shown(runs[0].source)} does not say which optimizer it used; pass --optimizer adam or --optimizer sgd."
        )
    return families.pop() if families else None
