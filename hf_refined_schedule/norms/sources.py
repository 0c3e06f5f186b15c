"""From a path to the gradient norms in it: finds the file, recognises its kind by content, calls its reader."""

import json
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from ..theory.refinement import NormKind
from .gradient_norms import GradientNorms
from .norms_file import FORMAT as NORMS_FORMAT
from .norms_file import NORMS_FILE_NAME, read_norms_file
from .run_logs import read_csv, read_json_lines, read_tensorboard, read_trainer_state

TRAINER_STATE_NAME = "trainer_state.json"

SCHEDULE_FORMAT = "refined_schedule"
"""The format name in a schedule file, which is no source of norms."""

EXPECTED_SOURCE = (
    f"pass a {NORMS_FILE_NAME} or the output_dir that holds one, a {TRAINER_STATE_NAME} or the checkpoint that holds "
    "one, TensorBoard events, a CSV or JSON Lines log, or a schedule file written by 'hf-refined-schedule refine'"
)
"""The end of an error message about a source."""

FileKind = Literal[
    "norms file", "schedule file", "trainer state", "tensorboard", "json lines", "table", "single column", "unknown"
]

BEGINNING = 2**16
"""Bytes of a file from which its kind is recognised."""


class MissingSourceError(FileNotFoundError, ValueError):
    """Nothing exists at the path of a source, or the folder there holds no source."""


class SourceFile(NamedTuple):
    """A file that a source refers to, and its kind."""

    path: Path
    kind: FileKind


def load_norms(
    source: str | os.PathLike[str], *, column: str | None = None, norm: NormKind | None = None
) -> GradientNorms:
    """Load the gradient norms of an existing run; the kind of record is recognised by its content.

    Args:
        source: a `gradient_norms.jsonl`, a `trainer_state.json`, a TensorBoard event file, a W&B export, any CSV table or
            JSON Lines; or a folder that holds one of the first three: a run's `output_dir` or a checkpoint. In a folder,
            `gradient_norms.jsonl` is preferred, then the Trainer's state, there or in the newest checkpoint.
        column: the name of the norm in a log, where it is not `grad_norm` or similar.
        norm: whether that is the L1 or the L2 norm, where its name does not say.

    Returns:
        The norms, with what the source says about the run.

    Raises:
        MissingSourceError: if nothing exists at `source`.
        ValueError: if the file holds no norms.
    """
    return read_norms(find_source(source), column=column, norm=norm)


def find_source(source: str | os.PathLike[str]) -> SourceFile:
    """Resolve a path to a file and recognise its kind.

    Args:
        source: a file or a folder, as `load_norms` takes it.

    Returns:
        The file.

    Raises:
        MissingSourceError: if nothing exists at the path, or the folder holds no source.
    """
    path = _resolved(Path(source).expanduser())
    with path.open("rb") as file:
        return SourceFile(path, _kind_of(file.read(BEGINNING)))


def read_norms(file: SourceFile, *, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Read the norms of a file with the reader for its kind.

    Args:
        file: as `find_source` returned it.
        column: as in `load_norms`.
        norm: as in `load_norms`.

    Returns:
        As `load_norms`.

    Raises:
        ValueError: as `load_norms`.
    """
    path, kind = file
    if kind == "norms file":
        return read_norms_file(path)
    if kind == "schedule file":
        raise ValueError(
            f"{path} is a schedule file, which holds no gradient norms; pass the run that it was made from."
        )
    if kind == "tensorboard":
        return read_tensorboard(path, column, norm)
    if kind == "json lines":
        return read_json_lines(path, column, norm)
    if kind == "trainer state":
        return read_trainer_state(path, column, norm)
    if kind == "table" or (kind == "single column" and column is not None):
        return read_csv(path, column, norm)
    raise ValueError(f"{path} holds no gradient norms that can be read; {EXPECTED_SOURCE}.")


def _kind_of(beginning: bytes) -> FileKind:
    """The kind of a file that begins with these bytes."""
    if re.search(rf'"format"\s*:\s*"{SCHEDULE_FORMAT}"'.encode(), beginning[:200]):
        return "schedule file"
    if b"brain.Event" in beginning[:100]:
        return "tensorboard"
    text = beginning.decode("utf-8-sig", errors="replace").lstrip()
    if not text or "\0" in text:
        return "unknown"
    first_line = text.split("\n", 1)[0]
    try:
        first_value = json.loads(first_line)
    except (ValueError, RecursionError):
        first_value = None
    if isinstance(first_value, dict) and first_value.get("format") == NORMS_FORMAT:
        return "norms file"
    if isinstance(first_value, dict) and "log_history" not in first_value:
        return "json lines"
    if text.startswith(("{", "[")):
        return "trainer state"
    return "table" if any(delimiter in first_line for delimiter in ",;\t") else "single column"


def _resolved(path: Path) -> Path:
    """The file itself, or the file in a folder that holds the norms of a run."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingSourceError(f"There is no file or folder {str(path)!r}; {EXPECTED_SOURCE}.")
    checkpoints = [entry for entry in path.iterdir() if re.fullmatch(r"checkpoint-\d+", entry.name)]
    checkpoints.sort(key=lambda entry: int(entry.name.split("-")[1]), reverse=True)
    candidates = [path / NORMS_FILE_NAME, path / TRAINER_STATE_NAME]
    candidates += [checkpoint / TRAINER_STATE_NAME for checkpoint in checkpoints]
    candidates += _event_files(path)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MissingSourceError(
        f"The folder {str(path)!r} holds neither {NORMS_FILE_NAME} nor {TRAINER_STATE_NAME}; {EXPECTED_SOURCE}."
    )


def _event_files(folder: Path) -> list[Path]:
    """The event file of the newest TensorBoard log, in the folders where a Trainer puts it; at most one."""
    name = "events.out.tfevents.*"
    files = [file for pattern in (name, f"*/{name}", f"runs/*/{name}") for file in folder.glob(pattern)]
    if not files:
        return []
    newest = max(files, key=lambda file: file.name)  # the name begins with the time
    # A Trainer writes a second, small file beside it for an evaluation at the end.
    return [max((file for file in files if file.parent == newest.parent), key=lambda file: file.stat().st_size)]
