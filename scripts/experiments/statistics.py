"""Tuned peak learning rates, and differences between schedules paired by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

ROUNDING = 1e-12
"""Paired differences that agree to this share of their mean are equal: a t-test would divide by rounding errors."""

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class TunedSchedule:
    """A schedule at its best peak learning rate.

    Args:
        schedule: the name of the schedule.
        peak: the best peak learning rate, NaN where there is none.
        on_edge: whether the best peak is the smallest or the largest one of several.
        losses: the final loss of each seed, indexed by seed.
        problem: why there is no best peak: `"diverged"`, `"incomplete"`, or nothing.
    """

    schedule: str
    peak: float
    on_edge: bool
    losses: pd.Series
    problem: str = ""

    def summary(self) -> dict[str, Any]:
        """The columns of a table that describe the schedule alone."""
        count, mean = len(self.losses), self.losses.mean()
        return {
            "schedule": self.schedule,
            "peak": self.peak,
            "on_edge": self.on_edge,
            "seeds": count,
            "mean": mean,
            "standard_error": self.losses.std() / math.sqrt(count) if count > 1 else math.nan,
            "perplexity": math.exp(mean) if mean < 700 else math.nan,
            "problem": self.problem,
        }


def tune_peak(cells: pd.DataFrame, schedule: str) -> TunedSchedule:
    """Choose the peak learning rate with the smallest mean loss.

    A peak where any seed diverged cannot be the best. Peaks are compared over the seeds that all remaining peaks have.

    Args:
        cells: rows of `results_table`, of one schedule and one regime.
        schedule: the name for the result.
    """
    losses = cells.pivot(index="seed", columns="peak", values="loss")
    converged = losses.columns[~np.isinf(losses).any()]
    common = losses[converged].dropna()
    if common.empty:
        problem = "incomplete" if len(converged) else "diverged"
        return TunedSchedule(schedule, math.nan, False, pd.Series(dtype=float), problem)
    peak = common.mean().idxmin()
    on_edge = losses.shape[1] > 1 and peak in (losses.columns.min(), losses.columns.max())
    return TunedSchedule(schedule, float(peak), on_edge, common[peak])


def tune_schedules(cells: pd.DataFrame) -> dict[str, TunedSchedule]:
    """Every schedule of one regime at its best peak, by name."""
    return {str(name): tune_peak(group, str(name)) for name, group in cells.groupby("schedule")}


def paired_difference(losses: pd.Series, reference: pd.Series) -> dict[str, Any]:
    """Compare two schedules over their common seeds with a paired t-test.

    Args:
        losses: the final losses of a schedule, indexed by seed.
        reference: the final losses of the schedule that it is compared with.

    Returns:
        `difference` (the mean, negative if the schedule is better), `low` and `high` (its 95 % interval), `p_value`, and
        `verdict`. With fewer than two common seeds there is no interval and the verdict is `"undecided"`.
    """
    pairs = pd.concat([losses, reference], axis=1, join="inner").dropna()
    differences = pairs.iloc[:, 0] - pairs.iloc[:, 1]
    mean = differences.mean()
    if len(differences) < 2:
        low = high = p_value = math.nan
    elif np.ptp(differences) <= ROUNDING * abs(mean):
        low, high, p_value = mean, mean, float(mean == 0)
    else:
        test = stats.ttest_rel(pairs.iloc[:, 0], pairs.iloc[:, 1])
        (low, high), p_value = test.confidence_interval(0.95), test.pvalue
    verdict: Verdict = "better" if high < 0 else "worse" if low > 0 else "undecided"
    return {"difference": mean, "low": low, "high": high, "p_value": p_value, "verdict": verdict}


def compare(schedule: TunedSchedule, reference: TunedSchedule) -> dict[str, Any]:
    """A row of a table: a tuned schedule and its paired difference from a tuned reference."""
    return {
        **schedule.summary(),
        "reference": reference.schedule,
        "reference_peak": reference.peak,
        "reference_on_edge": reference.on_edge,
        **paired_difference(schedule.losses, reference.losses),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several contrasts by Holm's step-down method.

    Args:
        p_values: the p-value of each contrast; NaN counts as 1.

    Returns:
        The corrected p-values, in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Reference: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    known = [1.0 if math.isnan(value) else value for value in p_values]
    order = sorted(range(len(known)), key=known.__getitem__)
    corrected, largest = [1.0] * len(known), 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(known) - position) * known[index]))
        corrected[index] = largest
    return corrected
