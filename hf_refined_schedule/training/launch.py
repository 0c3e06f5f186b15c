"""Run an unmodified training script with `refined` registered and gradient norms recorded."""

import json
import logging
import os
import runpy
import sys
import traceback
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list

from ..compatibility import add_default_callback, is_prepared_by, prepared_optimizers, widened_choices
from ..recording.recorder import GradientNormRecorder
from ..schedules.refinement_options import RefinementOptions
from .callback import GradientNormCallback
from .registration import register
from .scheduler import OPTIONS_VARIABLE, REFINED_FROM_VARIABLE

logger = logging.getLogger(__name__)

STEP_FILE_NAME = "gradient_norms_step.json"
"""Written beside the files of `Accelerator.save_state`. It holds the number of optimizer updates at that time."""


def launch(
    script: str | os.PathLike[str],
    arguments: list[str],
    *,
    refined_from: str | None = None,
    gradient_norms_file: str | None = None,
    options: RefinementOptions = RefinementOptions(),  # noqa: B008 - a frozen value
) -> None:
    """Run a script as `python SCRIPT ARGUMENTS` would, with `refined` registered and gradient norms recorded.

    Every `Trainer` in the script records. A raw Accelerate loop records if `gradient_norms_file` is given, and
    `Accelerator.load_state` continues the file from the checkpoint. `sys.argv`, `__main__`, imports from the script's folder,
    the exit code and tracebacks are the same as without the launcher.

    Args:
        script: the path of the script.
        arguments: the arguments of the script.
        refined_from: the run to refine `refined` from, unless the script's own options name one.
        gradient_norms_file: the file for the norms, or its folder, instead of `gradient_norms.jsonl` in a Trainer's
            `output_dir`.
        options: how to refine; they need `refined_from`.

    Raises:
        ValueError: if the script does not exist, or options are given without `refined_from`.
        SystemExit: as the script raises it; with code 1, after the traceback, if the script raises any other exception.
    """
    path = Path(script)
    if not path.is_file():
        raise ValueError(f"There is no script {str(script)!r}; pass the path of a Python file, options before it.")
    register()
    keywords = options.as_keywords()
    if refined_from is not None:
        os.environ[REFINED_FROM_VARIABLE] = refined_from
        os.environ[OPTIONS_VARIABLE] = json.dumps(keywords)
    elif keywords:
        raise ValueError(f"{' and '.join(keywords)} need the run to refine from; pass --refined-from with them.")
    _record_every_trainer(gradient_norms_file)
    raw_loops = nullcontext() if gradient_norms_file is None else _RawLoopRecording(gradient_norms_file)
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(path.resolve().parent)
    try:
        with widened_choices(["refined"]), raw_loops:
            runpy.run_path(str(script), run_name="__main__")
    except Exception as error:
        _print_traceback(error, path)
        sys.exit(1)


def _record_every_trainer(gradient_norms_file: str | None) -> None:
    class RecordToFile(GradientNormCallback):
        """transformers creates default callbacks without arguments."""

        def __init__(self) -> None:
            super().__init__(gradient_norms_file)

    add_default_callback(RecordToFile)


class _RawLoopRecording:
    """Records the first optimizer that the script prepares, until the script ends.

    It starts over once the script's Accelerator has released that optimizer. The callback of a Trainer takes over the
    recording of the Trainer's optimizer.

    Args:
        path: the file for the norms, or its folder.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._recorder: GradientNormRecorder | None = None
        self._optimizer: AcceleratedOptimizer | None = None
        self._exits = ExitStack()

    def __enter__(self) -> None:
        self._exits.enter_context(prepared_optimizers(self._start))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, SystemExit) and not error.code:  # a script that ends with sys.exit() has finished its run
            kind = error = traceback = None
        self._exits.__exit__(kind, error, traceback)

    def _start(self, accelerator: Accelerator, optimizer: Any) -> None:
        if not isinstance(optimizer, AcceleratedOptimizer):
            return
        if self._recorder is not None and is_prepared_by(accelerator, self._optimizer):
            if self._recorder.recording:
                logger.warning("The script prepares more than one optimizer; only the norms of the first are recorded.")
            return
        if self._recorder is not None:
            self._recorder.abandon()
        recorder = GradientNormRecorder(optimizer, path=self._path, on_failure="warn")
        self._exits.enter_context(recorder)
        accelerator.register_save_state_pre_hook(partial(_save_step, recorder, accelerator))
        accelerator.register_load_state_pre_hook(partial(_load_step, recorder, accelerator))
        self._recorder, self._optimizer = recorder, optimizer


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


def _print_traceback(error: BaseException, script: Path) -> None:
    """Print a traceback that begins in the script, as Python prints it without the launcher."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename) != script:
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames or error.__traceback__)
