"""The file of recorded gradient norms, `gradient_norms.jsonl`: its writer and its reader.

The first line is the header: a JSON object with the name and the version of the format, the optimizer, the number of
processes, `max_grad_norm` and the planned number of updates. Each further line is a JSON object for one optimizer update:
`step` (1-based), `l1`, `l2`, `clip_factor`, `learning_rate`. The norms are null where an update was not taken, and `l1`
alone is null where only L2 is known. There are no timestamps, so equal runs write equal files.
"""

import json
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .folder_lock import lock_folder
from .gradient_norms import GradientNorms, UnfinishedRunError
from .message_text import quoted, shown
from .size_limits import MAX_STEPS, is_step_number
from .text_encoding import read_lines, replace_file

NORMS_FILE_NAME = "gradient_norms.jsonl"
FORMAT = "gradient_norms"
VERSION = 1

SAME_MOMENT = "another run begins there at the same moment; give each run a folder of its own"


class NormsFileWriter:
    """Appends updates to a `gradient_norms.jsonl`.

    Args:
        path: the file.
        header: the fields of the first line, beside format and version.
        start_step: the number of updates already made. With 0, a new file begins, and an existing one is renamed to
            `gradient_norms.1.jsonl` (or `.2`, and so on). Otherwise the existing file is cut back to that update, its
            header is rewritten, and the run continues in it.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any], start_step: int = 0) -> None:
        self.path = Path(path)
        self.missing_steps = 0
        """Updates before `start_step` that the file lacks."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.path.parent):
            if start_step == 0:
                _move_aside(self.path)
                self._create(header)
            else:
                kept = _lines_until(self.path, start_step)
                self.missing_steps = start_step - len(kept)
                self._replace(header, kept)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one line for each update.

        Args:
            rows: mappings with `step`, `l1`, `l2`, `clip_factor`, `learning_rate`; None where there is no norm.

        Raises:
            OSError: if the rows cannot be written, the file was removed, or another run has replaced it.
        """
        text = "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows)
        with (
            lock_folder(self.path.parent),
            open(self.path, "a", encoding="utf-8", newline="\n", opener=_open_existing) as file,
        ):
            self._raise_if_replaced(file)
            file.write(text)
            self._note_identity(file)

    def rewrite_header(self, header: Mapping[str, Any]) -> None:
        """Replace the first line, for example when the number of updates becomes known at the end.

        Args:
            header: the fields of the first line, beside format and version.

        Raises:
            OSError: as `append`.
        """
        with lock_folder(self.path.parent):
            with self.path.open(encoding="utf-8") as file:
                self._raise_if_replaced(file)
                _, *rows = file.readlines()
            self._replace(header, rows)  # Windows replaces no open file

    def _create(self, header: Mapping[str, Any]) -> None:
        """Create the file, and never on top of one that another run has created since the old one was moved aside."""
        line = _header_line(header)
        try:
            with self.path.open("x", encoding="utf-8", newline="\n") as file:
                file.write(line)
                self._note_identity(file)
        except FileExistsError:
            raise FileExistsError(SAME_MOMENT) from None
        except OSError:  # a full disk
            self.path.unlink(missing_ok=True)
            raise

    def _replace(self, header: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Replace the whole file, so that a kill leaves either the old one or the new one."""
        with replace_file(self.path) as file:
            file.write(_header_line(header))
            file.writelines(lines)
            self._note_identity(file)

    def _note_identity(self, file: IO[str]) -> None:
        """Remember what this writer has left, with the size, because a new file may get the number of a removed one."""
        file.flush()
        status = os.fstat(file.fileno())
        self._identity = status.st_ino, status.st_size

    def _raise_if_replaced(self, file: IO[str]) -> None:
        status = os.fstat(file.fileno())
        if (status.st_ino, status.st_size) != self._identity:
            raise OSError("another run has begun it anew since; give each run a folder of its own")


def read_norms_file(path: str | os.PathLike[str]) -> GradientNorms:
    """Read a `gradient_norms.jsonl`. A torn end, as a power loss leaves it, is dropped.

    Args:
        path: the file.

    Returns:
        The norms of the updates that were taken. `finished` is False for a run that ended before it knew how many updates
        it would make.

    Raises:
        UnfinishedRunError: if the file holds no norms yet.
        ValueError: if it is another kind of file, has a version that this package does not know, or is damaged.
    """
    path = Path(path)
    steps, l1, l2 = array("q"), array("d"), array("d")
    num_clip_factors = num_clipped = 0
    lines = read_lines(path)
    header = parse_header(next(lines, ""), path)
    for _, row in _rows(lines, path):
        if row["l2"] is None:
            continue
        steps.append(row["step"])
        l1.append(math.nan if row["l1"] is None else row["l1"])
        l2.append(row["l2"])
        clip_factor = row.get("clip_factor")
        if clip_factor is not None and type(clip_factor) in (int, float):
            num_clip_factors += 1
            num_clipped += clip_factor < 1
    if not steps:
        raise UnfinishedRunError(
            f"{shown(path)} holds no gradient norms yet; pass the file of a run that made some updates."
        )
    planned = header.get("num_training_steps")
    return GradientNorms(
        steps=np.array(steps),
        l1=None if np.isnan(l1).any() else np.array(l1),
        l2=np.array(l2),
        num_training_steps=planned,
        optimizer=header.get("optimizer_family"),
        source=str(path),
        origin="a recorded file",
        clipped_share=num_clipped / num_clip_factors if num_clip_factors else None,
        finished=False if planned is None else None,
        max_grad_norm=clipping_limit(header),
    )


