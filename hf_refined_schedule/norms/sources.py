"""Gradient norms from any run that exists: found, recognised by content, and checked."""

import json
import os
import re
from pathlib import Path

from ..theory.refinement import NormKind
from .checkpoint_folders import checkpoint_folders
from .gradient_norms import GradientNorms
from .norms_file import FORMAT, NORMS_FILE_NAME, read_norms_file
from .run_logs import read_csv, read_json_lines, read_tensorboard, read_trainer_state

TRAINER_STATE_NAME = "trainer_state.json"

WHAT_TO_PASS = (
    f"pass a {NORMS_FILE_NAME} or the output_dir that holds one, a {TRAINER_STATE_NAME} or the checkpoint that holds "
    "one, TensorBoard events, a CSV or JSON Lines log, or a schedule file written by 'hf-refined-schedule refine'"
)


SCHEDULE_FORMAT = "refined_schedule"


class MissingSourceError(FileNotFoundError, ValueError):
    """There is nothing at the path of a source, or nothing that could be one."""


def load_norms(
    source: str | os.PathLike[str], *, column: str | None = None, norm: NormKind | None = None
) -> GradientNorms:
    """The gradient norms of an existing run. What kind of record it is is found from its content.

    Args:
        source: a `gradient_norms.jsonl`, a `trainer_state.json`, a TensorBoard event file, a W&B export, any CSV table or
            JSON Lines; or a folder that holds one of the first three: a run's `output_dir` or a checkpoint. In a folder the
            first is preferred, then the Trainer's state, there or in the newest checkpoint.
        column: the name of the norm in a log, where it is not `grad_norm` or the like.
        norm: whether that is the L1 or the L2 norm, where its name does not say.

    Returns:
        The norms, with what the source says about the run.

    Raises:
        MissingSourceError: if there is nothing at `source`.
        ValueError: if what is there holds no norms.
    """
    path = find_source_file(source)
    if is_schedule_file(path):
        raise ValueError(
            f"{path} is a schedule file, which holds no gradient norms; pass the run that it was made from."
        )
    with open(path, "rb") as file:
        beginning = file.read(2**16)
    if b"brain.Event" in beginning[:100]:
        return read_tensorboard(path, column, norm)
    unreadable = f"{path} holds no gradient norms that can be read; {WHAT_TO_PASS}."
    text = beginning.decode("utf-8-sig", errors="replace").lstrip()
    if not text or "\0" in text:
        raise ValueError(unreadable)
    try:
        first_line = json.loads(text.split("\n", 1)[0])
    except (ValueError, RecursionError):
        first_line = None
    if isinstance(first_line, dict) and first_line.get("format") == FORMAT:
        return read_norms_file(path)
    if isinstance(first_line, dict) and "log_history" not in first_line:
        return read_json_lines(path, column, norm)
    if text.startswith(("{", "[")):
        return read_trainer_state(path, column, norm)
    if column is None and not any(delimiter in text.split("\n", 1)[0] for delimiter in ",;\t"):
        raise ValueError(unreadable)
    return read_csv(path, column, norm)


def find_source_file(source: str | os.PathLike[str]) -> Path:
    """The file that a source means.

    Args:
        source: a file, or a folder as `load_norms` takes it.

    Returns:
        The path of a file.

    Raises:
        MissingSourceError: if nothing is there, or the folder holds no file of norms.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingSourceError(f"There is no file or folder {str(source)!r}; {WHAT_TO_PASS}.")
    candidates = [path / NORMS_FILE_NAME, path / TRAINER_STATE_NAME]
    candidates += [checkpoint / TRAINER_STATE_NAME for checkpoint in checkpoint_folders(path).values()]
    candidates += _event_files(path)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MissingSourceError(
        f"The folder {str(source)!r} holds neither {NORMS_FILE_NAME} nor {TRAINER_STATE_NAME}; {WHAT_TO_PASS}."
    )


def _event_files(folder: Path) -> list[Path]:
    """The event file of the newest TensorBoard log in a run's folder, where a Trainer puts it, if there is one."""
    name = "events.out.tfevents.*"
    files = [file for pattern in (name, f"*/{name}", f"runs/*/{name}") for file in folder.glob(pattern)]
    if not files:
        return []
    newest = max(files, key=lambda file: file.name)  # which begins with the time
    # A Trainer writes a second, small file beside it for an evaluation at the end.
    return [max((file for file in files if file.parent == newest.parent), key=lambda file: file.stat().st_size)]


def is_schedule_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as `write_schedule` writes it.

    Args:
        path: a file that exists.

    Returns:
        True if it does.
    """
    with open(path, "rb") as file:
        return re.search(rf'"format"\s*:\s*"{SCHEDULE_FORMAT}"'.encode(), file.read(200)) is not None
