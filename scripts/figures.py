"""The method in two pictures: synthetic norms and their schedules; recorded norms, smoothed, refined, fitted.

    python scripts/figures.py
    python scripts/figures.py runs/baseline trainer_state.json --optimizer adam --output_dir runs/figures

Without sources the second picture is of our own runs in results/. Writes OUTPUT_DIR/synthetic.png, OUTPUT_DIR/recorded.png
and OUTPUT_DIR.md, a table of what is seen.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_refined_schedule import GradientNorms, load_norms, smooth_norms
from hf_refined_schedule.cli import LONGEST_NAME
from hf_refined_schedule.plots import COLORS, plot_norms
from hf_refined_schedule.schedules.refined_schedule import OptimizerFamily, RefinedSchedule
from hf_refined_schedule.theory.classical import closest_polynomial, closest_wsd, polynomial
from hf_refined_schedule.theory.refinement import peak_place

RESULTS = Path(__file__).resolve().parent.parent / "results"

OWN_RUNS = {
    "fine-tuning": RESULTS / "finetune" / "baseline.jsonl",
    "from scratch": RESULTS / "scratch" / "baseline.jsonl",
    "LoRA": RESULTS / "lora" / "baseline.jsonl",
}

NUM_STEPS = 1000

FAMILY_COLORS: dict[OptimizerFamily, str] = {"adam": COLORS["refined"], "sgd": "tab:purple"}

WEIGHTS: dict[OptimizerFamily, str] = {"adam": "Adam: norm ** -1", "sgd": "SGD: norm ** -2"}


@dataclass(frozen=True)
class Drawn:
    """Norms with the schedule that they ask for."""

    name: str
    norms: NDArray[np.float64]
    schedule: RefinedSchedule


def synthetic_norms(num_steps: int = NUM_STEPS, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Norms of made-up runs, with 10 % of scatter, shape (num_steps,), by name."""
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


def draw_synthetic(path: Path, runs: Mapping[str, list[Drawn]]) -> None:
    """Norms above, and below them the schedules for SGD and Adam beside linear decay."""
    figure = Figure(figsize=(2.7 * len(runs), 5), layout="constrained")
    above, below = figure.subplots(2, len(runs), sharey="row")
    for column, (name, drawn) in enumerate(runs.items()):
        plot_norms(above[column], drawn[0].norms, smooth_norms(drawn[0].norms), label="gradient norm")
        above[column].set_title(name)
        for run in drawn:
            family = run.schedule.optimizer
            grid = run.schedule.multipliers
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


def draw_recorded(path: Path, runs: list[Drawn]) -> None:
    """Norms above, recorded and smoothed; below, the refined schedule with the polynomial that is closest to it."""
    figure = Figure(figsize=(3.8 * len(runs), 6.6), layout="constrained")
    above, below = figure.subplots(2, len(runs), squeeze=False)
    for column, run in enumerate(runs):
        kind = run.schedule.norm.upper()
        plot_norms(
            above[column], run.norms, smooth_norms(run.norms, run.schedule.smoothing), label=f"gradient {kind} norm"
        )
        above[column].set_title(
            run.name if len(run.name) <= LONGEST_NAME else f"…{run.name[1 - LONGEST_NAME :]}", fontsize="medium"
        )
        grid = run.schedule.multipliers
        progress = np.linspace(0, 1, len(grid))
        fit = closest_polynomial(grid)
        fitted = polynomial(progress, fit.warmup, fit.parameter)
        weights = f"refined, {kind} ** {run.schedule.power:g}"
        below[column].plot(progress, grid, color=COLORS["refined"], label=weights)
        words = f"warm-up {fit.warmup:.0%}, then (1 - u) ** {fit.parameter:.2f}\nRMSE {fit.error:.3f}"
        below[column].plot(progress, fitted, color="black", linewidth=1.2, label=words)
        below[column].plot([0, 1], [1, 0], "--", color=COLORS["linear"], label="linear decay")
        below[column].set(xlabel="progress of the run", ylabel="fraction of the peak", ylim=(0, 1.05))
        below[column].legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    figure.savefig(path, dpi=110)


def table(runs: Iterable[Drawn]) -> str:
    """Where each schedule peaks, and the closest ones of two families, as Markdown."""
    lines = [
        "| norms | weights | peak at | mean multiplier | closest polynomial | RMSE | closest warmup-stable-decay | RMSE |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        grid = run.schedule.multipliers
        power_law, wsd = closest_polynomial(grid), closest_wsd(grid)
        weights = f"{run.schedule.norm.upper()} ** {run.schedule.power:g}"
        lines.append(
            f"| {run.name} | {weights} | {peak_place(grid):.0%} | {grid[:-1].mean():.2f} "
            f"| warm-up {power_law.warmup:.0%}, power {power_law.parameter:.2f} | {power_law.error:.3f} "
            f"| warm-up {wsd.warmup:.0%}, decay {wsd.parameter:.0%} | {wsd.error:.3f} |"
        )
    return "\n".join(lines)


def recorded(name: str, source: str | Path, optimizer: OptimizerFamily | None) -> Drawn:
    """A recorded run; the optimizer is its own unless given."""
    norms = load_norms(source)
    family = optimizer or norms.optimizer
    if family is None:
        raise ValueError(f"{source} does not say which optimizer it used; pass --optimizer adam or --optimizer sgd.")
    schedule = RefinedSchedule.from_norms(norms, family)
    return Drawn(name, norms.at_every_step(schedule.norm), schedule)


def write_report(output_dir: Path, runs: list[Drawn], command: str) -> str:
    """Write both pictures, and the report beside their folder; returns the report."""
    synthetic = {}
    for name, norms in synthetic_norms().items():
        source = GradientNorms(steps=np.arange(1, len(norms) + 1), l1=norms, l2=norms)
        synthetic[name] = [
            Drawn(name, norms, RefinedSchedule.from_norms(source, family)) for family in get_args(OptimizerFamily)
        ]
    output_dir.mkdir(parents=True, exist_ok=True)
    draw_synthetic(output_dir / "synthetic.png", synthetic)
    draw_recorded(output_dir / "recorded.png", runs)
    folder = output_dir.name
    report = "\n\n".join(
        [
            "# The method in pictures",
            f"Synthetic norms of {NUM_STEPS} updates, and the schedules that they ask for:",
            f"![Norms and schedules]({folder}/synthetic.png)",
            table(run for drawn in synthetic.values() for run in drawn),
            "Recorded norms, smoothed; refined; and the polynomial that is closest to the refined schedule, of powers from 0.1 "
            "to 10:",
            f"![Recorded norms and schedules]({folder}/recorded.png)",
            table(runs),
            f"```bash\n{command}\n```",
        ]
    )
    output_dir.with_name(f"{folder}.md").write_text(report + "\n", encoding="utf-8")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="*", help="recorded runs, anything that holds norms; by default our own")
    parser.add_argument("--optimizer", choices=get_args(OptimizerFamily), help="for sources that do not say")
    parser.add_argument("--output_dir", type=Path, default=Path("results/figures"))
    options = parser.parse_args()
    try:
        sources = {source: source for source in options.sources} or OWN_RUNS
        runs = [recorded(name, source, options.optimizer) for name, source in sources.items()]
        command = shlex.join(["python", "scripts/figures.py", *sys.argv[1:]])
        print(write_report(options.output_dir.resolve(), runs, command))
    except (ValueError, OSError) as error:
        parser.exit(2, f"figures.py: error: {error}\n")


if __name__ == "__main__":
    main()
