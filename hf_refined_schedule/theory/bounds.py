"""What theory promises for a schedule: the last-iterate bound for arbitrary step sizes, and its minimum."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .refinement import DEFAULT_POWER, NormKind, linear_decay, refine_schedule


class LastIterateBound(NamedTuple):
    """The bound's three terms at peak learning rate 1 and distance D = 1.

    At peak gamma and distance D the bound is D**2 * distance_term / gamma + gamma * (norm_term + last_iterate_term).
    """

    distance_term: float
    """D^2 / (2 S_1): the distance from the start to the optimum, over the sum of the steps."""
    norm_term: float
    """H_1 / (2 S_1): the price of noise for an average of the iterates."""
    last_iterate_term: float
    """The sum over k: the extra price of taking the last iterate instead of an average."""

    @property
    def best_peak(self) -> float:
        """The peak learning rate that minimises the bound, sqrt(t1 / (t2 + t3)); proportional to D."""
        return math.sqrt(self.distance_term / (self.norm_term + self.last_iterate_term))

    @property
    def value(self) -> float:
        """The bound at the best peak, 2 sqrt(t1 (t2 + t3)); proportional to D."""
        return 2.0 * math.sqrt(self.distance_term * (self.norm_term + self.last_iterate_term))


def last_iterate_bound(multipliers: ArrayLike, norms: ArrayLike, *, norm: NormKind = "l1") -> LastIterateBound:
    """The bound on the loss of the last iterate above the optimum, for any schedule.

        D^2 / (2 S_1)  +  H_1 / (2 S_1)  +  1/2 sum_{k=1}^{T-1} (eta_k / S_{k+1}) (H_k / S_k)
        S_k = sum_{t >= k} eta_t,   H_k = sum_{t >= k} eta_t^2 G_t^2

    Zeros at the end of the schedule are cut with their norms: an update of size 0 moves nothing.

    Args:
        multipliers: eta_t, dimensionless, shape (T,), sampled at t / T for t = 0 .. T-1, not negative.
        norms: smoothed gradient norms at the same steps, positive, shape (T,).
        norm: `"l2"` (SGD): G_t is the norm. `"l1"` (Adam): G_t^2 is the norm, which is what refinement minimises.

    Returns:
        The three terms, with `best_peak` and `value`.

    Raises:
        ValueError: for unequal lengths, an all-zero schedule, negative or non-finite values, an unknown `norm`.

    Example:
        >>> bound = last_iterate_bound([1.0, 0.5], [1.0, 1.0])
        >>> round(bound.distance_term, 4), round(bound.norm_term, 4), round(bound.last_iterate_term, 4)
        (0.3333, 0.4167, 0.8333)

    Reference: arXiv 2310.07831, Theorem 10; arXiv 2501.18965, Theorem 1.
    """
    eta, norms = _checked(multipliers, norms, norm)
    with np.errstate(over="ignore", under="ignore"):  # the result is checked by `bound_from_squared_norms`
        squared = norms ** -DEFAULT_POWER[norm]
    return bound_from_squared_norms(eta, squared)


def bound_from_squared_norms(multipliers: NDArray[np.float64], squared_norms: NDArray[np.float64]) -> LastIterateBound:
    """`last_iterate_bound` on G_t^2 itself.

    Args:
        multipliers: eta_t, shape (T,), at least one of them positive.
        squared_norms: G_t^2, shape (T,).

    Returns:
        As `last_iterate_bound`.

    Raises:
        ValueError: if a term lies beyond the range of float64.
    """
    last = int(np.flatnonzero(multipliers)[-1]) + 1
    eta, squared_norms = multipliers[:last], squared_norms[:last]
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        step_sums = np.cumsum(eta[::-1])[::-1]
        noise_sums = np.cumsum((eta**2 * squared_norms)[::-1])[::-1]
        bound = LastIterateBound(
            distance_term=float(0.5 / step_sums[0]),
            norm_term=float(0.5 * noise_sums[0] / step_sums[0]),
            last_iterate_term=float(0.5 * np.sum(eta[:-1] / step_sums[1:] * (noise_sums[:-1] / step_sums[:-1]))),
        )
    if not (all(map(math.isfinite, bound)) and bound.distance_term > 0 and bound.norm_term > 0):
        raise ValueError(
            "The bound lies beyond the range of float64: the norms or multipliers are too large or too small; divide "
            "each by its maximum."
        )
    return bound


def squared_norms(effective_norms: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """G_t^2 for which refinement with this power minimises the bound, up to a factor: the reciprocal weights.

    Args:
        effective_norms: what the weights are computed from, positive, shape (T,).
        power: the exponent of the weights, negative.

    Returns:
        Squared norms, shape (T,), with maximum 1.
    """
    with np.errstate(under="ignore"):  # a norm this far below the maximum adds nothing to the bound
        squared: NDArray[np.float64] = (effective_norms / effective_norms.max()) ** -power
    return squared


class RankedSchedule(NamedTuple):
    """A schedule's place by the bound, each schedule at its own best peak."""

    name: str
    relative_bound: float
    """The bound over that of linear decay; less is better."""
    best_peak_ratio: float
    """The best peak learning rate over that of linear decay: a peak tuned for one carries over to the other."""


