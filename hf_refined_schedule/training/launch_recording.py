"""What a launched program records: every Trainer, and the first raw Accelerate loop if there is a file for it.

Child processes of the program inherit this: `register` is called in them once they have imported transformers.
"""

import json
import logging
import math
import os
import weakref
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR

from ..autoregister import LAUNCH_VARIABLE
from ..compatibility.unmodified_scripts import (
    add_default_callback,
    created_schedulers,
    is_prepared_by,
    prepared_optimizers,
    scheduler_horizon,
    steps_per_update,
    widened_choices,
)
from ..recording.optimizers import unwrap_optimizer
from ..recording.recorder import GradientNormRecorder, close_recordings, recording_observers
from .callback import GradientNormCallback
from .scheduler import RefinedLR

logger = logging.getLogger(__name__)

STEP_FILE_NAME = "gradient_norms_step.json"
"""Written beside the files of `Accelerator.save_state`. It holds the number of optimizer updates at that time."""

STARTUP_FOLDER = str(Path(__file__).parent.parent / "startup")
"""It holds the `sitecustomize` module that calls `register` in Python processes which the program starts."""

Event = Literal["optimizer prepared", "recording started", "refined schedule created"]
"""What may happen in the program or in a child process."""


class LaunchRecording:
    """Records the training of a launched program while a `with` block runs, and notes what happened.

    Args:
        gradient_norms_file: the file for the norms of all Trainers and of a raw loop; by default, each Trainer's
            `output_dir` has its own, and raw loops are not recorded.
        notes: an existing folder. It gets an empty file for each event, also from child processes.
    """

    def __init__(self, gradient_norms_file: Path | None, notes: Path) -> None:
        self._file = gradient_norms_file
        self._notes = notes
        self._exits = ExitStack()
        self._raw_loops = None if gradient_norms_file is None else _RawLoopRecording(gradient_norms_file)

    def __enter__(self) -> None:
        global _is_recording
        _is_recording = True
        settings = {"gradient_norms_file": self._file and str(self._file), "notes": str(self._notes)}
        os.environ[LAUNCH_VARIABLE] = json.dumps(settings)
        _add_to_python_path(STARTUP_FOLDER)
        _record_every_trainer(self._file)
        recording_observers.append(partial(self._note, "recording started"))
        self._exits.enter_context(widened_choices(["refined"]))
        self._exits.enter_context(created_schedulers(self._see_scheduler))
        self._exits.enter_context(prepared_optimizers(self._see_optimizer))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exits.close()
        if self._raw_loops is not None:
            self._raw_loops.end(finished=kind is None or (isinstance(error, SystemExit) and not error.code))
        close_recordings()

    def _see_scheduler(self, scheduler: LambdaLR) -> None:
        if isinstance(scheduler, RefinedLR):
            self._note("refined schedule created")
        if self._raw_loops is not None:
            self._raw_loops.add_scheduler(scheduler)

    def _see_optimizer(self, accelerator: Accelerator, optimizer: Any) -> None:
        self._note("optimizer prepared")
        if self._raw_loops is not None and isinstance(optimizer, AcceleratedOptimizer):
            self._raw_loops.start(accelerator, optimizer)

    def _note(self, event: Event) -> None:
        with suppress(OSError):  # a child may outlive the launcher, which removes the folder
            (self._notes / event).touch()


_is_recording = False
"""Whether this process records, or the process that it was forked from."""


def inherit_launch() -> None:
    """Record in a child process as the launcher does in its own. `register` calls this, until the process ends."""
    if _is_recording:
        return
    settings = json.loads(os.environ[LAUNCH_VARIABLE])
    file = settings["gradient_norms_file"]
    LaunchRecording(None if file is None else Path(file), Path(settings["notes"])).__enter__()


def _add_to_python_path(folder: str) -> None:
    """Put a folder first on the import path of child processes."""
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", folder)]
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *others])


def _record_every_trainer(gradient_norms_file: Path | None) -> None:
    class RecordToFile(GradientNormCallback):
        """transformers creates default callbacks without arguments."""

        def __init__(self) -> None:
            super().__init__(gradient_norms_file)

    add_default_callback(RecordToFile)