def clipping_limit(header: Mapping[str, Any]) -> float | None:
    """The L2 norm to which the run of a norms file clipped its gradients.

    Args:
        header: of `parse_header`.

    Returns:
        `max_grad_norm`, or None if it is not a number of at least 0.
    """
    limit = header.get("max_grad_norm")
    return limit if _is_norm(limit) else None


def read_learning_rates(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Read the learning rates of a `gradient_norms.jsonl`.

    Args:
        path: the file.

    Returns:
        The rate of each update from the first, up to the first update that the file lacks or that has none, shape (n,).

    Raises:
        ValueError: as `read_norms_file`.
    """
    path = Path(path)
    rates = array("d")
    lines = read_lines(path)
    parse_header(next(lines, ""), path)
    for _, row in _rows(lines, path):
        rate = row.get("learning_rate")
        if row["step"] != len(rates) + 1 or not _is_norm(rate) or rate is None:
            break
        rates.append(rate)
    return np.array(rates)


def parse_header(line: str, path: Path) -> dict[str, Any]:
    """Parse and validate the header of a norms file.

    Args:
        line: the first line of the file.
        path: the file, for the message.

    Returns:
        The header's fields.

    Raises:
        ValueError: if the line is no header, or one of its fields is invalid.
    """
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{shown(path)} is not a {NORMS_FILE_NAME}; pass the file that a recorded run left in its output_dir."
        )
    if header.get("version") != VERSION:
        raise ValueError(
            f"{shown(path)} has version {quoted(header.get('version'))} of the format, and this package reads version "
            f"{VERSION}; upgrade hf-refined-schedule."
        )
    planned = header.get("num_training_steps")
    if planned is not None and not is_step_number(planned):
        raise ValueError(
            f"{shown(path)}: num_training_steps is {quoted(planned)}, but must be an integer from 1 to {MAX_STEPS:,}; "
            "correct the header."
        )
    if header.get("optimizer_family") not in ("adam", "sgd", None):
        raise ValueError(
            f"{shown(path)}: optimizer_family is {quoted(header['optimizer_family'])}, but must be "
            '"adam" or "sgd"; correct the header.'
        )
    return header


def _rows(lines: Iterable[str], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line after the header, with the row in it, up to a torn end: half a line, or null bytes."""
    null_line = 0
    for number, line in enumerate(lines, start=2):
        if null_line:  # null bytes are an end only if nothing follows
            raise _damage(path, null_line)
        if not line.endswith("\n"):
            return
        if line[0] == "\0" and not line.strip("\0\n"):
            null_line = number
            continue
        yield line, _parse_row(line, number, path)


def _parse_row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
        valid = is_step_number(row["step"]) and _is_norm(row["l1"]) and _is_norm(row["l2"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        valid = False
    if not valid:
        raise _damage(path, number)
    return row


def _damage(path: Path, number: int) -> ValueError:
    return ValueError(f"{shown(path)} is damaged at line {number}; cut it there or take the norms of another run.")


def _is_norm(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= float(value) < math.inf)


def _header_line(header: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "version": VERSION, **header}, allow_nan=False) + "\n"


def _lines_until(path: Path, last_step: int) -> list[str]:
    """The lines of the updates up to `last_step`, without a torn end. A kill as the file is created leaves it empty."""
    if not path.exists() or not path.stat().st_size:
        return []
    lines = read_lines(path)
    parse_header(next(lines, ""), path)
    kept = []
    for line, row in _rows(lines, path):
        if row["step"] > last_step:
            break
        kept.append(line)
    return kept


def _open_existing(path: str, flags: int) -> int:
    """Open without creating: if the file was moved away, no new one without a header may begin."""
    return os.open(path, flags & ~os.O_CREAT)


def _move_aside(path: Path) -> None:
    """Rename an existing file to a name that is free, also while another run begins in the same folder."""
    if not path.exists():
        return
    if path.is_dir():
        raise IsADirectoryError(f"{shown(path)} is a folder; name a file in it")
    aside = _reserved(path)
    try:
        path.replace(aside)
    except FileNotFoundError:
        aside.unlink()
        raise FileNotFoundError(SAME_MOMENT) from None


def _reserved(path: Path) -> Path:
    """A new, empty file beside `path` under the first free number. Two runs never get the same one."""
    number = 1
    while True:
        aside = path.with_name(f"{path.stem}.{number}{path.suffix}")
        try:
            aside.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return aside
