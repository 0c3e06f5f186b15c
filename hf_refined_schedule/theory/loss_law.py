"""What a schedule will cost before it runs: a law fitted to the losses and learning rates of runs that exist."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .loss_fit import Grid, LossFit, Problem, bootstrap, fit_form
from .loss_forms import DECAY_PER_DECREASE, FORMS, LossForm
from .loss_logs import CheckedLog, checked_logs, checked_rates

Array = NDArray[np.float64]

HELD_OUT = 0.2
"""The fraction of a log that is predicted from the rest."""

LARGEST_HELD_OUT_ERROR = 0.01
"""Relative to the loss."""

LEAST_ANNEALING = 0.1
"""A log whose rate falls by less than this fraction of its peak says nothing about annealing."""

LARGEST_SHARE_WITHOUT_ANNEALING = 0.025
"""Of the fits to resampled losses: above it, 0 lies within the 95 % interval of the annealing term."""

ONE_EPOCH = 1.01
"""Loggers round epochs."""

NUM_KNOTS = 40
"""Points of the piecewise linear schedule that is optimised, denser towards the end."""

DISCREPANCY = 0.003
"""Standard deviation of a law's own error, relative to the loss, which no single log shows: runs of one recipe differ, and the
published forms, fitted to all of them, still miss their last losses by about as much (results/loss_law.md)."""

MOST_OPTIMIZED_STEPS = 250
"""An update stands for several where the run is longer."""

STARTS: tuple[Callable[[Array], Array], ...] = (
    lambda progress: 1 - progress,
    lambda progress: np.minimum(1.0, 5 * (1 - progress)),
)
"""Linear decay, and a constant rate with a decay over the last fifth."""


@dataclass(frozen=True)
class LossLaw:
    """The loss as a function of the learning rates, L(t) = L_0 + A S_1(t)^-alpha - B D(t).

    S_1, the progress, is the sum of the rates so far, D the effect of their decreases so far; in the exponential annealing, of the
    rates to the powers 2/3 and 0.8. `fit_loss_law` makes it.
    """

    form: str
    """`"exponential annealing"`, `"annealing sum"` (Tissue et al., arXiv 2408.11029) or `"decay per decrease"` (Luo et al.,
    arXiv 2503.12811)."""
    parameters: Mapping[str, float]
    """By the symbols of the papers."""
    held_out_error: float
    """The mean absolute error of the log's last fifth, predicted from the rest; of the second half of the decay, where the rate
    falls only in the last fifth."""
    refusals: tuple[str, ...]
    """Why the law should not be used, a sentence for each reason; empty if it may predict."""
    _fits: tuple["_FormFit", ...] = field(repr=False, compare=False)

    @property
    def held_out_errors(self) -> dict[str, float]:
        """`held_out_error` of each form, the law's own form first."""
        return {one.fit.form.name: one.held_out_error for one in self._fits}

    def predict(self, learning_rates: ArrayLike) -> Array:
        """The loss after every update.

        Args:
            learning_rates: of every update from the first, warm-up included, shape (T,).

        Returns:
            Losses, shape (T,).

        Raises:
            ValueError: if a rate is missing or negative, or if all are 0.
        """
        rates = checked_rates(learning_rates)
        return self._fits[0].fit.predict(rates, np.arange(len(rates)))

    def predict_by_form(self, learning_rates: ArrayLike) -> dict[str, Array]:
        """What each form predicts; they agree where the log leaves no doubt.

        Args:
            learning_rates: as in `predict`.

        Returns:
            The loss after every update by form, the law's own form first.

        Raises:
            ValueError: as `predict`.
        """
        rates = checked_rates(learning_rates)
        return {one.fit.form.name: one.fit.predict(rates, np.arange(len(rates))) for one in self._fits}

    def interval(self, learning_rates: ArrayLike, level: float = 0.95) -> tuple[float, float]:
        """An interval for the final loss.

        It comes from fits of all forms to residuals that are resampled in blocks, with the noise of a single loss and the
        law's own error, `DISCREPANCY`.

        Args:
            learning_rates: as in `predict`.
            level: the share of cases in which the interval should hold the final loss.

        Returns:
            The lower and the upper end.

        Raises:
            ValueError: as `predict`; if `level` is not between 0 and 1.
        """
        rates = checked_rates(learning_rates)
        return _quantiles([one.final_losses(rates) for one in self._fits], level)

    def difference_interval(
        self, learning_rates: ArrayLike, reference: ArrayLike, level: float = 0.95
    ) -> tuple[float, float]:
        """An interval for the final loss of one schedule less that of another; negative where the first is better.

        It is one for two runs: each has its own noise and its own error of the law.

        Args:
            learning_rates: of the one, as in `predict`.
            reference: learning rates of the other, of any length.
            level: as in `interval`.

        Returns:
            The lower and the upper end.

        Raises:
            ValueError: as `interval`.
        """
        rates, others = checked_rates(learning_rates), checked_rates(reference)
        # Both ways, so that the interval of the opposite difference is the same with its sign changed.
        draws = [
            one.final_losses(rates, seed=seed) - one.final_losses(others, seed=1 - seed)
            for one in self._fits
            for seed in (0, 1)
        ]
        return _quantiles(draws, level)


