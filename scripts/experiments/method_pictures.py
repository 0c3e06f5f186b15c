"""The method in pictures: norms of several shapes, the schedules refined from them, and the closest simple schedules."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_refined_schedule import GradientNorms, smooth_norms
from hf_refined_schedule.norms.gradient_norms import OptimizerFamily
from hf_refined_schedule.plots import COLORS, plot_norms
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule
from hf_refined_schedule.schedules.refining import refine_sources
from hf_refined_schedule.theory.classical import closest_polynomial, closest_wsd, polynomial
from hf_refined_schedule.theory.refinement import peak_position

from .markdown_tables import markdown_table

NUM_STEPS = 1000

FAMILY_COLORS: dict[OptimizerFamily, str] = {"adam": COLORS["refined"], "sgd": "tab:purple"}

WEIGHTS: dict[OptimizerFamily, str] = {"adam": "Adam: norm ** -1", "sgd": "SGD: norm ** -2"}

LONGEST_TITLE = 32
"""Characters of a title; a longer name loses its beginning."""


@dataclass(frozen=True)
class RefinedRun:
    """A run with the schedule that is refined from it.

    Args:
        name: the run, for titles and tables.
        norms: the norm of each update, shape (T,).
        schedule: the refined schedule.
    """

    name: str
    norms: NDArray[np.float64]
    schedule: RefinedSchedule

    @property
    def weights(self) -> str:
        """The formula of the weights."""
        return f"{self.schedule.norm.upper()} ** {self.schedule.power:g}"


def refine_recorded(name: str, source: str | Path, optimizer: OptimizerFamily | None = None) -> RefinedRun:
    """Refine a recorded run.

    Args:
        name: the run.
        source: the file or folder of its norms.
        optimizer: the optimizer family, if the source does not name it.

    Raises:
        ValueError: as `refine_sources`.
    """
    schedule, (norms,), _ = refine_sources(source, optimizer)
    return RefinedRun(name, norms.at_every_step(schedule.norm), schedule)


def refine_synthetic() -> dict[str, list[RefinedRun]]:
    """The schedules for both optimizer families, refined from each of the `synthetic_norms`."""
    runs = {}
    for name, norms in synthetic_norms().items():
        source = GradientNorms(steps=np.arange(1, len(norms) + 1), l1=norms, l2=norms)
        runs[name] = [
            RefinedRun(name, norms, refine_sources(source, family).schedule) for family in get_args(OptimizerFamily)
        ]
    return runs


def synthetic_norms(num_steps: int = NUM_STEPS, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Synthetic norms with 10 % of scatter.

    Args:
        num_steps: T, the number of optimizer updates.
        seed: fixes the scatter.

    Returns:
        Norms of shape (T,), by name.
    """
    progress = np.arange(num_steps) / num_steps
    shapes = {
        "constant": np.ones(num_steps),
        "a spike at the start": 1 + 4 * np.exp(-40 * progress),
        "falling": 1 - 0.67 * progress,
        "rising": 1 + progress,
        "falling, then rising": 0.5 + 2 * (progress - 0.4) ** 2,
        "rising at the end": 1 + 2 * np.maximum(0, progress - 0.8) / 0.2,
    }
    scatter = np.exp(0.1 * np.random.default_rng(seed).standard_normal(num_steps))
    return {name: shape * scatter for name, shape in shapes.items()}


def draw_synthetic(path: Path, runs: Mapping[str, Sequence[RefinedRun]]) -> None:
    """Draw norms above, and below them the schedules for SGD and Adam beside linear decay.

    Args:
        path: the PNG file.
        runs: the same norms, refined for each optimizer family, by name.
    """
    figure = Figure(figsize=(2.7 * len(runs), 5), layout="constrained")
    above, below = figure.subplots(2, len(runs), sharey="row")
    for column, (name, refined) in enumerate(runs.items()):
        plot_norms(above[column], refined[0].norms, smooth_norms(refined[0].norms), label="gradient norm")
        above[column].set_title(name)
        for run in refined:
            family, grid = run.schedule.optimizer, run.schedule.grid
            below[column].plot(np.linspace(0, 1, len(grid)), grid, color=FAMILY_COLORS[family], label=WEIGHTS[family])
        below[column].plot([0, 1], [1, 0], "--", color=COLORS["linear"], label="linear decay")
        below[column].set(xlabel="progress of the run", ylabel="fraction of the peak", ylim=(0, 1.05))
        for axes in (above[column], below[column]):
            axes.label_outer()
        above[column].get_legend().remove()
    ticks = [0.3, 0.5, 1, 2, 4]
    above[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    above[0].minorticks_off()
    above[0].legend(["with scatter", "smoothed"], fontsize="small")
    below[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def draw_recorded(path: Path, runs: Sequence[RefinedRun]) -> None:
    """Draw norms above, recorded and smoothed, and below them the refined schedule with the closest polynomial.

    Args:
        path: the PNG file.
        runs: a column for each.
    """
    figure = Figure(figsize=(3.8 * len(runs), 6.6), layout="constrained")
    above, below = figure.subplots(2, len(runs), squeeze=False)
    for column, run in enumerate(runs):
        kind, grid = run.schedule.norm.upper(), run.schedule.grid
        smoothed = smooth_norms(run.norms, run.schedule.smoothing)
        plot_norms(above[column], run.norms, smoothed, label=f"gradient {kind} norm")
        title = run.name if len(run.name) <= LONGEST_TITLE else f"…{run.name[1 - LONGEST_TITLE :]}"
        above[column].set_title(title, fontsize="medium")
        progress = np.linspace(0, 1, len(grid))
        fit = closest_polynomial(grid)
        fitted = polynomial(progress, fit.warmup, fit.parameter)
        below[column].plot(progress, grid, color=COLORS["refined"], label=f"refined, {run.weights}")
        label = f"warm-up {fit.warmup:.0%}, then (1 - u) ** {fit.parameter:.2f}\nRMSE {fit.error:.3f}"
        below[column].plot(progress, fitted, color="black", linewidth=1.2, label=label)
        below[column].plot([0, 1], [1, 0], "--", color=COLORS["linear"], label="linear decay")
        below[column].set(xlabel="progress of the run", ylabel="fraction of the peak", ylim=(0, 1.05))
        below[column].legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    figure.savefig(path, dpi=110)


def shape_table(runs: Iterable[RefinedRun]) -> str:
    """The peak and the mean of each schedule, and the closest schedules of two families, as Markdown."""
    columns = ("norms", "weights", "peak at", "mean multiplier", "closest polynomial", "RMSE")
    rows = []
    for run in runs:
        grid = run.schedule.grid
        power_law, wsd = closest_polynomial(grid), closest_wsd(grid)
        rows.append(
            (
                run.name,
                run.weights,
                f"{peak_position(grid):.0%}",
                f"{grid[:-1].mean():.2f}",
                f"warm-up {power_law.warmup:.0%}, power {power_law.parameter:.2f}",
                f"{power_law.error:.3f}",
                f"warm-up {wsd.warmup:.0%}, decay {wsd.parameter:.0%}",
                f"{wsd.error:.3f}",
            )
        )
    return markdown_table(pd.DataFrame(rows, columns=[*columns, "closest warmup-stable-decay", "RMSE"]))
