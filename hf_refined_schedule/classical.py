"""The schedules that people use, as arrays of multipliers, to be ranked beside a refined one."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

WARMUP = 0.05
"""The share of the run that "with warm-up" warms up for."""

COOLDOWNS = tuple(tenth / 10 for tenth in range(1, 10))
"""Shares of the run that warmup-stable-decay decays for."""

Shape = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def classical_schedules(num_steps: int) -> dict[str, NDArray[np.float64]]:
    """Constant, linear, cosine, inverse square root, and warmup-stable-decay (WSD), each without and with 5 % warm-up.

    WSD stays at the peak, then cools down to zero over the last 10 % to 90 % of the run: linearly, or as 1 - sqrt. As in
    transformers, a warm-up is a linear ramp from zero, and the decay takes what is left of the run.

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
        after_warmup = np.maximum(0.0, (progress - WARMUP) / (1 - WARMUP))
        schedules[f"{name}, warm-up"] = np.where(progress < WARMUP, progress / WARMUP, shape(after_warmup))
    schedules["inverse sqrt"] = 1 / np.sqrt(np.arange(1, num_steps + 1))
    ramp = np.minimum(progress / WARMUP, 1.0)
    schedules["inverse sqrt, warm-up"] = np.minimum(ramp, np.sqrt(WARMUP / np.maximum(progress, WARMUP)))
    return schedules


def _cooling_down(cooldown: float, decay: Shape) -> Shape:
    """Flat until `cooldown` of the run is left, then `decay` of the share of the cool-down that is over."""
    return lambda progress: decay(np.maximum(0.0, (progress - (1 - cooldown)) / cooldown))
