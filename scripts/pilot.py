"""Measure how far the schedule of a pilot is from the schedule of the full run.

    python scripts/pilot.py --output_dir results/pilot

A pilot stands in for a full run that costs too much to be made twice: the first part of a run, as
`hf-refined-schedule refine --pilot` takes it; a complete shorter run; or a complete run of a smaller model. All are runs of
scripts/compare_finetuning.py's small models with linear decay, each pilot with the seed and the peak learning rate of its full run.
What is measured is the distance of schedules. No run is trained with a pilot's schedule.

The report goes to OUTPUT_DIR.md; the picture, and the recorded L1 norms of every run (norms.csv), go into OUTPUT_DIR. A rerun skips
runs that are recorded to their end there. The default takes about 10 minutes on two cores.
"""

import argparse
import csv
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from compare_finetuning import Cell, ComparisonArguments, Setting, account, prepare, run_cell
from experiments.language_modeling import ModelArguments
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from report_comparison import NONE, aligned, how_it_was_made
from tqdm import tqdm

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME
from hf_refined_schedule.plots import COLORS, RUN_COLORS
from hf_refined_schedule.schedules.health import check_health
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule
from hf_refined_schedule.theory.classical import rmse
from hf_refined_schedule.theory.refinement import RisingNorms, linear_decay, peak_place

PEAKS = {"finetune": 5e-3, "scratch": 2e-3}
"""The peak learning rate of a regime: linear decay's best in results/finetune.md and results/scratch.md."""

SMALLER_MODELS = {
    "half as wide": "n_embd=48,n_layer=2,n_head=4,n_positions=64",
    "half as wide, half the layers": "n_embd=48,n_layer=1,n_head=4,n_positions=64",
}
"""Changes to the config; the full run's model has 96 dimensions and 2 layers."""

RULES: dict[RisingNorms, str] = {"keep": "the paper's rule", "ignore": "rising norms ignored"}

FULL = "full run"
LINEAR = "linear decay"
OTHER_SEED = "full run, another seed"


@dataclass(frozen=True)
class Run:
    """One run with linear decay, and what it is in the report."""

    regime: str
    name: str
    setting: Setting
    cell: Cell

    @property
    def norms_file(self) -> Path:
        """Where `run_cell` records it."""
        cell = self.cell
        return Path(self.setting.folder) / "cells" / f"{cell.schedule}_{cell.peak:g}_{cell.seed}" / NORMS_FILE_NAME

    @property
    def is_recorded(self) -> bool:
        """Whether its norms are there to the end."""
        try:
            norms = load_norms(self.norms_file)
        except ValueError:
            return False
        return int(norms.steps[-1]) == norms.num_training_steps == self.cell.steps


class Schedule(NamedTuple):
    """A schedule, and what `hf-refined-schedule check` says of the norms it was made from."""

    grid: NDArray[np.float64]
    """Multipliers at even progress from 0 to 1, shape (T+1,)."""
    verdict: str


@dataclass(frozen=True)
class Row:
    """A way to a schedule, measured: one distance to the full run's schedule, and one schedule, for each seed."""

    name: str
    distances: list[float]
    schedules: list[Schedule]

    @property
    def distance(self) -> float:
        return float(np.mean(self.distances))

    @property
    def verdicts(self) -> list[str]:
        return [schedule.verdict for schedule in self.schedules]

    def num_closer_than(self, other: "Row") -> int:
        """The seeds with which it is closer to the full run's schedule than another row is."""
        return sum(own < its for own, its in zip(self.distances, other.distances, strict=True))


def part_name(share: float) -> str:
    return f"first {100 * share:g} % of the run"


def short_name(share: float) -> str:
    return f"run of {100 * share:g} % of the length"


def short_as_part_name(share: float) -> str:
    return f"{short_name(share)}, as the first {100 * share:g} %"


def smaller_name(model: str) -> str:
    return f"model {model}"


def pilot_styles(options: argparse.Namespace) -> dict[str, str]:
    """The line style of every pilot in the picture, by its name, in the order of the table."""
    return {
        **{part_name(share): "-" for share in options.parts},
        **{
            name: style
            for share in options.lengths
            for name, style in ((short_name(share), "--"), (short_as_part_name(share), "-."))
        },
        **{smaller_name(model): ":" for model in options.smaller_models},
    }


