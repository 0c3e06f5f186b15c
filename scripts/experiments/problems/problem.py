"""A problem: its data, its model, its optimizer and its held-out loss."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import Trainer, default_data_collator, set_seed

from hf_refined_schedule import RefinedScheduleArguments

from ..quiet_trainer import QuietTrainer

Tensors = dict[str, torch.Tensor]
"""Columns of examples: all tensors have the same length. Columns of bytes are grey levels, which a model sees from -1 to 1."""

TRAIN, EVALUATION, PRETRAINING = "train", "evaluation", "pretraining"

IGNORED = -100
"""The label of a token that the loss of a language model leaves out."""

PRETRAINING_SEED = 10_000
"""No run has it."""


class Examples(Dataset[Tensors]):
    """The rows of `Tensors`."""

    def __init__(self, columns: Tensors) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Tensors:
        return {name: _from_bytes(column[index]) for name, column in self.columns.items()}


def _from_bytes(values: torch.Tensor) -> torch.Tensor:
    return values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values


@dataclass(frozen=True)
class Problem:
    """A training problem. A subclass makes the data and the model.

    Args:
        name: in results and folders.
        counterpart: the problem of arXiv 2310.07831 that it stands for, or what it adds.
        optimizer: AdamW, or SGD with momentum 0.9.
        steps: T, the number of optimizer updates.
        start_peak: where the search for the best peak learning rate begins.
        batch_size: examples in a batch.
        weight_decay: of matrices, as Trainer does it.
        max_grad_norm: gradients are clipped to this L2 norm; 0 for no clipping.
        num_evaluation: examples of the held-out set, which is the same for all seeds; texts hold out a fixed part instead.
        pretraining_steps: updates that train the start weights once, in `prepare`; 0 for new weights in each run.
        pretraining_peak: the peak learning rate of the pretraining.
    """

    # What neither the data nor the start weights depend on is left out of `repr`, which marks them.
    name: str
    counterpart: str = field(repr=False)
    optimizer: Literal["adamw", "sgd"] = field(repr=False)
    steps: int
    start_peak: float = field(repr=False)
    batch_size: int
    weight_decay: float = 0.0
    max_grad_norm: float = field(default=1.0, repr=False)
    num_evaluation: int = 2048
    pretraining_steps: int = 0
    pretraining_peak: float = 3e-3

    requirements: ClassVar[tuple[str, ...]] = ()
    """Packages that hold the data, each with its tested version."""

    data_collator: ClassVar[Any] = staticmethod(default_data_collator)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Make the parts `"train"`, `"evaluation"` and, for pretraining, `"pretraining"`.

        Args:
            folder: of all problems, where fetched packages are.

        Returns:
            The columns of each part.

        Raises:
            ValueError: if a package is missing.
        """
        raise NotImplementedError

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make the model, whose new weights depend on torch's seed.

        Args:
            folder: of all problems.
        """
        raise NotImplementedError

    def prepare(self, folder: Path) -> None:
        """Make the data and the start weights, unless the folder holds those of this very problem.

        Args:
            folder: of all problems.

        Raises:
            ValueError: if a package is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{self.name}.lock"):  # two suites may share the data
            if not self._is_prepared(folder):
                self._prepare(folder)

    def _prepare(self, folder: Path) -> None:
        prepared = folder / self.name
        partial = prepared.with_name(f"{self.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        parts = self.make_data(folder)
        for name in (TRAIN, EVALUATION):
            save_file(
                {key: column.contiguous() for key, column in parts[name].items()}, partial / f"{name}.safetensors"
            )
        if self.pretraining_steps:
            model = self._pretrain(folder, parts[PRETRAINING], partial / "pretraining")
            torch.save(model.state_dict(), partial / "start.pt")
            shutil.rmtree(partial / "pretraining", ignore_errors=True)
        (partial / "problem.txt").write_text(repr(self), encoding="utf-8")
        shutil.rmtree(prepared, ignore_errors=True)
        partial.rename(prepared)

    def make_trainer(self, folder: Path, seed: int, arguments: Mapping[str, Any]) -> Trainer:
        """Make the trainer of a run.

        Args:
            folder: of all problems.
            seed: fixes the new weights, the batches and their order.
            arguments: of `RefinedScheduleArguments`: `output_dir`, `learning_rate` and the schedule.

        Returns:
            The trainer, which records gradient norms unless the arguments say otherwise.

        Raises:
            ValueError: if the problem is not prepared.
        """
        if not self._is_prepared(folder):
            raise ValueError(f"The problem {self.name} is not prepared in {folder}; call its prepare first.")
        set_seed(seed)
        model = self.make_model(folder)
        start = folder / self.name / "start.pt"
        if start.exists():
            model.load_state_dict(torch.load(start, weights_only=True))
        train, evaluation = (
            Examples(load_file(folder / self.name / f"{part}.safetensors")) for part in (TRAIN, EVALUATION)
        )
        return self._trainer(model, train, evaluation, {"max_steps": self.steps, "seed": seed, **arguments})

    def outcome(self, trainer: Trainer) -> float:
        """The mean loss on the held-out examples, infinite if the run diverged.

        Args:
            trainer: of a finished run.
        """
        loss = trainer.evaluate()["eval_loss"]
        return loss if math.isfinite(loss) else math.inf

    def shapes(self, folder: Path, part: str) -> dict[str, list[int]]:
        """The shapes of the columns of a part, whose first size is the number of examples.

        Args:
            folder: of all problems, where this one is prepared.
            part: `"train"` or `"evaluation"`.
        """
        with safe_open(folder / self.name / f"{part}.safetensors", "pt") as columns:
            return {name: columns.get_slice(name).get_shape() for name in columns.keys()}  # noqa: SIM118 -- not a dict

    def make_arguments(self, arguments: Mapping[str, Any]) -> RefinedScheduleArguments:
        """Make the arguments of a trainer.

        Args:
            arguments: as of `make_trainer`; they come before those of the problem.
        """
        sgd = {"optim": "sgd", "optim_args": "momentum=0.9"} if self.optimizer == "sgd" else {}
        defaults = {
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": 128,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "use_cpu": not torch.cuda.is_available(),
            "prediction_loss_only": True,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }
        return RefinedScheduleArguments(**{**defaults, **sgd, **arguments})

    def _is_prepared(self, folder: Path) -> bool:
        about = folder / self.name / "problem.txt"
        return about.exists() and about.read_text(encoding="utf-8") == repr(self)

    def _trainer(
        self, model: torch.nn.Module, train: Examples, evaluation: Examples | None, arguments: Mapping[str, Any]
    ) -> QuietTrainer:
        return QuietTrainer(
            model,
            self.make_arguments(arguments),
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=self.data_collator,
        )

    def _pretrain(self, folder: Path, data: Tensors, output: Path) -> torch.nn.Module:
        set_seed(PRETRAINING_SEED)
        model = self.make_model(folder)
        arguments = {
            "output_dir": str(output),
            "max_steps": self.pretraining_steps,
            "learning_rate": self.pretraining_peak,
            "warmup_steps": max(1, self.pretraining_steps // 20),
            "optim": "adamw_torch",
            "optim_args": None,
            "max_grad_norm": 1.0,
            "record_gradient_norms": False,
        }
        self._trainer(model, Examples(data), None, arguments).train()
        return model
