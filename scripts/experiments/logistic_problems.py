"""Multi-class logistic regression on the data sets of scikit-learn: the convex problems of the studies, and their training."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from hf_refined_schedule import GradientNormRecorder

from .cells import Cell
from .schedules_compared import ComparedSchedule

DATASETS = ("digits", "breast_cancer", "wine", "iris")

NUM_CURVE_POINTS = 20


@dataclass(frozen=True)
class Problem:
    """A standardised data set with the loss of a linear classifier.

    Args:
        name: the data set.
        features: shape (num_rows, num_features), each feature with mean 0 and standard deviation 1.
        labels: shape (num_rows,).
        num_classes: the number of classes.
        penalty: the factor of half the squared L2 norm of the weights.
    """

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
        """The loss of zero weights, which give every class the same probability."""
        return math.log(self.num_classes)


def load_problem(name: str, penalty: float) -> Problem:
    """Load a data set of scikit-learn and standardise its features; a constant feature becomes 0.

    Args:
        name: a name in `DATASETS`.
        penalty: as in `Problem`.

    Raises:
        ValueError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ValueError("The data sets come with scikit-learn, which is missing; pip install scikit-learn.") from None
    loaded = getattr(datasets, f"load_{name}")()
    features, labels = loaded.data, torch.from_numpy(loaded.target).long()
    deviation = features.std(axis=0)
    standardised = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return Problem(name, torch.from_numpy(standardised).float(), labels, len(loaded.target_names), penalty)


def shuffled_batches(num_rows: int, batch_size: int, steps: int, seed: int) -> torch.Tensor:
    """The rows of every batch: one random order of the data set after another.

    Args:
        num_rows: the number of rows in the data set.
        batch_size: the number of rows in a batch.
        steps: the number of batches.
        seed: fixes the orders, so that cells with the same seed see the same batches.

    Returns:
        Row numbers, shape (steps, batch_size).
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(steps * batch_size / num_rows)
    order = torch.cat([torch.randperm(num_rows, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)


def train_linear_model(
    problem: Problem,
    cell: Cell,
    schedule: ComparedSchedule,
    make_optimizer: Callable[..., Optimizer],
    *,
    batch_size: int,
    norms_file: Path,
    record_to: Path | None = None,
) -> tuple[float, list[float]]:
    """Train a cell from zero weights in a raw Accelerate loop on the CPU, the fastest device for problems this small.

    Args:
        problem: the data.
        cell: the peak, the seed and the number of updates.
        schedule: the learning-rate schedule.
        make_optimizer: `torch.optim.SGD` or `torch.optim.Adam`.
        batch_size: the number of rows in a batch.
        norms_file: the recorded norms that a refined schedule is made from.
        record_to: the file for the norms of this run.

    Returns:
        The loss of the last iterate on the full data set, and the loss of each batch.
    """
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model = torch.nn.Linear(problem.features.shape[1], problem.num_classes)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = make_optimizer(model.parameters(), lr=cell.peak)
    scheduler = schedule.make_scheduler(optimizer, cell.steps, norms_file)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    losses = []
    with GradientNormRecorder(optimizer, path=record_to) if record_to else nullcontext():
        for rows in shuffled_batches(len(problem.labels), batch_size, cell.steps, cell.seed):
            loss = problem.loss(model, rows)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    with torch.no_grad():
        final = problem.loss(model, torch.arange(len(problem.labels))).item()
    return final, torch.stack(losses).tolist()


def training_curve(losses: list[float]) -> list[tuple[int, float]]:
    """About twenty points of a run: the update, and the mean loss of the batches since the previous point."""
    every = max(1, len(losses) // NUM_CURVE_POINTS)
    return [(step, float(np.mean(losses[step - every : step]))) for step in range(every, len(losses) + 1, every)]
