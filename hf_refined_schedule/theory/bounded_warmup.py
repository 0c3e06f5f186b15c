"""Linear decay under the warm-up that gradient norms ask for, kept between two lengths."""

import numpy as np
from numpy.typing import NDArray

SHORTEST_WARMUP, LONGEST_WARMUP = 0.05, 0.2
"""The warm-ups, as fractions of the run, between which the derived one is kept. Adam's second moment needs a start that norms do
not show, and norms that vanish would ask for a warm-up over most of the run."""


def bound_warmup(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep the warm-up of a schedule between two lengths.

    Where weights never fall, as with rising norms ignored, a refined schedule is linear decay times a factor that grows to 1.
    The factor is kept between two linear ramps:

        multiplier(u) = (1 - u) * clip(factor(u), min(1, u / LONGEST_WARMUP), min(1, u / SHORTEST_WARMUP)),
        divided by its maximum

    Between the ramps the factor may grow more slowly than 1 - u falls, so that the rate can dip before the last part of the warm-up.

    Args:
        grid: multipliers of such a schedule at progress u = t / T for t = 0 .. T, 0 at the end, shape (T+1,).

    Returns:
        Multipliers, shape (T+1,), with maximum 1.

    Example:
        >>> bound_warmup(1 - np.linspace(0, 1, 11)).round(3)
        array([0.   , 1.   , 0.889, 0.778, 0.667, 0.556, 0.444, 0.333, 0.222,
               0.111, 0.   ])
    """
    progress = np.linspace(0, 1, len(grid))
    decay = 1 - progress
    factor = np.append(grid[:-1] / decay[:-1], 1.0)
    factor[:-1] /= factor[-2]
    lower, upper = (np.minimum(1, progress / warmup) for warmup in (LONGEST_WARMUP, SHORTEST_WARMUP))
    bounded: NDArray[np.float64] = decay * np.clip(factor, lower, upper)
    bounded /= bounded.max()
    return bounded
