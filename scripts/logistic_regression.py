"""Compare learning-rate schedules on multi-class logistic regression, a convex problem where their theory holds.

    python scripts/logistic_regression.py
    python scripts/report_comparison.py results/logistic_regression

The grid trains on the real data sets that scikit-learn ships, with standardised features, by minibatch SGD and Adam: schedules x
peak learning rates x seeds. The weights start at zero and the seed only sets the order of the data, so cells with the same seed
are compared in pairs.

The compared loss (`eval_loss`) is the training loss of the *last iterate* on the full training set. The convex theory bounds that
loss, which says nothing about held-out data. It is the cross entropy plus a small L2 penalty on the weights (`--penalty`).
Without the penalty the separable data sets have no minimum: the loss and the gradient norms fall to zero as the peak grows. A run
has diverged if its loss is not finite or ends above the loss of the zero weights that it started with.

For each data set and optimizer, the refined schedule is made from one more run: linear decay with a seed that is not compared
(seed 0), at that seed's best peak. The grid compares a schedule that the package calls doubtful or degenerate, too, and prints
the reasons when it makes the schedule.

Each result is appended to results.jsonl as its cell ends. A rerun skips the cells in that file, so a killed grid continues where
it stopped. The default grid of 4,080 runs takes about 20 minutes on one core.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from experiments.arguments import OneLineParser, non_negative_number, peak_learning_rate, positive_integer
from experiments.cells import Cell, Result
from experiments.grid import (
    add_sampled_schedules,
    baseline_cells,
    compared_cells,
    keep_baseline,
    refuse_several_processes,
    run_missing,
)
from experiments.logistic_problems import DATASETS, Problem, load_problem, train_linear_model, training_curve
from experiments.provenance import ProvenanceFile
from experiments.results_file import ResultsFile
from experiments.schedules_compared import SCHEDULES, sample_multipliers
from experiments.study_folder import only_run_in
from torch.optim import Optimizer
from tqdm import tqdm

from hf_refined_schedule import register
from hf_refined_schedule.norms.gradient_norms import OptimizerFamily
from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources

SCRIPT = "logistic_regression.py"

PACKAGES = ("torch", "transformers", "accelerate", "numpy")


@dataclass(frozen=True)
class ComparedOptimizer:
    """An optimizer of the grid.

    Args:
        label: its name in the report.
        family: its family, which decides the weights of the refined schedule.
        make: its class.
        peaks: its peak learning rates, up to four times linear decay's best on all data sets.
    """

    label: str
    family: OptimizerFamily
    make: Callable[..., Optimizer]
    peaks: tuple[float, ...]


OPTIMIZERS = {
    "sgd": ComparedOptimizer("SGD", "sgd", torch.optim.SGD, tuple(2.0**power for power in range(-3, 7))),
    "adam": ComparedOptimizer("Adam", "adam", torch.optim.Adam, tuple(2.0**power for power in range(-7, 3))),
}

COMPARED = {
    name: SCHEDULES[name]
    for name in (
        *("constant", "constant+warmup", "cosine", "cosine+warmup", "linear", "linear+warmup", "inverse_sqrt"),
        *("wsd", "refined", "refined+warmup"),
    )
} | {"wsd": replace(SCHEDULES["wsd"], warmup=0.0)}
"""The schedules of the grid. Here warmup-stable-decay has no warm-up."""


class Regime:
    """The grid of one data set and one optimizer."""

    def __init__(self, options: argparse.Namespace, problem: Problem, optimizer: str) -> None:
        self.options = options
        self.problem = problem
        self.optimizer = OPTIMIZERS[optimizer]
        self.name = f"{problem.name}, {self.optimizer.label}"
        self.peaks: list[float] = options.peaks or list(self.optimizer.peaks)
        self.norms_file: Path = options.output_dir / "baselines" / f"{problem.name}_{optimizer}" / NORMS_FILE_NAME
        needs_baseline = any(COMPARED[name].is_refined for name in options.schedules)
        self.baseline = baseline_cells(self.name, self.peaks, options.steps) if needs_baseline else []

    def run(self, results: ResultsFile) -> None:
        """Run the cells that have no result yet, and record the baseline's norms."""
        run_missing(self.baseline, self.run_cell, results, description=f"{self.name}: baseline")
        if self.baseline:
            steps = self.options.steps
            if best := keep_baseline(results, self.name, steps, self.norms_file, self.record):
                self.print_notes(best)
        cells = compared_cells(self.name, self.options.schedules, self.peaks, self.options.seeds, self.options.steps)
        run_missing(cells, self.run_cell, results, description=f"{self.name}: grid")

    def train(self, cell: Cell, record_to: Path | None = None) -> tuple[float, list[float]]:
        """Train a cell; returns what `train_linear_model` does."""
        return train_linear_model(
            self.problem,
            cell,
            COMPARED[cell.schedule],
            self.optimizer.make,
            batch_size=self.options.batch_size,
            norms_file=self.norms_file,
            record_to=record_to,
        )

    def run_cell(self, cell: Cell) -> Result:
        """Train a cell; a run that ends above its start has diverged."""
        started = time.monotonic()
        final, losses = self.train(cell)
        loss = final if final <= self.problem.start_loss else math.inf
        return Result(cell, loss, training_curve(losses), round(time.monotonic() - started, 3))

    def record(self, cell: Cell, path: Path) -> None:
        """Train a cell again and record its norms."""
        self.train(cell, record_to=path)

    def print_notes(self, best: Cell) -> None:
        """Print what the refined schedule is made from, and what is doubtful about it."""
        refinement = refine_sources(self.norms_file, self.optimizer.family)
        notes = refinement.trainable_schedule(RefinementOptions(allow_degenerate=True)).notes
        line = f"{self.name}: the refined schedule is made from linear decay at peak {best.peak:g}."
        tqdm.write(" ".join([line, *notes]), sys.stderr)

    def sample_schedules(self) -> dict[str, list[float]]:
        """The multipliers of each schedule at even progress."""
        return {
            name: sample_multipliers(COMPARED[name], self.options.steps, self.norms_file, self.optimizer.make)
            for name in self.options.schedules
        }