def plan(options: argparse.Namespace, regime: str) -> list[Run]:
    """The runs of a regime; their models are pretrained, and their text cut into blocks, here."""
    work = options.output_dir / "cells" / f"{regime}_{options.pretrain_steps}"
    grid = ComparisonArguments(
        output_dir=str(work),
        regime=regime,
        max_steps=options.steps,
        pretrain_steps=options.pretrain_steps,
        num_workers=options.num_workers,
    )
    whole = prepare(ModelArguments(), None, grid, None)
    kinds = [(FULL, whole, options.steps)]
    kinds += [(short_name(share), whole, round(share * options.steps)) for share in options.lengths]
    kinds += [
        (smaller_name(model), prepare(ModelArguments(), None, grid, SMALLER_MODELS[model]), options.steps)
        for model in options.smaller_models
    ]
    return [
        # run_cell's folders do not tell lengths apart.
        Run(
            regime,
            name,
            replace(setting, folder=f"{setting.folder}/{steps}"),
            Cell("linear", PEAKS[regime], seed, steps, role="pilot"),
        )
        for name, setting, steps in kinds
        for seed in range(1, options.num_seeds + 1)
    ]


def record(runs: Iterable[Run], num_workers: int) -> None:
    """Make the runs that are not recorded to their end, the longest first."""
    runs = list(runs)
    missing = sorted((run for run in runs if not run.is_recorded), key=lambda run: -run.cell.steps)
    with tqdm(total=len(runs), initial=len(runs) - len(missing), desc="recording", unit="run") as progress:
        for _ in results_of(missing, num_workers):
            progress.update()


def results_of(runs: list[Run], num_workers: int) -> Iterator[dict[str, Any]]:
    """What `run_cell` says of each run, one or several at a time."""
    settings, cells = [run.setting for run in runs], [run.cell for run in runs]
    if num_workers == 1 or len(runs) < 2:
        yield from map(run_cell, settings, cells)
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_cell, settings, cells)


def first_part(norms: GradientNorms, share: float) -> GradientNorms:
    """What a run that is stopped early leaves behind."""
    count = round(share * norms.total_steps)
    return replace(norms, steps=norms.steps[:count], l1=norms.l1[:count], l2=norms.l2[:count])


def refined(norms: GradientNorms, rising_norms: RisingNorms) -> Schedule:
    """The schedule that a pilot, or a whole run, asks for."""
    schedule = RefinedSchedule.from_norms(norms, "adam", rising_norms=rising_norms, pilot=True)
    return Schedule(schedule.multipliers, check_health(norms, schedule).verdict)


def distance(one: Schedule, full: Schedule) -> float:
    """RMSE of two schedules, over the progress of the full run."""
    progress = np.linspace(0, 1, len(full.grid))
    return rmse(np.interp(progress, np.linspace(0, 1, len(one.grid)), one.grid), full.grid)


def compare(sources: Mapping[str, list[GradientNorms]], rising_norms: RisingNorms) -> list[Row]:
    """Distances to the full runs' schedules: from other seeds', linear decay, and every pilot's.

    Args:
        sources: norms of every seed, by name; the full runs' are `FULL`.
        rising_norms: how schedules are refined.

    Returns:
        The rows of the table.
    """
    schedules = {name: [refined(norms, rising_norms) for norms in seeds] for name, seeds in sources.items()}
    full = schedules.pop(FULL)
    to_other_seeds = [float(np.mean([distance(other, own) for other in full if other is not own])) for own in full]
    linear = Schedule(np.append(linear_decay(len(full[0].grid) - 1), 0.0), NONE)
    schedules = {LINEAR: [linear] * len(full), **schedules}
    return [
        Row(OTHER_SEED, to_other_seeds, full),
        *(
            Row(name, [distance(one, own) for one, own in zip(seeds, full, strict=True)], seeds)
            for name, seeds in schedules.items()
        ),
    ]


