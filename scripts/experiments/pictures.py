"""Pictures of a comparison of schedules: tables in, matplotlib axes out."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .study_pictures import STYLES

REFINED = ("refined", "refined+warmup", "refined_ignore_rising", "refined_ignore_rising+warmup")
"""The refined schedules that are compared at equal compute and drawn above the others."""

NAMES_IN_STUDIES = {
    "linear": "linear",
    "refined": "refined",
    "refined_ignore_rising": "rising norms ignored",
    "cosine": "cosine",
    "wsd": "WSD",
}
"""The schedules of the studies by results/protocol.md, by their names here."""

MAX_LINES = 8
"""The largest number of lines in a picture."""

DRAWN_FIRST = ("linear", "linear+warmup", "cosine+warmup", "wsd", *REFINED, "cosine", "constant")
"""The schedules that pictures with lines prefer."""

LEGEND_INSIDE = 6
"""The largest number of entries in a legend that lies within the axes."""

Styles = Mapping[str, Mapping[str, Any]]
"""The keywords that draw the line of a schedule, by its name."""


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The colors of the studies by results/protocol.md, and one for each other schedule; with warm-up, a line is dashed."""
    names = sorted(set(names))
    bases = dict.fromkeys(name.removesuffix("+warmup") for name in names)
    palette = [colormaps["tab20"](index) for index in [10, 12, 14, 16, 18, *range(1, 20, 2)]]
    others = [base for base in bases if base not in NAMES_IN_STUDIES]
    colors = {base: palette[index % len(palette)] for index, base in enumerate(others)}
    colors |= {base: STYLES[name]["color"] for base, name in NAMES_IN_STUDIES.items()}
    return {
        name: {
            "color": colors[name.removesuffix("+warmup")],
            "linestyle": "--" if name.endswith("+warmup") else "-",
            "zorder": 3 if name in REFINED else 2,
        }
        for name in names
    }


def drawn_lines(names: Iterable[str]) -> list[str]:
    """At most `MAX_LINES` names: those of `DRAWN_FIRST`, then the others in their order."""
    names = list(names)
    return [*(name for name in DRAWN_FIRST if name in names), *(name for name in names if name not in DRAWN_FIRST)][
        :MAX_LINES
    ]


def limit_heights(axes: Axes, values: pd.Series, quantile: float) -> None:
    """Limit the vertical axis to the quantile of the values, so that a few large ones do not flatten the rest."""
    if values.notna().any():
        low, high = values.min(), values.quantile(quantile)
        margin = 0.08 * (high - low) or 0.05
        axes.set_ylim(low - margin, high + margin)


def draw_loss_by_peak(axes: Axes, cells: pd.DataFrame, table: pd.DataFrame, styles: Styles) -> None:
    """Draw the mean final loss over the peaks, with a band of one standard error; zero is the best of linear decay.

    Args:
        axes: the axes to draw on.
        cells: rows of `results_table`, of one regime.
        table: rows of `main_table`.
        styles: the lines.
    """
    losses = cells[cells["schedule"].isin(table["schedule"])].groupby(["schedule", "peak"])["loss"]
    num_peaks = cells.groupby("schedule")["peak"].nunique()
    names = drawn_lines(name for name in table["schedule"] if num_peaks[name] > 1 or num_peaks.max() == 1)
    zero = table.loc[table["schedule"] == "linear", "mean"].item()
    means = losses.mean().replace(math.inf, math.nan)[names] - zero
    errors = losses.apply(lambda group: group.std() / math.sqrt(len(group)) if np.isfinite(group).all() else 0)
    for name in names:
        mean, error = means[name], errors[name].fillna(0)
        axes.plot(mean.index, mean, marker="o", markersize=4, label=name, **styles[name])
        axes.fill_between(mean.index, mean - error, mean + error, color=styles[name]["color"], alpha=0.12, linewidth=0)
    limit_heights(axes, means, 0.75)
    axes.set_xscale("log")
    ticks = sorted(cells.loc[cells["schedule"] == "linear", "peak"].unique())
    ticks = ticks[:: math.ceil(len(ticks) / 6)]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.axhline(0, color=styles["linear"]["color"], linewidth=0.6)
    axes.set(xlabel="peak learning rate", ylabel="final loss, difference from linear decay's best")


def draw_differences(axes: Axes, table: pd.DataFrame, styles: Styles) -> None:
    """Draw the difference of each schedule from linear decay, with its interval. A much larger one is written out."""
    shown = table[(table["schedule"] == "linear") | table["difference"].notna()]
    reach = (shown["high"] - shown["difference"]).fillna(0)
    limit = 3 * (shown["difference"].abs() + reach).median()
    for position, (row, error) in enumerate(
        zip(shown.fillna({"difference": 0}).to_dict("records"), reach, strict=True)
    ):
        color = styles[row["schedule"]]["color"]
        if row["difference"] > limit:
            text = f"{row['difference']:+.3g} ± {error:.2g} →"
            axes.text(0.98 * limit, position, text, color=color, ha="right", va="center")
        else:
            axes.errorbar(row["difference"], position, xerr=error, fmt="o", color=color, capsize=3)
    if (shown["difference"] > limit).any():
        axes.set_xlim(right=limit)
    axes.axvline(0, color=STYLES["linear"]["color"], linewidth=1)
    axes.set_yticks(range(len(shown)), shown["schedule"])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("loss difference from linear decay, with 95 % interval")


def draw_schedules(axes: Axes, grids: Mapping[str, NDArray[np.float64]], styles: Styles) -> None:
    """Draw multipliers at even progress from 0 to 1, by schedule."""
    for name in drawn_lines(grids):
        axes.plot(np.linspace(0, 1, len(grids[name])), grids[name], label=name, **styles[name])
    axes.set(xlabel="progress of the run", ylabel="fraction of the peak learning rate", ylim=(0, 1.05))


def mean_curves(cells: pd.DataFrame, table: pd.DataFrame) -> dict[str, pd.Series]:
    """The training loss of each schedule at its best peak, a mean over seeds; the running mean of a long curve."""
    curves = {}
    for row in table.to_dict("records"):
        chosen = cells[(cells["schedule"] == row["schedule"]) & (cells["peak"] == row["peak"])]
        points = [point for curve in chosen["curve"] for point in curve]
        if points:
            curve = pd.DataFrame(points, columns=["step", "loss"]).groupby("step")["loss"].mean()
            window = max(1, len(curve) // 25)
            curves[row["schedule"]] = curve.rolling(window, center=True, min_periods=1).mean()
    return curves


def draw_training_curves(axes: Axes, curves: Mapping[str, pd.Series], styles: Styles) -> None:
    """Draw curves of `mean_curves`."""
    names = drawn_lines(curves)
    for name in names:
        axes.plot(curves[name].index, curves[name], label=name, linewidth=1.2, **styles[name])
    limit_heights(axes, pd.concat([curves[name] for name in names]), 0.9)
    axes.set(xlabel="optimizer update", ylabel="training loss, mean over seeds")


def save_picture(path: Path, draw: Callable[[Axes], None], title: str) -> None:
    """Write a picture that is high enough for its legend and its labels.

    Args:
        path: the PNG file.
        draw: draws on the axes.
        title: the title.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title(title)
    labels = axes.get_legend_handles_labels()[1]
    num_rows = max(len(labels), len(axes.get_yticks()))
    figure.set_figheight(max(4.5, 0.6 + 0.22 * num_rows))
    if len(labels) > LEGEND_INSIDE:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    elif labels:
        axes.legend()
    figure.savefig(path, dpi=150)