def run_grid(options: argparse.Namespace) -> None:
    """Run all data sets and optimizers, and write the provenance after each."""
    problems = {name: load_problem(name, options.penalty) for name in options.datasets}
    write_provenance = provenance_writer(options)
    results = ResultsFile(options.output_dir)
    write_provenance(results.seconds)
    regimes = [Regime(options, problem, optimizer) for problem in problems.values() for optimizer in options.optimizers]
    for regime in regimes:
        regime.run(results)
        write_provenance(results.seconds)
    for regime in regimes:
        add_sampled_schedules(options.output_dir, regime.name, regime.sample_schedules())


def provenance_writer(options: argparse.Namespace) -> Callable[[float], object]:
    """A function that writes the provenance of the folder for the total time of its cells.

    Raises:
        ValueError: if the folder holds cells of another length, batch size or penalty, which cannot be compared with these.
    """
    model = f"logistic regression, {options.steps} updates on batches of {options.batch_size}, L2 penalty {options.penalty:g}"
    data = f"scikit-learn {version('scikit-learn')}: {', '.join(options.datasets)}"
    file = ProvenanceFile(options.output_dir, SCRIPT, packages=PACKAGES, threads=1, model=model, data=data)
    other = file.previous.get("model", model)
    if other != model:
        raise ValueError(f"{options.output_dir} holds a grid of {other}; choose another --output_dir.")
    return file.write


def make_parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = (("datasets", DATASETS), ("optimizers", tuple(OPTIMIZERS)), ("schedules", tuple(COMPARED)))
    for name, values in choices:
        help_text = f"any of {', '.join(values)}; all by default"
        parser.add_argument(f"--{name}", nargs="+", choices=values, default=values, metavar="NAME", help=help_text)
    parser.add_argument("--seeds", type=positive_integer, default=5, help="the number of compared seeds: 1, 2, ...")
    parser.add_argument("--steps", type=positive_integer, default=400, help="the number of optimizer updates of a cell")
    parser.add_argument("--batch_size", type=positive_integer, default=16)
    parser.add_argument(
        "--penalty", type=non_negative_number, default=1e-4, help="the factor of half the weights' squared L2 norm"
    )
    help_text = "peak learning rates for all optimizers, instead of each optimizer's own"
    parser.add_argument("--peaks", nargs="+", type=peak_learning_rate, metavar="RATE", help=help_text)
    parser.add_argument("--output_dir", type=Path, default=Path("results/logistic_regression"))
    return parser


def without_repeats(options: argparse.Namespace) -> argparse.Namespace:
    """The options with each value of a list once."""
    lists = {
        name: list(dict.fromkeys(value)) for name, value in vars(options).items() if isinstance(value, list | tuple)
    }
    return argparse.Namespace(**{**vars(options), **lists})


def main() -> None:
    parser = make_parser()
    options = without_repeats(parser.parse_args())
    torch.set_num_threads(1)
    PartialState(cpu=True)
    register()
    logging.getLogger("hf_refined_schedule").setLevel(logging.ERROR)  # the grid prints the notes once for each regime
    try:
        refuse_several_processes()
        with only_run_in(options.output_dir):
            run_grid(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"Finished; the report: python scripts/report_comparison.py {options.output_dir}")


if __name__ == "__main__":
    main()
