"""Three forms of the loss as a function of the learning rates, two of them published, and the sums that they are made of.

All are L(t) = L_0 + A S_1(t)^-alpha - B D(t). S_1, the progress, is the sum of the rates so far. D, the annealing, is what the
decreases of the rate have brought so far: each decrease acts slowly, along a curve G that rises from 0 to 1.

    D(t) = sum_{k <= t} (eta_{k-1} - eta_k) G_k(t),  eta_0 = 0

One form has powers of the rates in both sums.

An increase counts as a negative decrease, so that a warm-up or a re-warming costs what a later decay brings back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Updates = NDArray[np.int64]

NUM_DECREASES = 256
"""The decreases of a schedule are merged into this many at most, each with an equal share of the total variation."""

NUM_KNOTS = 1500
"""Where D is wanted at more updates than this, a sum over decreases is interpolated between as many."""

SMALLEST_RATE = 1e-6
"""A rate of 0 stands for this fraction of the reference rate where the rate has a negative power."""


class Decreases(NamedTuple):
    """The decreases of a schedule, merged where they are small; increases have a negative size."""

    sizes: Array
    """eta_{k-1} - eta_k, or the decrease of a power of the rate, shape (K,)."""
    rates: Array
    """eta_k, or its power, shape (K,)."""
    sums_before: Array
    """The sum of the rates before update k, shape (K,)."""
    first: Updates
    """The 0-based update of the first decrease that was merged, shape (K,)."""


class Schedule(NamedTuple):
    """Learning rates and what the forms need of them."""

    rates: Array
    """eta_t over a reference rate, shape (T,)."""
    sums: Array
    """The sum of the rates up to each update, shape (T,)."""
    progress: Array
    """S_1, the sum of eta^p up to each update, shape (T,)."""
    decreases: Decreases

    @classmethod
    def of(cls, rates: Array, progress_power: float = 1.0, noise_power: float = 1.0) -> "Schedule":
        """The schedule with these rates.

        Args:
            rates: eta_t over a reference rate, shape (T,).
            progress_power: p, where S_1 is the sum of eta^p.
            noise_power: q, where the decreases are those of eta^q.

        Returns:
            The schedule.
        """
        sums = np.cumsum(rates)
        progress = np.cumsum(rates**progress_power)
        return cls(rates, sums, progress, merged_decreases(rates**noise_power, sums - rates))


def merged_decreases(rates: Array, sums_before: Array) -> Decreases:
    """Merge neighbouring decreases into parts of equal total variation, each at its mean place; increases likewise.

    Args:
        rates: eta_t, shape (T,).
        sums_before: the sum of the rates before each update, shape (T,).

    Returns:
        At most `NUM_DECREASES` decreases and as many increases.
    """
    sizes = -np.diff(rates, prepend=0.0)
    changed = np.flatnonzero(sizes)
    sizes, rates, sums_before = sizes[changed], rates[changed], sums_before[changed]
    if len(changed) <= NUM_DECREASES:
        return Decreases(sizes, rates, sums_before, changed)
    parts = np.concatenate([_parts(np.maximum(sizes, 0.0)), NUM_DECREASES + _parts(np.maximum(-sizes, 0.0))])
    parts = np.where(sizes > 0, *np.split(parts, 2))
    _, first, parts = np.unique(parts, return_index=True, return_inverse=True)
    weights = np.abs(sizes)
    totals = np.bincount(parts, weights)
    return Decreases(
        np.bincount(parts, sizes).astype(np.float64),
        np.bincount(parts, weights * rates) / totals,
        np.bincount(parts, weights * sums_before) / totals,
        changed[first],
    )


def _parts(weights: Array) -> Updates:
    """The number of the part that each weight belongs to, of `NUM_DECREASES` parts with equal sums; one each if few."""
    number = np.cumsum(weights > 0, dtype=np.int64)
    if not len(weights) or number[-1] <= NUM_DECREASES:
        return number
    middles = np.cumsum(weights) - weights / 2
    parts: Updates = (middles / weights.sum() * NUM_DECREASES).astype(np.int64)
    return parts


def annealing_sum(schedule: Schedule, updates: Updates, shape: Array) -> Array:
    """D of Tissue et al.: every decrease acts at the same speed, G_k(t) = 1 - lambda^(t - k + 1).

    With the warm-up counted, this is a leaky mean of the rates, with a minus:

        D(t) = -(1 - lambda) sum_{k <= t} lambda^(t - k) eta_k

    The paper's S_2 is D / (1 - lambda), its C is B (1 - lambda). It counts from the end of the warm-up.

    Args:
        schedule: of T updates.
        updates: where D is wanted, 0-based, shape (n,).
        shape: log(-1 / log(lambda)), the logarithm of the time scale in updates, shape (1,).

    Returns:
        D, shape (n,).

    Reference: arXiv 2408.11029, equation 1.
    """
    from scipy.signal import lfilter

    decay = np.exp(-np.exp(-shape[0]))
    annealing: Array = -lfilter([1 - decay], [1.0, -decay], schedule.rates)[updates]
    return annealing


def decay_per_decrease(schedule: Schedule, updates: Updates, shape: Array) -> Array:
    """D of Luo et al.: a decrease acts by a power law, and faster at a lower rate,

        G_k(t) = 1 - (1 + C eta_k^-gamma S_k(t))^-beta,   S_k(t) = sum_{k <= i <= t} eta_i

    They count from the end of the warm-up.

    Args:
        schedule: of T updates.
        updates: where D is wanted, 0-based, rising, shape (n,).
        shape: log(1 / C), beta, gamma, shape (3,).

    Returns:
        D, shape (n,).

    Reference: arXiv 2503.12811, equation 2.
    """
    speeds = np.exp(-shape[0]) * np.maximum(schedule.decreases.rates, SMALLEST_RATE) ** -shape[2]
    return _sum_over_decreases(schedule, updates, lambda sums: -np.expm1(-shape[1] * np.log1p(speeds * sums)))


def exponential_annealing(schedule: Schedule, updates: Updates, shape: Array) -> Array:
    """D where noise is forgotten at the speed at which the later rates move the weights.

        G_k(t) = 1 - exp(-C S_k(t)),   S_k(t) = sum_{k <= i <= t} eta_i

    It is the limit of `decay_per_decrease` for gamma = 0 and a large beta, and has the fewest parameters. The noise of SGD with
    small rates in a quadratic valley is forgotten in this way.

    Args:
        schedule: of T updates.
        updates: where D is wanted, 0-based, rising, shape (n,).
        shape: log(1 / C), shape (1,).

    Returns:
        D, shape (n,).
    """
    speed = np.exp(-shape[0])
    return _sum_over_decreases(schedule, updates, lambda sums: -np.expm1(-speed * sums))


def _sum_over_decreases(schedule: Schedule, updates: Updates, curve: Callable[[Array], Array]) -> Array:
    """D at some updates, where `curve` makes G from the sums of rates since each decrease, shape (n, K)."""
    knots = _knots(schedule, updates) if len(updates) > NUM_KNOTS else updates
    since = np.maximum(schedule.sums[knots, None] - schedule.decreases.sums_before, 0.0)
    annealing: Array = np.interp(updates, knots, curve(since) @ schedule.decreases.sizes)
    return annealing


def _knots(schedule: Schedule, updates: Updates) -> Updates:
    """Updates that are even over the run, and those before and at the decreases."""
    even = np.linspace(updates[0], updates[-1], NUM_KNOTS).astype(np.int64)
    turns = np.concatenate([schedule.decreases.first - 1, schedule.decreases.first])
    return np.union1d(even, turns[(turns >= updates[0]) & (turns <= updates[-1])])


class ShapeParameter(NamedTuple):
    """A parameter in which the law is not linear, and what is known of it before a fit."""

    name: str
    mean: float
    deviation: float
    """Mean and standard deviation of a normal prior."""
    low: float
    high: float
    starts: tuple[float, ...]
    """Values of the coarse grid."""


@dataclass(frozen=True)
class LossForm:
    """A form of the annealing D, for rates relative to a reference rate; times are counted in updates."""

    name: str
    shape_parameters: tuple[ShapeParameter, ...]
    annealing: Callable[[Schedule, Updates, Array], Array]
    """(schedule, 0-based updates (n,), shape parameters) -> D (n,)."""
    formula_parameters: Callable[[float, float, Array], dict[str, float]]
    """(B for learning rates as they are, the reference rate, shape parameters) -> the parameters of its formula, by name."""
    alpha: ShapeParameter
    """The exponent of S_1."""
    progress_power: float = 1.0
    """p: S_1 is the sum of eta^p."""
    noise_power: float = 1.0
    """q: D is of the decreases of eta^q."""

    def schedule(self, rates: Array) -> Schedule:
        """What the form needs of learning rates over a reference rate, shape (T,)."""
        return Schedule.of(rates, self.progress_power, self.noise_power)


ALPHA = ShapeParameter("alpha", 0.5, 0.05, 0.05, 2.0, tuple(np.linspace(0.2, 1.0, 17).tolist()))
"""The fits of both papers lie near 0.5."""

PROGRESS_POWER, NOISE_POWER = 2 / 3, 0.8
"""p and q of the exponential annealing: a low rate makes more progress, and leaves more noise, than in proportion. A single log does
not show them, so they are fixed, near the best of 18 published runs (results/loss_law.md)."""


def _sum_parameters(annealing_term: float, reference_rate: float, shape: Array) -> dict[str, float]:
    decay = float(np.exp(-np.exp(-shape[0])))
    return {"C": annealing_term * (1 - decay), "lambda": decay}


def _decay_parameters(annealing_term: float, reference_rate: float, shape: Array) -> dict[str, float]:
    beta, gamma = float(shape[1]), float(shape[2])
    speed = float(np.exp(-shape[0])) * reference_rate ** (gamma - 1)
    return {"B": annealing_term, "C": speed, "beta": beta, "gamma": gamma}


def _exponential_parameters(annealing_term: float, reference_rate: float, shape: Array) -> dict[str, float]:
    return {"B": annealing_term, "C": float(np.exp(-shape[0])) / reference_rate}


def _log_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(np.log(low), np.log(high), count).tolist())


# The priors are weak: they decide only where a log cannot, such as between the time scale and the exponent of a cosine run.
EXPONENTIAL_ANNEALING = LossForm(
    "exponential annealing",
    (ShapeParameter("time scale", np.log(100.0), 0.5, np.log(2.0), np.log(1e5), _log_grid(5, 2e4, 16)),),
    exponential_annealing,
    _exponential_parameters,
    ALPHA._replace(mean=0.53),
    PROGRESS_POWER,
    NOISE_POWER,
)

ANNEALING_SUM = LossForm(
    "annealing sum",
    (ShapeParameter("time scale", np.log(500.0), 0.7, np.log(2.0), np.log(1e5), _log_grid(5, 2e4, 16)),),
    annealing_sum,
    _sum_parameters,
    ALPHA,
)

DECAY_PER_DECREASE = LossForm(
    "decay per decrease",
    (
        ShapeParameter("time scale", np.log(20.0), 0.7, np.log(0.2), np.log(1e4), _log_grid(1, 2e3, 12)),
        ShapeParameter("beta", 0.5, 0.2, 0.1, 2.0, (0.3, 0.5, 0.8)),
        ShapeParameter("gamma", 0.5, 0.25, 0.0, 0.95, (0.0, 0.4, 0.8)),
    ),
    decay_per_decrease,
    _decay_parameters,
    ALPHA,
)

FORMS = (EXPONENTIAL_ANNEALING, ANNEALING_SUM, DECAY_PER_DECREASE)
"""From the fewest parameters to the most."""
