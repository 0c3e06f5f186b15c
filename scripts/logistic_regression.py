"""Compare learning-rate schedules where their theory holds: multi-class logistic regression, a convex problem.

    python scripts/logistic_regression.py
    python scripts/report_comparison.py results/logistic_regression

The real data sets that scikit-learn ships, features standardised; minibatch SGD and Adam in a raw Accelerate loop, on the CPU,
which is the fastest for problems this small; a grid of schedules x peak learning rates x seeds. Weights begin at zero and the
seed alone sets the order of the data, so that cells with the same seed can be compared in pairs.

What is compared (`eval_loss`) is the training loss of the *last iterate* on the full training set, which is what the convex
theory bounds; it says nothing about held-out data. The loss is the cross entropy plus a small L2 penalty on the weights
(`--penalty`). Without it the separable data sets have no minimum: their loss falls to zero as the peak grows, and so do the
gradient norms. A run has diverged if its loss is not finite or has ended above that of the zero weights it began with.

The refined schedule is made, for each data set and optimizer, from one more run: linear decay with a seed that is not compared
(seed 0), at that seed's best peak. Schedules that the package calls doubtful or degenerate are compared, too; what is wrong with
them is printed as they are made.

Results are appended to results.jsonl as each cell ends. A rerun skips what is there, so the grid survives a kill. The default
grid of 4,080 runs takes about 20 minutes on one core.
"""

import argparse
import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from transformers import get_scheduler

from hf_refined_schedule import GradientNormRecorder, register
from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME
from hf_refined_schedule.schedules.refining import load_schedule

WARMUP = 0.05
"""The share of the run that "+warmup" and inverse_sqrt warm up for."""

DECAY = 0.2
"""The share of the run that wsd decays for."""

BASELINE_SEED = 0
"""The seed of the run that the refined schedule is made from; it is not compared."""

CURVE_POINTS = 20

DATASETS = ("digits", "breast_cancer", "wine", "iris")

OPTIMIZERS: dict[str, tuple[str, type[Optimizer], tuple[float, ...]]] = {
    "sgd": ("SGD", torch.optim.SGD, tuple(2.0**power for power in range(-3, 7))),
    "adam": ("Adam", torch.optim.Adam, tuple(2.0**power for power in range(-7, 3))),
}
"""The name in the report, the class, and the peaks; these reach four times linear's best on all data sets."""

SCHEDULES: dict[str, tuple[str, bool]] = {
    "constant": ("constant", False),
    "constant+warmup": ("constant_with_warmup", True),
    "cosine": ("cosine", False),
    "cosine+warmup": ("cosine", True),
    "linear": ("linear", False),
    "linear+warmup": ("linear", True),
    "inverse_sqrt": ("inverse_sqrt", True),
    "wsd": ("warmup_stable_decay", False),
    "refined": ("refined", False),
    "refined+warmup": ("refined", True),
}
"""transformers' name of a schedule, and whether it warms up; inverse_sqrt takes its time scale from the warm-up."""


