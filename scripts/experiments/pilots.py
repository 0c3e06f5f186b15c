"""How far the schedule of a pilot is from the schedule of the full run: distances, verdicts, their table and picture."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.plots import COLORS, RUN_COLORS
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources
from hf_refined_schedule.theory.classical import rmse
from hf_refined_schedule.theory.refinement import RisingNorms, linear_decay, peak_position

from .markdown_tables import NOT_AVAILABLE, markdown_table

FULL = "full run"
LINEAR = "linear decay"
OTHER_SEED = "full run, another seed"

RULES: dict[RisingNorms, str] = {"keep": "the paper's rule", "ignore": "rising norms ignored"}


class Schedule(NamedTuple):
    """A schedule, and the verdict of `hf-refined-schedule check` on it."""

    grid: NDArray[np.float64]
    """Multipliers at even progress from 0 to 1, shape (T+1,)."""
    verdict: str


@dataclass(frozen=True)
class Row:
    """A source of schedules, measured with each seed.

    Args:
        name: the source, such as "first 10 % of the run".
        distances: the distance to the full run's schedule, for each seed.
        schedules: the schedule of the source, for each seed.
    """

    name: str
    distances: list[float]
    schedules: list[Schedule]

    @property
    def distance(self) -> float:
        """The mean distance."""
        return float(np.mean(self.distances))

    @property
    def verdicts(self) -> list[str]:
        """The verdict on each schedule."""
        return [schedule.verdict for schedule in self.schedules]

    def num_closer_than(self, other: "Row") -> int:
        """The number of seeds with which this row is closer to the full run's schedule than another row."""
        return sum(own < its for own, its in zip(self.distances, other.distances, strict=True))


def first_part_name(fraction: float) -> str:
    """The row of a full run that stops early."""
    return f"first {100 * fraction:g} % of the run"


def short_run_name(fraction: float) -> str:
    """The row of a complete run that is shorter than the full one."""
    return f"run of {100 * fraction:g} % of the length"


def short_as_first_part_name(fraction: float) -> str:
    """The row of a shorter run that counts as the first updates of the full one."""
    return f"{short_run_name(fraction)}, as the first {100 * fraction:g} %"


def smaller_model_name(model: str) -> str:
    """The row of a smaller model."""
    return f"model {model}"


def line_styles(
    first_parts: Sequence[float], lengths: Sequence[float], smaller_models: Sequence[str]
) -> dict[str, str]:
    """The line style of every pilot in the picture, by its name, in the order of the table.

    Args:
        first_parts: fractions of the run after which it stops early.
        lengths: lengths of shorter runs as fractions of the full one.
        smaller_models: names of smaller models.
    """
    styles = {first_part_name(fraction): "-" for fraction in first_parts}
    for fraction in lengths:
        styles |= {short_run_name(fraction): "--", short_as_first_part_name(fraction): "-."}
    return styles | {smaller_model_name(model): ":" for model in smaller_models}


def first_part(norms: GradientNorms, fraction: float) -> GradientNorms:
    """The norms of a run that stops early.

    Args:
        norms: the norms of the full run, with L1.
        fraction: the fraction of the run after which it stops.
    """
    count = round(fraction * norms.total_steps)
    l1 = norms.at_every_step("l1")[:count]
    return GradientNorms(np.arange(1, count + 1), l1=l1, num_training_steps=norms.total_steps)


def add_derived_pilots(
    runs: Mapping[str, list[GradientNorms]], first_parts: Sequence[float], lengths: Sequence[float]
) -> dict[str, list[GradientNorms]]:
    """Add the pilots that need no run of their own to the recorded ones.

    Args:
        runs: norms of every seed, by the name of the run.
        first_parts: as in `line_styles`.
        lengths: as in `line_styles`.
    """
    pilots = dict(runs)
    for fraction in first_parts:
        pilots[first_part_name(fraction)] = [first_part(norms, fraction) for norms in runs[FULL]]
    for fraction in lengths:
        pilots[short_as_first_part_name(fraction)] = [
            replace(short, num_training_steps=full.total_steps)
            for short, full in zip(runs[short_run_name(fraction)], runs[FULL], strict=True)
        ]
    return pilots


