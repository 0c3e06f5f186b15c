"""Fit one form of the loss law to logs: a coarse grid, least squares from its best points, a bootstrap on the grid."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .loss_forms import LossForm, Schedule, ShapeParameter
from .loss_logs import CheckedLog

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

Array = NDArray[np.float64]
Updates = NDArray[np.int64]

NUM_STARTS = 3
"""Fits start from this many points of the grid."""

NUM_DRAWS = 200
"""Fits to resampled residuals."""

NUM_BLOCKS = 5
"""Residuals are resampled in this many blocks, and a log counts as this many independent losses against the priors. The laws are
approximate: the noise within a log understates how far the best law of one run is from that of another."""

ROBUST_FROM = 2.0
"""A residual counts less than its square from this many times the noise on."""

SMALLEST_SUM = 1e-9
"""Relative to the largest: stands for a progress of 0, which has a negative power."""


class LossFit(NamedTuple):
    """A form with its coefficients, for rates relative to the largest of the logs."""

    form: LossForm
    coefficients: Array
    """L_0, A, B, alpha, then the shape parameters, shape (4 + s,)."""
    reference_rate: float
    """The largest learning rate of the logs."""
    reference_sum: float
    """The largest progress of relative rates at a logged loss."""

    def predict(self, rates: Array, updates: Updates) -> Array:
        """The loss after some updates.

        Args:
            rates: of every update, shape (T,).
            updates: 0-based, rising, shape (n,).

        Returns:
            Losses, shape (n,).
        """
        schedule = self.form.schedule(rates / self.reference_rate)
        floor, power_term, annealing_term, alpha = self.coefficients[:4]
        sums = np.maximum(schedule.progress[updates] / self.reference_sum, SMALLEST_SUM)
        annealing = self.form.annealing(schedule, updates, self.coefficients[4:])
        losses: Array = floor + power_term * sums**-alpha - annealing_term * annealing
        return losses

    def coarser(self, factor: float) -> "LossFit":
        """The same law for schedules of which each update stands for several.

        Args:
            factor: the number of updates that one stands for.

        Returns:
            The law with time scale and sums over `factor`.
        """
        coefficients = self.coefficients.copy()
        coefficients[4] -= np.log(factor)
        return self._replace(coefficients=coefficients, reference_sum=self.reference_sum / factor)

    def final_losses(self, rates: Array, draws: Array) -> Array:
        """The last loss for other coefficients of the same form.

        Args:
            rates: of every update, shape (T,).
            draws: coefficients, shape (m, 4 + s).

        Returns:
            Losses, shape (m,).
        """
        schedule = self.form.schedule(rates / self.reference_rate)
        last = np.array([len(rates) - 1])
        shapes, which = np.unique(draws[:, 4:], axis=0, return_inverse=True)
        annealing = np.array([self.form.annealing(schedule, last, shape)[0] for shape in shapes])[which]
        total = max(schedule.progress[-1] / self.reference_sum, SMALLEST_SUM)
        losses: Array = draws[:, 0] + draws[:, 1] * total ** -draws[:, 3] - draws[:, 2] * annealing
        return losses

    def parameters(self) -> dict[str, float]:
        """The coefficients by the symbols of the papers, for learning rates as they are."""
        floor, power_term, annealing_term, alpha = (float(value) for value in self.coefficients[:4])
        unit, form = self.reference_rate, self.form
        progress = self.reference_sum * unit**form.progress_power
        common = {"L0": floor, "A": power_term * progress**alpha, "alpha": alpha}
        return common | form.formula_parameters(annealing_term / unit**form.noise_power, unit, self.coefficients[4:])


class Problem(NamedTuple):
    """What a form is fitted to: the logs, in relative rates."""

    form: LossForm
    schedules: tuple[Schedule, ...]
    updates: tuple[Updates, ...]
    reference_rate: float
    reference_sum: float
    sums: Array
    """The relative progress at every logged loss of all logs, with maximum 1, shape (n,)."""
    losses: Array
    """Shape (n,)."""

    @classmethod
    def of(cls, form: LossForm, logs: Sequence[CheckedLog]) -> "Problem":
        """The problem of fitting `form` to `logs`.

        Args:
            form: one of `FORMS`.
            logs: of one run or several.

        Returns:
            The problem.
        """
        reference = max(float(log.rates.max()) for log in logs)
        schedules = tuple(form.schedule(log.rates / reference) for log in logs)
        sums = np.concatenate([schedule.progress[log.updates] for schedule, log in zip(schedules, logs, strict=True)])
        largest = float(sums.max())
        losses = np.concatenate([log.losses for log in logs])
        return cls(form, schedules, tuple(log.updates for log in logs), reference, largest, sums / largest, losses)

    @property
    def priors(self) -> tuple[ShapeParameter, ...]:
        """Of alpha and of the shape parameters."""
        return (self.form.alpha, *self.form.shape_parameters)

    @property
    def num_independent(self) -> int:
        """The number of losses that the logs count as."""
        return NUM_BLOCKS * len(self.schedules)

    def annealing(self, shape: Array) -> Array:
        """D at every logged loss, shape (n,)."""
        return np.concatenate(
            [self.form.annealing(*pair, shape) for pair in zip(self.schedules, self.updates, strict=True)]
        )

    def bounds(self) -> tuple[Array, Array]:
        """The least and the largest coefficients."""
        largest = 10 * float(self.losses.max())
        return (
            np.array([0.0, 0.0, 0.0, *[prior.low for prior in self.priors]]),
            np.array([largest, largest, largest, *[prior.high for prior in self.priors]]),
        )

    def predicted(self, coefficients: Array) -> Array:
        """Losses by the law, not below a small positive number, shape (n,)."""
        floor, power_term, annealing_term, alpha = coefficients[:4]
        losses = floor + power_term * self.sums**-alpha - annealing_term * self.annealing(coefficients[4:])
        predicted: Array = np.maximum(losses, 1e-3 * self.losses.min())
        return predicted

    def derivatives(self, coefficients: Array) -> Array:
        """Of the logarithms of `predicted`, shape (n, 4 + s): by differences for the shape, exact for the rest."""
        _, power_term, annealing_term, alpha = coefficients[:4]
        powers = self.sums**-alpha
        annealing = self.annealing(coefficients[4:])
        columns = [np.ones_like(powers), powers, -annealing, -power_term * np.log(self.sums) * powers]
        step = 1e-4
        for index in range(4, len(coefficients)):
            shifted = coefficients[4:].copy()
            shifted[index - 4] += step
            columns.append(-annealing_term * (self.annealing(shifted) - annealing) / step)
        derivatives: Array = np.stack(columns, axis=1) / self.predicted(coefficients)[:, None]
        return derivatives


class Grid(NamedTuple):
    """The law with fixed exponents and time scale, which is linear in L_0, A and B, at many points.

    It has all combinations of the grid, and each exponent without annealing.
    """

    nonlinear: Array
    """alpha and the shape parameters, shape (p, 1 + s)."""
    bases: Array
    """Orthonormal vectors that span what the law can be over the losses, shape (p, 3, n)."""
    inverses: Array
    """From coordinates in the basis to L_0, A and B, shape (p, 3, 3)."""

    @classmethod
    def of(cls, problem: Problem) -> "Grid":
        """The grid of a problem.

        Args:
            problem: form and logs.

        Returns:
            The grid.
        """
        shapes = [
            np.array(shape) for shape in itertools.product(*[one.starts for one in problem.form.shape_parameters])
        ]
        annealings = [(shape, problem.annealing(shape)) for shape in shapes]
        expected = np.array([prior.mean for prior in problem.form.shape_parameters])
        annealings.append((expected, np.zeros_like(problem.losses)))
        powers = [(alpha, problem.sums**-alpha) for alpha in problem.form.alpha.starts]
        ones = np.ones_like(problem.losses)
        pairs = list(itertools.product(annealings, powers))
        designs = np.array([np.stack([ones, power, -annealing]) for (_, annealing), (_, power) in pairs])
        left, sizes, right = np.linalg.svd(designs / problem.losses, full_matrices=False)
        spanned = sizes > 1e-10 * sizes[:, :1]
        scaled = left * np.where(spanned, 1 / np.maximum(sizes, 1e-300), 0.0)[:, None, :]
        nonlinear = np.array([[alpha, *shape] for (shape, _), (alpha, _) in pairs])
        return cls(nonlinear, right * spanned[:, :, None], scaled)

    def solve(self, problem: Problem, targets: Array, prior_means: Array) -> tuple[Array, Array]:
        """The coefficients of every point that come closest to each target, and how likely they are.

        Args:
            problem: form and logs.
            targets: what the predicted losses should be over the logged ones, shape (n, m).
            prior_means: of alpha and the shape parameters, shape (1 + s, m).

        Returns:
            L_0, A and B, shape (p, 3, m), and minus twice the log posterior, shape (p, m), infinite where one is negative.
        """
        coordinates = (self.bases.reshape(-1, len(targets)) @ targets).reshape(len(self.bases), 3, -1)
        linear: Array = self.inverses @ coordinates
        squares = np.square(targets).sum(axis=0) - np.square(coordinates).sum(axis=1)
        deviations = np.array([prior.deviation for prior in problem.priors])
        misses = (self.nonlinear[:, :, None] - prior_means) / deviations[:, None]
        # Rounding limits what is left of a law that fits exactly.
        smallest = 1e-13 * len(targets)
        costs = problem.num_independent * np.log(np.maximum(squares, smallest)) + np.square(misses).sum(axis=1)
        return linear, np.where((linear >= -1e-12).all(axis=1), costs, np.inf)


def fit_form(problem: Problem, grid: Grid) -> LossFit:
    """Least squares with a robust loss on log residuals and weak priors, from the best points of the grid.

    Args:
        problem: form and logs.
        grid: its grid.

    Returns:
        The best of the fits.
    """
    means = np.array([prior.mean for prior in problem.priors])
    linear, costs = grid.solve(problem, np.ones((len(problem.losses), 1)), means[:, None])
    starts = _distinct(np.concatenate([linear[:, :, 0], grid.nonlinear], axis=1), costs[:, 0])
    noise = _noise(problem, starts[0])
    best = min((_least_squares(problem, start, noise) for start in starts), key=lambda fit: fit.cost).x
    # The priors must not count more for the coarseness of the grid.
    best = _least_squares(problem, best, _noise(problem, best)).x
    return LossFit(problem.form, best, problem.reference_rate, problem.reference_sum)


def _noise(problem: Problem, coefficients: Array) -> float:
    """The root mean square of the log residuals, at least 1e-6."""
    return max(float(np.sqrt(np.mean(np.square(_log_residuals(problem, coefficients))))), 1e-6)


def _least_squares(problem: Problem, start: Array, noise: float) -> "OptimizeResult":
    from scipy.optimize import least_squares

    means = np.array([prior.mean for prior in problem.priors])
    deviations = np.array([prior.deviation for prior in problem.priors])
    low, high = problem.bounds()
    margin = 1e-6 * (high - low)
    scale = np.sqrt(problem.num_independent / len(problem.losses)) / noise

    def residuals(coefficients: Array) -> Array:
        return np.concatenate([scale * _log_residuals(problem, coefficients), (coefficients[3:] - means) / deviations])

    def jacobian(coefficients: Array) -> Array:
        priors = np.concatenate([np.zeros((len(means), 3)), np.diag(1 / deviations)], axis=1)
        return np.concatenate([scale * problem.derivatives(coefficients), priors])

    def robust(squares: Array) -> Array:
        """The soft L1 loss of the losses' squares with its two derivatives; the priors stay squares."""
        knees = np.where(np.arange(len(squares)) < len(problem.losses), ROBUST_FROM * scale * noise, np.inf)
        roots = np.sqrt(1 + squares / knees**2)
        values = np.where(np.isinf(knees), squares, 2 * squares / (1 + roots))
        return np.array([values, 1 / roots, -0.5 / (knees**2 * roots**3)])

    start = np.clip(start, low + margin, high - margin)
    return least_squares(
        residuals,
        start,
        jac=jacobian,
        bounds=(low, high),
        x_scale="jac",
        loss=robust,  # type: ignore[arg-type]  # scipy-stubs 1.17 asks for a keyword that scipy never passes to it
        max_nfev=50,
    )


