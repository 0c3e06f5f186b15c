"""Pictures of norms and schedules: arrays in, matplotlib axes out."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "refined": "tab:red",
    "average": "black",
    "optimized": "black",
    "refined, bounded_warmup": "tab:cyan",
    "linear": "tab:blue",
    "cosine": "tab:green",
}

BEGINNING = 10
"""The first tenth of the losses may leave the axis: it falls far more than all that is of interest."""

RUN_COLORS = ("tab:red", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
"""Of runs that are drawn over each other, in their order."""


class DrawnRun(NamedTuple):
    """What a picture shows of one source."""

    name: str
    grid: NDArray[np.float64]
    """Multipliers at even progress from 0 to 1, shape (T+1,)."""
    norms: NDArray[np.float64] | None = None
    """Recorded norm of each update up to the last known one, shape (n,); None draws the schedule alone."""
    smoothed: NDArray[np.float64] | None = None
    """The same, smoothed, shape (n,)."""


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
    axes.plot(steps, smoothed, color=COLORS["refined"], label="smoothed")
    axes.set_yscale("log")
    axes.set(xlabel="optimizer update", ylabel=label)
    axes.legend()


def plot_norms_of_runs(axes: "Axes", runs: Sequence[DrawnRun], *, label: str) -> None:
    """Draw the norms of several runs, of any length, over their progress on a logarithmic axis.

    Args:
        axes: where to draw.
        runs: those without norms are left out.
        label: what the norms are, for the axis.
    """
    for run, color in zip(runs, cycle(RUN_COLORS), strict=False):
        if run.norms is None or run.smoothed is None:
            continue
        progress = np.arange(len(run.norms)) / (len(run.grid) - 1)
        axes.plot(progress, np.where(run.norms > 0, run.norms, np.nan), color=color, linewidth=0.6, alpha=0.25)
        axes.plot(progress, run.smoothed, color=color, label=_literal(run.name))
    axes.set_yscale("log")
    axes.set(xlabel="progress of the run", ylabel=label)
    axes.legend(fontsize="small")


def plot_schedules(axes: "Axes", grids: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw schedules over the progress of the run.

    Args:
        axes: where to draw.
        grids: multipliers at equally spaced progress from 0 to 1, by the schedule's name.
    """
    other_colors = cycle(RUN_COLORS)
    for name, grid in grids.items():
        axes.plot(np.linspace(0, 1, len(grid)), grid, color=_color(name, other_colors), label=_literal(name))
    axes.set(xlabel="progress of the run", ylabel="fraction of the peak learning rate", ylim=(0, 1.05))
    axes.legend(fontsize="medium" if len(grids) < 4 else "small")


def norms_and_schedule_figure(
    path: str | os.PathLike[str],
    runs: Sequence[DrawnRun],
    average: NDArray[np.float64] | None = None,
    *,
    advised: NDArray[np.float64] | None = None,
    label: str,
    title: str | None = None,
) -> Path:
    """Write a picture: norms of one run or several, and the schedules they ask for beside linear decay and cosine.

    Args:
        path: the picture; its ending names the format, PNG without one.
        runs: what to draw. Without any norms the schedules are drawn alone.
        average: the schedule that several runs make together, shape (T+1,).
        advised: the schedule of one run with a bounded warm-up, shape (T+1,).
        label: what the norms are.
        title: the headline over both panels.

    Returns:
        The picture's path.

    Raises:
        ValueError: if matplotlib is not installed, or does not know the ending.
    """
    panels = 2 if any(run.norms is not None for run in runs) else 1
    figure = _figure(panels)
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    progress = np.linspace(0, 1, 501)
    if len(runs) == 1:
        (run,) = runs
        if run.norms is not None and run.smoothed is not None:
            plot_norms(all_axes[0], run.norms, run.smoothed, label=label)
        grids = {"refined": run.grid}
        if advised is not None:
            grids["refined, bounded_warmup"] = advised
    else:
        if panels == 2:
            plot_norms_of_runs(all_axes[0], runs, label=label)
        grids = {run.name: run.grid for run in runs}
        if average is not None:
            grids["average"] = average
    plot_schedules(all_axes[-1], {**grids, "linear": 1 - progress, "cosine": 0.5 * (1 + np.cos(np.pi * progress))})
    titles = ("Recorded norms", "Schedule")[-panels:]
    for axes, heading in zip(all_axes, titles, strict=True):
        axes.set_title(heading)
    if title is not None:
        figure.suptitle(_literal(title))
    return _written(figure, path)


