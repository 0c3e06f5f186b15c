"""Fit one form of the loss law to logs: a coarse grid, least squares from its best points, a bootstrap on the grid."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .loss_forms import LossForm
from .loss_logs import LossLog

Array = NDArray[np.float64]

ALPHAS = tuple(tenth / 10 for tenth in range(1, 13))
"""The exponents of the coarse grid."""

LARGEST_ALPHA = 2.0

NUM_STARTS = 3

NUM_DRAWS = 200
"""Fits to resampled residuals."""

NUM_BLOCKS = 8
"""Residuals are resampled in this many blocks of neighbours: a law's errors are smooth, not independent."""


class LossFit(NamedTuple):
    """A form with its parameters, in rates relative to the largest of the logs."""

    form: LossForm
    coefficients: Array
    """L_0, A, B, alpha, then the shape parameters, shape (4 + s,)."""
    reference_rate: float
    """The largest learning rate of the logs."""
    reference_sum: float
    """The largest sum of relative rates at a logged loss."""

    def predict(self, rates: Array, updates: NDArray[np.int64]) -> Array:
        """The loss after some updates.

        Args:
            rates: of every update, shape (T,).
            updates: 0-based, shape (n,).

        Returns:
            Shape (n,).
        """
        floor, power_term, annealing_term, alpha = self.coefficients[:4]
        relative = rates / self.reference_rate
        sums = np.maximum(np.cumsum(relative)[updates] / self.reference_sum, 1e-9)
        annealing = self.form.annealing(relative, updates, self.coefficients[4:])
        losses: Array = floor + power_term * sums**-alpha - annealing_term * annealing
        return losses

    def parameters(self) -> dict[str, float]:
        """The coefficients by the symbols of the papers, for learning rates as they are."""
        floor, power_term, annealing_term, alpha = (float(value) for value in self.coefficients[:4])
        unit = self.reference_rate
        common = {"L0": floor, "A": power_term * (self.reference_sum * unit) ** alpha, "alpha": alpha}
        return common | self.form.published(annealing_term / unit, unit, self.coefficients[4:])


class Problem(NamedTuple):
    """What a form is fitted to."""

    form: LossForm
    rates: tuple[Array, ...]
    updates: tuple[NDArray[np.int64], ...]
    reference_rate: float
    reference_sum: float
    sums: Array
    losses: Array

    @classmethod
    def of(cls, form: LossForm, logs: Sequence[LossLog]) -> "Problem":
        """The problem of fitting `form` to `logs`."""
        reference = max(float(log.rates.max()) for log in logs)
        rates = tuple(log.rates / reference for log in logs)
        updates = tuple(log.updates for log in logs)
        sums = np.concatenate([np.cumsum(rate)[update] for rate, update in zip(rates, updates, strict=True)])
        losses = np.concatenate([log.losses for log in logs])
        largest = float(sums.max())
        return cls(form, rates, updates, reference, largest, sums / largest, losses)

    def annealing(self, shape: Array) -> Array:
        """D at every logged loss, shape (n,)."""
        return np.concatenate(
            [self.form.annealing(*arrays, shape) for arrays in zip(self.rates, self.updates, strict=True)]
        )

    def bounds(self) -> tuple[Array, Array]:
        """The least and the largest coefficients."""
        largest = float(self.losses.max())
        shape = self.form.shape_parameters
        return (
            np.array([0.0, 0.0, 0.0, ALPHAS[0] / 2, *[parameter.low for parameter in shape]]),
            np.array([largest, 10 * largest, 10 * largest, LARGEST_ALPHA, *[parameter.high for parameter in shape]]),
        )

    def residuals(self, coefficients: Array) -> Array:
        """Logarithms of predicted over logged losses, shape (n,)."""
        floor, power_term, annealing_term, alpha = coefficients[:4]
        predicted = floor + power_term * self.sums**-alpha - annealing_term * self.annealing(coefficients[4:])
        residuals: Array = np.log(np.maximum(predicted, self.smallest) / self.losses)
        return residuals

    @property
    def smallest(self) -> float:
        """A positive loss below all logged ones, to take logarithms of."""
        return 1e-3 * float(self.losses.min())

    def jacobian(self, coefficients: Array) -> Array:
        """Derivatives of the residuals, shape (n, 4 + s): by differences for the shape, exact for the rest."""
        floor, power_term, annealing_term, alpha = coefficients[:4]
        powers = self.sums**-alpha
        annealing = self.annealing(coefficients[4:])
        predicted = np.maximum(floor + power_term * powers - annealing_term * annealing, self.smallest)
        columns = [np.ones_like(powers), powers, -annealing, -power_term * np.log(self.sums) * powers]
        for index in range(4, len(coefficients)):
            shifted = coefficients[4:].copy()
            shifted[index - 4] += 1e-4
            columns.append(-annealing_term * (self.annealing(shifted) - annealing) / 1e-4)
        jacobian: Array = np.stack(columns, axis=1) / predicted[:, None]
        return jacobian


