"""Pictures of a study by results/protocol.md: at most eight lines, and one color for each schedule in all of them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .protocol import LINEAR, OTHER_SCHEDULES, REFINED, RISING_IGNORED, SELECTION, SUMMARIZED
from .rules import ALL_RULES, BETWEEN_WARMUPS
from .study_results import StudyResults

REFERENCE_COLOR = "black"

RULE_COLORS = ("tab:brown", "tab:pink", "tab:olive", "tab:cyan", "tab:gray", "gold", "tab:red", "tab:orange")

STYLES: dict[str, dict[str, Any]] = {
    LINEAR: {"color": "tab:blue"},
    REFINED: {"color": "tab:red"},
    f"{REFINED}, warm-up": {"color": "tab:red", "linestyle": "--"},
    RISING_IGNORED: {"color": "tab:orange"},
    f"{RISING_IGNORED}, warm-up": {"color": "tab:orange", "linestyle": "--"},
    "cosine": {"color": "tab:green"},
    "WSD": {"color": "tab:purple"},
    **{name: {"color": color} for name, color in zip(ALL_RULES, RULE_COLORS, strict=True)},
}
"""The line of each schedule; that of reference 2 is black unless it is reference 1."""


def style_of(name: str) -> dict[str, Any]:
    """The color and the line of a schedule."""
    return STYLES.get(name, {"color": REFERENCE_COLOR})


def draw_differences(figure: Figure, study: StudyResults) -> None:
    """Draw the difference of schedules from each reference (two panels, or one if they are the same), with intervals; other rules are in the table alone."""
    references = {"reference 1": LINEAR, "reference 2": study.reference}
    if study.reference == LINEAR:
        references = {"references 1 and 2": LINEAR}
    panels = np.atleast_1d(figure.subplots(1, len(references), sharey=True))
    shown = dict.fromkeys([LINEAR, study.reference, *OTHER_SCHEDULES, BETWEEN_WARMUPS])
    names = [name for name in shown if name in study.losses]
    for axes, (number, reference) in zip(panels, references.items(), strict=True):
        contrasts = study.contrasts[reference]
        for row in contrasts[contrasts["schedule"].isin(names)].to_dict("records"):
            reach = 0 if math.isnan(row["low"]) else row["high"] - row["difference"]
            axes.errorbar(
                row["difference"],
                names.index(row["schedule"]),
                xerr=reach,
                fmt="o",
                color=style_of(row["schedule"])["color"],
                capsize=3,
            )
        axes.axvline(0, color=style_of(reference)["color"], linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(f"{number}: {reference}", fontsize="medium")
        axes.set_xlabel("difference in final loss")


def draw_loss_by_peak(figure: Figure, study: StudyResults) -> None:
    """Draw the mean loss of the selection seeds over the peaks; zero is the best of reference 2."""
    axes = figure.subplots()
    names = dict.fromkeys([LINEAR, study.reference, *SUMMARIZED])
    rows = study.cells[(study.cells["role"] == SELECTION) & study.cells["schedule"].isin(names)]
    zero = study.choices.tuned[study.reference].losses.mean()
    drawn = []
    for name in names:
        means = rows[rows["schedule"] == name].groupby("peak")["loss"].mean().replace(math.inf, math.nan) - zero
        if means.notna().any():
            axes.plot(means.index, means, marker="o", markersize=4, label=name, **style_of(name))
            drawn.append(means)
    heights = pd.concat(drawn)
    low, high = heights.min(), heights.quantile(0.85)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.axhline(0, color=style_of(study.reference)["color"], linewidth=0.6)
    axes.set_xscale("log")
    ticks = sorted(rows["peak"].unique())
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="peak learning rate", ylabel="final loss, difference from reference 2")
    add_legend(axes)


def draw_schedules(figure: Figure, grids: Mapping[str, NDArray[np.float64]], reference: str) -> None:
    """Draw multipliers at even progress from 0 to 1, by schedule."""
    axes = figure.subplots()
    for name in dict.fromkeys([LINEAR, reference, *SUMMARIZED]):
        if name in grids:
            axes.plot(np.linspace(0, 1, len(grids[name])), grids[name], label=name, **style_of(name))
    axes.set(xlabel="progress of the run", ylabel="fraction of the peak learning rate", ylim=(0, 1.05))
    add_legend(axes)


def add_legend(axes: Axes) -> None:
    """Place a legend beside the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def save_picture(path: Path, draw: Callable[[Figure], None], title: str) -> None:
    """Write a picture with a title."""
    figure = Figure(figsize=(9.5, 4.5), layout="constrained")
    draw(figure)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
