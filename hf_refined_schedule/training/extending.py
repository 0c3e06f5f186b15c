"""A schedule that goes on from a checkpoint of a Trainer."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..norms.loss_sources import load_learning_rates
from ..norms.message_text import quoted, shown
from ..norms.size_limits import MAX_STEPS, is_step_number
from ..norms.sources import TRAINER_STATE_NAME
from ..schedules.extension import SMALLEST_START, Decay, extended_multipliers
from ..schedules.refined_schedule import Extension, RefinedSchedule
from .checkpoints import last_complete_checkpoint

SCHEDULER_NAME = "scheduler.pt"

SAME_GROUPS = 1e-6
"""The difference up to which the multipliers of two groups of parameters are the same."""


class CheckpointRate(NamedTuple):
    """The learning rate at which a checkpoint goes on."""

    folder: Path
    step: int
    """Updates made."""
    peak: float
    """The learning rate of the run that its multipliers refer to, `learning_rate` of its `TrainingArguments`."""
    multiplier: float
    """Of the next update."""


class ExtendedRun(NamedTuple):
    """How a run goes on."""

    schedule: RefinedSchedule
    """Of the whole run: its own rates up to the checkpoint, then the new ones."""
    extension: Extension
    """Where it goes on, and to what end."""


def extend_run(
    checkpoint: str | os.PathLike[str],
    num_training_steps: int | None = None,
    *,
    cooldown: int | None = None,
    decay: Decay = "linear",
    rewarm: int = 0,
    learning_rate: float | None = None,
) -> ExtendedRun:
    """Make the schedule with which a run goes on after a checkpoint.

    The rate stays at that of the checkpoint, after a ramp of `rewarm` updates at `learning_rate`, and falls to 0 over the last
    `cooldown` updates. Up to the checkpoint the schedule holds the rates that the run logged, so that it may be resumed from
    an earlier checkpoint, too.

    Args:
        checkpoint: a `checkpoint-N`, or the `output_dir` with the checkpoints, of which the newest complete one is taken.
        num_training_steps: T, the updates of the whole run; by default those of the checkpoint and of `cooldown`.
        cooldown: updates of the cool-down, 0 for none; by default 20 % of T, or what is left.
        decay: the shape of the cool-down, `"linear"` or `"1-sqrt"`.
        rewarm: updates over which the rate rises or falls to `learning_rate`, for new data or after a cool-down.
        learning_rate: the rate after that, by default the peak of the run.

    Returns:
        The schedule, to be written as a schedule file for `refined_from`, and where it begins.

    Raises:
        ValueError: if the checkpoint does not say its rate, has cooled down and is not warmed up again, or the updates that
            are left do not suffice.

    Reference: arXiv 2405.18392, section 3, for the cool-down; arXiv 2403.08763 for warming up again.
    """
    if num_training_steps is not None and not is_step_number(num_training_steps):
        raise ValueError(
            f"--num-training-steps is {quoted(num_training_steps)}, but must be an integer from 1 to {MAX_STEPS:,}."
        )
    for name, length in (("--cooldown", cooldown or 0), ("--rewarm", rewarm)):
        if length < 0:
            raise ValueError(f"{name} is {length}, but must be a number of updates, 0 for none.")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise ValueError(f"--learning-rate is {learning_rate!r:.40}, but must be positive and finite.")
    if learning_rate is not None and not rewarm:
        raise ValueError(
            f"--learning-rate is {learning_rate!r:.40}, but nothing leads to it; pass --rewarm, the updates over which it is reached."
        )
    at = rate_at_checkpoint(checkpoint)
    if num_training_steps is None:
        if not cooldown:
            raise ValueError(
                "How far should the run go on? Pass --num-training-steps, the updates of the whole run, or --cooldown."
            )
        num_training_steps = at.step + rewarm + cooldown
    if at.multiplier < SMALLEST_START and not rewarm:
        raise ValueError(
            f"{shown(at.folder)} has cooled down: its learning rate is {at.multiplier * at.peak:.3g}, {at.multiplier:.1%} of the "
            f"peak {at.peak:.3g}; pass --rewarm, the updates to warm it up again, or extend an earlier checkpoint."
        )
    past, notes = _past_multipliers(at)
    level = 1.0 if learning_rate is None else learning_rate / at.peak
    grid = extended_multipliers(
        past, at.multiplier, num_training_steps, cooldown=cooldown, decay=decay, rewarm=rewarm, level=level
    )
    extension = Extension(at.step, num_training_steps, at.peak)
    schedule = RefinedSchedule(grid=grid, source=str(at.folder), weights=None, notes=notes, extension=extension)
    return ExtendedRun(schedule, extension)


def rate_at_checkpoint(checkpoint: str | os.PathLike[str]) -> CheckpointRate:
    """Read the learning rate at which a checkpoint goes on.

    Args:
        checkpoint: as in `extend_run`.

    Returns:
        The rate, with the checkpoint's folder and update.

    Raises:
        ValueError: if there is no checkpoint, or its scheduler does not say its rate.
    """
    folder = Path(checkpoint).expanduser()
    if not (folder / SCHEDULER_NAME).is_file():
        found = last_complete_checkpoint(folder)
        if found is None or not (Path(found) / SCHEDULER_NAME).is_file():
            raise ValueError(
                f"{shown(folder)} holds no {SCHEDULER_NAME}, and no complete checkpoint with one; pass the "
                "checkpoint-N itself, of a Trainer that saves its optimizer (save_only_model=False)."
            )
        folder = Path(found)
    state = _scheduler_state(folder)
    try:
        steps = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        peaks = np.array(state["base_lrs"], dtype=np.float64)
        rates = np.array(state["_last_lr"], dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            multipliers = rates[peaks > 0] / peaks[peaks > 0]
        valid = is_step_number(steps) and len(multipliers) > 0 and np.isfinite(multipliers).all() and (rates >= 0).all()
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(
            f"{shown(folder)} does not say its update and its learning rate; pass a complete checkpoint of a Trainer whose "
            "scheduler multiplies a peak rate, as all of transformers but reduce_lr_on_plateau and greedy do."
        )
    if np.ptp(multipliers) > SAME_GROUPS:
        raise ValueError(
            f"{shown(folder)} has a schedule of its own for each group of parameters, which one schedule cannot extend; pass a "
            "checkpoint of a run with one schedule."
        )
    return CheckpointRate(folder, steps, float(peaks[peaks > 0][0]), float(multipliers[0]))


def _scheduler_state(folder: Path) -> dict[str, Any]:
    try:
        state = torch.load(folder / SCHEDULER_NAME, map_location="cpu", weights_only=True)
    except Exception:  # whatever a damaged archive or pickle raises
        state = None
    if not isinstance(state, dict):
        raise ValueError(f"{shown(folder / SCHEDULER_NAME)} is damaged; pass another checkpoint.")
    return state


def _past_multipliers(at: CheckpointRate) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The multipliers of the updates up to the checkpoint, and what is to be said about them."""
    try:
        return load_learning_rates(at.folder, at.step) / at.peak, ()
    except ValueError:
        note = (
            "The run logged no learning rates, so those before the checkpoint are unknown: resume from no earlier one."
        )
        return np.full(at.step, at.multiplier), (note,)