def _quantiles(draws: Sequence[Array], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r:.40}, but must lie between 0 and 1; 0.95 is usual.")
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _FormFit(NamedTuple):
    """One form, fitted."""

    fit: LossFit
    draws: Array
    """Coefficients on the grid, the first row for the logs themselves, shape (1 + m, 4 + s)."""
    residuals: Array
    """Of the fit, relative to the losses, shape (n,)."""
    held_out_error: float

    def expected_losses(self, rates: Array) -> Array:
        """The last loss by every draw, around that of the fit, shape (m,)."""
        expected = float(self.fit.predict(rates, np.array([len(rates) - 1]))[0])
        on_grid, *losses = self.fit.final_losses(rates, self.draws)
        shifted: Array = expected + np.array(losses) - on_grid
        return shifted

    def final_losses(self, rates: Array, seed: int = 0) -> Array:
        """`expected_losses` with the noise of a single loss and the discrepancy of the law, which differ with the seed."""
        expected = self.expected_losses(rates)
        generator = np.random.default_rng(seed)
        noise = generator.choice(self.residuals, len(expected)) + DISCREPANCY * generator.standard_normal(len(expected))
        noisy: Array = expected * (1 + noise)
        return noisy


def fit_loss_law(learning_rates: Any, steps: Any, losses: Any, *, epochs: float | None = None) -> LossLaw:
    """Fit the loss as a function of the learning rates, to the log of one run or of several of one recipe.

        L(t) = L_0 + A S_1(t)^-alpha - B D(t)

    Three forms of D are fitted. The one with the fewest parameters is taken, unless another better predicts the last fifth of the
    log from the rest, by more than a law is off between runs.

    Args:
        learning_rates: of every update from the first, warm-up included, shape (T,); or a list of such arrays.
        steps: the 1-based updates at which losses were logged, shape (n,); or a list.
        losses: shape (n,); or a list.
        epochs: how often the run saw each sample, where that is known.

    Returns:
        The law, with `refusals` where it should not be used.

    Raises:
        ValueError: for logs that a law cannot be fitted to.

    Example:
        >>> import numpy as np
        >>> from scipy.signal import lfilter
        >>> rates = 3e-4 * np.minimum(1.0, np.arange(5000, 0, -1) / 1000)  # a decay over the last fifth
        >>> steps = np.arange(25, 5001, 25)
        >>> leaky_means = lfilter([0.002], [1, -0.998], rates)  # lambda = 0.998
        >>> losses = (3 + 0.4 * np.cumsum(rates) ** -0.5 + 500 * leaky_means)[steps - 1]
        >>> law = fit_loss_law(rates, steps, losses)
        >>> law.refusals
        ()
        >>> print(f"{law.predict(rates)[-1]:.2f} {losses[-1]:.2f}")
        3.41 3.41

    Reference: arXiv 2408.11029, arXiv 2503.12811.
    """
    logs = checked_logs(learning_rates, steps, losses)
    fits = _by_preference([_fit(form, logs) for form in FORMS], logs)
    best = fits[0]
    return LossLaw(
        form=best.fit.form.name,
        parameters=best.fit.parameters(),
        held_out_error=best.held_out_error,
        refusals=_refusals(best, logs, epochs),
        _fits=tuple(fits),
    )


