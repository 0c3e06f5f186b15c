"""From a path to the gradient norms in it: finds the file, recognises its kind by content, calls its reader."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from ..theory.refinement import NormKind
from .checkpoint_folders import checkpoint_folders
from .columns import NoColumnError, Wanted
from .console_logs import is_console_output, open_console_log
from .csv_tables import open_csv
from .gradient_norms import GradientNorms
from .json_logs import open_json_document, open_json_lines
from .log_rows import RunLog, norms_of_log, wanted_norms
from .message_text import quoted, shown
from .norms_file import FORMAT as NORMS_FORMAT
from .norms_file import NORMS_FILE_NAME, read_norms_file
from .tensorboard_logs import open_tensorboard
from .text_encoding import encoding_of, read_lines

TRAINER_STATE_NAME = "trainer_state.json"

SCHEDULE_FORMAT = "refined_schedule"
"""The format name in a schedule file, which is no source of norms."""

EXPECTED_SOURCE = (
    f"pass a {NORMS_FILE_NAME}, a {TRAINER_STATE_NAME}, a folder with one of them, TensorBoard events, a CSV, JSON Lines or "
    "console log, or a schedule file"
)
"""The end of an error message about a source."""

FileKind = Literal[
    "norms file",
    "schedule file",
    "json document",
    "json lines",
    "tensorboard",
    "table",
    "single column",
    "console output",
    "unknown",
]

BEGINNING = 2**20
"""Bytes of a file from which its kind is recognised. Console output may begin with many lines that hold no norm."""

OPENERS: dict[FileKind, Callable[[Path, Wanted], RunLog]] = {
    "json document": open_json_document,
    "json lines": open_json_lines,
    "tensorboard": open_tensorboard,
    "table": open_csv,
    "console output": open_console_log,
}
"""What opens each kind of log."""


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
        source: a `gradient_norms.jsonl`, a `trainer_state.json`, a TensorBoard event file, a W&B export, any CSV table,
            JSON Lines, or console output; or a folder that holds one of the first three: a run's `output_dir` or a
            checkpoint. In a folder, `gradient_norms.jsonl` is preferred, then the Trainer's state, there or in the newest
            checkpoint.
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
    try:
        path = _resolved(Path(source).expanduser())
    except RuntimeError:  # the home folder of an unknown user
        raise MissingSourceError(
            f"There is no file or folder {quoted(os.fspath(source))}; {EXPECTED_SOURCE}."
        ) from None
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
            f"{shown(path)} is a schedule file, which holds no gradient norms; pass the run that it was made from."
        )
    try:
        return norms_of_log(open_log(file, wanted_norms(column, norm)), column, norm)
    except NoColumnError as error:
        raise ValueError(f"{error}; {_remedy(path, kind)}.") from None


def open_log(file: SourceFile, wanted: Wanted) -> RunLog:
    """Open a log that another tool has written.

    Args:
        file: as `find_source` returned it.
        wanted: the quantity to read from it.

    Returns:
        The log.

    Raises:
        NoColumnError: if the file is no log, or has no such quantity.
        ValueError: if the file is damaged or too large.
    """
    path, kind = file
    if kind == "single column" and (wanted.column is not None or _is_name(next(read_lines(path), ""), wanted)):
        kind = "table"
    if kind not in OPENERS:
        raise NoColumnError(f"{shown(path)} holds no {wanted.plural} that can be read")
    return OPENERS[kind](path, wanted)


def _is_name(first_line: str, wanted: Wanted) -> bool:
    """Whether a line is the name of the quantity and no sentence about it."""
    return len(first_line.split()) == 1 and wanted.names.search(first_line) is not None


def _remedy(path: Path, kind: FileKind) -> str:
    """What to pass instead of a file without norms."""
    for name in (NORMS_FILE_NAME, TRAINER_STATE_NAME):
        if path.name != name and path.with_name(name).is_file():
            return f"pass the {name} beside it, or the folder"
    if kind in ("unknown", "single column", "json document"):
        return EXPECTED_SOURCE
    return f"name one as --column (column), or pass a {NORMS_FILE_NAME} or a {TRAINER_STATE_NAME}"


def begins_schedule_file(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes is a schedule file."""
    return re.search(rf'"format"\s*:\s*"{SCHEDULE_FORMAT}"'.encode(), beginning[:200]) is not None


def _kind_of(beginning: bytes) -> FileKind:
    """The kind of a file that begins with these bytes."""
    if begins_schedule_file(beginning):
        return "schedule file"
    if b"brain.Event" in beginning[:100]:
        return "tensorboard"
    text = beginning.decode(encoding_of(beginning), errors="replace").lstrip()
    first_line, _, rest = text.partition("\n")
    try:
        first_value = json.loads(first_line)
    except (ValueError, RecursionError):
        first_value = None
    if isinstance(first_value, dict) and first_value.get("format") == NORMS_FORMAT:
        return "norms file"
    text = text.rstrip("\0")  # a torn end
    if not text or "\0" in text:
        return "unknown"
    if isinstance(first_value, dict) and rest.strip("\0 \n"):
        return "json lines"
    return "json document" if isinstance(first_value, dict | list) else _kind_of_text(text, first_line)


def _kind_of_text(text: str, first_line: str) -> FileKind:
    """The kind of a text whose first line is no value in JSON."""
    if re.match(r'\{\s*"|\[\s*\{\s*"', text):
        return "json document"
    if is_console_output(text):
        return "console output"
    if text.startswith(("{", "[")):
        return "json document"
    return "table" if any(delimiter in first_line for delimiter in ",;\t") else "single column"


def _resolved(path: Path) -> Path:
    """The file itself, or the file in a folder that holds the norms of a run."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingSourceError(f"There is no file or folder '{shown(path)}'; {EXPECTED_SOURCE}.")
    for candidate in [path / NORMS_FILE_NAME, *logs_in(path)]:
        if candidate.is_file():
            return candidate
    raise MissingSourceError(f"The folder '{shown(path)}' holds no record of a run; {EXPECTED_SOURCE}.")


def logs_in(folder: Path) -> list[Path]:
    """The logs in a folder that another tool than this package has written.

    Args:
        folder: a run's `output_dir` or a checkpoint.

    Returns:
        The Trainer's state, there or in the newest checkpoint, and TensorBoard events, in this order; those that exist.
    """
    states = [folder / TRAINER_STATE_NAME]
    states += [checkpoint / TRAINER_STATE_NAME for checkpoint in checkpoint_folders(folder).values()]
    return [file for file in states + _event_files(folder) if file.is_file()]


def _event_files(folder: Path) -> list[Path]:
    """The event file of the newest TensorBoard log, in the folders where a Trainer puts it; at most one."""
    name = "events.out.tfevents.*"
    patterns = (name, f"*/{name}", f"runs/*/{name}")
    files = [file for pattern in patterns for file in folder.glob(pattern) if file.is_file()]
    if not files:
        return []
    newest = max(files, key=lambda file: file.name)  # the name begins with the time
    # A Trainer writes a second, small file beside it for an evaluation at the end.
    return [max((file for file in files if file.parent == newest.parent), key=lambda file: file.stat().st_size)]
