"""The gradient norms of a run, measured: which norm, of what, and when is decided here and nowhere else.

Once per optimizer update, L1 and L2 of the whole gradient that the optimizer is about to use: after accumulation and the
reduction over processes, with fp16's loss scale divided out, over the optimizer's parameters that have a gradient, and
before clipping. A loop that clips with `Accelerator.clip_grad_norm_` is measured at the beginning of that call; one that
does not is measured just before the optimizer's step. DeepSpeed's ZeRO has made its step by then, and keeps gradients to
itself: what that call returns is its L2 norm of the whole gradient before clipping, and L1 is not known.
"""

import logging
import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from ..compatibility import (
    engine_clip_limit,
    loss_scale,
    unwatch_clipping,
    watch_clipping,
    wrap_optimizer_method,
)
from ..norms.norms_file import NORMS_FILE_NAME, NormsFileWriter
from .measuring import measure_gradient_norms
from .optimizers import optimizer_family, unwrap_optimizer

logger = logging.getLogger(__name__)

FLUSH_EVERY = 50
"""Updates kept on the device between two writes: a write waits for the device, an update does not."""

_recording: weakref.WeakSet["GradientNormRecorder"] = weakref.WeakSet()


class RecordingError(RuntimeError):
    """The gradients cannot be seen whole, or their norms cannot be kept."""


class _Update(NamedTuple):
    """One optimizer update; tensors are scalars on the device."""

    step: int
    l1: torch.Tensor | None
    """None where it is not known."""
    l2: torch.Tensor
    clip_factor: torch.Tensor | None
    learning_rate: float | torch.Tensor | None
    """None where the optimizer sets it by itself."""


