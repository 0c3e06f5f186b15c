"""How well a law fitted to one or two logs predicts the final losses of other runs.

    python scripts/loss_law_study.py FOLDER

FOLDER holds CSV files with the columns step, lr and loss, one for each run of a recipe, or a subfolder of such files for each
model size. The report, results/loss_law.md, also has the project's own studies.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from experiments.arguments import exit_with_error
from experiments.loss_curves import Curve, read_curves, read_study
from experiments.loss_law_tables import (
    Prediction,
    one_log_table,
    optimum_row,
    pairs_of,
    power_table,
    predict_all,
    residual_row,
    study_row,
    summary_row,
)
from experiments.markdown_tables import markdown_table
from experiments.provenance import collect_provenance, render_provenance
from experiments.study_folder import RESULTS_FILE, SCHEDULES_FILE
from tqdm import tqdm

SCRIPT = "loss_law_study.py"

RESULTS = Path(__file__).resolve().parent.parent / "results"

INTRODUCTION = """# Final losses predicted from other runs

Each law is fitted to the (learning rate, loss) pairs of one run or of two, and predicts the last logged loss of the others. It
never sees a loss of a run that it predicts. Errors are absolute differences in the final loss, means over the runs that were
not used. The gate looks at the log alone. `equal` runs have the same number of updates. The bound is that of
`last_iterate_bound` with constant norms, every schedule at its best peak.

Priors, the weight of a log against them, the part of a run that is left out, and the width of intervals were chosen on curves of
25M parameters, published with arXiv 2503.12811. The exponential annealing came last, when the curves of 100M had been seen, too. Its
two powers, 2/3 of the progress and 0.8 of the noise, are near the best of 25M and of 100M: for this form, no row is a prediction of
unseen runs in every respect."""


POWERS = (
    "The exponential annealing with other powers of the rate, fitted to all runs at once: the root mean square of its residuals "
    "relative to the losses, and the mean absolute error of the final losses."
)

OPTIMA = (
    "The schedule with the least predicted loss for the peak and the length of each log, by the decay per decrease: until where it "
    "stays above 98 % of the peak, its multipliers half-way through its decay and at its end, and its predicted loss less that of "
    "the best of nine named schedules, by that form and by the form of the law. The interval is of all forms, with the discrepancy "
    "of a law."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="CSV files with the columns step, lr and loss, or subfolders of them")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "loss_law.md", help="the report (default: %(default)s)"
    )
    parser.add_argument("--source", default="as given.", help="a sentence for the report: where the curves come from")
    options = parser.parse_args()
    started = time.perf_counter()
    try:
        curves = read_curves(options.folder)
        sections = [INTRODUCTION, f"The curves: {options.source}", *curve_sections(curves), own_studies()]
    except (ValueError, OSError) as error:
        exit_with_error(SCRIPT, error)
    sections.append(
        render_provenance(
            collect_provenance(SCRIPT, time.perf_counter() - started, packages=("numpy", "scipy", "pandas"))
        )
    )
    report = "\n\n".join(sections) + "\n"
    options.output.write_text(report, encoding="utf-8")
    print(report)


def curve_sections(curves: dict[str, list[Curve]]) -> list[str]:
    """The sections on the given curves.

    Args:
        curves: by size.
    """
    sections, summaries, residuals = [], [], []
    for size, runs in curves.items():
        single = _predict(runs, [(position,) for position in range(len(runs))], f"{size}, one log")
        double = _predict(runs, pairs_of(runs), f"{size}, two logs")
        summaries += [summary_row(f"{size}, one", runs, single), summary_row(f"{size}, two", runs, double)]
        residuals.append(residual_row(size, runs, predict_all(runs, tuple(range(len(runs))))))
        sections += [f"## {size}: from one log", markdown_table(one_log_table(runs, single))]
        sections += [f"### Powers of the rate ({size})", POWERS, markdown_table(power_table(runs))]
        sections += [f"### The least predicted loss ({size})", OPTIMA, markdown_table(_optima(runs, single))]
    return [
        "## All choices of logs for which the gate opens",
        markdown_table(pd.DataFrame(summaries)),
        "Fitted to all runs at once, the laws still miss the final losses: mean absolute error, and root mean square "
        "relative to the loss, and Spearman's correlation over all runs. Intervals allow for it.",
        markdown_table(pd.DataFrame(residuals)),
        *sections,
    ]


def _predict(runs: list[Curve], choices: list[tuple[int, ...]], label: str) -> list[Prediction]:
    return [predict_all(runs, sources) for sources in tqdm(choices, desc=label, file=sys.stderr)]


def _optima(runs: list[Curve], predictions: list[Prediction]) -> pd.DataFrame:
    rows = []
    for prediction in predictions:
        source = runs[prediction.sources[0]]
        if not prediction.law.refusals:
            warmup = int(source.steps[0])
            rows.append(optimum_row(source.name, prediction.law, float(source.rates.max()), len(source.rates), warmup))
    return pd.DataFrame(rows)


def own_studies() -> str:
    """The section on the studies in results/."""
    rows = []
    for path in sorted(RESULTS.glob(f"*/{RESULTS_FILE}")):
        if (path.parent / SCHEDULES_FILE).exists():
            rows += [study_row(path.parent.name, runs) for runs in read_study(path.parent)]
    return "\n\n".join(
        [
            "## The project's own studies",
            "The law is fitted to the training losses of the baseline, linear decay at its best peak. Where the gate refuses, the "
            "table shows what the prediction would have been: the error in the final training loss, and the rank correlation of "
            "predicted losses with final training and evaluation losses, over the schedules at the same peak.",
            markdown_table(pd.DataFrame(rows)),
        ]
    )


if __name__ == "__main__":
    main()
