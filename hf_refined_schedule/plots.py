"""Pictures of norms and schedules: arrays in, matplotlib axes out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"refined": "tab:red", "linear": "tab:blue", "cosine": "tab:green"}


def plot_norms(axes: "Axes", norms: NDArray[np.float64], smoothed: NDArray[np.float64], *, label: str) -> None:
    """Draw raw and smoothed norms on a logarithmic axis.

    Args:
        axes: where to draw.
        norms: norm at each step, shape (T,); zeros are left out, having no place on that axis.
        smoothed: the same, smoothed, shape (T,).
        label: what the norms are, for the axis.
    """
    steps = np.arange(1, len(norms) + 1)
    axes.plot(steps, np.where(norms > 0, norms, np.nan), color="0.7", linewidth=0.8, label="recorded")
    axes.plot(steps, smoothed, color="tab:red", label="smoothed")
    axes.set_yscale("log")
    axes.set(xlabel="optimizer update", ylabel=label)
    axes.legend()


def plot_schedules(axes: "Axes", grids: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw schedules over the progress of the run.

    Args:
        axes: where to draw.
        grids: multipliers at equally spaced progress from 0 to 1, by the schedule's name.
    """
    for name, grid in grids.items():
        axes.plot(np.linspace(0, 1, len(grid)), grid, color=COLORS.get(name), label=name)
    axes.set(xlabel="progress of the run", ylabel="fraction of the peak learning rate", ylim=(0, 1.05))
    axes.legend()


def norms_and_schedule_figure(
    path: str | os.PathLike[str],
    refined: NDArray[np.float64],
    norms: NDArray[np.float64] | None,
    smoothed: NDArray[np.float64] | None,
    *,
    label: str,
    title: str,
) -> None:
    """Write a picture: a run's norms, and the schedule they ask for beside linear decay and cosine.

    Args:
        path: the picture; its ending names the format.
        refined: the refined schedule's multipliers at equally spaced progress, shape (T+1,).
        norms: the recorded norms, shape (T,), or None to draw the schedules alone.
        smoothed: the smoothed norms, shape (T,).
        label: what the norms are.
        title: the headline.

    Raises:
        ValueError: if matplotlib is not installed, or does not know the ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("Plotting needs matplotlib; pip install 'hf-refined-schedule[plot]'.") from None
    panels = 1 if norms is None or smoothed is None else 2
    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    if norms is not None and smoothed is not None:
        plot_norms(all_axes[0], norms, smoothed, label=label)
    progress = np.linspace(0, 1, 501)
    plot_schedules(
        all_axes[-1], {"refined": refined, "linear": 1 - progress, "cosine": 0.5 * (1 + np.cos(np.pi * progress))}
    )
    figure.suptitle(title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def schedule_as_text(multipliers: NDArray[np.float64], *, columns: int = 72, rows: int = 12) -> str:
    """A schedule as a picture of characters, for a terminal.

    Args:
        multipliers: at equally spaced progress from 0 to 1, shape (T+1,).
        columns: characters across.
        rows: lines down, without the axes.

    Returns:
        Lines of text; dots are linear decay.
    """
    progress = (np.arange(columns) + 0.5) / columns
    heights = np.interp(progress, np.linspace(0, 1, len(multipliers)), multipliers)
    lines = []
    for row in range(rows, 0, -1):
        low = (row - 1) / rows
        filled = np.where(heights > low, "#", np.where((1 - progress > low) & (1 - progress <= row / rows), ".", " "))
        label = f"{row / rows:4.2f} " if row in (rows, rows // 2) else "     "
        lines.append((label + "|" + "".join(filled)).rstrip())
    lines.append("0.00 +" + "-" * columns)
    lines.append("      0" + "progress of the run".center(columns - 2) + "1")
    return "\n".join(lines)
