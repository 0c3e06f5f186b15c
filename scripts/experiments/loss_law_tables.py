"""Tables of the loss law: what it predicts for runs that it was not fitted to."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from hf_refined_schedule.theory.bounds import last_iterate_bound
from hf_refined_schedule.theory.classical import classical_schedules
from hf_refined_schedule.theory.loss_fit import Grid, Problem, fit_form
from hf_refined_schedule.theory.loss_forms import EXPONENTIAL_ANNEALING
from hf_refined_schedule.theory.loss_law import LossLaw, fit_loss_law, minimize_predicted_loss
from hf_refined_schedule.theory.loss_logs import checked_logs

from .loss_curves import Curve, StudyRuns, equal_lengths
from .markdown_tables import NOT_AVAILABLE

OPTIMIZED_FORM = "decay per decrease"
"""The form whose prediction `minimize_predicted_loss` minimises."""

PROGRESS_POWERS = (0.5, 0.6, 2 / 3, 0.7, 0.8, 1.0)
NOISE_POWERS = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Powers of the rate that `power_table` compares."""

COOLDOWNS = ("10%", "20%", "40%")


class Prediction(NamedTuple):
    """Final losses of all runs, predicted by the law of some of their logs."""

    sources: tuple[int, ...]
    law: LossLaw
    predicted: np.ndarray
    """By the form that the law chose, shape (runs,)."""
    by_form: dict[str, np.ndarray]
    """By each form, in the order of its preference."""
    intervals: np.ndarray
    """Shape (runs, 2)."""

    def others(self) -> list[int]:
        """Positions of the runs that the law was not fitted to."""
        return [position for position in range(len(self.predicted)) if position not in self.sources]


def predict_all(curves: Sequence[Curve], sources: tuple[int, ...]) -> Prediction:
    """Fit the law to some runs and predict all.

    Args:
        curves: of one size.
        sources: positions of the runs that the law is fitted to.

    Returns:
        Predictions for all runs.
    """
    logs = [(curves[source].rates, curves[source].steps, curves[source].losses) for source in sources]
    law = fit_loss_law(*map(list, zip(*logs, strict=True)))
    finals = [{form: losses[-1] for form, losses in law.predict_by_form(curve.rates).items()} for curve in curves]
    by_form = {form: np.array([one[form] for one in finals]) for form in finals[0]}
    intervals = np.array([law.interval(curve.rates) for curve in curves])
    return Prediction(sources, law, by_form[law.form], by_form, intervals)


def _error(prediction: Prediction, finals: np.ndarray, predicted: np.ndarray) -> float:
    others = prediction.others()
    return float(np.abs(predicted - finals)[others].mean())


def _least_held_out(prediction: Prediction) -> np.ndarray:
    """What the form with the least held-out error predicts, shape (runs,)."""
    held_out = prediction.law.held_out_errors
    return prediction.by_form[min(held_out, key=lambda form: held_out[form])]


def _coverage(prediction: Prediction, finals: np.ndarray) -> float:
    low, high = prediction.intervals.T
    return float(((low <= finals) & (finals <= high))[prediction.others()].mean())


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    return float(spearmanr(one, other).statistic)


def bounds_of(curves: Sequence[Curve]) -> np.ndarray:
    """The last-iterate bound of each run with constant norms, each at its best peak.

    Args:
        curves: runs.

    Returns:
        Bounds at distance 1, shape (runs,).
    """
    return np.array(
        [last_iterate_bound(curve.rates / curve.rates.max(), np.ones(len(curve.rates))).value for curve in curves]
    )