@dataclass(frozen=True)
class Problem:
    """A data set, standardised."""

    name: str
    features: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    penalty: float

    def loss(self, model: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        """The mean cross entropy of some rows, plus the penalty."""
        entropy = cross_entropy(model(self.features[rows]), self.labels[rows])
        return entropy + self.penalty / 2 * model.weight.square().sum()

    @property
    def start_loss(self) -> float:
        """The loss of zero weights, which give all classes the same probability."""
        return math.log(self.num_classes)


@dataclass(frozen=True)
class Cell:
    """One run."""

    dataset: str
    optimizer: str
    schedule: str
    peak: float
    seed: int

    @property
    def regime(self) -> str:
        return f"{self.dataset}, {OPTIMIZERS[self.optimizer][0]}"

    @property
    def key(self) -> tuple[Any, ...]:
        return self.regime, self.schedule, self.peak, self.seed


def load_problem(name: str, penalty: float) -> Problem:
    """Load a data set of scikit-learn; every feature gets mean 0 and standard deviation 1, constant ones become 0."""
    try:
        from sklearn import datasets
    except ImportError:
        raise ValueError("The data sets come with scikit-learn; pip install scikit-learn.") from None
    loaded = getattr(datasets, f"load_{name}")()
    features, labels = loaded.data, torch.from_numpy(loaded.target).long()
    deviation = features.std(axis=0)
    standardised = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return Problem(name, torch.from_numpy(standardised).float(), labels, len(loaded.target_names), penalty)


def batches_of(num_rows: int, batch_size: int, steps: int, seed: int) -> torch.Tensor:
    """The rows of every batch, shape (steps, batch_size): the data set in one random order after another."""
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(steps * batch_size / num_rows)
    order = torch.cat([torch.randperm(num_rows, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)


def make_scheduler(name: str, optimizer: Optimizer, steps: int, norms_file: Path) -> LRScheduler:
    """A schedule by its name in SCHEDULES."""
    registered, warms_up = SCHEDULES[name]
    special: dict[str, Any] = {}
    if registered == "refined":
        special = {"refined_from": norms_file, "allow_degenerate": True}
    elif registered == "warmup_stable_decay":
        special = {"num_decay_steps": max(1, round(DECAY * steps)), "decay_type": "linear"}
    warmup_steps = max(1, round(WARMUP * steps)) if warms_up else 0
    return get_scheduler(registered, optimizer, warmup_steps, steps, scheduler_specific_kwargs=special)


def train(
    problem: Problem, cell: Cell, steps: int, batch_size: int, norms_file: Path, record_to: Path | None = None
) -> tuple[float, list[float]]:
    """Train one cell.

    Args:
        problem: the data.
        cell: what to run on them.
        steps: optimizer updates.
        batch_size: rows in a batch.
        norms_file: the recorded norms that a refined schedule is made from.
        record_to: the file for the norms of this run.

    Returns:
        The loss of the last iterate on the full data set, and the loss of each batch.
    """
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model = torch.nn.Linear(problem.features.shape[1], problem.num_classes)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = OPTIMIZERS[cell.optimizer][1](model.parameters(), lr=cell.peak)
    scheduler = make_scheduler(cell.schedule, optimizer, steps, norms_file)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    losses = []
    with GradientNormRecorder(optimizer, path=record_to) if record_to else nullcontext():
        for rows in batches_of(len(problem.labels), batch_size, steps, cell.seed):
            loss = problem.loss(model, rows)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    with torch.no_grad():
        final = problem.loss(model, torch.arange(len(problem.labels))).item()
    return final, torch.stack(losses).tolist()


def curve_of(losses: list[float]) -> list[list[float]]:
    """About twenty points of a run: the step, and the mean loss of the batches since the point before."""
    every = max(1, len(losses) // CURVE_POINTS)
    return [[step, float(np.mean(losses[step - every : step]))] for step in range(every, len(losses) + 1, every)]


class Grid:
    """The folder of a grid, and the cells that it has already."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.output_dir
        self.results = self.folder / "results.jsonl"
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.commands: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.refuse_other_runs()
        self.read_results()

    def read_results(self) -> None:
        """Take the finished cells, and cut off a last line that was being written."""
        text = self.results.read_text() if self.results.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.results.write_text(whole)
        for row in map(json.loads, whole.splitlines()):
            self.rows[row["regime"], row["schedule"], row["peak"], row["seed"]] = row

    @property
    def about(self) -> dict[str, Any]:
        """The contents of grid.json."""
        options = self.options
        command = shlex.join(["python", "scripts/logistic_regression.py", *sys.argv[1:]])
        return {
            "commands": list(dict.fromkeys([*self.commands, command])),
            "machine": f"{processor()}, {os.cpu_count()} cores, one thread used",
            "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "numpy")},
            "model": f"logistic regression, {options.steps} updates on batches of {options.batch_size}, L2 penalty "
            f"{options.penalty:g}",
            "data": f"scikit-learn {version('scikit-learn')}: {', '.join(options.datasets)}",
            "seconds": round(sum(row["seconds"] for row in self.rows.values()), 1),
        }

    def refuse_other_runs(self) -> None:
        """Cells of other lengths, batches or penalties cannot be compared with these."""
        path = self.folder / "grid.json"
        if path.exists():
            before = json.loads(path.read_text())
            if before["model"] != self.about["model"]:
                raise ValueError(f"{self.folder} holds a grid of {before['model']}; choose another --output_dir.")
            self.commands = before["commands"]

    def write_about(self) -> None:
        write_json(self.folder / "grid.json", self.about, indent=1)

    def norms_file(self, cell: Cell) -> Path:
        """The norms of the run that the refined schedule of a cell's regime is made from."""
        return self.folder / "baselines" / f"{cell.dataset}_{cell.optimizer}" / NORMS_FILE_NAME

    def train(self, problem: Problem, cell: Cell, record_to: Path | None = None) -> tuple[float, list[float]]:
        return train(problem, cell, self.options.steps, self.options.batch_size, self.norms_file(cell), record_to)

    def run_missing(self, problem: Problem, cells: list[Cell], progress: tqdm) -> None:
        for cell in cells:
            if cell.key not in self.rows:
                progress.set_description(cell.regime, refresh=False)
                self.run(problem, cell)
                progress.update()

    def run(self, problem: Problem, cell: Cell) -> None:
        """Run a cell and append its line to results.jsonl."""
        started = time.monotonic()
        final, losses = self.train(problem, cell)
        diverged = not final <= problem.start_loss
        row = {
            "regime": cell.regime,
            "schedule": cell.schedule,
            "peak": cell.peak,
            "seed": cell.seed,
            "steps": self.options.steps,
            **({"role": "baseline"} if cell.seed == BASELINE_SEED else {}),
            "eval_loss": None if diverged else final,
            "diverged": diverged,
            "curve": [] if diverged else curve_of(losses),
            "seconds": round(time.monotonic() - started, 3),
        }
        with self.results.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self.rows[cell.key] = row

    def record_baseline(self, problem: Problem, cells: list[Cell]) -> None:
        """Record the norms of the best of the baseline's cells, by running it again; once for a folder."""
        norms_file = self.norms_file(cells[0])
        if norms_file.exists():
            return
        finished = [cell for cell in cells if not self.rows[cell.key]["diverged"]]
        if not finished:
            raise ValueError(f"Every baseline run of {cells[0].regime} has diverged; pass lower --peaks.")
        best = min(finished, key=lambda cell: self.rows[cell.key]["eval_loss"])
        unfinished = norms_file.with_name("unfinished.jsonl")
        unfinished.unlink(missing_ok=True)
        self.train(problem, best, record_to=unfinished)
        unfinished.replace(norms_file)
        notes = load_schedule(norms_file, best.optimizer, allow_degenerate=True).notes
        tqdm.write(" ".join([f"{best.regime}: refined from linear at peak {best.peak:g}.", *notes]), sys.stderr)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Replace a file in one go, so that a kill leaves the old one or the new one."""
    written = path.with_suffix(".unfinished")
    written.write_text(json.dumps(content, indent=indent) + "\n")
    written.replace(path)


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    information = Path("/proc/cpuinfo")
    names = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peaks_of(options: argparse.Namespace, optimizer: str) -> list[float]:
    return options.peaks or list(OPTIMIZERS[optimizer][2])


def baseline_cells(options: argparse.Namespace, dataset: str, optimizer: str) -> list[Cell]:
    """Linear decay with the seed that is not compared, if a refined schedule asks for it."""
    if not any(SCHEDULES[name][0] == "refined" for name in options.schedules):
        return []
    return [Cell(dataset, optimizer, "linear", peak, BASELINE_SEED) for peak in peaks_of(options, optimizer)]


def compared_cells(options: argparse.Namespace, dataset: str, optimizer: str) -> list[Cell]:
    return [
        Cell(dataset, optimizer, schedule, peak, seed)
        for seed in range(BASELINE_SEED + 1, BASELINE_SEED + 1 + options.seeds)
        for peak in peaks_of(options, optimizer)
        for schedule in options.schedules
    ]


def write_schedules(grid: Grid, regimes: list[tuple[str, str]]) -> None:
    """schedules.json: multipliers at 201 points of progress, for the report's picture."""
    path = grid.folder / "schedules.json"
    sampled: dict[str, dict[str, list[float]]] = json.loads(path.read_text()) if path.exists() else {}
    for dataset, optimizer in regimes:
        for name in grid.options.schedules:
            cell = Cell(dataset, optimizer, name, 1.0, BASELINE_SEED)
            multipliers = sample(cell, grid.options.steps, grid.norms_file(cell))
            sampled.setdefault(cell.regime, {})[name] = multipliers
    write_json(path, sampled)


def sample(cell: Cell, steps: int, norms_file: Path) -> list[float]:
    """The multipliers of a schedule at 201 points of even progress."""
    optimizer = OPTIMIZERS[cell.optimizer][1]([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(cell.schedule, optimizer, steps, norms_file)
    multipliers = [scheduler.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        multipliers.append(scheduler.get_last_lr()[0])
    points = np.interp(np.linspace(0, 1, 201), np.linspace(0, 1, steps + 1), multipliers)
    return [round(float(point), 5) for point in points]


def run_grid(options: argparse.Namespace) -> None:
    """All data sets and optimizers: the baseline's cells, its recording, the compared cells."""
    problems = {name: load_problem(name, options.penalty) for name in options.datasets}
    regimes = [(dataset, optimizer) for dataset in options.datasets for optimizer in options.optimizers]
    baselines = {regime: baseline_cells(options, *regime) for regime in regimes}
    compared = {regime: compared_cells(options, *regime) for regime in regimes}
    grid = Grid(options)
    grid.write_about()
    cells = [cell for regime in regimes for cell in (*baselines[regime], *compared[regime])]
    finished = sum(cell.key in grid.rows for cell in cells)
    with tqdm(total=len(cells), initial=finished, unit="run") as progress:
        for regime in regimes:
            problem = problems[regime[0]]
            grid.run_missing(problem, baselines[regime], progress)
            if baselines[regime]:
                grid.record_baseline(problem, baselines[regime])
            grid.run_missing(problem, compared[regime], progress)
            grid.write_about()
    write_schedules(grid, regimes)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive_integer(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def peak_learning_rate(text: str) -> float:
    value = non_negative(text)
    if not 0 < value <= 1e30:
        raise argparse.ArgumentTypeError(f"{text} is no learning rate above 0 and up to 1e30")
    return value


def non_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 0")
    return value


def make_parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = (("datasets", DATASETS), ("optimizers", tuple(OPTIMIZERS)), ("schedules", tuple(SCHEDULES)))
    for name, values in choices:
        help_text = f"of {', '.join(values)}; all by default"
        parser.add_argument(f"--{name}", nargs="+", choices=values, default=values, metavar="NAME", help=help_text)
    parser.add_argument("--seeds", type=positive_integer, default=5, help="number of compared seeds: 1, 2, ..")
    parser.add_argument("--steps", type=positive_integer, default=400, help="optimizer updates of a cell")
    parser.add_argument("--batch_size", type=positive_integer, default=16)
    parser.add_argument("--penalty", type=non_negative, default=1e-4, help="times half the weights' squared L2 norm")
    help_text = "peak learning rates for all optimizers, instead of each optimizer's own"
    parser.add_argument("--peaks", nargs="+", type=peak_learning_rate, metavar="RATE", help=help_text)
    parser.add_argument("--output_dir", type=Path, default=Path("results/logistic_regression"))
    return parser


def without_repeats(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with every listed value once."""
    lists = {
        name: list(dict.fromkeys(value)) for name, value in vars(options).items() if isinstance(value, list | tuple)
    }
    return argparse.Namespace(**{**vars(options), **lists})


def main() -> None:
    parser = make_parser()
    options = without_repeats(parser.parse_args())
    torch.set_num_threads(1)
    register()
    logging.getLogger("hf_refined_schedule").setLevel(logging.ERROR)  # its notes are printed once a regime instead
    try:
        run_grid(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"Finished; the report: python scripts/report_comparison.py {options.output_dir}")


if __name__ == "__main__":
    main()