def refine_pilot(norms: GradientNorms, rising_norms: RisingNorms) -> Schedule:
    """The schedule of a pilot or a full run, and the verdict on it."""
    refinement = refine_sources(norms, "adam", RefinementOptions(rising_norms=rising_norms, pilot=True))
    verdict = NOT_AVAILABLE if refinement.health is None else refinement.health.verdict
    return Schedule(refinement.schedule.grid, verdict)


def distance(pilot: Schedule, full: Schedule) -> float:
    """The RMSE of two schedules over the progress of the full run."""
    progress = np.linspace(0, 1, len(full.grid))
    return rmse(np.interp(progress, np.linspace(0, 1, len(pilot.grid)), pilot.grid), full.grid)


def compare_pilots(sources: Mapping[str, list[GradientNorms]], rising_norms: RisingNorms) -> list[Row]:
    """Measure the distance of every pilot's schedule to the full run's with the same seed.

    Args:
        sources: norms of every seed, by name; those of the full runs are `FULL`.
        rising_norms: how the schedules are refined.

    Returns:
        The rows of the table: full runs with other seeds, linear decay, and the pilots.
    """
    schedules = {name: [refine_pilot(norms, rising_norms) for norms in seeds] for name, seeds in sources.items()}
    full = schedules.pop(FULL)
    to_other_seeds = [float(np.mean([distance(other, own) for other in full if other is not own])) for own in full]
    linear = Schedule(np.append(linear_decay(len(full[0].grid) - 1), 0.0), NOT_AVAILABLE)
    schedules = {LINEAR: [linear] * len(full), **schedules}
    return [
        Row(OTHER_SEED, to_other_seeds, full),
        *(
            Row(name, [distance(pilot, own) for pilot, own in zip(seeds, full, strict=True)], seeds)
            for name, seeds in schedules.items()
        ),
    ]


def format_spread(values: Sequence[float], format_value: Callable[[float], str]) -> str:
    """The mean with the range, or the mean alone if all three look the same."""
    mean, low, high = (format_value(value) for value in (float(np.mean(values)), min(values), max(values)))
    return mean if low == high else f"{mean} [{low}, {high}]"


def pilot_table(rows: Sequence[Row]) -> str:
    """The rows of `compare_pilots` as Markdown."""
    other_seed, linear = rows[0], rows[1]
    table = []
    for row in rows:
        grids = [schedule.grid for schedule in row.schedules]
        verdicts = Counter(row.verdicts)
        table.append(
            {
                "schedule of": row.name,
                "RMSE": format_spread(row.distances, "{:.3f}".format),
                "times another seed's": f"{row.distance / other_seed.distance:.1f}",
                f"closer than {LINEAR}": NOT_AVAILABLE
                if row is linear
                else f"{row.num_closer_than(linear)} of {len(row.distances)} seeds",
                "peak at": format_spread(
                    [peak_position(grid) for grid in grids], lambda position: f"{100 * position:.0f} %"
                ),
                "mean multiplier": format_spread([grid[:-1].mean() for grid in grids], "{:.2f}".format),
                "check": ", ".join(
                    name if len(verdicts) == 1 else f"{name} ({count})" for name, count in verdicts.items()
                ),
            }
        )
    return markdown_table(pd.DataFrame(table))


