"""The two published forms of the loss as a function of the learning rates, and the sums that they are made of.

Both are L(t) = L_0 + A S_1(t)^-alpha - B D(t). S_1 is the sum of the rates so far. D, the annealing, is what the decreases of
the rate have brought so far: each decrease acts slowly, along a curve G that rises from 0 to 1.

    D(t) = sum_{k <= t} (eta_{k-1} - eta_k) G_k(t),  eta_0 = 0

An increase counts as a negative decrease, so that a warm-up or a re-warming costs what a later decay brings back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_DECREASES = 256
"""The decreases of a schedule are merged into this many at most: parts of equal total variation."""

NUM_KNOTS = 1500
"""`decay per decrease` is evaluated at this many updates, beside those of large decreases, and interpolated between."""

SMALLEST_RATE = 1e-6
"""A rate of 0 stands for this fraction of the peak where the rate has a negative power."""


class ShapeParameter(NamedTuple):
    """A parameter that is not linear in the loss."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    """Values of the coarse grid on which fits start."""


@dataclass(frozen=True)
class LossForm:
    """A form of the annealing D, in rates relative to a reference rate; times are counted in updates."""

    name: str
    reference: str
    shape_parameters: tuple[ShapeParameter, ...]
    """Logarithms of the time scale, and exponents."""
    annealing: Callable[[Array, NDArray[np.int64], Array], Array]
    """(rates (T,), 0-based updates (n,), shape parameters) -> D (n,)."""
    published: Callable[[float, float, Array], dict[str, float]]
    """(B over the reference rate, the reference rate, shape parameters) -> the paper's own parameters, by name."""


def annealing_sum(rates: Array, updates: NDArray[np.int64], shape: Array) -> Array:
    """D of Tissue et al.: every decrease decays into the loss at the same speed, G_k(t) = 1 - lambda^(t - k + 1).

    Their S_2 is D / (1 - lambda), and their C is B (1 - lambda).

    Args:
        rates: eta_t over a reference rate, shape (T,).
        updates: where D is wanted, 0-based, shape (n,).
        shape: log(-1 / log(lambda)), the logarithm of the time scale in updates, shape (1,).

    Returns:
        D, shape (n,).

    Reference: arXiv 2408.11029, equation 1.
    """
    from scipy.signal import lfilter

    decay = np.exp(-np.exp(-shape[0]))
    momentum = lfilter([1.0], [1.0, -decay], -np.diff(rates, prepend=0.0))
    annealing: Array = (1 - decay) * np.cumsum(momentum)[updates]
    return annealing


def decay_per_decrease(rates: Array, updates: NDArray[np.int64], shape: Array) -> Array:
    """D of Luo et al.: a decrease acts faster at a lower rate, and by a power law,

        G_k(t) = 1 - (1 + C eta_k^-gamma S_k(t))^-beta,   S_k(t) = sum_{k <= i <= t} eta_i

    The decreases are merged into at most `NUM_DECREASES`.

    Args:
        rates: eta_t over a reference rate, shape (T,).
        updates: where D is wanted, 0-based, shape (n,).
        shape: log(1 / C), beta, gamma, shape (3,).

    Returns:
        D, shape (n,).

    Reference: arXiv 2503.12811, equation 2.
    """
    decreases = merged_decreases(rates)
    sums = np.cumsum(rates)[updates]
    scale, beta, gamma = np.exp(-shape[0]), shape[1], shape[2]
    speeds = scale * np.maximum(decreases.rates, SMALLEST_RATE) ** -gamma
    since = np.maximum(sums[:, None] - decreases.sums_before, 0.0)
    shares = -np.expm1(-beta * np.log1p(speeds * since))
    annealing: Array = shares @ decreases.sizes
    return annealing


class Decreases(NamedTuple):
    """The decreases of a schedule, merged where they are small; increases have a negative size."""

    sizes: Array
    """eta_{k-1} - eta_k, shape (K,)."""
    rates: Array
    """eta_k, shape (K,)."""
    sums_before: Array
    """The sum of the rates before update k, shape (K,)."""


def merged_decreases(rates: Array) -> Decreases:
    """Merge neighbouring decreases into parts of equal total variation, each at its mean place.

    Args:
        rates: eta_t, shape (T,).

    Returns:
        At most `NUM_DECREASES` decreases.
    """
    sizes = -np.diff(rates, prepend=0.0)
    sums_before = np.cumsum(rates) - rates
    changed = np.flatnonzero(sizes)
    sizes, rates, sums_before = sizes[changed], rates[changed], sums_before[changed]
    if len(sizes) <= NUM_DECREASES:
        return Decreases(sizes, rates, sums_before)
    weights = np.abs(sizes)
    variation = np.cumsum(weights)
    # A part ends where the sign changes, so that a warm-up and a decay do not cancel.
    parts = np.floor((variation - weights / 2) / variation[-1] * NUM_DECREASES)
    starts = np.flatnonzero(np.diff(parts, prepend=-1.0) + np.abs(np.diff(np.sign(sizes), prepend=0.0)))
    totals = np.add.reduceat(weights, starts)
    return Decreases(
        np.add.reduceat(sizes, starts),
        np.add.reduceat(weights * rates, starts) / totals,
        np.add.reduceat(weights * sums_before, starts) / totals,
    )


def _published_sum(annealing_term: float, reference_rate: float, shape: Array) -> dict[str, float]:
    decay = float(np.exp(-np.exp(-shape[0])))
    return {"C": annealing_term * (1 - decay), "lambda": decay}


def _published_decay(annealing_term: float, reference_rate: float, shape: Array) -> dict[str, float]:
    beta, gamma = float(shape[1]), float(shape[2])
    speed = float(np.exp(-shape[0])) * reference_rate ** (gamma - 1)
    return {"B": annealing_term, "C": speed, "beta": beta, "gamma": gamma}


ANNEALING_SUM = LossForm(
    "annealing sum",
    "Tissue et al., arXiv 2408.11029",
    (ShapeParameter("time scale", np.log(2.0), np.log(1e5), tuple(np.log(np.geomspace(5, 2e4, 16)))),),
    annealing_sum,
    _published_sum,
)

DECAY_PER_DECREASE = LossForm(
    "decay per decrease",
    "Luo et al., arXiv 2503.12811",
    (
        ShapeParameter("time scale", np.log(0.5), np.log(1e5), tuple(np.log(np.geomspace(2, 5e3, 8)))),
        ShapeParameter("beta", 0.1, 2.0, (0.3, 0.5, 1.0)),
        ShapeParameter("gamma", 0.0, 0.95, (0.0, 0.5)),
    ),
    decay_per_decrease,
    _published_decay,
)

FORMS = (ANNEALING_SUM, DECAY_PER_DECREASE)
