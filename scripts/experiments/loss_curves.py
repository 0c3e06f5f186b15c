"""Logged curves of loss and learning rate: a folder of CSV files, and the runs of a study in results/."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from hf_refined_schedule.norms.loss_log import LossLog

from .cells import BASELINE
from .json_file import read_json
from .study_folder import RESULTS_FILE, SCHEDULES_FILE

COLUMNS = ("step", "lr", "loss")


class Curve(NamedTuple):
    """One run: the learning rates of all its updates, and its logged losses."""

    name: str
    rates: np.ndarray
    """Shape (T,), T the last logged step."""
    steps: np.ndarray
    """1-based, shape (n,)."""
    losses: np.ndarray
    """Shape (n,)."""

    @property
    def final_loss(self) -> float:
        """The last logged loss."""
        return float(self.losses[-1])


def read_curves(folder: Path) -> dict[str, list[Curve]]:
    """Curves by subfolder, such as one for each model size; a folder without subfolders is one group.

    Args:
        folder: of CSV files with the columns step, lr and loss, or of such folders.

    Returns:
        Curves by the name of their folder, in the order of their names.

    Raises:
        ValueError: if the folder holds no CSV file, or a file lacks a column.
    """
    groups = {path.name: sorted(path.glob("*.csv")) for path in sorted([folder, *folder.glob("*/")])}
    curves = {name: [read_curve(path) for path in paths] for name, paths in groups.items() if paths}
    if not curves:
        raise ValueError(f"{folder} has no CSV files; pass a folder of curves with the columns {', '.join(COLUMNS)}.")
    return curves


def read_curve(path: Path) -> Curve:
    """A curve from a CSV file.

    The learning rate is linear between logged steps, and ramps up from 0 to the first logged one.

    Args:
        path: a file with the columns step, lr and loss.

    Returns:
        The curve.

    Raises:
        ValueError: if it lacks a column or holds something else than numbers.
    """
    table = pd.read_csv(path)
    if not set(COLUMNS) <= set(table.columns):
        raise ValueError(f"{path} has the columns {', '.join(table.columns)}, but needs {', '.join(COLUMNS)}.")
    steps, rates, losses = (pd.to_numeric(table[column]).to_numpy() for column in COLUMNS)
    every = np.interp(np.arange(1, steps[-1] + 1), np.append(0, steps), np.append(0.0, rates))
    return Curve(path.stem, every, steps, losses)


def equal_lengths(curves: list[Curve]) -> list[int]:
    """Positions of the runs of the most frequent length, to 1,000 updates; of the longer of two such lengths."""
    lengths = [round(len(curve.rates), -3) for curve in curves]
    counts = Counter(lengths)
    chosen = max(counts, key=lambda length: (counts[length], length))
    return [position for position, length in enumerate(lengths) if length == chosen]


class StudyRuns(NamedTuple):
    """One regime of a study: the run that a law is fitted to, and runs of other schedules at its peak."""

    regime: str
    source: Curve
    """Each of its losses is the mean over the updates since the last one, and stands at their middle."""
    schedules: dict[str, np.ndarray]
    """Learning rates of every update, by schedule."""
    training_losses: dict[str, float]
    """The mean of the last tenth of the logged losses, over seeds."""
    evaluation_losses: dict[str, float]
    """Final evaluation losses, over seeds."""


def read_study(folder: Path) -> list[StudyRuns]:
    """The regimes of a study, each with the baseline of linear decay whose evaluation loss is least.

    Args:
        folder: with results.jsonl and schedules.json.

    Returns:
        The regimes for which there are at least three schedules at the baseline's peak.
    """
    lines = (folder / RESULTS_FILE).read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "curve" in row and not row["diverged"]]
    sampled = read_json(folder / SCHEDULES_FILE)
    studies = []
    for regime in sampled:
        runs = [row for row in rows if row["regime"] == regime]
        baselines = [row for row in runs if row.get("role") == BASELINE and row["schedule"] == "linear"]
        if not baselines:
            continue
        best = min(baselines, key=lambda row: row["eval_loss"])
        peers = [
            row for row in runs if not row.get("role") and (row["peak"], row["steps"]) == (best["peak"], best["steps"])
        ]
        compared = {row["schedule"] for row in peers} & set(sampled[regime])
        if len(compared) >= 3:
            studies.append(_study_runs(regime, best, peers, {name: sampled[regime][name] for name in sorted(compared)}))
    return studies


def _study_runs(regime: str, best: dict, peers: list[dict], sampled: dict[str, list[float]]) -> StudyRuns:
    progress = np.arange(best["steps"]) / best["steps"]
    rates = {
        name: best["peak"] * np.interp(progress, np.linspace(0, 1, len(points)), points)
        for name, points in sampled.items()
    }
    steps, losses = np.array(best["curve"], dtype=float).T
    linear = best["peak"] * (1 - progress)
    log = LossLog(steps.astype(int), losses, linear, means_since_last=True)
    training, evaluation = {}, {}
    for name in sampled:
        runs = [row for row in peers if row["schedule"] == name]
        last = max(1, len(runs[0]["curve"]) // 10)
        training[name] = float(np.mean([loss for row in runs for _, loss in row["curve"][-last:]]))
        evaluation[name] = float(np.mean([row["eval_loss"] for row in runs]))
    return StudyRuns(regime, Curve(regime, linear, log.centres, losses), rates, training, evaluation)