class GradientNormRecorder:
    """Records the gradient norms of an Accelerate loop while its `with` block runs.

        optimizer = accelerator.prepare(optimizer)
        with GradientNormRecorder(optimizer, output_dir="runs/baseline", num_training_steps=1000):
            ...  # the loop as it is, whether it clips (with accelerator.clip_grad_norm_) or not

    It leaves `gradient_norms.jsonl` in `output_dir`, written by the main process. To resume, pass it to
    `accelerator.register_for_checkpointing`: the file is cut back to the checkpoint's step. A block that is entered again
    goes on with the file.

    Args:
        optimizer: the optimizer as `Accelerator.prepare` returned it.
        output_dir: the folder of the file, made if it is not there.
        num_training_steps: T, the optimizer updates planned; if None, those made until the block ends.
        path: the file itself, instead of `output_dir`; in a folder that is there, `gradient_norms.jsonl`.
        start_step: updates made before, in a resumed run.
        clips: whether the loop clips at every update, so that one without a clip in sight was clipped by other means.
        on_failure: `"raise"`, or `"warn"` to stop recording with one warning and let the run go on.

    Raises:
        RecordingError: on entering, if the optimizer was not prepared or has no hooks, or an engine keeps the gradients to
            itself or in pieces (FSDP1, Megatron, DeepSpeed without ZeRO if it clips); at an update, if there is no
            gradient or it cannot be measured, or the file cannot be written.
        ValueError: unless one of `output_dir` and `path` is given.

    Reference: arXiv 2310.07831, section 3, on norms of the gradients before clipping.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        num_training_steps: int | None = None,
        path: str | os.PathLike[str] | None = None,
        start_step: int = 0,
        clips: bool = False,
        on_failure: str = "raise",
    ) -> None:
        if (output_dir is None) == (path is None):
            raise ValueError("Pass either output_dir, the folder for gradient_norms.jsonl, or path, the file itself.")
        if on_failure not in ("raise", "warn"):
            raise ValueError(f'on_failure is {on_failure!r}, but must be "raise" or "warn".')
        self.path = Path(output_dir) / NORMS_FILE_NAME if path is None else Path(path)
        if path is not None and self.path.is_dir():
            self.path /= NORMS_FILE_NAME
        self.num_training_steps = num_training_steps
        self.step = start_step
        """Optimizer updates so far, those that were not taken included."""
        self.recording = False
        self._optimizer = optimizer
        self._clips = clips
        self._on_failure = on_failure
        self._writer: NormsFileWriter | None = None
        self._can_write = True
        self._pending: list[_Update] = []
        self._last: _Update | None = None
        self._norms: tuple[torch.Tensor | None, torch.Tensor] | None = None
        self._clip_factor: torch.Tensor | None = None
        self._measured: tuple[weakref.ref[torch.Tensor], int] | None = None
        """Of which gradient the norms are: the first tensor of it, and how often that had been changed when last seen."""
        self._learning_rate: float | torch.Tensor | None = None
        self._failure: str | None = None
        """Why the gradients of this update could not be measured."""
        self._max_grad_norm: float | None = None
        self._stepping = False
        self._steps_in_backward = False
        """Whether an engine has made its step, and cleared the gradients, by the time the loop clips."""
        self._by_engine = False
        """Whether an engine tells its norm instead of showing gradients."""
        self._remove: list[Any] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except RecordingError as error:
            self._fail(str(error))
        except Exception as error:  # whatever an optimizer of unusual make lacks
            self._fail(f"a {type(unwrap_optimizer(self._optimizer)).__name__} cannot be watched ({_in_a_line(error)})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
            if kind is None and self.recording and self._can_write and self._is_main_process():
                self._finish()
        finally:
            self._stop()

    def _finish(self) -> None:
        """What a run's end leaves to do: to say how many updates it had, and to cut a file of more of them."""
        try:
            if self._writer is None and self.step and self.path.exists():
                self._open_file(self.step)
            if self.num_training_steps is None and self._writer is not None:
                self._writer.rewrite_header({**self._header(), "num_training_steps": self.step})
                self._writer = None
        except (OSError, ValueError) as error:
            self._fail_to_write(error, self.step + 1)

    def flush(self) -> None:
        """Write what has been measured since the last write. This waits for the device."""
        pending, self._pending = self._pending, []
        if not self.recording or not self._can_write or not pending:
            return
        if not self._is_main_process():
            return
        rows = _rows(pending)
        try:
            if self._writer is None:
                self._open_file(pending[0].step - 1)
            self._writer.append(rows)
        except (OSError, ValueError) as error:
            self._fail_to_write(error, pending[0].step)

    def _open_file(self, start_step: int) -> None:
        self._writer = NormsFileWriter(self.path, self._header(), start_step=start_step)
        if self._writer.missing_steps:
            logger.warning(
                "%s lacks %d updates from before this run was resumed; they are left out.",
                self.path,
                self._writer.missing_steps,
            )

    def abandon(self) -> None:
        """Write what has been measured and record no more, as of a run that has not got to its end."""
        self.flush()
        self._stop()

    def last_l1(self) -> float | None:
        """The L1 norm at the last update, for a log entry. This waits for the device.

        Returns:
            The norm, or None where the update had none.
        """
        l1 = math.nan if self._last is None or self._last.l1 is None else float(self._last.l1)
        return l1 if math.isfinite(l1) else None

    def state_dict(self) -> dict[str, int]:
        """The state for `Accelerator.save_state`; what has been measured is written first.

        Returns:
            The number of updates so far.
        """
        self.flush()
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the update of a checkpoint: the file is cut back to it.

        Args:
            state_dict: what `state_dict` returned.
        """
        self.step = state_dict["step"]
        self._pending = []
        self._writer = None

    def before_clip(self, parameters: list[torch.nn.Parameter]) -> bool:
        """Measure, if these are the parameters of this optimizer. Called by the watch on `Accelerator.clip_grad_norm_`.

        Args:
            parameters: what is about to be clipped.

        Returns:
            True if so.
        """
        if not self._optimizer.gradient_state.sync_gradients:
            return False
        if self._by_engine:
            return True
        if {id(parameter) for parameter in parameters}.isdisjoint(map(id, self._parameters())):
            return False
        if self._norms is None or not (self._steps_in_backward or self._is_measured()):
            self._measure(loss_scale(self._optimizer))
        self._fail_if_not_measured()
        return self.recording

    def after_clip(self, max_norm: float, total_norm: torch.Tensor | float | None) -> None:
        """Note the factor that a clip has applied, min(1, max_norm / (norm + 1e-6)), from the norm that it used.

        Args:
            max_norm: the limit that the loop asks for; an engine goes by its own.
            total_norm: the norm before clipping, as the clip returned it; None if it does not know.
        """
        self._mark_as_measured()
        if total_norm is None:  # of an update that DeepSpeed has not taken, or without ZeRO
            return
        if hasattr(total_norm, "full_tensor"):
            total_norm = total_norm.full_tensor()
        total_norm = torch.as_tensor(total_norm)
        if self._by_engine:
            self._norms = (None, total_norm)
            max_norm = engine_clip_limit(self._optimizer)
        factor = torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)
        self._clip_factor = factor if self._clip_factor is None else self._clip_factor * factor
        if math.isfinite(max_norm):
            self._max_grad_norm = float(max_norm)

    def _start(self) -> None:
        if not isinstance(self._optimizer, AcceleratedOptimizer):
            raise RecordingError(
                f"the optimizer is a {type(self._optimizer).__name__}, but must be one that Accelerator.prepare returned"
            )
        distributed_type = self._optimizer.accelerator_state.distributed_type
        sharded_flat = distributed_type == DistributedType.FSDP and not any(
            hasattr(parameter, "full_tensor") for parameter in self._parameters()
        )
        if sharded_flat or distributed_type == DistributedType.MEGATRON_LM:
            engine = "FSDP1" if sharded_flat else distributed_type.value
            raise RecordingError(
                f"{engine} keeps the gradients to itself or in pieces; use DDP or FSDP2 to record them"
            )
        if distributed_type == DistributedType.DEEPSPEED:
            self._steps_in_backward = True
            self._by_engine = not isinstance(self._optimizer.optimizer, torch.optim.Optimizer)
            if self._by_engine and self._is_main_process():
                logger.warning(
                    "DeepSpeed tells the L2 norm of the gradient alone, so L1 norms are not recorded; a schedule for Adam "
                    "will be made of L2 ** -1."
                )
            if not self._by_engine and self._clips:
                raise RecordingError(
                    "DeepSpeed without ZeRO clips inside its own step, before gradients can be seen; use ZeRO stage 1 or more, "
                    "DDP, or max_grad_norm=0"
                )
        # One recorder for an optimizer: a Trainer's callback takes over from the launcher's, which has written nothing.
        for other in list(_recording):
            if other._optimizer is self._optimizer:
                other._stop()
        _recording.add(self)
        self.recording = True
        watch_clipping(self)
        self._forget_update()
        self._remove.append(lambda: unwatch_clipping(self))
        self._remove.append(wrap_optimizer_method(self._optimizer, "step", self._around_step))
        self._remove.append(wrap_optimizer_method(self._optimizer, "zero_grad", self._around_zero_grad))
        hook = unwrap_optimizer(self._optimizer).register_step_pre_hook(self._before_taken_step)
        self._remove.append(hook.remove)

    def _stop(self) -> None:
        self.recording = False
        _recording.discard(self)
        for remove in self._remove:
            remove()
        self._remove = []

    def _is_main_process(self) -> bool:
        state = getattr(self._optimizer, "accelerator_state", None)  # none where it was not prepared
        return state is None or state.is_main_process

    def _fail(self, reason: str) -> None:
        self.abandon()
        self._last = None
        self._report(reason, self.step + 1)

    def _fail_if_not_measured(self) -> None:
        """Not in the optimizer's own hook, which cannot be taken off while hooks are called."""
        if self._failure is not None:
            self._fail(self._failure)

    def _fail_to_write(self, error: Exception, step: int) -> None:
        """Write no more, but measure on: the norm of a sharded gradient takes all ranks, and the others measure."""
        self._can_write = False
        if self._on_failure == "raise":
            self._stop()
        self._report(f"{self.path} cannot be written ({error})", step)

    def _report(self, reason: str, step: int) -> None:
        if self._on_failure == "raise":
            raise RecordingError(f"Gradient norms cannot be recorded: {reason}.")
        if self._is_main_process():
            logger.warning("Gradient norms are not recorded from update %d on: %s.", step, reason)

    def _header(self) -> dict[str, Any]:
        return {
            "optimizer": type(unwrap_optimizer(self._optimizer)).__name__,
            "optimizer_family": optimizer_family(self._optimizer),
            "world_size": self._optimizer.accelerator_state.num_processes,
            "max_grad_norm": self._max_grad_norm,
            "num_training_steps": self.num_training_steps,
        }

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _measure(self, scale: torch.Tensor | None) -> None:
        try:
            norms = measure_gradient_norms(self._parameters())
            if norms is not None and scale is not None:
                norms = (norms[0] / scale, norms[1] / scale)
        except Exception as error:  # whatever a gradient of unusual make cannot do
            norms = None
            self._failure = f"a gradient cannot be measured ({_in_a_line(error)})"
        self._norms, self._clip_factor = norms, None
        self._mark_as_measured()

    def _first_gradient(self) -> torch.Tensor | None:
        return next((parameter.grad for parameter in self._parameters() if parameter.grad is not None), None)

    def _mark_as_measured(self) -> None:
        gradient = self._first_gradient()
        counts = gradient is not None and not gradient.is_inference()  # a tensor that counts its changes
        self._measured = (weakref.ref(gradient), gradient._version) if counts else None

    def _is_measured(self) -> bool:
        """Whether nothing but watched clips has changed the gradient since it was measured; a backward pass would have."""
        if self._measured is None:
            return False
        measured, version = self._measured
        gradient = self._first_gradient()
        return gradient is not None and measured() is gradient and gradient._version == version

    def _forget_update(self) -> None:
        self._norms = self._clip_factor = self._learning_rate = self._failure = self._measured = None

    def _note_learning_rate(self) -> None:
        if self._learning_rate is None:
            learning_rate = self._optimizer.param_groups[0].get("lr")
            self._learning_rate = learning_rate.clone() if isinstance(learning_rate, torch.Tensor) else learning_rate

    def _before_taken_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Measure where nothing was clipped. GradScaler leaves `grad_scale` on an optimizer that unscales by itself."""
        if not self.recording:
            return
        self._note_learning_rate()  # DeepSpeed may have moved on its scheduler, too, by the time the loop steps
        if self._norms is not None or self._by_engine:
            return
        self._measure(getattr(optimizer, "grad_scale", None))
        if self._clips and self._norms is not None:
            self._failure = (
                "gradients are clipped by other means than Accelerator.clip_grad_norm_, and are seen too late"
            )

    def _around_zero_grad(self, zero_grad: Callable[[], Any]) -> Any:
        """What was measured is gone: of a batch that is skipped after its clip, or of one before a closure makes another."""
        if self.recording and self._optimizer.gradient_state.sync_gradients and not self._steps_in_backward:
            self._norms = self._clip_factor = self._measured = None
        return zero_grad()

    def _around_step(self, step: Callable[[], Any]) -> Any:
        if not self.recording or self._stepping or not self._optimizer.gradient_state.sync_gradients:
            return step()
        self._note_learning_rate()
        self._stepping = True
        try:
            result = step()
        finally:
            self._stepping = False
        self._fail_if_not_measured()
        if not self.recording:
            return result
        norms, clip_factor, learning_rate = self._norms, self._clip_factor, self._learning_rate
        self._forget_update()
        if norms is None and not self._optimizer.step_was_skipped:
            self._fail(
                "DeepSpeed tells its norm where accelerator.clip_grad_norm_ is called, and this loop does not call it"
                if self._by_engine
                else "no parameter of the optimizer had a gradient at its step (some optimizers use gradients up in the "
                "backward pass, and a closure makes them too late unless it clips)"
            )
            return result
        self.step += 1
        if norms is None:
            norms = (torch.tensor(math.nan), torch.tensor(math.nan))
        self._last = _Update(self.step, *norms, clip_factor, learning_rate)
        over = 0 if self.num_training_steps is None else self.step - self.num_training_steps
        if over == 2 and self._is_main_process():
            # Not of the first: a Trainer that resumes a run which was over makes one update more, with a learning rate of 0.
            logger.warning(
                "The run makes more updates than num_training_steps=%d; their gradient norms are not recorded.",
                self.num_training_steps,
            )
        if over <= 0:
            self._pending.append(self._last)
        if len(self._pending) >= FLUSH_EVERY:
            self.flush()
        return result


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _rows(updates: list[_Update]) -> list[dict[str, float | int | None]]:
    """Lines of the file; one copy from the device for all of them."""
    device = updates[-1].l2.device
    values = torch.stack(
        [
            torch.stack(
                [
                    torch.as_tensor(
                        value, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
                    )
                    for value in (
                        math.nan if update.l1 is None else update.l1,
                        update.l2,
                        1.0 if update.clip_factor is None else update.clip_factor,
                    )
                ]
            )
            for update in updates
        ]
    ).tolist()
    rows = []
    for update, (l1, l2, clip_factor) in zip(updates, values, strict=True):
        taken = math.isfinite(l2) and (update.l1 is None or math.isfinite(l1))
        rows.append(
            {
                "step": update.step,
                "l1": l1 if taken and update.l1 is not None else None,
                "l2": l2 if taken else None,
                "clip_factor": clip_factor if taken else None,
                "learning_rate": None if update.learning_rate is None else float(update.learning_rate),
            }
        )
    return rows
