"""The small JSON file that holds a refined schedule: its writer and its reader."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..norms.message_text import shown
from ..norms.sources import SCHEDULE_FORMAT
from ..norms.text_encoding import replace_file
from .refined_schedule import RefinedSchedule

VERSION = 1

MAX_SOURCE = 5_000
"""Characters of a source that are read from a file: the longest path has 4,096."""

MAX_NOTE = 300
"""Characters of a note that are read from a file."""


def write_schedule(schedule: RefinedSchedule, path: str | os.PathLike[str]) -> None:
    """Write a schedule as JSON. An interrupted write leaves an existing file as it was.

    Args:
        schedule: the schedule.
        path: the file; an existing one is replaced.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": SCHEDULE_FORMAT, "version": VERSION, **schedule_fields(schedule)}
    content["multipliers"] = schedule.grid.tolist()
    if path.exists() and not path.is_file():  # a device such as /dev/stdout is written, not replaced
        path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
        return
    with replace_file(path) as file:
        file.write(json.dumps(content, allow_nan=False) + "\n")


def schedule_fields(schedule: RefinedSchedule) -> dict[str, Any]:
    """All of a schedule but its grid and its norms, as JSON values.

    Args:
        schedule: the schedule.

    Returns:
        JSON values by name; the fingerprint is that of the grid.
    """
    return {
        "fingerprint": schedule.fingerprint,
        "optimizer": schedule.optimizer,
        "norm": schedule.norm,
        "power": schedule.power,
        "smoothing": schedule.smoothing,
        "rising_norms": schedule.rising_norms,
        "source": schedule.source,
        "best_peak_ratio": schedule.best_peak_ratio,
        "notes": list(schedule.notes),
    }


def schedule_from_fields(fields: dict[str, Any], grid: Any) -> RefinedSchedule:
    """A schedule from what `schedule_fields` returned and its grid.

    Args:
        fields: JSON values by name.
        grid: multipliers at progress t / T for t = 0 .. T.

    Returns:
        The schedule.

    Raises:
        ValueError: if this is not what `schedule_fields` can have returned for this grid.
    """
    try:
        schedule = RefinedSchedule(
            grid=np.array(grid, dtype=np.float64),
            optimizer=fields["optimizer"],
            norm=fields["norm"],
            power=float(fields["power"]),
            smoothing=float(fields["smoothing"]),
            source=shown(fields["source"], MAX_SOURCE),
            best_peak_ratio=float(fields["best_peak_ratio"]),
            notes=tuple(shown(note, MAX_NOTE) for note in fields["notes"]),
            rising_norms=fields.get("rising_norms", "keep"),
        )
        valid = _is_valid(schedule) and schedule.fingerprint == fields["fingerprint"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        valid = False
    if not valid:
        raise ValueError("The fields of the schedule are damaged; refine it again.")
    return schedule


def _is_valid(schedule: RefinedSchedule) -> bool:
    grid = schedule.grid
    return bool(
        grid.ndim == 1
        and len(grid) >= 2
        and ((grid >= 0) & (grid <= 1)).all()
        and grid.max() == 1
        and np.isfinite(schedule.best_peak_ratio)
        and np.isfinite(schedule.power)
        and schedule.power < 0
        and 0 <= schedule.smoothing <= 1
        and schedule.optimizer in ("adam", "sgd")
        and schedule.norm in ("l1", "l2")
        and schedule.rising_norms in ("keep", "ignore")
    )


def read_schedule(path: str | os.PathLike[str]) -> RefinedSchedule:
    """Read a schedule file.

    Args:
        path: a file written by `write_schedule`.

    Returns:
        The schedule.

    Raises:
        ValueError: if the file is damaged or of a later version.
    """
    damaged = f"{path} is a damaged schedule file; write it again with 'hf-refined-schedule refine'."
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version, multipliers = content["version"], content.get("multipliers")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(damaged) from None
    if version != VERSION:
        raise ValueError(
            f"{path} has version {str(version)[:40]} of the format, and this package reads version {VERSION}; upgrade "
            "hf-refined-schedule."
        )
    try:
        return schedule_from_fields(content, multipliers)
    except ValueError:
        raise ValueError(damaged) from None
