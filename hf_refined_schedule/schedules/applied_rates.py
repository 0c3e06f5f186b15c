"""Which schedule a run's learning rates follow: its shape, peak, warm-up and horizon, from the rates alone."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TOLERANCE = 2e-3
"""The largest difference, as a fraction of the peak, at which rates count as equal. Printed logs have three digits."""

ROUNDING = 1e-6
"""A difference, as a fraction of the peak, that says nothing: the fit of a cosine stops there."""

MAX_SHIFTS = 20
"""More shifts than that are no resumed run."""

MAX_BEHIND = 100_000
MAX_AHEAD = 64
"""The largest shifts that are looked for, in updates."""

FEWEST_RATES = 8
"""Fewer rates agree with almost any schedule."""


class AppliedSchedule(NamedTuple):
    """A schedule of transformers that a run's rates follow."""

    name: str
    """The `lr_scheduler_type`."""
    peak: float
    """The peak learning rate."""
    warmup: float
    """Updates of the linear ramp; 0 also where the ramp ended before the first known rate."""
    horizon: float
    """The update at which the rate reaches its end; infinite for a constant rate."""
    floor: float
    """The rate at the end as a fraction of the peak."""
    lead: int
    """1 if the rate that is logged at an update is that of the next one, otherwise 0."""
    error: float
    """The largest difference to the rates, as a fraction of the peak."""

    def rates(self, passed: Array) -> Array:
        """The rates after some updates.

        Args:
            passed: numbers of updates that the scheduler has made, shape (n,).

        Returns:
            The rates of the updates that follow, shape (n,).
        """
        shape = _SHAPES[self.name](self.warmup, self.horizon)
        after = self.peak * (self.floor + (1 - self.floor) * shape(passed))
        return np.where(passed < self.warmup, self.peak * passed / self.warmup, after) if self.warmup > 0 else after


class Shift(NamedTuple):
    """From some update on, a schedule is behind or ahead of the updates."""

    step: int
    """The first logged update that shows it."""
    behind: int | None
    """The updates by which the schedule is behind, negative where it is ahead; None where the rates are other ones."""


def applied_schedule(
    steps: NDArray[np.int64], rates: Array, num_training_steps: int | None
) -> tuple[AppliedSchedule, list[Shift]] | None:
    """Find the schedule that rates follow, among constant, linear and cosine, each with a warm-up.

    Args:
        steps: optimizer updates, 1-based, increasing, shape (n,).
        rates: the learning rate at each, shape (n,).
        num_training_steps: T; of two schedules that fit, the one with this horizon is taken.

    Returns:
        The simplest schedule that fits to `TOLERANCE`, and where the rates leave it; None if there is none, or too few
        rates are known.
    """
    if len(rates) < FEWEST_RATES or rates.max() <= 0:
        return None
    updates = steps.astype(np.float64)
    whole = _best_fit(updates, rates, num_training_steps)
    if whole is not None and whole.error <= ROUNDING:
        return whole, []
    for part in (2, 4, 8):
        count = len(rates) // part
        if count < FEWEST_RATES or rates[:count].argmax() == count - 1:  # the peak lies behind it
            break
        first = _best_fit(updates[:count], rates[:count], num_training_steps)
        if first is not None and first.error <= ROUNDING:
            return first, shifts(first.rates, updates, rates, first.lead)
    return None if whole is None else (whole, [])


def shifts(schedule: Callable[[Array], Array], steps: Array, rates: Array, lead: int = 0) -> list[Shift]:
    """Find where rates leave a schedule that they followed.

    Args:
        schedule: the rates after numbers of updates.
        steps: optimizer updates, 1-based, increasing, shape (n,).
        rates: the learning rate at each, shape (n,).
        lead: 1 if the rate at an update is that of the next one.

    Returns:
        Where the schedule falls behind or gets ahead, in order; it ends where the rates are those of no such shift.
    """
    passed = steps - 1 + lead
    found: list[Shift] = []
    behind, start = 0, 0
    while len(found) < MAX_SHIFTS:
        differs = np.abs(schedule(passed[start:] - behind) - rates[start:]) > 2 * ROUNDING * rates.max()
        if not differs.any():
            break
        start += int(np.argmax(differs))
        shift = _shift(schedule, passed[start : start + FEWEST_RATES], rates[start : start + FEWEST_RATES], rates.max())
        found.append(Shift(int(steps[start]), shift))
        if shift is None:
            break
        behind = shift
    return found


def _shift(schedule: Callable[[Array], Array], passed: Array, rates: Array, peak: float) -> int | None:
    """The shift with which the schedule has these rates."""
    first = int(passed[0])
    for behind in sorted(range(-MAX_AHEAD, min(first, MAX_BEHIND) + 1), key=abs):
        if np.abs(schedule(passed - behind) - rates).max() <= 2 * ROUNDING * peak:
            return behind
    return None


