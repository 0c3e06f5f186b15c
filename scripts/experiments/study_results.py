"""The results of a study by results/protocol.md, and its contrasts."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .json_file import read_json
from .protocol import LINEAR, LINEAR_SCHEDULES, PRIMARY, REDUCED, Choices, choose, compared_rows
from .results_table import read_results, results_table
from .statistics import holm, paired_difference
from .study_folder import RESULTS_FILE, SCHEDULES_FILE, SETTING_FILE

MARGIN = 0.002
"""A schedule is no worse if the interval of its difference ends below this fraction of the reference's loss."""

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class StudyResults:
    """The results of one setting.

    Args:
        label: the name of the setting.
        cells: rows of `results_table`.
        choices: what the selection seeds chose.
        losses: the final loss of each test seed that all compared schedules have finished, indexed by seed, a column for each schedule.
        reduced: whether the study follows the reduced protocol.
    """

    label: str
    cells: pd.DataFrame
    choices: Choices
    losses: pd.DataFrame
    reduced: bool = False

    @property
    def reference(self) -> str:
        """The name of reference 2."""
        return self.choices.reference

    @cached_property
    def contrasts(self) -> dict[str, pd.DataFrame]:
        """Every schedule against each reference, as `compare_with` gives it; one table if reference 2 has no warm-up."""
        return {reference: compare_with(self, reference) for reference in dict.fromkeys([LINEAR, self.reference])}

    @property
    def is_under_way(self) -> bool:
        """Whether no test seed is finished yet, or a reference or a schedule with a primary contrast has none."""
        needed = {LINEAR, self.reference, *PRIMARY} & set(self.choices.compared)
        return not needed <= set(self.losses.columns) or bool(self.losses[sorted(needed)].isna().any(axis=None))

    def num_divergences(self, name: str, reference: str) -> int:
        """The number of test seeds on which a schedule diverged and a reference did not."""
        return int((np.isinf(self.losses[name]) & np.isfinite(self.losses[reference])).sum())

    def diverged_everywhere(self, name: str) -> bool:
        """Whether a schedule diverged at every peak that the selection seeds tried, so that no test seed has it."""
        return name in self.choices.tuned and self.choices.tuned[name].problem == "diverged"

    def relative_losses(self, reference: str) -> pd.DataFrame:
        """The difference of every schedule from a reference by test seed, as a fraction of the mean loss of the reference."""
        losses = with_divergence_as_worst(self.losses)
        return losses.sub(losses[reference], axis=0) / losses[reference].mean()


def read_study(folder: Path) -> StudyResults:
    """Read the results of a study.

    Raises:
        ValueError: if the folder holds none, or those of several settings.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder that a study has written.")
    cells = results_table(
        {result.cell: result for result in read_results(path)}.values()
    )  # of a repeated cell, the last
    labels = list(cells["regime"].unique())
    if len(labels) != 1:
        raise ValueError(f"{path} has the results of {len(labels)} settings; a study has one. Give another folder.")
    reduced = read_json(folder / SETTING_FILE).get("protocol") == REDUCED
    choices = choose(cells)
    chosen = {name: choices.tuned[name].peak for name in choices.compared}
    tested = compared_rows(cells)
    tested = tested[tested["schedule"].map(chosen) == tested["peak"]]
    losses = tested.pivot_table(index="seed", columns="schedule", values="loss", aggfunc="last", dropna=False)
    losses = losses.reindex(columns=[name for name in choices.compared if name in losses.columns])
    return StudyResults(str(labels[0]), cells, choices, _finished(losses, choices.reference), reduced)


def _finished(losses: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The test seeds that all compared schedules have finished; without the schedules that are more than a seed behind the others.

    A study that gets more seeds has the last one for some schedules only. A schedule that is added, or whose grid was widened, has few
    seeds at first. Warm-ups that are no reference any more get no new seeds, and keep those that they have.

    Args:
        losses: of all test seeds.
        reference: the name of reference 2.
    """
    compared = [name for name in losses if name not in LINEAR_SCHEDULES or name in (LINEAR, reference)]
    finished = losses.dropna(subset=[name for name in compared if name in (LINEAR, reference, *PRIMARY)])
    if finished.empty:
        return losses
    behind = [name for name in compared if finished[name].isna().sum() > 1]
    return finished.drop(columns=behind).dropna(subset=[name for name in compared if name not in behind])


def read_studies(folders: Iterable[Path]) -> dict[Path, StudyResults]:
    """Read the results of several studies; says of each that is under way that it is left out.

    The schedules are the last file that a study writes.

    Raises:
        ValueError: as in `read_study`.
    """
    studies = {}
    for folder in folders:
        has_begun = (folder / RESULTS_FILE).is_file()
        study = None if has_begun and not (folder / SCHEDULES_FILE).is_file() else read_study(folder)
        if study is None or study.is_under_way:
            print(f"{folder} has too few test runs yet; run the study again to continue it.", file=sys.stderr)
        else:
            studies[folder] = study
    return studies


def with_divergence_as_worst(losses: pd.DataFrame) -> pd.DataFrame:
    """The losses, with the largest finite one of its seed in place of a run that diverged."""
    finite = losses.replace(math.inf, math.nan)
    return losses.where(~np.isinf(losses), finite.max(axis=1), axis=0)


def verdict(contrast: dict[str, Any], reference_loss: float, p_value: float) -> str:
    """One of "better", "worse", "no worse", "worse, by less than 0.2 %" and "undecided", as the protocol defines them.

    Args:
        contrast: the output of `paired_difference`.
        reference_loss: the mean loss of the reference.
        p_value: the p-value of the contrast, corrected where it is a primary one.
    """
    low, high = contrast["low"], contrast["high"]
    within = high < MARGIN * reference_loss
    if p_value < SIGNIFICANCE and high < 0:
        return "better"
    if p_value < SIGNIFICANCE and low > 0:
        return f"worse, by less than {100 * MARGIN:g} %" if within else "worse"
    return "no worse" if within else "undecided"


def compare_with(study: StudyResults, reference: str) -> pd.DataFrame:
    """Every schedule against a reference, paired by test seed.

    Returns:
        A row for each schedule with the columns of `paired_difference`, `schedule`, `corrected` (the p-value after Holm's
        correction, NaN where the contrast is not a primary one) and `verdict`.
    """
    losses = with_divergence_as_worst(study.losses)
    names = [name for name in losses.columns if name != reference]
    rows = {name: paired_difference(losses[name], losses[reference]) for name in names}
    primary = [name for name in PRIMARY if name in rows and reference == study.reference]
    corrected = dict(zip(primary, holm([rows[name]["p_value"] for name in primary]), strict=True))
    for name, row in rows.items():
        p_value = corrected.get(name, row["p_value"])
        row["corrected"] = corrected.get(name, math.nan)
        row["verdict"] = verdict(row, losses[reference].mean(), p_value)
        diverged = study.num_divergences(name, reference)
        if diverged and row["verdict"] not in ("worse", "undecided"):
            row["verdict"] = f"diverged in {diverged} of {len(losses)}"
        if study.choices.tuned[name].on_edge or study.choices.tuned[reference].on_edge:
            row["verdict"] = "best peak on the edge"
    columns = ["schedule", "difference", "low", "high", "p_value", "verdict", "corrected"]
    return pd.DataFrame([{"schedule": name, **row} for name, row in rows.items()], columns=columns)