def rank_schedules(
    schedules: Mapping[str, ArrayLike], norms: ArrayLike, *, norm: NormKind = "l1"
) -> list[RankedSchedule]:
    """Rank schedules by the last-iterate bound, each at the peak learning rate that is best for it.

    Neither the ratio of two bounds nor that of two best peaks depends on the distance D.

    Args:
        schedules: multipliers by name, each sampled at t / T for t = 0 .. T-1, shape (T,).
        norms: smoothed gradient norms at the same steps, shape (T,); all ones where nothing is known.
        norm: as in `last_iterate_bound`.

    Returns:
        Rows, best first.

    Raises:
        ValueError: as `last_iterate_bound`, naming the schedule.

    Example:
        >>> import numpy as np
        >>> for row in rank_schedules({"constant": np.ones(1000), "linear": 1 - np.arange(1000) / 1000}, np.ones(1000)):
        ...     print(f"{row.name:<9}{row.relative_bound:.2f} {row.best_peak_ratio:.2f}")
        linear   1.00 1.00
        constant 1.45 0.34

    Reference: arXiv 2310.07831, Theorem 10; arXiv 2501.18965, section 4.
    """
    _, norms = _checked(np.ones_like(norms, dtype=np.float64), norms, norm)
    checked = {}
    for name, multipliers in schedules.items():
        try:
            checked[name], _ = _checked(multipliers, norms, norm)
        except ValueError as error:
            raise ValueError(f"The schedule {name!r}: {error}") from None
    return rank_by_squared_norms(checked, squared_norms(norms, DEFAULT_POWER[norm]))


def rank_by_squared_norms(
    schedules: Mapping[str, NDArray[np.float64]],
    squared_norms: NDArray[np.float64],
    clip_factors: NDArray[np.float64] | None = None,
) -> list[RankedSchedule]:
    """`rank_schedules` on G_t^2 itself.

    Args:
        schedules: multipliers by name, shape (T,).
        squared_norms: G_t^2, shape (T,).
        clip_factors: what clipping multiplies the gradients of SGD by, shape (T,).

    Returns:
        Rows, best first.

    Raises:
        ValueError: as `bound_from_squared_norms`.
    """
    factors = np.ones_like(squared_norms) if clip_factors is None else clip_factors
    linear = bound_from_squared_norms(factors * linear_decay(len(squared_norms)), squared_norms)
    rows = []
    for name, multipliers in schedules.items():
        bound = bound_from_squared_norms(factors * multipliers, squared_norms)
        rows.append(RankedSchedule(name, bound.value / linear.value, bound.best_peak / linear.best_peak))
    return sorted(rows, key=lambda row: row.relative_bound)


