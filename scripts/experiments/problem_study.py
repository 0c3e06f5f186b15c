"""The study of one problem of the suite by results/protocol.md."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME

from .cells import BASELINE, Cell, Result
from .problems import PROBLEMS, Problem
from .problems.problem import EVALUATION, TRAIN
from .protocol import CONTROLS, SCHEDULES, WITHOUT_CAP, source_file
from .provenance import ProvenanceFile
from .quiet_trainer import print_errors_only
from .rules import CLIPPED_RULES
from .settings import describe_dropout, describe_optimizer
from .study import Study, StudyOptions, describe_selection
from .study_folder import keep_setting, only_run_in

SCRIPT = "problem_suite.py"


@dataclass(frozen=True)
class ProblemStudy:
    """A problem, and how it is studied.

    Args:
        name: of the problem.
        data_dir: the folder of the prepared data of all problems.
        folder: of this problem's results.
        rules: the names of the rules that are compared.
        num_selection_seeds: seeds that choose peaks and warm-ups.
        num_test_seeds: seeds that are compared.
    """

    name: str
    data_dir: Path
    folder: Path
    rules: Sequence[str]
    num_selection_seeds: int = 1
    num_test_seeds: int = 5

    @property
    def problem(self) -> Problem:
        """The problem."""
        return PROBLEMS[self.name]

    def run(self) -> None:
        """Prepare the data, and run the cells that have no result yet, in this process."""
        torch.set_num_threads(1)
        print_errors_only()
        problem = self.problem
        clips = problem.optimizer == "sgd" and problem.max_grad_norm > 0
        options = StudyOptions(
            problem.steps,
            problem.start_peak,
            self.num_selection_seeds,
            self.num_test_seeds,
            optimizer="sgd" if problem.optimizer == "sgd" else "adam",
            others=[*WITHOUT_CAP, *CONTROLS, *self.rules, *(CLIPPED_RULES if clips else ())],
            max_grad_norm=problem.max_grad_norm,
        )
        with only_run_in(self.folder), ProvenanceFile(self.folder, SCRIPT) as provenance:
            problem.prepare(self.data_dir)
            keep_setting(self.folder, {**describe(problem, self.data_dir), **describe_selection(options)})
            Study(self.folder, self.name, options, self.train, self.norms_file, provenance.write).run()
            shutil.rmtree(self.folder / "cells", ignore_errors=True)

    def train(self, cell: Cell) -> Result:
        """Train a cell."""
        started = time.monotonic()
        schedule = SCHEDULES[cell.schedule]
        arguments = {
            "output_dir": str(self._output(cell)),
            "learning_rate": cell.peak,
            "record_gradient_norms": cell.role == BASELINE,
            **schedule.training_arguments(cell.steps, cell.peak, source_file(self.folder, cell.schedule, cell.seed)),
        }
        shutil.rmtree(self._output(cell), ignore_errors=True)
        trainer = self.problem.make_trainer(self.data_dir, cell.seed, arguments)
        trainer.train()
        loss = self.problem.outcome(trainer)
        return Result(cell, loss, seconds=round(time.monotonic() - started, 2))

    def norms_file(self, cell: Cell) -> Path:
        """The norms that a baseline cell recorded."""
        return self._output(cell) / NORMS_FILE_NAME

    def _output(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.schedule.replace(' ', '_')}_{cell.seed}"


def describe(problem: Problem, data_dir: Path) -> dict[str, str | float]:
    """What the report of a study states about the problem."""
    model = problem.make_model(data_dir)
    counts = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    arguments = problem.make_arguments({"output_dir": str(data_dir)})
    shapes = problem.shapes(data_dir, TRAIN)
    num_training, num_evaluation = (
        next(iter(problem.shapes(data_dir, part).values()))[0] for part in (TRAIN, EVALUATION)
    )
    return {
        "problem": (type(problem).__doc__ or "").partition("\n")[0],
        "stands for": problem.counterpart,
        "model": type(model).__name__,
        "trained parameters": sum(counts),
        "updates": problem.steps,
        "examples per update": arguments.train_batch_size,
        "tensors of an example": ", ".join(f"{name} {list(shape[1:])}" for name, shape in shapes.items()),
        "epochs": round(problem.steps * arguments.train_batch_size / num_training, 2),
        "held-out examples": num_evaluation,
        "optimizer": describe_optimizer(arguments),
        "dropout": describe_dropout(model),
        "updates of pretraining": problem.pretraining_steps,
    }


def run_study(study: ProblemStudy) -> str:
    """Run a study, for a worker process; returns its name."""
    study.run()
    return study.name
