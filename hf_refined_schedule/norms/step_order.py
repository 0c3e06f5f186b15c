"""The entries of a log in the order of the run: resumed runs, steps counted within an epoch, and runs in one file."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .size_limits import MAX_STEPS

Steps = NDArray[np.int64]
Epochs = NDArray[np.float64]


ENTRIES_COUNTED = "no column of steps, so entries are counted, and an early end cannot be seen"
"""The remark on a log without steps."""


class RestartError(ValueError):
    """The steps of a log begin again."""


class Entries(NamedTuple):
    """The entries of a log that count, in the order of their steps."""

    positions: NDArray[np.intp]
    """Where they are in the log."""
    steps: Steps
    """Their updates, 1-based and increasing."""
    remark: str | None = None
    """What was found, if it is not a plain log of one run."""


def describe_steps(steps: Steps, total_steps: int, remarks: Sequence[str]) -> list[str]:
    """The spacing of entries and the part of the run that they cover, in two clauses.

    Args:
        steps: the step of each entry, increasing, shape (n,).
        total_steps: T.
        remarks: those on the log.

    Returns:
        Clauses about updates, or about entries where `ENTRIES_COUNTED` is a remark.
    """
    every = round(float(np.median(np.diff(steps)))) if len(steps) > 1 else 1
    unit = "entry" if ENTRIES_COUNTED in remarks else "update"
    spacing = f"of every {unit}" if every == 1 else f"one every {every} updates"
    return [spacing, f"to {unit} {steps[-1]} of {total_steps}"]


def order_by_step(steps: Steps, epochs: Epochs) -> Entries:
    """Order the entries of a log by their steps.

    The last entry counts where a step was logged twice. Where steps go back and continue, a run was resumed from a
    checkpoint, and its entries replace all earlier ones from that step on. Where steps begin again, they are counted
    within an epoch, if the epochs agree; otherwise the log holds two runs. A log in reverse or random order is sorted.

    Args:
        steps: the step of each entry, 1-based, in the order of the log, shape (n,).
        epochs: its epoch, NaN where there is none, shape (n,).

    Returns:
        The entries that count.

    Raises:
        RestartError: if the log holds two runs.
    """
    if len(steps) < 2:
        return Entries(np.arange(len(steps)), steps)
    change = np.diff(steps)
    if (change <= 0).all() and (change < 0).any():
        positions = np.arange(len(steps))[::-1]
        return _without_replaced(positions, steps[positions])
    if (change < 0).sum() > len(steps) / 4 and len(np.unique(steps)) == len(steps):
        positions = np.argsort(steps)
        return Entries(positions, steps[positions])
    restarts = _restarts(steps, epochs)
    if len(restarts) == 0:
        return _without_replaced(np.arange(len(steps)), steps)
    first = restarts[0]
    offsets = _epoch_offsets(restarts, steps, epochs)
    if offsets is None or len(_restarts(steps + offsets, np.full(len(steps), np.nan))):
        raise RestartError(
            f"step {steps[first]} follows step {steps[first - 1]} at entry {first + 1}, so the log holds two runs, or steps "
            "within an epoch; pass the log of one run, or steps that count through it"
        )
    entries = _without_replaced(np.arange(len(steps)), steps + offsets)
    return entries._replace(remark=f"steps counted within epochs of {steps.max()}")


def order_by_entry(numbers: Steps, epochs: Epochs) -> Entries:
    """Count the entries of a log without steps; where epochs go back, the run was resumed.

    Args:
        numbers: the number of each entry, 1-based and increasing, shape (n,).
        epochs: its epoch, NaN where there is none, shape (n,).

    Returns:
        The entries that count, and their numbers without those of the others.

    Raises:
        RestartError: if the epochs begin again, because the log holds two runs.
    """
    if len(numbers) < 2 or not np.isfinite(epochs).all():
        return Entries(np.arange(len(numbers)), numbers, ENTRIES_COUNTED)
    back = np.flatnonzero(np.diff(epochs) < 0) + 1
    restarts = back[epochs[back] <= epochs[0]]
    if len(restarts):
        first = restarts[0]
        raise RestartError(
            f"epoch {epochs[first]:g} follows epoch {epochs[first - 1]:g} at entry {first + 1}, so the log holds two runs; "
            "pass the log of one run"
        )
    kept = np.append(epochs[:-1] <= _lowest_after(epochs), True)
    return Entries(np.flatnonzero(kept), (numbers - np.cumsum(~kept))[kept], ENTRIES_COUNTED)


def _without_replaced(positions: NDArray[np.intp], steps: Steps) -> Entries:
    """The entries after which no entry of the same or an earlier step follows."""
    kept = np.append(steps[:-1] < _lowest_after(steps), True)
    num_replaced = 0 if kept.all() else len(np.setdiff1d(steps[~kept], steps[kept]))
    remark = f"steps dropped where a resumed run goes back: {num_replaced}" if num_replaced else None
    return Entries(positions[kept], steps[kept], remark)


def _lowest_after(values: NDArray[np.float64] | Steps) -> NDArray[np.float64] | Steps:
    """For each value but the last, the lowest of all that follow."""
    lowest: NDArray[np.float64] | Steps = np.minimum.accumulate(values[::-1])[::-1][1:]
    return lowest


def _restarts(steps: Steps, epochs: Epochs) -> NDArray[np.intp]:
    """The positions at which steps begin again: not more than one logging interval after zero.

    A single entry before a lower step is one that was written late, not a run.
    """
    if (steps == steps[0]).all() and (np.diff(epochs) > 0).all():  # one entry in each epoch
        return np.arange(1, len(steps))
    change = np.append(np.diff(steps), 0)
    back = np.flatnonzero(change < 0) + 1
    interval = np.where(change[back] > 0, change[back], np.median(change[change > 0]) if (change > 0).any() else 1)
    num_before = np.diff(back, prepend=0)
    return back[(steps[back] <= interval) & (num_before > 1)]


def _epoch_offsets(restarts: NDArray[np.intp], steps: Steps, epochs: Epochs) -> Steps | None:
    """What to add to steps that are counted within an epoch; None where the epochs do not say so."""
    beginnings = np.concatenate(([0], restarts))
    numbers = np.floor(epochs[beginnings])
    if not np.isfinite(epochs).all() or (np.diff(numbers) < 1).any() or numbers[-1] - numbers[0] > MAX_STEPS:
        return None
    lengths = np.diff(beginnings, append=len(steps))
    return np.repeat((numbers - numbers[0]).astype(np.int64) * steps.max(), lengths)
