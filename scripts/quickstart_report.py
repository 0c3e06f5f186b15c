"""Write the table and the training curves of scripts/quickstart.sh from what its runs left."""

import argparse
import json
from pathlib import Path

import pandas as pd
from experiments.markdown_tables import markdown_table
from matplotlib.figure import Figure

from hf_refined_schedule.plots import COLORS

LINE_STYLES = ("--", "-")
"""A style for each peak."""


def final_loss(run: Path) -> float:
    """The evaluation loss at the end of a run."""
    return json.loads((run / "eval_results.json").read_text())["eval_loss"]


def training_losses(run: Path) -> pd.Series:
    """The logged training losses of a run, by update."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return pd.Series({entry["step"]: entry["loss"] for entry in history if "loss" in entry})


def loss_table(folder: Path, schedules: list[str], peaks: list[str]) -> str:
    """The final losses as Markdown: a row for each schedule, a column for each peak."""
    losses = {
        f"peak {peak}": [f"{final_loss(folder / f'{schedule}_{peak}'):.4f}" for schedule in schedules] for peak in peaks
    }
    return markdown_table(pd.DataFrame({"final evaluation loss": schedules, **losses}))


def draw_training_curves(path: Path, folder: Path, schedules: list[str], peaks: list[str]) -> None:
    """Draw a line for each run: the color is its schedule's, the style its peak's."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for schedule in schedules:
        for peak, style in zip(peaks, LINE_STYLES, strict=True):
            losses = training_losses(folder / f"{schedule}_{peak}")
            axes.plot(losses.index, losses, style, color=COLORS[schedule], label=f"{schedule}, peak {peak}")
    axes.set(xlabel="optimizer update", ylabel="training loss")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the runs, each named SCHEDULE_PEAK")
    parser.add_argument("--schedules", nargs="+", required=True)
    parser.add_argument("--peaks", nargs="+", required=True)
    options = parser.parse_args()
    picture = options.folder / "training_curves.png"
    draw_training_curves(picture, options.folder, options.schedules, options.peaks)
    table = loss_table(options.folder, options.schedules, options.peaks)
    (options.folder / "table.md").write_text(table + "\n")
    print(
        f"\n{table}\n\n"
        "This is one seed, and one seed proves nothing: differences of a few thousandths are noise here.\n"
        "scripts/compare_finetuning.py repeats the comparison over seeds and peaks, and tests the differences in pairs."
        f"\nPictures: {options.folder / 'norms_and_schedule.png'} and {picture}"
    )


if __name__ == "__main__":
    main()
