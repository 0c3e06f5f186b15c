"""Run an unmodified training script with `refined` registered and gradient norms recorded."""

import json
import logging
import os
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ..norms.checkpoint_folders import checkpoint_folders
from ..norms.gradient_norms import OptimizerFamily
from ..recording.norms_log import norms_path
from ..schedules.refinement_options import RefinementOptions
from ..schedules.refining import refine_sources
from .launch_recording import LaunchRecording
from .registration import register
from .scheduler import FOLDER_VARIABLE, OPTIONS_VARIABLE, REFINED_FROM_VARIABLE

logger = logging.getLogger(__name__)


def launch(
    script: str | os.PathLike[str],
    arguments: list[str],
    *,
    as_module: bool = False,
    refined_from: str | None = None,
    gradient_norms_file: str | None = None,
    options: RefinementOptions = RefinementOptions(),  # noqa: B008 - a frozen value
) -> None:
    """Run a script as `python SCRIPT ARGUMENTS` would, with `refined` registered and gradient norms recorded.

    Every `Trainer` in the script records, and in the Python processes that it starts. A raw Accelerate loop records if
    `gradient_norms_file` is given, and `Accelerator.load_state` continues the file from the checkpoint. `sys.argv`, `__main__`,
    imports from the script's folder, the exit code and tracebacks are the same as without the launcher. A warning at the end
    says if nothing was recorded, or no schedule was refined although `refined_from` is given.

    A relative path means the same in the whole run, also if the script changes its working directory.

    Args:
        script: the path of the script, or the name of a console script on `PATH`, such as `trl`.
        arguments: the arguments of the script.
        as_module: whether `script` is the name of a module, as for `python -m`.
        refined_from: the run to refine `refined` from, unless the script's own options name one.
        gradient_norms_file: the file for the norms, or its folder, instead of `gradient_norms.jsonl` in a Trainer's
            `output_dir`. A name without a suffix is a folder, which is created.
        options: how to refine; they need `refined_from`.

    Raises:
        ValueError: before the script starts, if it does not exist, `refined_from` cannot be used, or options are given without
            `refined_from`. If the script seems to resume a run, a source that cannot be used is left to the script: a
            resumed run keeps its schedule.
        OSError: before the script starts, if the folder of `gradient_norms_file` cannot be created.
        SystemExit: as the script raises it; with code 1, after the traceback, if the script raises any other exception.
    """
    program = _find_program(os.fspath(script), as_module)
    keywords = options.as_keywords()
    if refined_from is not None:
        refined_from = os.path.expanduser(refined_from)
        if _is_rank_zero() and not _may_resume(arguments):
            _check_source(refined_from, options, _possible_families(arguments))
        os.environ[REFINED_FROM_VARIABLE] = refined_from
        os.environ[FOLDER_VARIABLE] = os.getcwd()
        os.environ[OPTIONS_VARIABLE] = json.dumps(keywords)
    elif keywords:
        raise ValueError(f"{' and '.join(keywords)} need the run to refine from; pass --refined-from with them.")
    norms_file = None if gradient_norms_file is None else norms_path(gradient_norms_file)
    if norms_file is not None and _is_rank_zero():
        norms_file.parent.mkdir(parents=True, exist_ok=True)
    register()
    with tempfile.TemporaryDirectory(prefix="hf_refined_schedule-", ignore_cleanup_errors=True) as notes:
        exit_code = _run(program, arguments, LaunchRecording(norms_file, Path(notes)))
        if not exit_code and _is_rank_zero():
            _warn_of_no_effect({note.name for note in Path(notes).iterdir()}, refined_from)
    if exit_code is not None:
        sys.exit(exit_code)


class _Program(NamedTuple):
    """A program to run.

    Attributes:
        name: the path of a script, or the name of a module.
        file: the file with which its traceback begins.
        is_module: whether it is a module.
    """

    name: str
    file: str
    is_module: bool


