"""Write the table and the training curves of scripts/quickstart.sh from what its runs left."""

import argparse
import json
from pathlib import Path

import pandas as pd
from experiments.markdown_tables import markdown_table
from matplotlib.figure import Figure

from hf_refined_schedule.plots import COLORS

LINES = {
    "linear": {"color": COLORS["linear"]},
    "linear_warmup": {"color": COLORS["linear"], "linestyle": "--"},
    "cosine_warmup": {"color": COLORS["cosine"], "linestyle": "--"},
    "refined": {"color": COLORS["refined"]},
    "bounded_warmup": {"color": COLORS["refined, bounded_warmup"]},
}
"""How each schedule is drawn."""


def final_loss(run: Path) -> float:
    """The evaluation loss at the end of a run."""
    return json.loads((run / "eval_results.json").read_text())["eval_loss"]


def training_losses(run: Path) -> pd.Series:
    """The logged training losses of a run, by update."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return pd.Series({entry["step"]: entry["loss"] for entry in history if "loss" in entry})


def loss_table(losses: pd.DataFrame) -> str:
    """The final losses as Markdown: a row for each schedule, a column for each peak, and the smallest loss of the row."""
    table = losses.rename(columns="peak {}".format).assign(best=losses.min(axis=1)).map("{:.4f}".format)
    return markdown_table(table.rename_axis("final evaluation loss").reset_index())


def draw_training_curves(path: Path, folder: Path, losses: pd.DataFrame) -> None:
    """Draw the training loss of each schedule at its best peak, a mean over five logged values."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for schedule, peak in losses.idxmin(axis=1).items():
        curve = training_losses(folder / f"{schedule}_{peak}").rolling(5, center=True, min_periods=1).mean()
        axes.plot(curve.index, curve, label=f"{schedule}, peak {peak}", **LINES[str(schedule)])
    axes.set(xlabel="optimizer update", ylabel="training loss", title="Each schedule at its best peak")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the runs, each named SCHEDULE_PEAK")
    parser.add_argument("--schedules", nargs="+", choices=list(LINES), required=True)
    parser.add_argument("--peaks", nargs="+", required=True)
    options = parser.parse_args()
    picture = options.folder / "training_curves.png"
    losses = pd.DataFrame(
        {
            peak: {name: final_loss(options.folder / f"{name}_{peak}") for name in options.schedules}
            for peak in options.peaks
        }
    )
    draw_training_curves(picture, options.folder, losses)
    table = loss_table(losses)
    (options.folder / "table.md").write_text(table + "\n")
    print(
        f"\n{table}\n\n"
        "This is one seed, and one seed proves nothing: differences of a few thousandths are noise here.\n"
        "scripts/finetuning_study.py repeats the comparison over seeds and peaks, and tests the differences in pairs."
        f"\nPictures: {options.folder / 'norms_and_schedule.png'} and {picture}"
    )


if __name__ == "__main__":
    main()
