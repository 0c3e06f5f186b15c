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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .refinement import NormKind

NORMS_FILE_NAME = "gradient_norms.jsonl"
FORMAT = "gradient_norms"
VERSION = 1

MAX_STEPS = 5 * 10**7
"""More updates than any run has made; a file that claims more is damaged, and would fill the memory."""


class UnfinishedRunError(ValueError):
    """The norms cover too little of the run that they were planned for."""


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """The gradient norms of one run, before clipping; updates that were not taken are left out.

    Args:
        steps: optimizer updates that have a norm, 1-based, increasing, shape (n,).
        l1: L1 norm of the whole gradient at each of them, shape (n,), or None where it is not known.
        l2: L2 norm likewise.
        num_training_steps: T, the updates that the run was planned for; None if the source does not say.
        optimizer: `"adam"` for coordinate-wise steps, `"sgd"`, or None if the source does not say.
        source: where the norms come from, for messages.
        num_not_finite: entries of a log that were left out because their norm is NaN or infinite.
        origin: what kind of record they come from, for messages.
        clipped_share: the share of the updates whose gradient was clipped, None if the source does not say.

    Raises:
        ValueError: if the arrays do not fit together.
    """

    steps: NDArray[np.int64]
    l1: NDArray[np.float64] | None = None
    l2: NDArray[np.float64] | None = None
    num_training_steps: int | None = None
    optimizer: str | None = None
    source: str = "norms in memory"
    num_not_finite: int = 0
    origin: str = "norms in memory"
    clipped_share: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", np.asarray(self.steps, dtype=np.int64))
        if self.l1 is None and self.l2 is None:
            raise ValueError(f"{self.source} holds neither L1 nor L2 norms; record a run with GradientNormCallback.")
        for kind in ("l1", "l2"):
            values = getattr(self, kind)
            if values is None:
                continue
            values = np.asarray(values, dtype=np.float64)
            if values.shape != self.steps.shape:
                raise ValueError(
                    f"{self.source}: {kind} has shape {values.shape}, steps {self.steps.shape}; match them."
                )
            object.__setattr__(self, kind, values)
        if self.steps.ndim != 1 or len(self.steps) == 0:
            raise ValueError(f"{self.source} holds no gradient norms; record a run with GradientNormCallback.")
        if self.steps[0] < 1 or np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"{self.source}: steps must be 1-based and increasing; sort them and leave out repeats.")

    @property
    def total_steps(self) -> int:
        """T: the planned number of updates, or the last update where the source does not say."""
        return self.num_training_steps or int(self.steps[-1])

    @property
    def description(self) -> str:
        """What was found, in one line: kind, how many norms, how often, which, how many bad, how much of the run."""
        kinds = " and ".join(kind.upper() for kind in ("l1", "l2") if getattr(self, kind) is not None)
        every = round(float(np.median(np.diff(self.steps)))) if len(self.steps) > 1 else 1
        words = [
            f"{self.source} ({self.origin}): {len(self.steps)} {kinds} norms",
            "of every update" if every == 1 else f"one every {every} updates",
            f"to update {self.steps[-1]} of {self.total_steps}",
        ]
        words += [f"{self.num_not_finite} not finite"] if self.num_not_finite else []
        return ", ".join(words)

    def at_every_step(self, kind: NormKind) -> NDArray[np.float64]:
        """One norm for each update up to the last known one, interpolated where there is none.

        Args:
            kind: which norm.

        Returns:
            Norms at steps 1, 2, .. steps[-1], shape (steps[-1],).
        """
        values = getattr(self, kind)
        return np.interp(np.arange(1, self.steps[-1] + 1), self.steps, values)


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


def is_step_number(value: Any) -> bool:
    """Whether a value read from a file can be the number of an optimizer update.

    Args:
        value: anything.

    Returns:
        True for an integer from 1 to `MAX_STEPS`.
    """
    return type(value) is int and 0 < value <= MAX_STEPS


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
