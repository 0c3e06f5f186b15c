"""A refined schedule as a value, and the small JSON file that holds one."""

import json
import os
from pathlib import Path

import numpy as np

from ..norms.sources import SCHEDULE_FORMAT
from .refined_schedule import RefinedSchedule

VERSION = 1


def write_schedule(schedule: RefinedSchedule, path: str | os.PathLike[str]) -> None:
    """Write a schedule as JSON.

    Args:
        schedule: the schedule.
        path: the file, replaced if it is there.
    """
    content = {
        "format": SCHEDULE_FORMAT,
        "version": VERSION,
        "fingerprint": schedule.fingerprint,
        "optimizer": schedule.optimizer,
        "norm": schedule.norm,
        "power": schedule.power,
        "smoothing": schedule.smoothing,
        "rising_norms": schedule.rising_norms,
        "source": schedule.source,
        "best_peak_ratio": schedule.best_peak_ratio,
        "notes": schedule.notes,
        "multipliers": schedule.multipliers.tolist(),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def read_schedule(path: str | os.PathLike[str]) -> RefinedSchedule:
    """Read a schedule file.

    Args:
        path: a file written by `write_schedule`.

    Returns:
        The schedule.

    Raises:
        ValueError: if it is damaged or of a later version.
    """
    damaged = f"{path} is a damaged schedule file; write it again with 'hf-refined-schedule refine'."
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version = content["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(damaged) from None
    if version != VERSION:
        raise ValueError(
            f"{path} has version {str(version)[:40]} of the format, and this package reads version {VERSION}; upgrade "
            "hf-refined-schedule."
        )
    try:
        schedule = RefinedSchedule(
            multipliers=np.array(content["multipliers"], dtype=np.float64),
            optimizer=content["optimizer"],
            norm=content["norm"],
            power=float(content["power"]),
            smoothing=float(content["smoothing"]),
            source=str(content["source"]),
            best_peak_ratio=float(content["best_peak_ratio"]),
            notes=tuple(str(note) for note in content["notes"]),
            rising_norms=content.get("rising_norms", "keep"),
        )
        multipliers = schedule.multipliers
        sound = (
            multipliers.ndim == 1
            and len(multipliers) >= 2
            and ((multipliers >= 0) & (multipliers <= 1)).all()
            and schedule.fingerprint == content["fingerprint"]
            and schedule.optimizer in ("adam", "sgd")
            and schedule.norm in ("l1", "l2")
            and schedule.rising_norms in ("keep", "ignore")
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(damaged)
    return schedule