def _fit(form: LossForm, logs: Sequence[CheckedLog]) -> _FormFit:
    problem = Problem.of(form, logs)
    grid = Grid.of(problem)
    fit = fit_form(problem, grid)
    draws, residuals = bootstrap(problem, grid, fit)
    cuts = [held_out_from(log) for log in logs]
    rest = Problem.of(form, [log.before(cut) for log, cut in zip(logs, cuts, strict=True)])
    fit_of_rest = fit_form(rest, Grid.of(rest))
    errors = [
        np.abs(fit_of_rest.predict(held_out.rates, held_out.updates) - held_out.losses)
        for held_out in (log.after(cut) for log, cut in zip(logs, cuts, strict=True))
    ]
    return _FormFit(fit, draws, residuals, float(np.concatenate(errors).mean()))


def _by_preference(fits: Sequence[_FormFit], logs: Sequence[CheckedLog]) -> list[_FormFit]:
    """The fits by their held-out error, in steps of `DISCREPANCY`; of those within one step, the first ones first.

    A smaller difference says nothing: on published curves the form with the least held-out error was off by more, for the final
    losses of other runs, than the one with the fewest parameters (results/loss_law.md).
    """
    step = DISCREPANCY * float(np.mean([log.losses[-1] for log in logs]))
    least = min(one.held_out_error for one in fits)
    return sorted(fits, key=lambda one: (one.held_out_error - least) // step)


def held_out_from(log: CheckedLog) -> int:
    """The update from which losses are predicted from the earlier ones.

    Args:
        log: of one run.

    Returns:
        The 0-based update at which the last fifth of the losses begins; or, where the rate has hardly fallen by then, that
        at which half of the fall is over.
    """
    fifth = int(log.updates[-max(1, round(HELD_OUT * len(log.updates)))])
    peak, last = float(log.rates[: fifth + 1].max()), float(log.rates[log.updates[-1]])
    if log.rates[fifth] > (1 - LEAST_ANNEALING) * peak and last < (1 - LEAST_ANNEALING) * peak:
        later = log.updates[log.updates >= fifth]
        return int(later[log.rates[later] <= (peak + last) / 2][0])
    return fifth


def _refusals(best: _FormFit, logs: Sequence[CheckedLog], epochs: float | None) -> tuple[str, ...]:
    return tuple(
        reason
        for reason in (
            _refuse_epochs(epochs),
            _refuse_no_annealing(logs),
            _refuse_weak_annealing(best),
            _refuse_held_out_error(best, logs),
        )
        if reason
    )


def _refuse_epochs(epochs: float | None) -> str | None:
    if epochs is None or epochs <= ONE_EPOCH:
        return None
    return (
        f"The run saw its data {epochs:.3g} times, and its training losses fall for that alone; use a run of one epoch."
    )


def _refuse_no_annealing(logs: Sequence[CheckedLog]) -> str | None:
    least = min(
        float(log.rates[log.updates[0] : log.updates[-1] + 1].min() / log.rates[: log.updates[-1] + 1].max())
        for log in logs
    )
    if least <= 1 - LEAST_ANNEALING:
        return None
    return (
        f"The learning rate never falls below {least:.0%} of its peak, so the log does not show what a decay brings; use the "
        "log of a run that decays."
    )


def _refuse_weak_annealing(best: _FormFit) -> str | None:
    without = float(np.mean(best.draws[1:, 2] <= 0))
    if best.fit.coefficients[2] > 0 and without < LARGEST_SHARE_WITHOUT_ANNEALING:
        return None
    return (
        f"The effect of the decay cannot be told from 0 ({without:.0%} of the fits to resampled losses have none); use a longer "
        "run, or one that decays more."
    )


def _refuse_held_out_error(best: _FormFit, logs: Sequence[CheckedLog]) -> str | None:
    held_out = [log.after(held_out_from(log)) for log in logs]
    earlier = [log.before(held_out_from(log)).losses for log in logs]
    losses = np.concatenate([log.losses for log in held_out])
    relative = best.held_out_error / float(losses.mean())
    if relative > LARGEST_HELD_OUT_ERROR:
        return (
            f"The last fifth of the log, predicted from the rest, is off by {relative:.1%} of the loss on average, more than "
            f"{LARGEST_HELD_OUT_ERROR:.0%}."
        )
    unchanged = np.concatenate(
        [
            np.abs(before[-len(log.losses) // 2 :].mean() - log.losses)
            for before, log in zip(earlier, held_out, strict=True)
        ]
    )
    if best.held_out_error >= unchanged.mean():
        return (
            f"The last fifth of the log is predicted with an error of {best.held_out_error:.3g}, no better than by a loss that "
            f"stays as it was ({unchanged.mean():.3g})."
        )
    return None


def minimize_predicted_loss(law: LossLaw, peak: float, num_training_steps: int, warmup_steps: int = 0) -> Array:
    """The schedule with the least predicted final loss, among those that do not rise after their warm-up.

    The prediction is that of `"decay per decrease"`, whichever form the law has: its authors have trained with its optima. Those of
    the other forms fall from the peak to a tenth of it, or to 0, more steeply than any published run.

    Args:
        law: of `fit_loss_law`.
        peak: the largest learning rate.
        num_training_steps: T.
        warmup_steps: the length of a linear ramp from 0.

    Returns:
        Multipliers of the peak at t / T for t = 0 .. T-1, shape (T,).

    Raises:
        ValueError: for a peak that is not positive, or a warm-up that leaves fewer than 2 updates.

    Reference: arXiv 2503.12811, section 5.
    """
    from scipy.optimize import minimize

    if not (np.isfinite(peak) and peak > 0):
        raise ValueError(f"peak is {peak!r:.40}, but must be a positive learning rate.")
    decaying = num_training_steps - warmup_steps
    if warmup_steps < 0 or decaying < 2:
        raise ValueError(
            f"warmup_steps is {warmup_steps!r:.40} of {num_training_steps!r:.40} updates; at least 2 updates must follow it."
        )
    knots = 1 - np.linspace(1, 0, NUM_KNOTS + 1) ** 2

    def multipliers(decreases: Array, length: int) -> Array:
        warmup = max(1, round(warmup_steps * length / num_training_steps)) if warmup_steps else 0
        progress = np.arange(length - warmup) / (length - warmup)
        decay = np.interp(progress, knots, np.exp(-np.cumsum(decreases)))
        return np.concatenate([np.arange(warmup) / max(warmup, 1), decay])

    length = min(num_training_steps, MOST_OPTIMIZED_STEPS)
    fit = next(one.fit for one in law._fits if one.fit.form is DECAY_PER_DECREASE).coarser(num_training_steps / length)
    last = np.array([length - 1])

    def predicted(decreases: Array) -> float:
        return float(fit.predict(peak * multipliers(decreases, length), last)[0])

    starts = [np.maximum(np.diff(-np.log(np.maximum(shape(knots), 1e-3)), prepend=0.0), 0.0) for shape in STARTS]
    bounds = [(0.0, 10.0)] * len(knots)
    found = [minimize(predicted, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    return multipliers(min(found, key=lambda result: result.fun).x, num_training_steps)
