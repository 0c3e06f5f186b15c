"""Runs a training script that has never heard of this package, with everything registered and recorded."""

import json
import logging
import os
import runpy
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from ..compatibility import add_default_callback, is_prepared_by, prepared_optimizers, widened_choices
from ..recording.recorder import GradientNormRecorder
from ..schedules.refinement_options import RefinementOptions
from .callback import GradientNormCallback
from .rank_zero import on_main_process
from .registration import register
from .scheduler import OPTIONS_VARIABLE, REFINED_FROM_VARIABLE

logger = logging.getLogger(__name__)

STEP_FILE_NAME = "gradient_norms_step.json"
"""Beside what `Accelerator.save_state` writes: the updates that the norms file had by then."""


def launch(
    script: str | os.PathLike[str],
    arguments: list[str],
    *,
    refined_from: str | None = None,
    gradient_norms_file: str | None = None,
    options: RefinementOptions = RefinementOptions(),  # noqa: B008 - a frozen value
) -> None:
    """Run a script as `python SCRIPT ARGUMENTS` would, with `refined` registered and gradient norms recorded.

    Every `Trainer` in it records. A raw Accelerate loop is recorded if `gradient_norms_file` is given; after
    `Accelerator.load_state` the file goes on from the checkpoint. `sys.argv`, `__main__`, imports beside the script, its
    exit code and its tracebacks are the script's own.

    Args:
        script: the script's path.
        arguments: its arguments.
        refined_from: the run that `refined` is made from, unless the script's own options say.
        gradient_norms_file: the file of norms, or the folder for it, instead of `gradient_norms.jsonl` in a Trainer's `output_dir`.

        options: how to refine it; needs `refined_from`.

    Raises:
        ValueError: if there is no such script, or options are given without `refined_from`.
        SystemExit: as the script does; with 1, after its traceback, if it raises anything else.
    """
    if not Path(script).is_file():
        raise ValueError(f"There is no script {str(script)!r}; pass the path of a Python file, options before it.")
    register()
    keywords = options.as_keywords()
    if refined_from is not None:
        os.environ[REFINED_FROM_VARIABLE] = refined_from
        os.environ[OPTIONS_VARIABLE] = json.dumps(keywords)
    elif keywords:
        raise ValueError(f"{' and '.join(keywords)} need the run to refine from; pass --refined-from with them.")

    class RecordToFile(GradientNormCallback):
        def __init__(self) -> None:
            super().__init__(gradient_norms_file)

    add_default_callback(RecordToFile)
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    with ExitStack() as stack:
        stack.enter_context(widened_choices(["refined"]))
        if gradient_norms_file is not None:
            stack.enter_context(prepared_optimizers(_RawLoopRecording(gradient_norms_file, stack).start))
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stopped:
            if not stopped.code:
                stack.close()  # the end of a good run
            raise
        except Exception as error:
            stack.__exit__(type(error), error, error.__traceback__)
            _print_traceback(error, Path(script))
            sys.exit(1)


class _RawLoopRecording:
    """Records the first optimizer that the script prepares, and starts over when its Accelerator has let go of that.

    A Trainer's own callback takes it over.
    """

    def __init__(self, path: str, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._recorder: GradientNormRecorder | None = None
        self._optimizer: AcceleratedOptimizer | None = None

    def start(self, accelerator: Accelerator, optimizer: Any) -> None:
        if not isinstance(optimizer, AcceleratedOptimizer):
            return
        if self._recorder is not None:
            if is_prepared_by(accelerator, self._optimizer):
                if self._recorder.recording:
                    logger.warning(
                        "The script prepares more than one optimizer; gradient norms of the first alone are recorded."
                    )
                return
            self._recorder.abandon()
        self._optimizer = optimizer
        recorder = self._recorder = GradientNormRecorder(optimizer, path=self._path, on_failure="warn")
        self._stack.enter_context(recorder)

        def save(models: Any, weights: Any, output_dir: str) -> None:
            state = recorder.state_dict()
            if accelerator.is_main_process:
                (Path(output_dir) / STEP_FILE_NAME).write_text(json.dumps(state))

        def load(models: Any, input_dir: str) -> None:
            file = Path(input_dir) / STEP_FILE_NAME
            state = on_main_process(
                lambda: json.loads(file.read_text()), f"the number of updates before {file.parent.name}"
            ).value
            if state is not None:
                recorder.load_state_dict(state)
            elif recorder.recording:
                recorder.abandon()
                if accelerator.is_main_process:
                    logger.warning(
                        "Gradient norms are not recorded: %s was saved without the launcher's recording, and does not say "
                        "how many updates it is of.",
                        input_dir,
                    )

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)


def _print_traceback(error: BaseException, script: Path) -> None:
    """Print a traceback that begins in the script, as if Python had run it."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename) != script:
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames or error.__traceback__)