def one_log_table(curves: Sequence[Curve], predictions: Sequence[Prediction]) -> pd.DataFrame:
    """A row for each log, and one for the bound.

    Args:
        curves: of one size.
        predictions: from one log each.

    Returns:
        The table, formatted.
    """
    finals = np.array([curve.final_loss for curve in curves])
    equal = equal_lengths(list(curves))
    rows = []
    for prediction in predictions:
        law, predicted = prediction.law, prediction.predicted
        rows.append(
            {
                "log": curves[prediction.sources[0]].name,
                "gate": "refuses" if law.refusals else "opens",
                "form": law.form,
                "held-out error": f"{law.held_out_error:.4f}",
                "mean error": f"{_error(prediction, finals, predicted):.4f}",
                **{
                    name: f"{_error(prediction, finals, values):.4f}"
                    for name, values in sorted(prediction.by_form.items())
                },
                f"Spearman, {len(equal)} equal": f"{_rank_correlation(predicted[equal], finals[equal]):.2f}",
                f"Spearman, all {len(curves)}": f"{_rank_correlation(predicted, finals):.3f}",
                "in interval": f"{_coverage(prediction, finals):.0%}",
            }
        )
    bounds = bounds_of(curves)
    row = dict.fromkeys(rows[0], NOT_AVAILABLE)
    row["log"] = "the bound"
    row[f"Spearman, {len(equal)} equal"] = f"{_rank_correlation(bounds[equal], finals[equal]):.2f}"
    row[f"Spearman, all {len(curves)}"] = f"{_rank_correlation(bounds, finals):.3f}"
    return pd.DataFrame([*rows, row])


def summary_row(label: str, curves: Sequence[Curve], predictions: Sequence[Prediction]) -> dict[str, str]:
    """What predictions with an open gate are worth, over several choices of logs.

    Args:
        label: the first cell.
        curves: of one size.
        predictions: from one or two logs each.

    Returns:
        A row, formatted.
    """
    finals = np.array([curve.final_loss for curve in curves])
    equal = equal_lengths(list(curves))
    opened = [prediction for prediction in predictions if not prediction.law.refusals]
    row = {"logs": label, "gate opens": f"{len(opened)} of {len(predictions)}"}
    if not opened:
        return row | dict.fromkeys(SUMMARY_COLUMNS, NOT_AVAILABLE)
    errors = [_error(prediction, finals, prediction.predicted) for prediction in opened]
    by_held_out_error = [_error(prediction, finals, _least_held_out(prediction)) for prediction in opened]
    short = [_rank_correlation(prediction.predicted[equal], finals[equal]) for prediction in opened]
    long = [_rank_correlation(prediction.predicted, finals) for prediction in opened]
    covered = [_coverage(prediction, finals) for prediction in opened]
    values = (
        f"{np.mean(errors):.4f}, {np.median(errors):.4f}, {np.max(errors):.4f}",
        f"{np.mean(by_held_out_error):.4f}",
        f"{np.mean(short):.2f}, {np.min(short):.2f}",
        f"{np.mean(long):.3f}, {np.min(long):.3f}",
        f"{np.mean(covered):.0%}, {np.min(covered):.0%}",
    )
    return row | dict(zip(SUMMARY_COLUMNS, values, strict=True))


SUMMARY_COLUMNS = (
    "mean error: mean, median, worst",
    "mean error by the form with the least held-out error",
    "Spearman, equal lengths: mean, worst",
    "Spearman, all: mean, worst",
    "in interval: mean, worst",
)


def pairs_of(curves: Sequence[Curve]) -> list[tuple[int, ...]]:
    """All pairs of runs."""
    return list(itertools.combinations(range(len(curves)), 2))


def residual_row(label: str, curves: Sequence[Curve], prediction: Prediction) -> dict[str, str]:
    """How far a law that is fitted to all runs misses their final losses.

    Args:
        label: the first cell.
        curves: of one size.
        prediction: from all of them.

    Returns:
        A row, formatted.
    """
    finals = np.array([curve.final_loss for curve in curves])
    row = {"size": label}
    for form, predicted in sorted(prediction.by_form.items()):
        relative = predicted / finals - 1
        error, spread = np.abs(predicted - finals).mean(), np.sqrt(np.mean(relative**2))
        row[form] = f"{error:.4f} ({spread:.2%}), {_rank_correlation(predicted, finals):.3f}"
    return row