def _log_residuals(problem: Problem, coefficients: Array) -> Array:
    residuals: Array = np.log(problem.predicted(coefficients) / problem.losses)
    return residuals


def _distinct(coefficients: Array, costs: Array) -> list[Array]:
    """The best few rows of coefficients that differ in their time scale."""
    starts: list[Array] = []
    for index in np.argsort(costs, kind="stable"):
        candidate = coefficients[index]
        if all(candidate[4] != start[4] for start in starts):
            starts.append(candidate)
        if len(starts) == NUM_STARTS:
            break
    return starts


def bootstrap(problem: Problem, grid: Grid, fit: LossFit) -> tuple[Array, Array]:
    """Fits on the grid to resampled residuals, with prior means that are drawn too.

    Args:
        problem: form and logs.
        grid: its grid.
        fit: of `fit_form`.

    Returns:
        The coefficients for the logs themselves, then those of each draw, shape (1 + `NUM_DRAWS`, 4 + s), and the relative
        residuals of the fit, shape (n,).
    """
    relative = problem.predicted(fit.coefficients) / problem.losses
    residuals = 1.0 - relative
    size = len(residuals)
    generator = np.random.default_rng(0)
    length = max(1, size // problem.num_independent)
    starts = generator.integers(size, size=(-(-size // length), NUM_DRAWS))
    chosen = (starts[:, None] + np.arange(length)[None, :, None]).reshape(-1, NUM_DRAWS)[:size] % size
    targets = np.concatenate([np.ones((size, 1)), relative[:, None] + residuals[chosen]], axis=1)
    means = np.array([prior.mean for prior in problem.priors])
    deviations = np.array([prior.deviation for prior in problem.priors])
    shifts = np.concatenate([np.zeros((1, len(means))), generator.standard_normal((NUM_DRAWS, len(means)))])
    linear, costs = grid.solve(problem, targets, (means + shifts * deviations).T)
    best = np.argmin(costs, axis=0)
    draws = np.concatenate([linear[best, :, np.arange(1 + NUM_DRAWS)], grid.nonlinear[best]], axis=1)
    return draws, residuals