def optimize_schedule(norms: ArrayLike, *, norm: NormKind = "l1") -> NDArray[np.float64]:
    """The schedule with the least last-iterate bound for given gradient norms, found numerically.

    L-BFGS-B from the closed form of `refine_schedule`, with the analytic gradient of the logarithm of the bound at its best
    peak. One evaluation costs O(T), because the bound's second and third term together are

        1/2 sum_{t=1}^{T-1} eta_t^2 G_t^2 / S_{t+1}  +  1/2 eta_T G_T^2

    Args:
        norms: smoothed gradient norms at t / T for t = 0 .. T-1, positive, shape (T,).
        norm: as in `last_iterate_bound`.

    Returns:
        Multipliers, shape (T,), with maximum 1. The bound of `last_iterate_bound` is at most that of the closed form.

    Raises:
        ValueError: for norms that are not positive, fewer than two of them, or an unknown `norm`.

    Example:
        >>> import numpy as np
        >>> optimize_schedule(np.ones(1000))[::250].round(2)
        array([1.  , 0.75, 0.5 , 0.25])

    Reference: arXiv 2310.07831, section 4 and Theorem 10.
    """
    _, norms = _checked(np.ones_like(norms, dtype=np.float64), norms, norm)
    if len(norms) < 2:
        raise ValueError("A schedule needs at least 2 norms; pass one for each step.")
    return optimize_for_squared_norms(squared_norms(norms, DEFAULT_POWER[norm]))


def optimize_for_squared_norms(squared_norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """`optimize_schedule` on G_t^2 itself.

    Args:
        squared_norms: G_t^2 with maximum 1, shape (T,), T at least 2.

    Returns:
        Multipliers, shape (T,), with maximum 1.

    Raises:
        ValueError: if a squared norm is zero.
    """
    from scipy.optimize import minimize

    extended = np.append(squared_norms, squared_norms[-1])
    closed_form = refine_schedule(extended, power=-1.0, smoothing=0.0)[:-1]
    # At a multiplier of exactly zero the gradient of the bound is undefined. A step this small changes nothing.
    smallest = 1e-9
    minimum = minimize(
        _log_bound,
        np.maximum(closed_form, smallest),
        args=(squared_norms,),
        jac=True,
        method="L-BFGS-B",
        bounds=[(smallest, None)] * len(squared_norms),
        options={"maxiter": 5_000, "maxfun": 10_000, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 20},
    ).x
    best = min(closed_form, minimum, key=lambda eta: bound_from_squared_norms(eta, squared_norms).value)
    multipliers: NDArray[np.float64] = best / best.max()
    return multipliers


def _log_bound(eta: NDArray[np.float64], squared_norms: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The logarithm of the squared bound at its best peak, up to a constant, and its gradient."""
    step_sums = np.cumsum(eta[::-1])[::-1]
    noise = eta**2 * squared_norms
    noise_term = np.sum(noise[:-1] / step_sums[1:]) + eta[-1] * squared_norms[-1]
    gradient = np.append(2 * eta[:-1] * squared_norms[:-1] / step_sums[1:], squared_norms[-1])
    gradient[1:] -= np.cumsum(noise[:-1] / step_sums[1:] ** 2)
    return math.log(noise_term / step_sums[0]), gradient / noise_term - 1 / step_sums[0]


def _checked(multipliers: ArrayLike, norms: ArrayLike, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    eta = np.asarray(multipliers, dtype=np.float64)
    norms = np.asarray(norms, dtype=np.float64)
    if norm not in ("l1", "l2"):
        raise ValueError(f'norm is {norm!r:.40}, but must be "l1" (Adam) or "l2" (SGD).')
    if eta.ndim != 1 or eta.shape != norms.shape:
        raise ValueError(f"multipliers have shape {eta.shape}, norms {norms.shape}; pass one of each for a step.")
    if not (np.isfinite(eta).all() and np.isfinite(norms).all()) or (eta < 0).any() or (norms <= 0).any():
        raise ValueError(
            "multipliers must be finite and not negative, norms finite and positive; smooth the norms first."
        )
    if not eta.any():
        raise ValueError(
            "The schedule is zero everywhere, so the bound is infinite; pass one with a positive multiplier."
        )
    return eta, norms
