"""A callback for Lightning's Trainer, and the entry point that adds it to every Trainer if the environment asks for it."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from ..autoregister import is_asked_for
from ..compatibility.libraries import loss_scale
from ..norms.norms_file import NORMS_FILE_NAME
from ..recording.failures import in_one_line, report_failure
from ..recording.measuring import clip_factor, measure_gradient_norms
from ..recording.norms_log import NormsLog, RecordedUpdate, norms_path
from ..recording.optimizers import parameters_of

STEP_KEY = "hf_refined_schedule_step"
"""The key in a checkpoint of the number of updates that the recorded optimizer has made."""


class GradientNormCallback(Callback):
    """Records L1 and L2 of the whole gradient, before clipping, at every optimizer update of Lightning's Trainer.

        trainer = Trainer(..., callbacks=[GradientNormCallback()])

    It writes `gradient_norms.jsonl` to the folder of the run's logger, or to `default_root_dir` without a logger, and logs
    `grad_norm_l1` and `grad_norm`. A resumed run with a path continues the file. With several optimizers, the first is recorded. If
    the whole gradient cannot be read, the callback warns once and stops recording, and training continues.

    Args:
        path: the file, or a folder for it. A name without a suffix is a folder. A relative path is resolved here.

    Reference: arXiv 2310.07831, section 3.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else norms_path(path)
        self._log: NormsLog | None = None
        self._step = 0
        self._resumed_step: int | None = None
        self._records = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a recording, unless a callback of this kind that comes earlier does."""
        self._log = None
        self._records = False
        resumed_step, self._resumed_step = self._resumed_step, None
        if next(one for one in trainer.callbacks if isinstance(one, GradientNormCallback)) is not self:
            return
        self._records = True
        self._step = trainer.global_step if resumed_step is None else resumed_step
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
            reason = f"{type(trainer.strategy).__name__} keeps the gradients to itself or in pieces"
            self._fail(trainer, reason, self._step + 1)
            return
        folder = trainer.log_dir or trainer.default_root_dir  # asked for on every rank, because Lightning broadcasts it
        # With several optimizers, max_steps counts the steps of all.
        planned = trainer.estimated_stepping_batches if len(trainer.optimizers) == 1 else math.inf
        self._log = NormsLog(
            self.path or Path(os.path.abspath(folder)) / NORMS_FILE_NAME,
            _WithState(trainer.optimizers[0], _State(trainer.world_size, trainer.is_global_zero)),
            int(planned) if math.isfinite(planned) else None,
            on_failure="warn",
        )
        self._log.max_grad_norm = self._limit(trainer)
        self._log.make_folder(self._step + 1)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure. Lightning clips after this event."""
        if not self._records or optimizer is not trainer.optimizers[0]:
            return
        self._step += 1  # checkpoints need the number, also once recording has failed
        if self._log is None:
            return
        # A fused optimizer divides fp16's loss scale out in its own step.
        scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
        scale = loss_scale(trainer.precision_plugin) if scaled and hasattr(trainer.precision_plugin, "scaler") else None
        try:
            norms = measure_gradient_norms(parameters_of(optimizer), scale)
        except Exception as error:  # a gradient may be any subclass of a tensor
            self._fail(trainer, f"a gradient cannot be measured ({in_one_line(error)})", self._step)
            return
        if norms is None:
            self._fail(trainer, "no parameter of the optimizer had a gradient at its step", self._step)
            return
        l1, l2 = norms
        limit = self._limit(trainer)
        factor = None if limit is None else clip_factor(limit, l2)
        self._log.append(RecordedUpdate(self._step, l1, l2, factor, optimizer.param_groups[0].get("lr")))
        if self._log.is_due:
            self._log.flush()
        self.log_dict({"grad_norm_l1": l1, "grad_norm": l2})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the norms, so that the file is never behind a checkpoint, and note the number of updates in it.

        Lightning's `global_step` counts the steps of all optimizers. A `state_dict` would forbid a second callback of this kind.
        """
        if self._log is not None:
            self._log.flush()
        if self._records:
            checkpoint[STEP_KEY] = self._step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the number of updates of the run that is resumed. Lightning also loads a checkpoint to validate or test it."""
        self._resumed_step = checkpoint.get(STEP_KEY) if trainer.state.fn == TrainerFn.FITTING else None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the norms of a run that stops with an error."""
        if self._log is not None:
            self._log.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the recording."""
        if self._log is not None:
            self._log.flush()
            self._log.finish(self._step)
            self._log = None

    def _limit(self, trainer: Trainer) -> float | None:
        """The norm that Lightning clips to; None where it clips single values, or nothing."""
        limit = trainer.gradient_clip_val
        by_value = str(trainer.gradient_clip_algorithm).endswith("value")
        return None if not limit or by_value else float(limit)

    def _fail(self, trainer: Trainer, reason: str, step: int) -> None:
        if self._log is not None:
            self._log.flush()
            self._log = None
        report_failure(reason, step, on_failure="warn", is_main_process=trainer.is_global_zero)


class _State(NamedTuple):
    """What a norms file says about the processes, under the names that Accelerate has for it."""

    num_processes: int
    is_main_process: bool


class _WithState(NamedTuple):
    """An optimizer that knows the state of the processes, as one that Accelerate has prepared."""

    optimizer: torch.optim.Optimizer
    accelerator_state: _State


def callbacks_from_environment() -> list[Callback]:
    """Get the callbacks that Lightning adds to every Trainer. It calls this by the entry point `lightning.pytorch.callbacks_factory`.

    Returns:
        A callback that records if HF_REFINED_SCHEDULE_AUTOREGISTER asks for it, otherwise nothing.
    """
    return [GradientNormCallback()] if is_asked_for() else []
