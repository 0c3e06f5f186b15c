"""Records the gradient norms of a training loop: which norm, of what, and when.

At every optimizer update, the L1 and L2 norm of the whole gradient that the optimizer is about to use are recorded: after
accumulation over micro-batches, after the reduction over processes, with fp16's loss scale divided out, over the parameters
of the optimizer that have a gradient, and before clipping.

- A loop that clips with `Accelerator.clip_grad_norm_` is measured when it calls that method. The clip computes the L2 norm
  anyway, so where its value is exact enough it is taken from there (see `measuring.clip_returns_l2`).
- A loop that does not clip is measured just before the optimizer's step.
- FSDP1 is measured where `Accelerator.clip_grad_norm_` calls its own clip, because only its module knows what is sharded.
- DeepSpeed steps inside `Accelerator.backward`. Without ZeRO, it is measured before its own clip. ZeRO hides its gradients:
  L2 is the norm before clipping that it reports, and L1 is that of the shards that its optimizers have used.

This module decides when an update begins and ends. `gradient_access` and `engine_gradients` measure, `norms_log` writes.
"""

import math
import multiprocessing.util
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from ..compatibility.engines import unwatch_engine_clips, watch_engine_clips
from ..compatibility.libraries import unwatch_clipping, watch_clipping
from ..compatibility.method_wrap import MethodWrap
from ..norms.norms_file import NORMS_FILE_NAME
from .failures import RecordingError, in_one_line, report_failure
from .gradient_access import NormSource, OpenUpdate
from .measuring import plain_scalar
from .norm_sources import choose_norm_source
from .norms_log import NormsLog, RecordedUpdate, norms_path
from .optimizers import is_main_process, unwrap_optimizer

_recording: weakref.WeakSet["GradientNormRecorder"] = weakref.WeakSet()

_process_with_exit_hook: int | None = None
"""The process that writes its open recordings when it ends. A forked process inherits the value and not the hook."""

recording_observers: list[Callable[[], None]] = []
"""Called whenever a recording begins, also one that cannot see the gradients and warns."""