class _RawLoopRecording:
    """Records the first optimizer that the program prepares, until the program ends.

    It starts over once the program's Accelerator has released that optimizer. The callback of a Trainer takes over the
    recording of the Trainer's optimizer.

    Args:
        path: the file for the norms.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recorder: GradientNormRecorder | None = None
        self._optimizer: AcceleratedOptimizer | None = None
        self._schedulers: list[weakref.ref[LambdaLR]] = []

    def add_scheduler(self, scheduler: LambdaLR) -> None:
        """Note a scheduler, whose horizon is the length of the run.

        Args:
            scheduler: as it was created, before it is prepared.
        """
        self._schedulers = [other for other in self._schedulers if other() is not None] + [weakref.ref(scheduler)]

    def start(self, accelerator: Accelerator, optimizer: AcceleratedOptimizer) -> None:
        """Record an optimizer, unless another one is being recorded.

        Args:
            accelerator: the Accelerator that prepared it.
            optimizer: the prepared optimizer.
        """
        if self._recorder is not None and is_prepared_by(accelerator, self._optimizer):
            if self._recorder.recording:
                logger.warning("The script prepares more than one optimizer; only the norms of the first are recorded.")
            return
        if self._recorder is not None:
            self._recorder.abandon()
        recorder = GradientNormRecorder(
            optimizer,
            path=self._path,
            on_failure="warn",
            estimate_updates=partial(self._estimate_updates, accelerator, optimizer),
        )
        recorder.__enter__()
        accelerator.register_save_state_pre_hook(partial(_save_step, recorder, accelerator))
        accelerator.register_load_state_pre_hook(partial(_load_step, recorder, accelerator))
        self._recorder, self._optimizer = recorder, optimizer

    def end(self, finished: bool) -> None:
        """End the recording with the program.

        Args:
            finished: whether the program ran to its end, so that the updates so far are the whole run.
        """
        if self._recorder is None:
            return
        if finished:
            self._recorder.__exit__(None, None, None)
        else:
            self._recorder.abandon()

    def _estimate_updates(
        self, accelerator: Accelerator, optimizer: AcceleratedOptimizer, num_updates: int
    ) -> int | None:
        """Compute the planned updates from the scheduler's horizon, which counts its steps.

        A prepared scheduler makes as many steps an update as there are processes. The horizon of a loop that accumulates
        gradients can be a little shorter than that: 21 for 11 updates on 2 processes. A scheduler that has made another
        number of steps by now is stepped in another way, and its horizon says nothing.
        """
        for reference in reversed(self._schedulers):
            scheduler = reference()
            if scheduler is None or unwrap_optimizer(scheduler.optimizer) is not unwrap_optimizer(optimizer):
                continue
            horizon = scheduler.num_training_steps if isinstance(scheduler, RefinedLR) else scheduler_horizon(scheduler)
            steps = steps_per_update(accelerator, scheduler)
            # Between the optimizer's step and the scheduler's, the scheduler is one update behind. Updates that a loss
            # scale skips do not step it.
            in_step = steps * (num_updates - 1) // 2 <= scheduler.last_epoch <= steps * num_updates
            return math.ceil(horizon / steps) if horizon is not None and in_step else None
        return None


def _save_step(
    recorder: GradientNormRecorder, accelerator: Accelerator, models: Any, weights: Any, output_dir: str
) -> None:
    """Store the recorder's step in a checkpoint. Called on every rank by `Accelerator.save_state`."""
    state = recorder.state_dict()
    if accelerator.is_main_process:
        (Path(output_dir) / STEP_FILE_NAME).write_text(json.dumps(state), encoding="utf-8")


def _load_step(recorder: GradientNormRecorder, accelerator: Accelerator, models: Any, input_dir: str) -> None:
    """Continue from a checkpoint's step, or stop recording. Called on every rank by `Accelerator.load_state`."""
    step = [_read_step(Path(input_dir) / STEP_FILE_NAME) if accelerator.is_main_process else None]
    broadcast_object_list(step)
    if step[0] is not None:
        recorder.load_state_dict({"step": step[0]})
    elif recorder.recording:
        recorder.abandon()
        if accelerator.is_main_process:
            logger.warning(
                "Gradient norms are not recorded: the checkpoint %s has no valid %s, the number of its updates; save checkpoints "
                "under the launcher with --gradient-norms-file to continue the recording.",
                input_dir,
                STEP_FILE_NAME,
            )


def _read_step(path: Path) -> int | None:
    try:
        step = json.loads(path.read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int and step >= 0 else None
