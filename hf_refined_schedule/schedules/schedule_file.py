"""The small JSON file that holds a refined schedule: its writer and its reader."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..norms.message_text import shown
from ..norms.sources import SCHEDULE_FORMAT, find_source
from ..norms.text_encoding import replace_file
from ..theory.refinement import checked_limit
from .refined_schedule import Extension, RefinedSchedule, Weights

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
        JSON values by name; the fingerprint is that of the grid. Only a schedule that was made from norms has `norm` and the
        other fields of its weights, only one that extends a run has `extension`.
    """
    return {
        "fingerprint": schedule.fingerprint,
        "source": schedule.source,
        "notes": list(schedule.notes),
        **({} if schedule.weights is None else schedule.weights._asdict()),
        **({} if schedule.extension is None else {"extension": schedule.extension._asdict()}),
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
            source=shown(fields["source"], MAX_SOURCE),
            weights=_weights(fields) if any(name in fields for name in Weights._fields) else None,
            notes=tuple(shown(note, MAX_NOTE) for note in fields["notes"]),
            extension=Extension(**fields["extension"]) if "extension" in fields else None,
        )
        valid = _is_valid(schedule) and schedule.fingerprint == fields["fingerprint"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        valid = False
    if not valid:
        raise ValueError("The fields of the schedule are damaged; refine it again.")
    return schedule


def _weights(fields: dict[str, Any]) -> Weights:
    return Weights(
        optimizer=fields["optimizer"],
        norm=fields["norm"],
        power=float(fields["power"]),
        smoothing=float(fields["smoothing"]),
        best_peak_ratio=float(fields["best_peak_ratio"]),
        rising_norms=fields.get("rising_norms", "keep"),
        max_grad_norm=fields.get("max_grad_norm"),
        bounded_warmup=fields.get("bounded_warmup", False),
    )


def _is_valid(schedule: RefinedSchedule) -> bool:
    grid, weights, extension = schedule.grid, schedule.weights, schedule.extension
    return bool(
        grid.ndim == 1
        and len(grid) >= 2
        and np.isfinite(grid).all()
        and (grid >= 0).all()
        and (grid.max() == 1 if extension is None else grid.max() > 0)
        and (weights is None or _are_valid(weights))
        and (extension is None or _fits(extension, grid))
    )


def _are_valid(weights: Weights) -> bool:
    return bool(
        np.isfinite(weights.best_peak_ratio)
        and np.isfinite(weights.power)
        and weights.power < 0
        and 0 <= weights.smoothing <= 1
        and weights.optimizer in ("adam", "sgd")
        and weights.norm in ("l1", "l2")
        and weights.rising_norms in ("keep", "ignore")
        and isinstance(weights.bounded_warmup, bool)
        and (weights.max_grad_norm is None or checked_limit(weights.max_grad_norm) > 0)
    )


def _fits(extension: Extension, grid: NDArray[np.float64]) -> bool:
    start_step, total, learning_rate = extension
    return bool(
        type(start_step) is int
        and type(total) is int
        and 0 <= start_step < total == len(grid) - 1
        and type(learning_rate) in (int, float)
        and 0 < learning_rate < np.inf
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


def read_whole_schedule(path: str | os.PathLike[str]) -> RefinedSchedule:
    """Read a schedule file that is to be compared with schedules of whole runs.

    Args:
        path: a file written by `write_schedule`.

    Returns:
        The schedule.

    Raises:
        ValueError: as `find_source` and `read_schedule`, and if the file is no schedule file or extends a run.
    """
    source = find_source(path)
    if source.kind != "schedule file":
        raise ValueError(f"{shown(path)} is no schedule file; write one with 'hf-refined-schedule refine'.")
    schedule = read_schedule(source.path)
    if schedule.extension is not None:
        raise ValueError(
            f"{shown(path)} extends a run from its checkpoint and cannot be compared with schedules of whole runs; "
            "'hf-refined-schedule extend' itself says what is predicted."
        )
    return schedule
