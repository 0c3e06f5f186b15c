"""What to do with a verdict: the flags of the next run."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..theory.classical import WARMUP
from ..theory.refinement import peak_position
from .health import LATE_PEAK, Health, check_health, check_shape
from .refined_schedule import RefinedSchedule
from .refinement_options import RefinementOptions
from .refining import Refinement


def advise(refinement: Refinement, sources: Sequence[str], options: RefinementOptions) -> str:
    """The flags for the next run.

    A refined schedule is advised where its verdict supports it. Where rising norms are the only doubt, it is advised with
    them ignored. Otherwise the advice is linear decay, with the warm-up that the norms ask for.

    Args:
        refinement: the schedule of a run, with its verdict.
        sources: the paths that it was refined from, as the user gave them.
        options: how it was refined.

    Returns:
        One line.
    """
    schedule, health = refinement.schedule, refinement.health
    if health is None or health.verdict == "worth a refined run":
        return _refined_flags(refinement, schedule, sources, options)
    ignoring = _ignoring_rising_norms(refinement, options)
    if health.verdict == "doubtful" and ignoring is not None:
        return _refined_flags(refinement, ignoring, sources, replace(options, rising_norms="ignore"))
    warmup = _derived_warmup(refinement, options)
    if warmup == 0:
        return "--lr_scheduler_type linear, without warm-up"
    return f"--lr_scheduler_type linear --warmup_steps {warmup:g}, a warm-up of {warmup:.0%}"


def _refined_flags(
    refinement: Refinement, schedule: RefinedSchedule, sources: Sequence[str], options: RefinementOptions
) -> str:
    keywords = {"refined_from": sources[0] if len(sources) == 1 else list(sources), **options.as_keywords()}
    flags = f"--lr_scheduler_type refined --lr_scheduler_kwargs {shlex.quote(json.dumps(keywords))}"
    if any(run.steps[0] > 1 for run in refinement.runs):  # the norms of the start are not known
        flags += f" --warmup_steps {WARMUP:g}"
    return f"{flags}, with a peak learning rate {schedule.best_peak_ratio:.2f} times the best for linear decay"


def _ignoring_rising_norms(refinement: Refinement, options: RefinementOptions) -> RefinedSchedule | None:
    """The schedule with rising norms ignored, if that is free of doubts."""
    if options.rising_norms is not None:
        return None
    schedule = RefinedSchedule.from_norms(
        refinement.runs, refinement.schedule.optimizer, replace(options, rising_norms="ignore")
    )
    health: Health = check_health(refinement.runs, schedule)
    return None if health.verdict in ("doubtful", "degenerate") else schedule


def _derived_warmup(refinement: Refinement, options: RefinementOptions) -> float:
    """Where the schedule peaks with rising norms ignored, in whole per cent; the usual 5 % where it is degenerate or peaks late."""
    schedule = RefinedSchedule.from_norms(
        refinement.runs, refinement.schedule.optimizer, replace(options, rising_norms="ignore")
    )
    peak = peak_position(schedule.grid)
    if peak > LATE_PEAK or check_shape(schedule.grid):
        return WARMUP
    return float(np.ceil(100 * peak) / 100)