class GradientNormRecorder:
    """Records the gradient norms of an Accelerate loop while its `with` block runs.

        optimizer = accelerator.prepare(optimizer)
        with GradientNormRecorder(optimizer, output_dir="runs/baseline", num_training_steps=1000):
            ...  # the unchanged loop; if it clips, then with accelerator.clip_grad_norm_

    The main process writes `gradient_norms.jsonl` into `output_dir`. To resume, pass the recorder to
    `accelerator.register_for_checkpointing`: the file is then cut back to the checkpoint's step. A recorder whose block is
    entered again continues its file.

    Args:
        optimizer: the optimizer as `Accelerator.prepare` returned it.
        output_dir: the folder for the file, created if it does not exist.
        num_training_steps: T, the planned number of optimizer updates; if None, the updates made until the block ends.
        path: the file itself, instead of `output_dir`; or a folder for `gradient_norms.jsonl`. A name without a suffix is a
            folder. Relative paths are resolved here.
        start_step: the updates made before, in a resumed run.
        clips: whether the loop clips at every update. An update without a clip through Accelerate was then clipped by other
            means, before it could be measured.
        on_failure: `"raise"`, or `"warn"` to stop recording with one warning while the run goes on.
        estimate_updates: returns the planned number of updates from the number made so far, or None if it is not known. The
            header has this number until the block ends, so that the file of a run that crashes can be used. It needs
            `num_training_steps=None`.

    Raises:
        RecordingError: on entering, if the optimizer was not prepared or has no hooks, or is one of Megatron-LM or of
            DeepSpeed with fp16 and without ZeRO; at an update, if there is no gradient or it cannot be measured, as with FSDP1 in a loop that does not clip, or the file cannot be
            written.
        ValueError: unless exactly one of `output_dir` and `path` is given.

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
        estimate_updates: Callable[[int], int | None] | None = None,
    ) -> None:
        if on_failure not in ("raise", "warn"):
            raise ValueError(f'on_failure is {on_failure!r}, but must be "raise" or "warn".')
        self.path = _norms_path(output_dir, path)
        self.step = start_step
        """Optimizer updates so far, including those that were not taken."""
        self.recording = False
        self._optimizer: Any = optimizer
        self._clips = clips
        self._on_failure = on_failure
        self._log = NormsLog(self.path, optimizer, num_training_steps, on_failure, estimate_updates)
        self._source: NormSource
        self._update = OpenUpdate()
        self._last: RecordedUpdate | None = None
        self._step_wrap = MethodWrap("step", self._around_step)
        self._zero_grad_wrap = MethodWrap("zero_grad", self._around_zero_grad)
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> Self:
        for notify in recording_observers:
            notify()
        try:
            self._start()
        except RecordingError as error:
            self._fail(str(error))
        except Exception as error:  # an optimizer may lack any of torch's own methods
            self._fail(f"a {type(unwrap_optimizer(self._optimizer)).__name__} cannot be watched ({in_one_line(error)})")
        if self.recording:
            try:
                self._log.make_folder(self.step + 1)
            except RecordingError:
                self._stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
            if self.recording and kind is None:
                self._log.finish(self.step)
            elif self.recording:
                self._log.finish_if_complete(self.step)
        finally:
            self._stop()

    def flush(self) -> None:
        """Write the norms measured since the last write. This makes the host wait for the device."""
        if not self.recording:
            return
        try:
            self._log.flush()
        except RecordingError:
            self._stop()
            raise

    def abandon(self) -> None:
        """Write the norms measured so far and stop recording.

        The run counts as unfinished, unless `estimate_updates` says that it has made all its updates.
        """
        try:
            self.flush()
            if self.recording:
                self._log.finish_if_complete(self.step)
        finally:
            self._stop()

    def last_l1(self) -> float | None:
        """The L1 norm of the last update, for a log entry. This makes the host wait for the device.

        Returns:
            The norm, or None if the update has none.
        """
        if self._last is None or self._last.l1 is None:
            return None
        l1 = float(self._last.l1)
        return l1 if math.isfinite(l1) else None

    def state_dict(self) -> dict[str, int]:
        """The state for `Accelerator.save_state`. The norms measured so far are written first.

        Returns:
            The number of updates so far.
        """
        self.flush()
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the update of a checkpoint. The file is cut back to that update.

        Args:
            state_dict: the value that `state_dict` returned.
        """
        self.step = state_dict["step"]
        self._log.resume()

    def before_clip(self, parameters: list[torch.nn.Parameter], norm_type: float = 2.0) -> bool:
        """Measure, if a clip concerns this optimizer. Called before every `Accelerator.clip_grad_norm_`.

        Args:
            parameters: the parameters about to be clipped.
            norm_type: the order of the norm that the clip computes.

        Returns:
            True if `after_clip` is to be called.
        """
        if not self._optimizer.gradient_state.sync_gradients:
            return False
        is_ours = self._source.before_clip(self._update, parameters, norm_type)
        self._fail_if_not_measured()
        return is_ours and self.recording

    def after_clip(self, max_norm: float, total_norm: torch.Tensor | float | None) -> None:
        """Note the factor that a clip has applied, from the norm that it has used.

        Args:
            max_norm: the limit that the loop passes. An engine may have its own.
            total_norm: the norm before clipping, as the clip returned it; None if it returned none.
        """
        norm = None if total_norm is None else plain_scalar(total_norm)
        self._note_limit(self._source.after_clip(self._update, max_norm, norm))
        self._fail_if_not_measured()

    def before_engine_clip(self, module: torch.nn.Module, max_norm: float) -> None:
        """Measure where only the engine that clips can show the gradients. Called before every clip of FSDP1 or DeepSpeed.

        Args:
            module: the module whose gradients are about to be clipped.
            max_norm: the limit.
        """
        self._note_limit(self._source.before_engine_clip(self._update, module, max_norm))
        self._fail_if_not_measured()

    def _start(self) -> None:
        self._source = choose_norm_source(self._optimizer, loop_clips=self._clips)
        # One recorder for an optimizer: a Trainer's callback takes over from the launcher's, which has written nothing.
        for other in list(_recording):
            if other._optimizer is self._optimizer:
                other._stop()
        _recording.add(self)
        _close_recordings_at_exit()
        self.recording = True
        self._update = OpenUpdate()
        watch_clipping(self)
        if self._source.clips_in_engine:
            watch_engine_clips(self, self._optimizer.accelerator_state.distributed_type)
        self._step_wrap.install(self._optimizer)
        self._zero_grad_wrap.install(self._optimizer)
        self._hook = unwrap_optimizer(self._optimizer).register_step_pre_hook(self._before_taken_step)

    def _stop(self) -> None:
        self.recording = False
        self._log.discard()
        _recording.discard(self)
        unwatch_clipping(self)
        unwatch_engine_clips(self)
        self._step_wrap.remove()
        self._zero_grad_wrap.remove()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _fail(self, reason: str) -> None:
        self.abandon()
        self._last = None
        report_failure(
            reason, self.step + 1, on_failure=self._on_failure, is_main_process=is_main_process(self._optimizer)
        )

    def _fail_if_not_measured(self) -> None:
        """Stop if a measurement has failed. Not called in the optimizer's hook, which torch cannot remove while it runs."""
        if self._update.failure is not None:
            self._fail(self._update.failure)

    def _note_limit(self, limit: float | None) -> None:
        if limit is not None and math.isfinite(limit):
            self._log.max_grad_norm = float(limit)

    def _note_learning_rate(self) -> None:
        if self._update.learning_rate is None:
            rate = self._optimizer.param_groups[0].get("lr")
            self._update.learning_rate = rate.clone() if isinstance(rate, torch.Tensor) else rate

    def _before_taken_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """The hook on the innermost optimizer, which is not called for an update that GradScaler skips."""
        if not self.recording:
            return
        self._note_learning_rate()  # DeepSpeed may have stepped its scheduler, too, by the time the loop steps
        self._source.before_taken_step(self._update, optimizer)

    def _around_zero_grad(self, zero_grad: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Forget the gradient: the loop skips this batch after its clip, or a closure is about to compute another one.

        The learning rate stays, because a closure runs in the middle of a step.
        """
        if self.recording and optimizer.gradient_state.sync_gradients and self._source.cleared_by_zero_grad:
            self._update = OpenUpdate(learning_rate=self._update.learning_rate)
        return zero_grad(*args, **kwargs)

    def _around_step(self, step: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """End the update with the optimizer's step, if it is not that of a micro-batch in the middle of an accumulation."""
        if not self.recording or not optimizer.gradient_state.sync_gradients:
            return step(*args, **kwargs)
        self._note_learning_rate()
        result = step(*args, **kwargs)
        if self.recording:
            self._note_limit(self._source.after_step(self._update))
        self._fail_if_not_measured()
        if self.recording:
            self._end_update()
        return result

    def _end_update(self) -> None:
        update, self._update = self._update, OpenUpdate()
        if update.norms is None and not self._optimizer.step_was_skipped:
            self._fail(self._source.reason_without_norms)
            return
        self.step += 1
        l1, l2 = (None, math.nan) if update.norms is None else update.norms
        self._last = RecordedUpdate(self.step, l1, l2, update.clip_factor, update.learning_rate)
        self._log.append(self._last)
        if self._log.is_due:
            self.flush()


def close_recordings() -> None:
    """Write what was measured in every recording that is still open, and end it.

    A Trainer that stops with an error calls no callback, so that its recording stays open.
    """
    for recorder in list(_recording):
        recorder.abandon()


def _close_recordings_at_exit() -> None:
    """Also in processes that multiprocessing has started, which do not call the functions of `atexit`."""
    global _process_with_exit_hook
    if _process_with_exit_hook != os.getpid():
        _process_with_exit_hook = os.getpid()
        multiprocessing.util.Finalize(None, close_recordings, exitpriority=0)


def _norms_path(output_dir: str | os.PathLike[str] | None, path: str | os.PathLike[str] | None) -> Path:
    if path is None and output_dir is not None:
        return Path(os.path.abspath(os.path.expanduser(output_dir))) / NORMS_FILE_NAME
    if path is None or output_dir is not None:
        given = "Neither output_dir nor path is" if path is None else "Both output_dir and path are"
        raise ValueError(
            f"{given} given. Pass either output_dir, the folder for {NORMS_FILE_NAME}, or path, the file itself."
        )
    return norms_path(path)