def conclusion(rows: Sequence[Row]) -> str:
    """What follows from the table, in one paragraph."""
    other_seed, linear, *pilots = rows
    closer = {row.name: row.num_closer_than(linear) for row in pilots}
    num_seeds = len(linear.distances)
    findings = {
        f"Closer to the full run's schedule than {LINEAR} with every seed": [
            name for name, count in closer.items() if count == num_seeds
        ],
        "With some seeds only": [name for name, count in closer.items() if 0 < count < num_seeds],
        f"With no seed, so that {LINEAR} is the better guess": [name for name, count in closer.items() if count == 0],
        "As close on average as a full run with another seed": [
            row.name for row in (linear, *pilots) if row.distance <= other_seed.distance
        ],
        "Another verdict than the full run's with some seed": [
            row.name for row in pilots if row.verdicts != other_seed.verdicts
        ],
    }
    return " ".join(f"{finding}: {'; '.join(names) or 'none'}." for finding, names in findings.items())


def draw_pilots(axes: Axes, rows: Sequence[Row], styles: Mapping[str, str]) -> None:
    """Draw the full runs' schedules of all seeds, linear decay's, and every pilot's of the first seed.

    Args:
        axes: the axes to draw on.
        rows: the rows of `compare_pilots`.
        styles: the line style of each pilot.
    """
    other_seed, linear, *pilots = rows
    progress = np.linspace(0, 1, len(linear.schedules[0].grid))
    for number, schedule in enumerate(other_seed.schedules):
        label = "full run (thin: other seeds)" if number == 0 else None
        axes.plot(progress, schedule.grid, color="black", linewidth=2.5 if number == 0 else 1.0, label=label)
    axes.plot(progress, linear.schedules[0].grid, color=COLORS["linear"], label=LINEAR)
    for row, color in zip(pilots, cycle(RUN_COLORS), strict=False):
        grid = row.schedules[0].grid
        axes.plot(np.linspace(0, 1, len(grid)), grid, styles[row.name], color=color, linewidth=1.3, label=row.name)
    axes.set(xlabel="progress of the run", ylabel="fraction of the peak learning rate", ylim=(0, 1.05))


def save_pilots_picture(
    path: Path, comparisons: Mapping[tuple[str, RisingNorms], list[Row]], styles: Mapping[str, str]
) -> None:
    """Write a picture with a row for each rule and a column for each regime.

    Args:
        path: the PNG file.
        comparisons: the rows of `compare_pilots` by regime and rule, regime by regime.
        styles: as in `draw_pilots`.
    """
    num_columns = len(comparisons) // len(RULES)
    figure = Figure(figsize=(4.8 * num_columns, 3.8 * len(RULES) + 0.8), layout="constrained")
    all_axes = figure.subplots(len(RULES), num_columns, squeeze=False)
    for axes, ((regime, rule), rows) in zip(all_axes.T.flat, comparisons.items(), strict=True):
        draw_pilots(axes, rows, styles)
        axes.set_title(f"{regime}: {RULES[rule]}")
    figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def column_name(regime: str, run: str, seed: int) -> str:
    """The column of a run in norms.csv."""
    return f"{regime}, {run}, seed {seed}"


def write_norms(path: Path, norms: Mapping[str, NDArray[np.float64]]) -> None:
    """Write L1 norms as a table that `hf-refined-schedule --column NAME --norm l1` reads, too.

    Args:
        path: the CSV file.
        norms: the L1 norm at every update, by column. Shorter columns end in empty cells.
    """
    longest = max(map(len, norms.values()))
    table = pd.DataFrame({name: pd.Series(column) for name, column in norms.items()})
    table.insert(0, "step", range(1, longest + 1))
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\r\n")


def read_norms(path: Path) -> dict[str, GradientNorms]:
    """Read the file of `write_norms`.

    Returns:
        The norms of each run, by column.

    Raises:
        ValueError: if the file is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; run the pilots without --report_only first.")
    table = pd.read_csv(path).drop(columns="step")
    columns = {name: table[name].dropna().to_numpy(dtype=np.float64) for name in table.columns}
    return {
        name: GradientNorms(np.arange(1, len(l1) + 1), l1=l1, num_training_steps=len(l1), source=f"{path}, {name}")
        for name, l1 in columns.items()
    }
