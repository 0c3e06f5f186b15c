"""A `TrainerCallback` that records the gradient norms of a run."""

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..compatibility.libraries import (
    callbacks_beside,
    contribute_to_logs,
    stop_contributing_to_logs,
    trial_folder_name,
)
from ..recording.norms_log import norms_path
from ..recording.recorder import GradientNormRecorder
from .registration import register
from .scheduler import RefinedLR
from .trackers import show_schedule


class GradientNormCallback(TrainerCallback):
    """Records L1 and L2 of the whole gradient, before clipping, at every optimizer update of any `Trainer`.

        trainer = Trainer(..., callbacks=[GradientNormCallback()])

    It writes `gradient_norms.jsonl` to `output_dir` and adds `grad_norm_l1` to the log entries that have Trainer's own
    `grad_norm` (L2, before clipping). Trackers get the fingerprint and the picture of a refined schedule. A resumed run truncates the file to the checkpoint and appends to it. If the whole
    gradient cannot be read, the callback warns once and stops recording, and training continues.

    A trial of a hyperparameter search writes to the folder in which the Trainer saves it: `output_dir/run-3` for trial 3, so
    that `f"run-{best_run.run_id}"` is the source for a schedule refined from the best trial.

    Args:
        path: the file, instead of `gradient_norms.jsonl` in the Trainer's `output_dir`; or a folder for it. A name without
            a suffix is a folder. A relative path is resolved here.

    Reference: arXiv 2310.07831, section 3.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else norms_path(path)
        self._recorder: GradientNormRecorder | None = None
        self._schedule_is_shown = True

    def add_to_logs(self, logs: dict[str, float]) -> None:
        """Add `grad_norm_l1` to a log entry that has a `grad_norm`.

        Args:
            logs: the log entry, changed in place.
        """
        l1 = self._recorder.last_l1() if self._recorder is not None and "grad_norm" in logs else None
        if l1 is not None:
            logs["grad_norm_l1"] = l1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start a recording. The previous one is still open after a failed trial or a batch that was too large."""
        scheduler = kwargs.get("lr_scheduler")
        if isinstance(scheduler, RefinedLR):
            scheduler.raise_if_unavailable()
        self._close()
        output_dir, path = self._location(args, state)
        self._recorder = GradientNormRecorder(
            kwargs["optimizer"],
            output_dir,
            path=path,
            num_training_steps=state.max_steps,
            start_step=state.global_step,
            clips=args.max_grad_norm > 0,
            on_failure="warn",
        ).__enter__()
        contribute_to_logs(self)
        self._schedule_is_shown = not state.is_world_process_zero

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show a refined schedule in the trackers, all of which have begun their runs by now."""
        if self._schedule_is_shown:
            return
        self._schedule_is_shown = True
        scheduler = kwargs.get("lr_scheduler")
        if isinstance(scheduler, RefinedLR) and scheduler.refined_schedule is not None:
            schedule = scheduler.refined_schedule
            show_schedule(callbacks_beside(self), schedule["fingerprint"], schedule["grid"].numpy())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the norms before a checkpoint, so that the file is never behind it."""
        self._flush_before_save(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the norms before a checkpoint, as at the end of a step."""
        self._flush_before_save(control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the norms, because `save_strategy="best"` decides to save after this event."""
        if self._recorder is not None:
            self._recorder.flush()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the norms, because a later callback may have decided to save."""
        if self._recorder is not None:
            self._recorder.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the recording."""
        self._close()

    def _location(self, args: TrainingArguments, state: TrainerState) -> tuple[Path | None, Path | None]:
        """The folder or the file of this run, as `output_dir` and `path` of the recorder."""
        trial = (trial_folder_name(self) if state.is_hyper_param_search else None) or "."
        if self.path is None:
            return Path(str(args.output_dir)) / trial, None
        return None, self.path.parent / trial / self.path.name

    def _flush_before_save(self, control: TrainerControl) -> None:
        if self._recorder is not None and (control.should_save or control.should_training_stop):
            self._recorder.flush()

    def _close(self) -> None:
        stop_contributing_to_logs(self)
        if self._recorder is not None:
            self._recorder.__exit__(None, None, None)
            self._recorder = None


register()  # at the end, because in a child of the launcher it adds a subclass of this callback to every Trainer
