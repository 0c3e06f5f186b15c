"""From gradient norms to a learning-rate schedule: the mathematics, as pure functions of arrays.

Defazio, Cutkosky, Mehta, Mishchenko, arXiv 2310.07831. The paper counts steps t = 1 .. T; arrays here start at 0.
"""

import math
import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter

NormKind = Literal["l1", "l2"]
RisingNorms = Literal["keep", "ignore"]

DEFAULT_SMOOTHING = 0.1
"""tau: the median filter's window as a fraction of the run."""

DEFAULT_POWER: dict[str, float] = {"l1": -1.0, "l2": -2.0}
"""w_t = norm ** power: L1 ** -1 for coordinate-wise steps (Adam), L2 ** -2 for SGD."""


def linear_decay(num_steps: int) -> NDArray[np.float64]:
    """Linear decay to zero, the optimal schedule when only a bound on the gradient norms is known.

        multiplier_t = 1 - t / T,  t = 0 .. T-1

    Args:
        num_steps: T, the number of optimizer updates, at least 1.

    Returns:
        Multipliers of the peak learning rate, shape (T,), dimensionless.

    Raises:
        ValueError: if `num_steps` is not a positive integer.

    Example:
        >>> linear_decay(4)
        array([1.  , 0.75, 0.5 , 0.25])

    Reference: arXiv 2310.07831, Corollary 2.
    """
    if not isinstance(num_steps, (int, np.integer)) or num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps!r}, but must be a positive integer: the number of optimizer updates."
        )
    return 1.0 - np.arange(num_steps) / num_steps


def smooth_norms(norms: ArrayLike, smoothing: float = DEFAULT_SMOOTHING) -> NDArray[np.float64]:
    """Median filter over a window that is a fraction of the run.

        window W = 2 * (int(tau * T) // 2) + 1

    Left of the first norm, that norm is repeated; right of the last, the sequence is mirrored about it.

    Args:
        norms: gradient norms of T consecutive optimizer updates, shape (T,), before clipping.
        smoothing: tau, the window as a fraction of the run, from 0 (no smoothing) to 1.

    Returns:
        Smoothed norms, shape (T,), float64, in the unit of `norms`.

    Raises:
        ValueError: if `norms` is not one-dimensional, has fewer than two values, or holds text, a negative or a
            non-finite value; if `smoothing` lies outside [0, 1].

    Example:
        >>> smooth_norms([9, 1, 1, 50, 1, 1, 2, 2, 2, 2], smoothing=0.3)
        array([9., 1., 1., 1., 1., 1., 2., 2., 2., 2.])

    Reference: arXiv 2310.07831, Algorithm 1.
    """
    norms = _checked_norms(norms)
    half_window = int(checked_smoothing(smoothing) * len(norms)) // 2
    if half_window == 0:
        return norms
    extended = np.pad(norms, (half_window, 0), mode="edge")
    extended = np.pad(extended, (0, half_window), mode="reflect")
    filtered = median_filter(extended, size=2 * half_window + 1)
    return filtered[half_window : half_window + len(norms)]


def effective_norms(
    norms: ArrayLike,
    *,
    smoothing: float = DEFAULT_SMOOTHING,
    rising_norms: RisingNorms = "keep",
    num_training_steps: int | None = None,
) -> NDArray[np.float64]:
    """Smoothed norms for every update of a run: what the weights of a schedule are computed from.

    Args:
        norms: gradient norms of the first len(norms) updates of the run, before clipping.
        smoothing: tau, as in `smooth_norms`.
        rising_norms: `"keep"`: the smoothed norms. `"ignore"`: their running minimum, so that they never rise.
        num_training_steps: T, by default len(norms). If T is larger, the last norm is repeated to the end.

    Returns:
        Norms in the unit of `norms`, shape (T,).

    Raises:
        ValueError: as `smooth_norms`; for another `rising_norms`; if there are more norms than steps.

    Example:
        >>> effective_norms([4.0, 2.0, 1.0, 3.0], smoothing=0, rising_norms="ignore", num_training_steps=5)
        array([4., 2., 1., 1., 1.])
    """
    if rising_norms not in ("keep", "ignore"):
        raise ValueError(f'rising_norms is {rising_norms!r:.40}, but must be "keep" or "ignore".')
    smoothed = smooth_norms(norms, smoothing)
    if rising_norms == "ignore":
        smoothed = np.minimum.accumulate(smoothed)
    total = len(smoothed) if num_training_steps is None else num_training_steps
    if total < len(smoothed):
        raise ValueError(f"There are {len(smoothed)} norms for num_training_steps={total}; pass the norms of one run.")
    return np.pad(smoothed, (0, total - len(smoothed)), mode="edge")


