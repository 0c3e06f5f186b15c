"""The table and the training curves of scripts/quickstart.sh. Only reads what the runs left."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hf_refined_schedule.plots import COLORS

LINE_STYLES = ("--", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the runs, each named SCHEDULE_PEAK")
    parser.add_argument("--schedules", nargs="+", required=True)
    parser.add_argument("--peaks", nargs="+", required=True)
    options = parser.parse_args()

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    lines = [
        f"| final evaluation loss |{''.join(f' peak {peak} |' for peak in options.peaks)}",
        f"| --------------------- |{'-----------|' * len(options.peaks)}",
    ]
    for schedule in options.schedules:
        losses = []
        for peak, style in zip(options.peaks, LINE_STYLES, strict=True):
            run = options.folder / f"{schedule}_{peak}"
            losses.append(json.loads((run / "eval_results.json").read_text())["eval_loss"])
            history = json.loads((run / "trainer_state.json").read_text())["log_history"]
            logged = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
            axes.plot(*zip(*logged, strict=True), style, color=COLORS[schedule], label=f"{schedule}, peak {peak}")
        lines.append(f"| {schedule:<21} |{''.join(f' {loss:<9.4f} |' for loss in losses)}")
    axes.set(xlabel="optimizer update", ylabel="training loss")
    axes.legend()
    picture = options.folder / "training_curves.png"
    figure.savefig(picture, dpi=150)
    table = "\n".join(lines)
    (options.folder / "table.md").write_text(table + "\n")
    print(
        f"\n{table}\n\n"
        "This is one seed, and one seed proves nothing: differences of a few thousandths are noise here.\n"
        "scripts/compare_finetuning.py repeats the comparison over seeds and peaks, and tests the differences in pairs."
        f"\nPictures: {options.folder / 'norms_and_schedule.png'} and {picture}"
    )


if __name__ == "__main__":
    main()
