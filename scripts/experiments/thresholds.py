"""New thresholds for advice: one figure of `check` and one limit, chosen on some problems and scored on others."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd

from hf_refined_schedule.schedules.refining import refine_sources

from .protocol import NUM_BASELINES, baseline_file


@dataclass(frozen=True)
class Threshold:
    """Advise to refine where a figure lies on one side of a limit.

    Args:
        figure: the name of a finding of `check`.
        limit: the limit.
        at_most: whether the figure must be at most the limit, or more than it.
    """

    figure: str
    limit: float
    at_most: bool

    def refines(self, figures: pd.DataFrame) -> pd.Series:
        """Whether it advises to refine, a row for each baseline."""
        below = figures[self.figure] <= self.limit
        return below if self.at_most else ~below

    def __str__(self) -> str:
        return f"{self.figure} {'at most' if self.at_most else 'more than'} {self.limit:.3g}"


def figures_of(folder: Path) -> pd.DataFrame:
    """The figures of `check` on each baseline of a study: a row for each baseline, a column for each figure."""
    rows: list[Mapping[str, float]] = []
    for index in range(NUM_BASELINES):
        health = refine_sources(baseline_file(folder, index)).health
        assert health is not None
        rows.append({finding.name: finding.value for finding in health.findings})
    return pd.DataFrame(rows)


def choose_threshold(figures: pd.DataFrame, should_refine: pd.Series) -> Threshold:
    """The threshold that is right most often; of equals, the first figure and the lowest limit.

    Args:
        figures: rows of `figures_of`.
        should_refine: whether refining was better, for each row.
    """
    candidates = [
        Threshold(name, limit, at_most)
        for name in figures.columns[figures.notna().all()]
        for limit in _limits(figures[name])
        for at_most in (True, False)
    ]
    return max(candidates, key=lambda threshold: int((threshold.refines(figures) == should_refine).sum()))


def _limits(values: pd.Series) -> list[float]:
    """The midpoints between neighbouring values, and one beyond each end."""
    known = sorted(set(values))
    return [known[0] - 1, *((low + high) / 2 for low, high in pairwise(known)), known[-1] + 1]