def _find_program(name: str, is_module: bool) -> _Program:
    """Find a program and put the folder of its imports on `sys.path`, as Python does."""
    if is_module:
        sys.path[0] = os.getcwd()
        file = _file_of_module(name)
        if file is None:
            raise ValueError(f"There is no module {name!r}; pass -m with the name of a module that can be run.")
        return _Program(name, file, is_module)
    path = name if os.path.isfile(name) else _console_script(name)
    if path is None:
        raise ValueError(
            f"There is no script {name!r}; pass the path of a Python file, the name of a console script, or -m MODULE, "
            "options before it."
        )
    sys.path[0] = str(Path(path).resolve().parent)
    return _Program(path, path, is_module)


def _file_of_module(name: str) -> str | None:
    try:
        specification = find_spec(name)
        if specification is not None and specification.submodule_search_locations is not None:
            specification = find_spec(f"{name}.__main__")
    except (ImportError, ValueError):  # a parent that is missing or no package; a malformed name
        return None
    return None if specification is None else specification.origin


def _console_script(name: str) -> str | None:
    """The path of a command that is written in Python, as package installers create them."""
    path = shutil.which(name) if os.path.basename(name) == name else None
    if path is None:
        return None
    with open(path, "rb") as file:
        beginning = file.readline(1000) + file.readline(1000)  # a long path of the interpreter is in the second line
    return path if beginning.startswith(b"#!") and b"python" in beginning else None


def _run(program: _Program, arguments: list[str], recording: LaunchRecording) -> str | int | None:
    """Run a program to its end and return its exit code."""
    sys.argv = [program.name, *arguments]
    try:
        with recording:
            if program.is_module:
                runpy.run_module(program.name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(program.name, run_name="__main__")
    except SystemExit as error:
        return error.code
    except Exception as error:
        _print_traceback(error, program.file)
        return 1
    return None


def _is_rank_zero() -> bool:
    """Whether this process speaks for all, before any process group exists: torchrun and accelerate set RANK."""
    return os.environ.get("RANK", "0") == "0"


def _may_resume(arguments: list[str]) -> bool:
    """Whether the arguments ask to resume a run, or name an `output_dir` with checkpoints, which a script may resume from."""
    for name, value in _named_values(arguments):
        if name.startswith("--resume") and value.lower() not in ("false", "no", "none", "0"):
            return True
        if name in ("--output_dir", "--output-dir") and os.path.isdir(value) and checkpoint_folders(Path(value)):
            return True
    return False


def _named_values(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Each word with what stands behind its "=", or with the next word."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        yield name, value if equals else "".join(arguments[position + 1 : position + 2])


def _possible_families(arguments: list[str]) -> tuple[OptimizerFamily, ...]:
    """The families of optimizers that the script may train with: Trainer's `--optim` decides, otherwise it is not known."""
    for name, value in _named_values(arguments):
        if name == "--optim":
            return ("sgd",) if value == "sgd" else ("adam",)
    return ("adam", "sgd")


def _check_source(refined_from: str, options: RefinementOptions, families: Sequence[OptimizerFamily]) -> None:
    """Raise the error of a source that cannot be used with any of the families, in the words for the first."""
    errors = []
    for family in families:
        try:
            refine_sources(refined_from, family, options).trainable_schedule(options)
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(errors) == len(families):
        raise errors[0]


def _warn_of_no_effect(events: set[str], refined_from: str | None) -> None:
    """Log one warning if something was asked for and did not happen."""
    missing = []
    if "recording started" not in events and "optimizer prepared" in events:
        missing.append(
            "no gradient norms were recorded, because a raw Accelerate loop has no output_dir: pass --gradient-norms-file FILE "
            "before the script"
        )
    elif "recording started" not in events:
        missing.append(
            "no gradient norms were recorded, because neither a Trainer nor an Accelerate loop trained here: if the program "
            "trains in a child process, launch the script that trains (for several processes: accelerate launch [...] -m "
            "hf_refined_schedule launch SCRIPT), or call hf_refined_schedule.register() in it"
        )
    if refined_from is not None and "refined schedule created" not in events:
        missing.append(
            "--refined-from had no effect, because no schedule 'refined' was created: pass --lr_scheduler_type refined to the "
            "script"
        )
    if missing:
        logger.warning("The run ended, but %s.", "; and ".join(missing))


def _print_traceback(error: BaseException, file: str) -> None:
    """Print a traceback that begins in the program, as Python prints it without the launcher."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename) != Path(file):
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames or error.__traceback__)