def spread(values: list[float], written: Callable[[float], str]) -> str:
    """Mean [least, most]; the mean alone where they read the same."""
    mean, least, most = (written(value) for value in (float(np.mean(values)), min(values), max(values)))
    return mean if least == most else f"{mean} [{least}, {most}]"


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    other_seed, linear = rows[0], rows[1]
    lines = [
        ["schedule of", "RMSE", "times another seed's", f"closer than {LINEAR}", "peak at", "mean multiplier", "check"]
    ]
    for row in rows:
        grids = [schedule.grid for schedule in row.schedules]
        verdicts = Counter(row.verdicts)
        lines.append(
            [
                row.name,
                spread(row.distances, "{:.3f}".format),
                f"{row.distance / other_seed.distance:.1f}",
                NONE if row is linear else f"{row.num_closer_than(linear)} of {len(row.distances)} seeds",
                spread([peak_place(grid) for grid in grids], lambda place: f"{100 * place:.0f} %"),
                spread([grid[:-1].mean() for grid in grids], "{:.2f}".format),
                ", ".join(name if len(verdicts) == 1 else f"{name} ({count})" for name, count in verdicts.items()),
            ]
        )
    return aligned(pd.DataFrame(lines[1:], columns=lines[0]))


def conclusion(rows: list[Row]) -> str:
    """What the table says, in a paragraph."""
    other_seed, linear, *pilots = rows
    closer = {row.name: row.num_closer_than(linear) for row in pilots}
    num_seeds = len(linear.distances)
    findings = {
        f"Closer to the full run's schedule than {LINEAR} with every seed": [
            name for name, count in closer.items() if count == num_seeds
        ],
        "With some seeds only": [name for name, count in closer.items() if 0 < count < num_seeds],
        f"With none, so that {LINEAR} is the better guess": [name for name, count in closer.items() if count == 0],
        "As close on average as a full run with another seed": [
            row.name for row in (linear, *pilots) if row.distance <= other_seed.distance
        ],
        "Another verdict than the full run's with some seed": [
            row.name for row in pilots if row.verdicts != other_seed.verdicts
        ],
    }
    return " ".join(f"{words}: {'; '.join(names) or 'none'}." for words, names in findings.items())


def draw(axes: Axes, rows: list[Row], styles: Mapping[str, str]) -> None:
    """The full runs' schedules of all seeds, linear decay's, and every pilot's of the first seed."""
    other_seed, linear, *pilots = rows
    progress = np.linspace(0, 1, len(linear.schedules[0].grid))
    for number, schedule in enumerate(other_seed.schedules):
        label = "full run (thin: of other seeds)" if number == 0 else None
        axes.plot(progress, schedule.grid, color="black", linewidth=2.5 if number == 0 else 1.0, label=label)
    axes.plot(progress, linear.schedules[0].grid, color=COLORS["linear"], label=LINEAR)
    for row, color in zip(pilots, cycle(RUN_COLORS), strict=False):
        grid = row.schedules[0].grid
        axes.plot(np.linspace(0, 1, len(grid)), grid, styles[row.name], color=color, linewidth=1.3, label=row.name)
    axes.set(xlabel="progress of the run", ylabel="fraction of the peak learning rate", ylim=(0, 1.05))


def write_picture(
    path: Path, comparisons: Mapping[tuple[str, RisingNorms], list[Row]], styles: Mapping[str, str]
) -> None:
    """A row of pictures for each rule, a column for each regime."""
    num_columns = len(comparisons) // len(RULES)
    figure = Figure(figsize=(4.8 * num_columns, 3.8 * len(RULES) + 0.8), layout="constrained")
    all_axes = figure.subplots(len(RULES), num_columns, squeeze=False)
    for axes, ((regime, rule), rows) in zip(all_axes.T.flat, comparisons.items(), strict=True):
        draw(axes, rows, styles)
        axes.set_title(f"{regime}: {RULES[rule]}")
    figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def write_norms(path: Path, recorded: Mapping[Run, GradientNorms]) -> None:
    """A column of L1 norms for each run, which `hf-refined-schedule --column NAME --norm l1` reads, too."""
    names = [f"{run.regime}, {run.name}, seed {run.cell.seed}" for run in recorded]
    columns = [[f"{norm:.6g}" for norm in norms.at_every_step("l1")] for norms in recorded.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *names])
        for step, norms in enumerate(zip_longest(*columns, fillvalue=""), start=1):
            writer.writerow([step, *norms])