def power_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """How far the exponential annealing with other powers of the rate is from all runs, fitted to all of them.

    Args:
        curves: of one size.

    Returns:
        A row for each power of the progress, a column for each power of the noise: the root mean square of the residuals relative
        to the losses, and the mean absolute error of the final losses, formatted.
    """
    logs = checked_logs(*([getattr(curve, name) for curve in curves] for name in ("rates", "steps", "losses")))
    rows = []
    for progress_power in PROGRESS_POWERS:
        row = {"progress": f"{progress_power:.2f}"}
        for noise_power in NOISE_POWERS:
            form = replace(EXPONENTIAL_ANNEALING, progress_power=progress_power, noise_power=noise_power)
            problem = Problem.of(form, logs)
            fit = fit_form(problem, Grid.of(problem))
            spread = np.sqrt(np.mean((problem.predicted(fit.coefficients) / problem.losses - 1) ** 2))
            errors = [fit.predict(run.rates, run.steps[-1:] - 1)[0] - run.final_loss for run in curves]
            row[f"noise {noise_power:.1f}"] = f"{spread:.3%}, {np.abs(errors).mean():.4f}"
        rows.append(row)
    return pd.DataFrame(rows)


def optimum_row(label: str, law: LossLaw, peak: float, steps: int, warmup: int) -> dict[str, str]:
    """The least predicted loss, its shape, and how much better it is than the best named schedule.

    Args:
        label: the first cell.
        law: fitted.
        peak: the largest learning rate.
        steps: T.
        warmup: the length of the warm-up.

    Returns:
        A row, formatted.
    """
    named = named_schedules(steps, warmup)
    predicted = {name: law.predict_by_form(peak * multipliers) for name, multipliers in named.items()}
    best = min(predicted, key=lambda name: predicted[name][law.form][-1])
    multipliers = minimize_predicted_loss(law, peak, steps, warmup)
    decay = multipliers[warmup:]
    stable = int(np.count_nonzero(decay > 0.98))
    middle = decay[(stable + len(decay)) // 2] if stable < len(decay) else decay[-1]
    optimum = law.predict_by_form(peak * multipliers)
    gains = {form: float(optimum[form][-1] - predicted[best][form][-1]) for form in (OPTIMIZED_FORM, law.form)}
    low, high = law.difference_interval(peak * multipliers, peak * named[best])
    return {
        "log": label,
        "stable until": f"{(warmup + stable) / steps:.0%}",
        "half-way through the decay": f"{middle:.2f}",
        "at the end": f"{decay[-1]:.3f}",
        "best named": best,
        "difference by the minimised form": f"{gains[OPTIMIZED_FORM]:+.4f}",
        "difference by the law [95 % interval]": f"{gains[law.form]:+.4f} [{low:+.4f}, {high:+.4f}]",
    }


def named_schedules(steps: int, warmup: int) -> dict[str, np.ndarray]:
    """Linear, cosine and warmup-stable-decay schedules after a warm-up.

    Args:
        steps: T.
        warmup: the length of the warm-up.

    Returns:
        Multipliers, shape (T,), by name.
    """
    rest = classical_schedules(steps - warmup)
    names = ["constant", "linear", "cosine"]
    names += [f"wsd {cooldown} {shape}" for cooldown in COOLDOWNS for shape in ("linear", "1-sqrt")]
    ramp = np.arange(warmup) / max(warmup, 1)
    return {name: np.concatenate([ramp, rest[name]]) for name in names}


def study_row(label: str, runs: StudyRuns) -> dict[str, str]:
    """What the law of a baseline says about the other schedules of a study.

    Args:
        label: the study.
        runs: of one regime.

    Returns:
        A row, formatted.
    """
    names = list(runs.schedules)
    row = {"study": f"{label}: {runs.regime}", "updates": str(len(runs.source.rates)), "schedules": str(len(names))}
    columns = ("held-out error", "mean error", "Spearman, training", "Spearman, evaluation", "gate")
    try:
        law = fit_loss_law(runs.source.rates, runs.source.steps, runs.source.losses)
    except ValueError as error:
        return row | dict.fromkeys(columns[:-1], NOT_AVAILABLE) | {"gate": str(error)}
    predicted = [float(law.predict(runs.schedules[name])[-1]) for name in names]
    training = [runs.training_losses[name] for name in names]
    values = (
        f"{law.held_out_error:.3f}",
        f"{np.mean(np.abs(np.subtract(predicted, training))):.3f}",
        f"{_rank_correlation(predicted, training):.2f}",
        f"{_rank_correlation(predicted, [runs.evaluation_losses[name] for name in names]):.2f}",
        " ".join(law.refusals) or "opens",
    )
    return row | dict(zip(columns, values, strict=True))
