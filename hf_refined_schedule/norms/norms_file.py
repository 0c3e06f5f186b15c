"""The file of recorded gradient norms, `gradient_norms.jsonl`: its writer, its reader, and what was read.

The first line is the header, a JSON object with the format's name and version, the optimizer, the number of processes,
`max_grad_norm` and the planned number of updates. Then comes one object a line for each optimizer update: `step`
(1-based), `l1`, `l2`, `clip_factor`, `learning_rate`. All norms are null where an update was not taken, `l1` alone where
only L2 is known. There are no timestamps: equal runs give equal files.
"""

import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .gradient_norms import MAX_STEPS, GradientNorms, UnfinishedRunError, is_step_number

NORMS_FILE_NAME = "gradient_norms.jsonl"
FORMAT = "gradient_norms"
VERSION = 1


class NormsFileWriter:
    """Appends updates to a `gradient_norms.jsonl`.

    Args:
        path: the file.
        header: what the first line says, beside format and version.
        start_step: updates already made. 0 begins a new file and moves an old one to `gradient_norms.1.jsonl` (and so
            on); more goes on with the file that is there, cut back to that step, and rewrites its header.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any], start_step: int = 0) -> None:
        self.path = Path(path)
        self.missing_steps = 0
        """Updates before `start_step` that the file should hold and does not."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        if start_step == 0:
            _move_aside(self.path)
        elif self.path.exists():
            kept = _lines_until(self.path, start_step)
        self.missing_steps = start_step - len(kept)
        self._replace(header, kept)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one line for each update.

        Args:
            rows: mappings with `step`, `l1`, `l2`, `clip_factor`, `learning_rate`; None where there is no norm.

        Raises:
            OSError: if they cannot be written, or the file is not there any more, or is another run's by now.
        """
        text = "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows)
        with open(self.path, "a", encoding="utf-8", newline="\n", opener=_open_existing) as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                raise OSError("another run has begun it anew since; give each run a folder of its own")
            file.write(text)

    def rewrite_header(self, header: Mapping[str, Any]) -> None:
        """Replace the first line, as when the number of updates is known only at the end.

        Args:
            header: what the first line says, beside format and version.
        """
        with self.path.open(encoding="utf-8") as file:
            file.readline()
            self._replace(header, file)

    def _replace(self, header: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Write the whole file anew, so that a kill leaves either the old one or the new one."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps({"format": FORMAT, "version": VERSION, **header}, allow_nan=False) + "\n")
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
                self._inode = os.fstat(file.fileno()).st_ino
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def read_norms_file(path: str | os.PathLike[str]) -> GradientNorms:
    """Read a `gradient_norms.jsonl`. A torn last line, as a power loss leaves it, is dropped.

    Args:
        path: the file.

    Returns:
        The norms of the updates that were taken.

    Raises:
        UnfinishedRunError: if it holds no norms yet, or does not say how many updates there were to be.
        ValueError: if it is not such a file, names a version that this package does not know, or is damaged.
    """
    path = Path(path)
    steps, l1, l2 = array("q"), array("d"), array("d")
    num_clip_factors = num_clipped = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        header = parse_header(file.readline(), path)
        for number, line in enumerate(file, start=2):
            if not line.endswith("\n"):
                break
            row = _parse_row(line, number, path)
            if row["l2"] is None:
                continue
            steps.append(row["step"])
            l1.append(math.nan if row["l1"] is None else row["l1"])
            l2.append(row["l2"])
            clip_factor = row.get("clip_factor")
            if type(clip_factor) in (int, float):
                num_clip_factors += 1
                num_clipped += clip_factor < 1
    if not steps:
        raise UnfinishedRunError(f"{path} holds no gradient norms yet; pass the file of a run that made some updates.")
    if header.get("num_training_steps") is None:
        raise UnfinishedRunError(
            f"{path} is of a run that did not end and had not said how many updates it would make; write that number as "
            "num_training_steps into its first line."
        )
    return GradientNorms(
        steps=np.array(steps),
        l1=None if np.isnan(l1).any() else np.array(l1),
        l2=np.array(l2),
        num_training_steps=header.get("num_training_steps"),
        optimizer=header.get("optimizer_family"),
        source=str(path),
        origin="a recorded file",
        clipped_share=num_clipped / num_clip_factors if num_clip_factors else None,
    )


def parse_header(line: str, path: Path) -> dict[str, Any]:
    """The header of a norms file.

    Args:
        line: the file's first line.
        path: the file, for the message.

    Returns:
        The header's fields.

    Raises:
        ValueError: if the line is something else.
    """
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a {NORMS_FILE_NAME}; pass the file that a recorded run left in its output_dir."
        )
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {header.get('version')!r} of the format, and this package reads version {VERSION}; "
            "upgrade hf-refined-schedule."
        )
    planned = header.get("num_training_steps")
    if planned is not None and not is_step_number(planned):
        raise ValueError(
            f"{path}: num_training_steps is {planned!r:.40}, but must be an integer from 1 to {MAX_STEPS}; mend the header."
        )
    if header.get("optimizer_family") not in ("adam", "sgd", None):
        raise ValueError(
            f'{path}: optimizer_family is {header["optimizer_family"]!r}, but must be "adam" or "sgd"; mend the header.'
        )
    return header


def _parse_row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
        valid = is_step_number(row["step"]) and _is_norm(row["l1"]) and _is_norm(row["l2"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(f"{path} is damaged at line {number}; cut it there or take the norms of another run.")
    return row


def _is_norm(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= float(value) < math.inf)


def _lines_until(path: Path, last_step: int) -> list[str]:
    """The lines of the updates up to `last_step`, without a torn last line."""
    with path.open(encoding="utf-8", errors="replace") as file:
        parse_header(file.readline(), path)
        lines = []
        for number, line in enumerate(file, start=2):
            if not line.endswith("\n") or _parse_row(line, number, path)["step"] > last_step:
                break
            lines.append(line)
    return lines


def _open_existing(path: str, flags: int) -> int:
    """A file that was moved away since it was begun must not begin anew without its header."""
    return os.open(path, flags & ~os.O_CREAT)


def _move_aside(path: Path) -> None:
    if not path.exists():
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    number = 1
    while (aside := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)