def introduction(options: argparse.Namespace) -> str:
    """What was measured."""
    peaks = " and ".join(f"{PEAKS[regime]:g} ({regime})" for regime in options.regimes)
    return (
        f"Full runs are {options.steps} updates of a small GPT-2 (96 dimensions, 2 layers) with AdamW and linear decay from the "
        f"peak {peaks}, {options.num_seeds} seeds. Pilots have the peak and the seed of their full run: a first part and a "
        "shorter run begin with its weights and its batches, so with its first norm; a smaller model has weights of its own, "
        "in finetune from a pretraining of its own. A shorter run is stretched to the full length, or taken step by step as "
        "the full run's first part. After a first part its last smoothed norm goes on to the end.\n\n"
        "RMSE is the distance of a schedule from the full run's with the same seed, over the progress of the run: mean over "
        f"the seeds [least, most]. It has two yardsticks: full runs with other seeds, and {LINEAR}, which needs no run at "
        f"all, so that a pilot which is not closer than {LINEAR} is useless. The peak's place, the mean multiplier and the "
        f"verdict of `hf-refined-schedule check` are of the row's own schedules; \"{OTHER_SEED}\" shows the full runs'. "
        "How a run fares with a pilot's schedule was not measured."
    )


def write_report(options: argparse.Namespace, recorded: Mapping[Run, GradientNorms], about: Mapping[str, Any]) -> str:
    """Write the report, its picture and the norms; returns the report."""
    comparisons: dict[tuple[str, RisingNorms], list[Row]] = {}
    for regime in options.regimes:
        sources: dict[str, list[GradientNorms]] = {FULL: [], **{name: [] for name in pilot_styles(options)}}
        for run, norms in recorded.items():
            if run.regime == regime:
                sources[run.name].append(norms)
        for share in options.parts:
            sources[part_name(share)] = [first_part(norms, share) for norms in sources[FULL]]
        for share in options.lengths:
            sources[short_as_part_name(share)] = [
                replace(norms, num_training_steps=options.steps) for norms in sources[short_name(share)]
            ]
        for rule in RULES:
            comparisons[regime, rule] = compare(sources, rule)
    parts = ["# Pilots: how far is their schedule from the full run's?", introduction(options)]
    for (regime, rule), rows in comparisons.items():
        parts += [f"## {regime}: {RULES[rule]}", table(rows), conclusion(rows)]
    caption = "The schedules; pilots are those of the first seed"
    parts += [f"![{caption}]({options.output_dir.name}/schedules.png)", f"*{caption}.*", how_it_was_made(about)]
    report = "\n\n".join(parts) + "\n"
    write_picture(options.output_dir / "schedules.png", comparisons, pilot_styles(options))
    write_norms(options.output_dir / "norms.csv", recorded)
    options.output_dir.with_name(f"{options.output_dir.name}.md").write_text(report, encoding="utf-8")
    return report


def share_of_the_run(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of the run, above 0 and up to 1")
    return share


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("results/pilot"))
    parser.add_argument("--regimes", nargs="+", choices=tuple(PEAKS), default=list(PEAKS), help="what is trained")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer updates of a full run")
    parser.add_argument("--num_seeds", type=int, default=3, help="seeds: 1, 2, ..; at least 2")
    shares = {"nargs": "+", "type": share_of_the_run, "metavar": "SHARE"}
    parser.add_argument("--parts", default=[0.1, 0.25, 0.5], help="first parts of the full run", **shares)
    parser.add_argument("--lengths", default=[0.1, 0.25], help="lengths of shorter runs", **shares)
    parser.add_argument(
        "--smaller_models", nargs="*", choices=tuple(SMALLER_MODELS), default=list(SMALLER_MODELS), metavar="NAME",
        help=f"none or some of: {'; '.join(SMALLER_MODELS)}",
    )  # fmt: skip
    parser.add_argument("--pretrain_steps", type=int, default=400, help="updates of the pretraining for finetune")
    parser.add_argument("--num_workers", type=int, default=2, help="runs at a time, on shares of the cores")
    return parser


def check_options(options: argparse.Namespace) -> None:
    if options.num_seeds < 2:
        raise ValueError(f"--num_seeds is {options.num_seeds}, but other seeds are the yardstick; pass at least 2.")
    if min(*options.parts, *options.lengths) * options.steps < 2:
        raise ValueError(f"The shortest pilot of --steps {options.steps} has fewer than 2 updates; pass more steps.")


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()
    started = time.monotonic()
    try:
        check_options(options)
        options.output_dir.mkdir(parents=True, exist_ok=True)
        runs = [run for regime in options.regimes for run in plan(options, regime)]
        record(runs, options.num_workers)
        about = account(options.output_dir, "pilot.py", time.monotonic() - started)
        print(write_report(options, {run: load_norms(run.norms_file) for run in runs}, about))
    except (ValueError, OSError) as error:
        parser.exit(2, f"pilot.py: error: {error}\n")


if __name__ == "__main__":
    main()