def rates_figure(path: str | os.PathLike[str], curves: Mapping[str, NDArray[np.float64]], *, title: str) -> Path:
    """Write a picture of learning rates, over each other.

    Args:
        path: the picture; its ending names the format, PNG without one.
        curves: the rate of each update, shape (T,), by the schedule's name.
        title: the headline.

    Returns:
        The picture's path.

    Raises:
        ValueError: if matplotlib is not installed, or does not know the ending.
    """
    figure = _figure(1)
    axes = figure.subplots()
    for (name, rates), color in zip(curves.items(), cycle(RUN_COLORS), strict=False):
        axes.plot(np.arange(1, len(rates) + 1), rates, color=color, label=_literal(name))
    axes.set(xlabel="optimizer update", ylabel="learning rate", title=_literal(title), ylim=(0, None))
    axes.legend(fontsize="small")
    return _written(figure, path)


class LoggedRun(NamedTuple):
    """What a picture shows of the losses of a run that exists."""

    steps: NDArray[np.int64]
    """The updates that have a loss, shape (n,)."""
    losses: NDArray[np.float64]
    """The logged losses, shape (n,)."""
    by_the_law: NDArray[np.float64]
    """The loss after each update by the law that was fitted to them, shape (T,)."""


def plot_losses(axes: "Axes", logged: Sequence[LoggedRun], predicted: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw logged losses and predicted ones over them. The axis leaves out the first losses, which would fill it.

    Args:
        axes: where to draw.
        logged: the runs that the law was fitted to.
        predicted: the loss after each update, by the schedule's name.
    """
    for number, run in enumerate(logged):
        labels = ("logged", "logged run by the law") if number == 0 else (None, None)
        axes.plot(run.steps, run.losses, color="0.7", marker=".", markersize=3, linewidth=0.6, label=labels[0])
        steps = np.arange(1, len(run.by_the_law) + 1)
        axes.plot(steps, run.by_the_law, color="0.3", linewidth=1, linestyle=":", label=labels[1])
    other_colors = cycle(RUN_COLORS[1:])
    for name, losses in predicted.items():
        axes.plot(
            np.arange(1, len(losses) + 1), losses, color=_color(name, other_colors), linewidth=1, label=_literal(name)
        )
    later = [losses[len(losses) // BEGINNING :] for losses in (*(run.losses for run in logged), *predicted.values())]
    low, high = min(losses.min() for losses in later), max(losses.max() for losses in later)
    margin = 0.05 * (high - low) or 0.05 * abs(high)
    axes.set(xlabel="optimizer update", ylabel="loss", ylim=(low - margin, high + margin))
    axes.legend(fontsize="small")


def predicted_losses_figure(
    path: str | os.PathLike[str],
    logged: Sequence[LoggedRun],
    predicted: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    title: str,
) -> Path:
    """Write a picture: the logged losses with the predicted ones of several schedules, and their learning rates.

    Args:
        path: the picture; its ending names the format, PNG without one.
        logged: as in `plot_losses`.
        predicted: the learning rate of each update and the loss after it, by the schedule's name.
        title: the headline.

    Returns:
        The picture's path.

    Raises:
        ValueError: if matplotlib is not installed, or does not know the ending.
    """
    figure = _figure(2)
    losses_axes, rates_axes = figure.subplots(1, 2)
    plot_losses(losses_axes, logged, {name: losses for name, (_, losses) in predicted.items()})
    other_colors = cycle(RUN_COLORS[1:])
    for name, (rates, _) in predicted.items():
        rates_axes.plot(np.arange(1, len(rates) + 1), rates, color=_color(name, other_colors), linewidth=1)
    rates_axes.set(xlabel="optimizer update", ylabel="learning rate")
    rates_axes.set_ylim(bottom=0)
    losses_axes.set_title("Losses")
    rates_axes.set_title("Learning rates")
    figure.suptitle(_literal(title))
    return _written(figure, path)


def _color(name: str, others: Iterator[str]) -> str:
    return COLORS.get(name) or next(others)


def _figure(panels: int) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("Plotting needs matplotlib; pip install matplotlib.") from None
    return Figure(figsize=(5.5 * panels, 4), layout="constrained")


def _written(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _literal(text: str) -> str:
    """Text in which `$` starts no formula of matplotlib's."""
    return text.replace("$", r"\$")


def schedule_as_text(grid: NDArray[np.float64], *, columns: int = 72, rows: int = 12) -> str:
    """A schedule as a picture of characters, for a terminal.

    Args:
        grid: multipliers at even progress from 0 to 1, shape (T+1,).
        columns: characters across.
        rows: lines down, without the axes.

    Returns:
        Lines of text; dots are linear decay.
    """
    progress = (np.arange(columns) + 0.5) / columns
    heights = np.interp(progress, np.linspace(0, 1, len(grid)), grid)
    lines = []
    for row in range(rows, 0, -1):
        low = (row - 1) / rows
        filled = np.where(heights > low, "#", np.where((1 - progress > low) & (1 - progress <= row / rows), ".", " "))
        label = f"{row / rows:4.2f} " if row in (rows, rows // 2) else "     "
        lines.append((label + "|" + "".join(filled)).rstrip())
    lines.append("0.00 +" + "-" * columns)
    lines.append("      0" + "progress of the run".center(columns - 2) + "1")
    return "\n".join(lines)


MARKS = "#abcdefghijklmnopqrstuvwxyz"
"""Characters of curves in a terminal: the first for a single one, the letters for several."""


def rates_as_text(curves: Mapping[str, NDArray[np.float64]], *, columns: int = 72, rows: int = 12) -> str:
    """Learning rates over each other as a picture of characters, for a terminal.

    Args:
        curves: the rate of each update, shape (T,), by name; at most 26.
        columns: characters across.
        rows: lines down, without the axes.

    Returns:
        Lines of text. Several curves have a letter each, in their order, and a `*` where they meet.

    Raises:
        ValueError: if there are more curves than letters.
    """
    if len(curves) >= len(MARKS):
        raise ValueError(f"{len(curves)} curves are too many for a picture; pass at most {len(MARKS) - 1}.")
    highest = max(float(rates.max()) for rates in curves.values()) or 1.0
    longest = max(len(rates) for rates in curves.values())
    marks = MARKS[:1] if len(curves) == 1 else MARKS[1:]
    canvas = np.full((rows, columns), " ")
    for mark, rates in zip(marks, curves.values(), strict=False):
        updates = 1 + np.arange(columns) * (longest - 1) / max(columns - 1, 1)
        heights = np.interp(updates, np.arange(1, len(rates) + 1), rates)
        lines = np.clip(np.ceil(heights / highest * rows).astype(int), 1, rows)
        for column in np.flatnonzero(updates <= len(rates)):
            there = canvas[rows - lines[column], column]
            canvas[rows - lines[column], column] = mark if there == " " else "*"
    labels = {0: f"{highest:.2e}", rows // 2: f"{highest * (rows - rows // 2) / rows:.2e}"}
    text = [f"{labels.get(row, ''):>8} |{''.join(line)}".rstrip() for row, line in enumerate(canvas)]
    text.append(f"{'0':>8} +{'-' * columns}")
    text.append(f"{'':10}1{f'update {longest}':>{columns - 1}}")
    if len(curves) > 1:
        text += [f"{mark}: {name}" for mark, name in zip(marks, curves, strict=False)]
    return "\n".join(text)