class GridPoint(NamedTuple):
    """The law with given exponents and time scale, which is linear in the other coefficients."""

    nonlinear: Array
    """alpha, then the shape parameters, shape (1 + s,)."""
    design: Array
    """Columns of L_0, A and B, over the losses, shape (n, 3); the last one is 0 for a law without annealing."""
    solution: Array
    """The pseudo-inverse of the design, shape (3, n)."""


def coarse_grid(problem: Problem) -> list[GridPoint]:
    """All points of the grid, and the law without annealing at each exponent.

    Args:
        problem: form and logs.

    Returns:
        Points, in any order.
    """
    shapes = [np.array(shape) for shape in itertools.product(*[p.starts for p in problem.form.shape_parameters])]
    annealings = [(shape, problem.annealing(shape)) for shape in shapes]
    annealings.append((shapes[0], np.zeros_like(problem.losses)))
    points = []
    for shape, annealing in annealings:
        for alpha in ALPHAS:
            design = np.stack([np.ones_like(annealing), problem.sums**-alpha, -annealing], axis=1)
            design /= problem.losses[:, None]
            points.append(GridPoint(np.array([alpha, *shape]), design, np.linalg.pinv(design).astype(np.float64)))
    return points


def fit_on_grid(points: Sequence[GridPoint], targets: Array) -> tuple[Array, Array]:
    """The best coefficients of every grid point for every target, by linear least squares.

    Args:
        points: of `coarse_grid`.
        targets: what the relative losses should be, 1 for the logged ones, shape (n, m).

    Returns:
        Coefficients, shape (points, m, 4 + s), and sums of squares, shape (points, m), infinite where L_0, A or B is negative.
    """
    coefficients, costs = [], []
    for point in points:
        linear = point.solution @ targets
        squares = np.square(point.design @ linear - targets).sum(axis=0)
        costs.append(np.where((linear >= 0).all(axis=0), squares, np.inf))
        nonlinear = np.broadcast_to(point.nonlinear, (targets.shape[1], len(point.nonlinear)))
        coefficients.append(np.concatenate([linear.T, nonlinear], axis=1))
    return np.array(coefficients), np.array(costs)


def fit_form(problem: Problem, points: Sequence[GridPoint]) -> LossFit:
    """Least squares with a robust loss on log residuals, from the best points of the grid.

    Args:
        problem: form and logs.
        points: its `coarse_grid`.

    Returns:
        The best of the fits.
    """
    from scipy.optimize import least_squares

    low, high = problem.bounds()
    margin = 1e-6 * (high - low)
    coefficients, costs = fit_on_grid(points, np.ones((len(problem.losses), 1)))
    starts = _distinct(coefficients[:, 0], costs[:, 0])
    noise = max(float(np.median(np.abs(problem.residuals(starts[0])))), 1e-9)
    fits = [
        least_squares(
            problem.residuals,
            np.clip(start, low + margin, high - margin),
            jac=problem.jacobian,
            bounds=(low, high),
            loss="soft_l1",
            f_scale=2 * noise,
            x_scale="jac",
            max_nfev=60,
        )
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    return LossFit(problem.form, best, problem.reference_rate, problem.reference_sum)


def _distinct(coefficients: Array, costs: Array) -> list[Array]:
    """The best few rows of coefficients that differ in their shape parameters."""
    starts: list[Array] = []
    for index in np.argsort(costs, kind="stable"):
        candidate = coefficients[index]
        if all((candidate[4:] != start[4:]).any() for start in starts):
            starts.append(candidate)
        if len(starts) == NUM_STARTS:
            break
    return starts


def bootstrap(problem: Problem, points: Sequence[GridPoint], fit: LossFit) -> Array:
    """Coefficients fitted on the grid to resampled residuals.

    Args:
        problem: form and logs.
        points: its `coarse_grid`.
        fit: of `fit_form`.

    Returns:
        Row 0 is the best grid point for the logs themselves; then one row for each draw, shape (1 + `NUM_DRAWS`, 4 + s).
    """
    relative = np.exp(problem.residuals(fit.coefficients))
    residuals = 1.0 - relative
    size = len(residuals)
    generator = np.random.default_rng(0)
    length = max(1, size // NUM_BLOCKS)
    starts = generator.integers(size, size=(-(-size // length), NUM_DRAWS))
    chosen = (starts[:, None] + np.arange(length)[None, :, None]).reshape(-1, NUM_DRAWS)[:size] % size
    targets = np.concatenate([np.ones((size, 1)), relative[:, None] + residuals[chosen]], axis=1)
    coefficients, costs = fit_on_grid(points, targets)
    best: Array = coefficients[np.argmin(costs, axis=0), np.arange(1 + NUM_DRAWS)]
    return best