def average_norms(
    runs: Sequence[ArrayLike],
    *,
    smoothing: float = DEFAULT_SMOOTHING,
    rising_norms: RisingNorms = "keep",
    num_training_steps: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Effective norms of repeated runs: the geometric mean of their smoothed norms.

    Runs of unequal length are averaged over their progress.

    Args:
        runs: gradient norms of each run, as `effective_norms` takes them.
        smoothing: tau, as in `smooth_norms`.
        rising_norms: as in `effective_norms`, applied to the mean.
        num_training_steps: T of each run, by default their lengths.

    Returns:
        Norms for the updates of the longest run, shape (max T,). For one run, those of `effective_norms`.

    Raises:
        ValueError: as `effective_norms`, and if `runs` is empty.

    Example:
        >>> average_norms([[4.0, 1.0], [1.0, 1.0, 4.0, 4.0]], smoothing=0).round(3)
        array([2.   , 1.581, 2.   , 2.   ])
    """
    if not runs:
        raise ValueError("There is no run to refine from; pass at least one.")
    totals = [None] * len(runs) if num_training_steps is None else list(num_training_steps)
    if len(runs) == 1:
        return effective_norms(runs[0], smoothing=smoothing, rising_norms=rising_norms, num_training_steps=totals[0])
    smoothed = [
        effective_norms(run, smoothing=smoothing, num_training_steps=total)
        for run, total in zip(runs, totals, strict=True)
    ]
    longest = max(map(len, smoothed))
    progress = np.arange(longest) / longest
    resampled = [np.interp(progress, np.arange(len(norms)) / len(norms), norms) for norms in smoothed]
    with np.errstate(divide="ignore"):  # a smoothed norm of zero stays zero; `refine_schedule` refuses it
        mean = np.exp(np.mean(np.log(resampled), axis=0))
    return effective_norms(mean, smoothing=0, rising_norms=rising_norms)


def refine_schedule(
    norms: ArrayLike,
    *,
    norm: NormKind = "l1",
    smoothing: float = DEFAULT_SMOOTHING,
    power: float | None = None,
    rising_norms: RisingNorms = "keep",
    max_grad_norm: float | None = None,
) -> NDArray[np.float64]:
    """The schedule that the gradient norms of a finished run ask for.

        w_t = smoothed(norm)_t ** power
        multiplier_t = w_t * sum_{p > t} w_p,  divided by its maximum

    The tail sum makes the annealing; the weight makes the warm-up. The last multiplier is 0: the iterate x_T is the
    result, and the T-th gradient is not used. A run of T updates visits T + 1 iterates, so for the schedule of T updates
    pass their norms and one more, a repeat of the last: constant norms then give linear decay, 1 - t / T.

    Args:
        norms: ||g_t||, the norm of the whole gradient at each of T optimizer updates, before clipping, shape (T,).
        norm: which norm it is. It sets the default `power`: -1 for `"l1"` (Adam), -2 for `"l2"` (SGD).
        smoothing: tau, the median filter's window as a fraction of the run.
        power: the exponent itself, negative. L2 norms as a stand-in for L1 under Adam: `norm="l2", power=-1`.
        rising_norms: `"keep"`: the rule of the paper. `"ignore"`: weights come from the running minimum of the smoothed
            norms. Norms that rise over the run, as those of language models from scratch do, make the rate fall too early.
        max_grad_norm: the L2 norm to which SGD's gradients are clipped, with `norm="l2"`; None or 0 for no clipping. The
            formula gives the steps, and a step is clip factor * rate, so the rate is divided by the smoothed `clip_factors`.

    Returns:
        Multipliers of the peak learning rate, shape (T,), float64, at least 0, with maximum 1.

    Raises:
        ValueError: as `effective_norms`; if a *smoothed* norm is zero; for another `norm`, `power` or `max_grad_norm`.

    Example:
        >>> refine_schedule([1.0, 1.0, 1.0, 1.0, 1.0])
        array([1.  , 0.75, 0.5 , 0.25, 0.  ])
        >>> refine_schedule([4.0, 2.0, 1.0, 1.0, 1.0], smoothing=0)
        array([0.4375, 0.75  , 1.    , 0.5   , 0.    ])
        >>> refine_schedule([4.0, 2.0, 1.0, 1.0, 1.0], norm="l2", power=-1, smoothing=0, max_grad_norm=1).round(4)
        array([1.    , 0.8571, 0.5714, 0.2857, 0.    ])

    Reference: arXiv 2310.07831, Algorithm 1 and Theorem 3.
    """
    power = weight_power(norm, power)
    if max_grad_norm and norm != "l2":
        raise ValueError('max_grad_norm is a limit of L2 norms; pass norm="l2", or leave it out for Adam.')
    smoothed = effective_norms(norms, smoothing=smoothing, rising_norms=rising_norms)
    zeros = np.flatnonzero(smoothed == 0)
    if len(zeros):
        raise ValueError(
            f"The smoothed gradient norm at position {zeros[0]} is 0, and the schedule divides by it. "
            "Leave out the part of the run without gradients, or use a larger smoothing."
        )
    with np.errstate(over="ignore"):  # a ratio beyond float64 has weight 0
        weights = (smoothed / smoothed.min()) ** power
    tail_sums = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    multipliers: NDArray[np.float64] = weights * tail_sums
    if not multipliers.max() > 0:
        raise ValueError(
            f"The smoothed gradient norms range from {smoothed.min():.3g} to {smoothed.max():.3g}, too far apart for "
            "a schedule. Leave out the part of the run where they vanish or explode."
        )
    multipliers /= multipliers.max()
    if max_grad_norm is not None:
        kept = effective_norms(norms, smoothing=smoothing)
        multipliers = undo_clipping(multipliers, clip_factors(kept, max_grad_norm))
    return multipliers


def clip_factors(smoothed: NDArray[np.float64], max_grad_norm: float) -> NDArray[np.float64]:
    """What clipping multiplies the gradients by: min(1, max_grad_norm / norm).

    The factor falls as the norm rises, so the median of the factors in a window is the factor of the median norm.

    Args:
        smoothed: smoothed L2 norms before clipping, positive, shape (T,).
        max_grad_norm: the largest L2 norm after clipping; 0 for no clipping.

    Returns:
        Factors, shape (T,), from 0 to 1.

    Raises:
        ValueError: if `max_grad_norm` is not a number of at least 0.

    Example:
        >>> clip_factors(np.array([4.0, 1.0, 0.5]), 1.0)
        array([0.25, 1.  , 1.  ])
    """
    limit = checked_limit(max_grad_norm)
    factors: NDArray[np.float64] = np.minimum(1.0, limit / smoothed) if limit else np.ones_like(smoothed)
    return factors


def undo_clipping(steps: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The multipliers that give these steps to SGD with clipped gradients: a step is factor * rate * gradient.

    Args:
        steps: multipliers for gradients that are not clipped, at least 0, shape (T,).
        factors: what clipping multiplies the gradients by, shape (T,), as `clip_factors` gives them.

    Returns:
        Multipliers, shape (T,), with maximum 1.

    Example:
        >>> undo_clipping(np.array([0.5, 1.0, 0.5]), np.array([0.25, 1.0, 1.0]))
        array([1.  , 0.5 , 0.25])
    """
    rates: NDArray[np.float64] = steps / factors
    rates /= rates.max()
    return rates


def multiplier_at(grid: NDArray[np.float64], progress: float) -> float:
    """A schedule's multiplier at a point of the run, by linear interpolation.

    Args:
        grid: multipliers at equally spaced progress, the first at 0, the last at 1, shape (G+1,).
        progress: u, the fraction of the run that is over; below 0 counts as 0, above 1 as 1.

    Returns:
        The multiplier, dimensionless.

    Example:
        >>> multiplier_at(np.array([1.0, 0.5, 0.0]), 0.25)
        0.75
    """
    position = min(max(progress, 0.0), 1.0) * (len(grid) - 1)
    left = min(int(position), len(grid) - 2)
    fraction = position - left
    return float(grid[left]) * (1.0 - fraction) + float(grid[left + 1]) * fraction


def peak_position(grid: NDArray[np.float64]) -> float:
    """The progress at which a schedule reaches its maximum.

    Args:
        grid: as in `multiplier_at`.

    Returns:
        The progress u of the first maximum, from 0 to 1.

    Example:
        >>> peak_position(np.array([0.5, 1.0, 0.5, 0.25, 0.0]))
        0.25
    """
    return float(grid.argmax() / (len(grid) - 1))


def checked_smoothing(smoothing: float) -> float:
    """The smoothing itself, if it is valid.

    Args:
        smoothing: tau.

    Returns:
        tau.

    Raises:
        ValueError: if it is not a number from 0 to 1.
    """
    if not (isinstance(smoothing, (int, float, np.number)) and 0 <= smoothing <= 1):
        raise ValueError(
            f"smoothing is {smoothing!r:.40}, but must be a fraction of the run between 0 and 1 (default 0.1), not steps."
        )
    return smoothing


def checked_limit(max_grad_norm: float) -> float:
    """The norm to which gradients are clipped, if it is valid.

    Args:
        max_grad_norm: an L2 norm, 0 for no clipping.

    Returns:
        The same.

    Raises:
        ValueError: if it is not a number of at least 0.
    """
    is_number = isinstance(max_grad_norm, (int, float, np.number)) and not isinstance(max_grad_norm, bool)
    if not is_number or not 0 <= max_grad_norm < math.inf:
        raise ValueError(
            f"max_grad_norm is {max_grad_norm!r:.40}, but must be a number of at least 0; 0 clips nothing."
        )
    return max_grad_norm


def _checked_norms(norms: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(norms)
    except ValueError:
        raise ValueError("norms is a nested list of unequal lengths; pass one number for each step.") from None
    if array.ndim != 1:
        raise ValueError(f"norms has shape {array.shape}, but must be one-dimensional: one number for each step.")
    if len(array) < 2:
        raise ValueError(f"norms has {len(array)} value(s), but a schedule needs at least 2: one for each step.")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"norms has values of type {array.dtype}, but must hold numbers: one for each step.")
    array = array.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if len(bad):
        what = "negative" if array[bad[0]] < 0 else "not finite"
        raise ValueError(
            f"norms[{bad[0]}] is {array[bad[0]]}, which is {what}. Gradient norms are finite and at least 0; leave such steps "
            "out or interpolate over them."
        )
    return array


def weight_power(norm: str, power: float | None) -> float:
    """The exponent of the weights: `power` if given, else the default of the norm.

    Args:
        norm: `"l1"` or `"l2"`.
        power: the exponent, a negative number, or None.

    Returns:
        The exponent.

    Raises:
        ValueError: for any other `norm` or `power`.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f'norm is {norm!r:.40}, but must be "l1" (Adam) or "l2" (SGD).')
    if power is None:
        return DEFAULT_POWER[norm]
    if not isinstance(power, (int, float, np.number)) or not -sys.float_info.max <= power < 0:
        raise ValueError(
            f"power is {power!r:.40}, but must be a negative number: the exponent itself, such as -1 or -2."
        )
    return float(power)
