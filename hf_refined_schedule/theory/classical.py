"""Common schedules as arrays of multipliers, and the closest of them to a given schedule."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WARMUP = 0.05
"""The length of the warm-up of a schedule "with warm-up", as a fraction of the run."""

COOLDOWNS = tuple(tenth / 10 for tenth in range(1, 10))
"""Lengths of the decay of warmup-stable-decay, as fractions of the run."""

Shape = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def classical_schedules(num_steps: int) -> dict[str, NDArray[np.float64]]:
    """Constant, linear, cosine, inverse square root, and warmup-stable-decay (WSD), each without and with 5 % warm-up.

    WSD stays at the peak, then decays to zero over the last 10 % to 90 % of the run: linearly, or as 1 - sqrt. As in
    transformers, the warm-up is a linear ramp from zero, and the decay covers the rest of the run.

    Args:
        num_steps: T, the number of optimizer updates.

    Returns:
        Multipliers at t / T for t = 0 .. T-1, shape (T,), by name.

    Raises:
        ValueError: if `num_steps` is less than 1.

    Example:
        >>> classical_schedules(4)["linear"]
        array([1.  , 0.75, 0.5 , 0.25])

    Reference: arXiv 2501.18965, section 4; for 1 - sqrt, arXiv 2405.18392.
    """
    if num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps!r}, but must be a positive integer: the number of optimizer updates."
        )
    shapes: dict[str, Shape] = {
        "constant": np.ones_like,
        "linear": lambda u: 1 - u,
        "cosine": lambda u: 0.5 * (1 + np.cos(np.pi * u)),
    }
    for cooldown in COOLDOWNS:
        shapes[f"wsd {cooldown:.0%} linear"] = _cooling_down(cooldown, lambda v: 1 - v)
        shapes[f"wsd {cooldown:.0%} 1-sqrt"] = _cooling_down(cooldown, lambda v: 1 - np.sqrt(v))
    schedules = {}
    progress = np.arange(num_steps) / num_steps
    for name, shape in shapes.items():
        schedules[name] = shape(progress)
        schedules[f"{name}, warm-up"] = _after_warmup(progress, WARMUP, shape)
    schedules["inverse sqrt"] = 1 / np.sqrt(np.arange(1, num_steps + 1))
    decay = np.sqrt(WARMUP / np.maximum(progress, WARMUP))
    schedules["inverse sqrt, warm-up"] = np.minimum(warmup_ramp(num_steps), decay)
    return schedules


def warmup_ramp(num_steps: int) -> NDArray[np.float64]:
    """A linear ramp over the first 5 % of the run, then 1: the cap that an explicit warm-up puts on a schedule.

    Args:
        num_steps: T, the number of optimizer updates.

    Returns:
        Multipliers at t / T for t = 0 .. T-1, shape (T,).
    """
    return np.minimum(np.arange(num_steps) / num_steps / WARMUP, 1.0)


def linear_with_warmup(num_steps: int) -> NDArray[np.float64]:
    """Linear decay after a linear warm-up over the first 5 % of the run, as transformers' `"linear"`.

    Args:
        num_steps: T, the number of optimizer updates.

    Returns:
        Multipliers at t / T for t = 0 .. T-1, shape (T,).
    """
    return _after_warmup(np.arange(num_steps) / num_steps, WARMUP, lambda v: 1 - v)


def _cooling_down(cooldown: float, decay: Shape) -> Shape:
    """1 until the last `cooldown` of the run, then `decay` of the progress within it."""
    return lambda progress: decay(np.maximum(0.0, (progress - (1 - cooldown)) / cooldown))


def _after_warmup(progress: NDArray[np.float64], warmup: float, shape: Shape) -> NDArray[np.float64]:
    """A linear ramp over the first `warmup` of the run, then `shape` over the rest."""
    if warmup == 0:
        return shape(progress)
    rest = np.maximum(0.0, (progress - warmup) / (1 - warmup))
    return np.where(progress < warmup, progress / warmup, shape(rest))


class Fit(NamedTuple):
    """The member of a family of schedules that is closest to a given one."""

    warmup: float
    """Length of the warm-up, as a fraction of the run."""
    parameter: float
    """The power of the polynomial, or the length of the decay of warmup-stable-decay as a fraction of the run."""
    error: float
    """Root mean square difference of the multipliers."""


POWERS = (0.1, 10.0)
"""The range in which the power of a polynomial is searched."""


def polynomial(progress: NDArray[np.float64], warmup: float, power: float) -> NDArray[np.float64]:
    """Polynomial decay after a warm-up: (1 - v) ** p, v the progress of the run after the warm-up.

    Args:
        progress: of the run, from 0 to 1, shape (n,).
        warmup: length of the warm-up as a fraction of the run.
        power: p.

    Returns:
        Multipliers of the peak learning rate, shape (n,).
    """
    return _after_warmup(progress, warmup, lambda v: (1 - v) ** power)


def closest_polynomial(grid: NDArray[np.float64]) -> Fit:
    """The closest `polynomial`: transformers' schedule of that name with `lr_end=0`.

    Args:
        grid: multipliers at even progress from 0 to 1, shape (G+1,).

    Returns:
        The warm-up, a multiple of 1 % of the run; the power, within `POWERS`; the error.

    Example:
        >>> warmup, power, error = closest_polynomial((1 - np.linspace(0, 1, 101)) ** 2)
        >>> print(f"{warmup:.2f} {power:.2f} {error:.4f}")
        0.00 2.00 0.0000
    """
    from scipy.optimize import minimize_scalar

    progress, sampled = _sampled(grid)
    fits = []
    for warmup in _WARMUPS:
        found = minimize_scalar(
            lambda power, warmup=warmup: rmse(polynomial(progress, warmup, power), sampled),
            bounds=POWERS,
            method="bounded",
        )
        fits.append(Fit(warmup, float(found.x), float(found.fun)))
    return min(fits, key=lambda fit: fit.error)


def closest_wsd(grid: NDArray[np.float64]) -> Fit:
    """The closest warmup-stable-decay with linear decay: transformers' `warmup_stable_decay`.

    Args:
        grid: multipliers at even progress from 0 to 1, shape (G+1,).

    Returns:
        Warm-up and decay, multiples of 1 % of the run, and the error.
    """
    progress, sampled = _sampled(grid)
    fits = []
    for warmup in _WARMUPS:
        ramp = np.minimum(1.0, progress / warmup) if warmup else np.ones_like(progress)
        for percent in range(1, 101 - round(100 * warmup)):
            decay = percent / 100
            multipliers = np.minimum(ramp, np.minimum(1.0, (1 - progress) / decay))
            fits.append(Fit(warmup, decay, rmse(multipliers, sampled)))
    return min(fits, key=lambda fit: fit.error)


_WARMUPS = tuple(percent / 100 for percent in range(51))


def _sampled(grid: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Progress and multipliers at 501 points, enough for a fit."""
    progress = np.linspace(0, 1, 501)
    return progress, np.interp(progress, np.linspace(0, 1, len(grid)), grid)


def rmse(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The root mean square difference of two schedules.

    Args:
        one: multipliers, shape (n,).
        other: multipliers at the same progress.

    Returns:
        The difference, dimensionless, from 0 to 1.
    """
    return float(np.sqrt(np.mean(np.square(one - other))))
