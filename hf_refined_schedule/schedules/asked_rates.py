"""The rates that a run applied against those that were asked for."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .applied_rates import TOLERANCE, Shift, shifts

Array = NDArray[np.float64]

Asked = Callable[[int, int], Array]
"""The rates of the first n updates of a run of T: a function of T and n."""

TIMES = (2, 3, 4, 5, 6, 7, 8, 16, 32, 64)
"""How many times too fast a schedule may run, or too long its horizon may be: numbers of processes and of micro-batches."""


class Comparison(NamedTuple):
    """How the applied rates relate to those asked for."""

    times: int
    """The scheduler's steps in an update; 1 is right."""
    horizon: int
    """The updates over which the schedule was laid out."""
    lead: int
    """1 if the log has the rate of the next update."""
    scale: float
    """The applied peak over the one asked for."""
    shifts: tuple[Shift, ...] = ()
    """Where a resume changed the rate."""


def compare_with_asked(
    steps: NDArray[np.int64], rates: Array, num_training_steps: int, asked: Asked, horizon: int | None = None
) -> Comparison | None:
    """Find the simplest mistake that turns the rates asked for into those applied.

    Args:
        steps: optimizer updates, 1-based, increasing, shape (n,).
        rates: the learning rate at each, shape (n,).
        num_training_steps: T.
        asked: the rates asked for.
        horizon: another horizon to try, such as that of `applied_schedule`.

    Returns:
        The comparison that fits, None if none does.
    """
    for times, length in _candidates(num_training_steps, horizon):
        expected = asked(length, times * int(steps[-1]) + 1)
        for lead in (0, 1):
            here = expected[times * (steps - 1) + lead]
            scale = (
                1.0
                if here.max() == 0
                else float(np.median(rates[here > 0.1 * here.max()] / here[here > 0.1 * here.max()]))
            )
            for factor in (1.0, scale):
                if np.abs(factor * here - rates).max() < TOLERANCE * rates.max():
                    return Comparison(times, length, lead, factor)
    return _shifted(steps, rates, num_training_steps, asked)


def first_difference(steps: NDArray[np.int64], rates: Array, asked: Array) -> tuple[int, float, float]:
    """Where applied rates leave those asked for.

    Args:
        steps: optimizer updates, shape (n,).
        rates: the learning rate at each, shape (n,).
        asked: the rate asked for at each, shape (n,).

    Returns:
        The first update that differs, its rate, and the rate asked for.
    """
    position = int(np.argmax(np.abs(rates - asked) >= TOLERANCE * max(rates.max(), asked.max())))
    return int(steps[position]), float(rates[position]), float(asked[position])


def _candidates(planned: int, horizon: int | None) -> Iterator[tuple[int, int]]:
    """Steps an update and horizons, the likeliest first."""
    yield 1, planned
    for times in TIMES:
        yield times, planned
    for times in TIMES:
        yield 1, planned * times
        yield 1, -(-planned // times)
    if horizon is not None and horizon > 0:
        yield 1, horizon


def _shifted(steps: NDArray[np.int64], rates: Array, planned: int, asked: Asked) -> Comparison | None:
    """The rates asked for, shifted from some update on, as a resume does it."""
    expected = asked(planned, int(steps[-1]) + 2)
    updates = np.arange(len(expected), dtype=np.float64)
    for lead in (0, 1):
        found = shifts(lambda passed: np.interp(passed, updates, expected), steps.astype(np.float64), rates, lead)
        if found and found[0].step > steps[len(steps) // 8] and found[0].behind is not None:
            return Comparison(1, planned, lead, 1.0, tuple(found))
    return None
