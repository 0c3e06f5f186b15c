"""Logged losses beside the learning rates of every update: checked, without the warm-up, averaged where there are many."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

FEWEST_LOSSES = 15
"""A law has five to seven parameters; fewer losses than this say nothing about them."""

MOST_LOSSES = 200
"""Neighbouring losses of a longer log are averaged: the law is smooth, and their mean is less noisy."""

SKIPPED = 0.1
"""The losses of this part of a run are left out, and those of twice its warm-up: the law does not describe a start."""


class CheckedLog(NamedTuple):
    """One run: its learning rates from the first update on, and the losses that it logged."""

    rates: Array
    """Learning rates of every update, shape (T,)."""
    updates: NDArray[np.int64]
    """0-based updates of the losses, rising, shape (n,)."""
    losses: Array
    """Shape (n,)."""

    def before(self, update: int) -> "CheckedLog":
        """The log without the losses from `update` on."""
        kept = self.updates < update
        return CheckedLog(self.rates, self.updates[kept], self.losses[kept])

    def after(self, update: int) -> "CheckedLog":
        """The log with the losses from `update` on."""
        kept = self.updates >= update
        return CheckedLog(self.rates, self.updates[kept], self.losses[kept])


def checked_logs(learning_rates: Any, steps: Any, losses: Any) -> list[CheckedLog]:
    """Logs that a law can be fitted to, of one run or of several.

    Args:
        learning_rates: of every update from the first, warm-up included, shape (T,); or a list of such arrays.
        steps: the 1-based updates at which losses were logged, shape (n,); or a list.
        losses: shape (n,); or a list.

    Returns:
        One log for each run, without the warm-up and the first losses.

    Raises:
        ValueError: if they do not belong together or hold nothing that a law could be fitted to.
    """
    if not _are_several(learning_rates):
        return [_checked_log(learning_rates, steps, losses, "The log")]
    if not (_are_several(steps) and _are_several(losses) and len(learning_rates) == len(steps) == len(losses)):
        raise ValueError(
            f"learning_rates are of {len(learning_rates)} runs, but steps and losses are not; pass three lists of equal length."
        )
    if not len(learning_rates):
        raise ValueError("learning_rates is an empty list; pass the log of at least one run.")
    return [
        _checked_log(*arrays, f"Log {number}" if len(losses) > 1 else "The log")
        for number, arrays in enumerate(zip(learning_rates, steps, losses, strict=True), start=1)
    ]


def _are_several(values: Any) -> bool:
    """Whether these are the arrays of several runs; an empty list counts as none of them."""
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and all(isinstance(item, Sequence | np.ndarray) for item in values)
    )


def _checked_log(learning_rates: ArrayLike, steps: ArrayLike, losses: ArrayLike, name: str) -> CheckedLog:
    rates = checked_rates(learning_rates)
    numbers = _numbers(steps, "steps")
    values = _numbers(losses, "losses")
    if len(numbers) != len(values):
        raise ValueError(f"{name} has {len(numbers)} steps and {len(values)} losses; pass one step for each loss.")
    _check_steps(numbers, len(rates), name)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(
            f"{name} has a loss of {values[bad[0]]:g} at step {numbers[bad[0]]:.0f}; losses must be finite and positive: "
            "leave such rows out."
        )
    updates = numbers.astype(np.int64) - 1
    last = int(updates[-1]) if len(updates) else 0
    skipped = int(max(2 * end_of_warmup(rates[: last + 1]), SKIPPED * last))
    kept = updates >= skipped
    if kept.sum() < FEWEST_LOSSES:
        raise ValueError(
            f"{name} has too few losses after its first {skipped} updates: {kept.sum()}, but a law needs at least {FEWEST_LOSSES} "
            "after twice the warm-up and a tenth of the run; log more often (logging_steps) or use a longer run."
        )
    updates, values = updates[kept], values[kept]
    _check_fall(values, name)
    return _averaged(CheckedLog(rates, updates, values))


def checked_rates(learning_rates: ArrayLike) -> Array:
    """The learning rates as an array.

    Args:
        learning_rates: of every update, shape (T,).

    Returns:
        Shape (T,).

    Raises:
        ValueError: if one is missing or negative, or if all are 0.
    """
    rates = _numbers(learning_rates, "learning_rates")
    bad = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))
    if len(bad):
        raise ValueError(
            f"The learning rate of update {bad[0] + 1} is {rates[bad[0]]:g}; pass a finite rate, at least 0, for every "
            "update from the first."
        )
    if not rates.any():
        raise ValueError(f"All {len(rates)} learning rates are 0; pass the rates of every update from the first.")
    return rates


def end_of_warmup(rates: Array) -> int:
    """The first update, 0-based, at which the rate no longer rises.

    Args:
        rates: shape (T,).

    Returns:
        The update; 0 without warm-up.
    """
    stopped = np.flatnonzero(np.diff(rates) <= 0)
    return int(stopped[0]) if len(stopped) else len(rates) - 1


def _numbers(values: ArrayLike, name: str) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be one-dimensional and hold numbers; pass one for each row.") from None
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, but must be one-dimensional; pass a list for several runs.")
    return array


def _check_steps(numbers: Array, num_updates: int, name: str) -> None:
    if not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any():
        raise ValueError(f"{name} has a step that is not an integer; steps are optimizer updates, counted from 1.")
    falls = np.flatnonzero(np.diff(numbers) <= 0)
    if len(falls):
        raise ValueError(
            f"{name} has step {numbers[falls[0] + 1]:.0f} after step {numbers[falls[0]]:.0f}: a restart or two merged runs; "
            "keep one row for each step, of one run."
        )
    if len(numbers) and not 1 <= numbers[0] <= numbers[-1] <= num_updates:
        raise ValueError(
            f"{name} has steps {numbers[0]:.0f} to {numbers[-1]:.0f}, but learning rates of updates 1 to {num_updates}; pass "
            "the rate of every update up to the last step."
        )


def _check_fall(losses: Array, name: str) -> None:
    third = len(losses) // 3
    first, last = losses[:third].mean(), losses[-third:].mean()
    if not last < first:
        raise ValueError(
            f"{name} has losses that do not fall: {first:.4g} in the first third, {last:.4g} in the last; a law needs a run "
            "that learns."
        )


def _averaged(log: CheckedLog) -> CheckedLog:
    """The log with the means of neighbouring losses, at most `MOST_LOSSES` of them."""
    width = -(-len(log.losses) // MOST_LOSSES)
    if width == 1:
        return log
    # The last bins are full: how a run ends matters more than how it begins.
    start = len(log.losses) % width
    updates = log.updates[start:].reshape(-1, width)
    return CheckedLog(log.rates, updates[:, width // 2], log.losses[start:].reshape(-1, width).mean(axis=1))