def _best_fit(steps: Array, rates: Array, planned: int | None) -> AppliedSchedule | None:
    for fits in (_constant_fits, _linear_fits, _cosine_fits):
        found = [fit for fit in fits(steps, rates, planned) if fit.error < TOLERANCE]
        if found:
            # Rates in full precision tell schedules apart that agree to `TOLERANCE`.
            limit = max(10 * min(fit.error for fit in found), ROUNDING)
            best = [fit for fit in found if fit.error <= limit]
            return min(best, key=lambda fit: (fit.horizon != (planned or fit.horizon), fit.lead))
    return None


def _with_error(fit: AppliedSchedule, steps: Array, rates: Array) -> AppliedSchedule:
    difference = np.abs(fit.rates(steps - 1.0 + fit.lead) - rates).max()
    return fit._replace(error=float(difference / rates.max()))


def _ramp_slope(passed: Array, rates: Array) -> float | None:
    """The rise of the rate in an update of the warm-up; None where no rate of it is known."""
    rising = np.flatnonzero(np.diff(rates[: int(rates.argmax()) + 1]) > 0)
    inside = [position for position in rising if passed[position] > 0 and rates[position] > 0]
    if not inside:
        return None
    return float(np.median([rates[position] / passed[position] for position in inside]))


def _constant_fits(steps: Array, rates: Array, planned: int | None) -> Iterator[AppliedSchedule]:
    peak = float(rates.max())
    for lead in (0, 1):
        slope = _ramp_slope(steps - 1.0 + lead, rates)
        warmup = 0.0 if slope is None else float(round(peak / slope))
        name = "constant" if warmup == 0 else "constant_with_warmup"
        yield _with_error(AppliedSchedule(name, peak, warmup, math.inf, 1.0, lead, 0.0), steps, rates)


def _linear_fits(steps: Array, rates: Array, planned: int | None) -> Iterator[AppliedSchedule]:
    falling = np.arange(int(rates.argmax()), len(rates))
    falling = falling[rates[falling] > 0]
    if len(falling) < 3:
        return
    slope, intercept = (float(value) for value in np.polyfit(steps[falling], rates[falling], 1))
    if slope >= 0:
        return
    for lead in (0, 1):
        horizon = float(round(intercept / -slope - 1 + lead))
        rise = _ramp_slope(steps - 1.0 + lead, rates)
        warmup = 0.0 if rise is None else float(round(-slope * horizon / (rise - slope)))
        peak = -slope * (horizon - warmup)
        yield _with_error(AppliedSchedule("linear", peak, warmup, horizon, 0.0, lead, 0.0), steps, rates)


def _cosine_fits(steps: Array, rates: Array, planned: int | None) -> Iterator[AppliedSchedule]:
    last = int(steps[-1])
    horizons = dict.fromkeys([planned or last, last, 2 * last, 4 * last, last // 2, last // 4, last // 8])
    for floored in (False, True):
        fits = []
        for horizon in [horizon for horizon in horizons if horizon > 1]:
            fits += [_cosine_fit(steps, rates, lead, horizon, floored) for lead in (0, 1)]
            if any(fit.error < ROUNDING and fit.horizon == (planned or fit.horizon) for fit in fits):
                break
        yield from fits
        if min(fit.error for fit in fits) < TOLERANCE:
            return


def _cosine_fit(steps: Array, rates: Array, lead: int, near: int, floored: bool) -> AppliedSchedule:
    """The cosine with a horizon near a given one."""
    from scipy.optimize import least_squares

    passed, top = steps - 1.0 + lead, float(rates.max())
    rise = _ramp_slope(passed, rates)
    latest = max(float(passed[0]), 1e-6)  # without a rate of the ramp, it ended before the first one

    def schedule(values: Array) -> AppliedSchedule:
        peak, horizon, warmup, floor = (float(value) for value in values * (top, near, latest, 1.0))
        warmup = warmup if rise is None else peak / rise
        return AppliedSchedule("cosine", peak, warmup, horizon, floor if floored else 0.0, lead, 0.0)

    def residuals(values: Array) -> Array:
        return (schedule(values).rates(passed) - rates) / top

    bounds = ([0.5, 0.5, 0.0, 0.0], [2.0, 2.0, 1.0, 1.0])
    fit = schedule(least_squares(residuals, [1.0, 1.0, 0.5, 0.05], bounds=bounds, max_nfev=60).x)
    whole = fit._replace(warmup=float(round(fit.warmup)), horizon=float(round(fit.horizon)))
    return _with_error(whole, steps, rates)


def _linear_shape(warmup: float, horizon: float) -> Callable[[Array], Array]:
    return lambda passed: np.maximum(0.0, (horizon - passed) / max(horizon - warmup, 1e-9))


def _cosine_shape(warmup: float, horizon: float) -> Callable[[Array], Array]:
    """As transformers computes it: beyond the horizon the rate rises again."""
    return lambda passed: 0.5 * (1 + np.cos(np.pi * (passed - warmup) / max(horizon - warmup, 1e-9)))


def _constant_shape(warmup: float, horizon: float) -> Callable[[Array], Array]:
    return np.ones_like


_SHAPES = {
    "constant": _constant_shape,
    "constant_with_warmup": _constant_shape,
    "linear": _linear_shape,
    "cosine": _cosine_shape,
}
