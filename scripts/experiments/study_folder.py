"""The files in the folder of a study. The report is made from them alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .json_file import read_json, write_json

RESULTS_FILE = "results.jsonl"
"""A row for each finished cell."""

PROVENANCE_FILE = "grid.json"
"""How the results were made."""

SCHEDULES_FILE = "schedules.json"
"""Multipliers at even progress from 0 to 1, by regime and schedule."""

BASELINE_FILE = "baseline.jsonl"
"""The norms of the run that the refined schedules are made from."""

FORECASTS_FILE = "forecasts.json"
"""What `check` and the bound said about each baseline before the test seeds ran."""

SETTING_FILE = "setting.json"
"""The model, the data and the optimizer of a study, for its report."""

NOTES_FILE = "notes.md"
"""What the setting does not say, written by hand; it is optional."""

LOCK_FILE = ".lock"
"""Locked by the process that runs the study, and free when that process ends or is killed."""


def report_file(folder: Path) -> Path:
    """The report of a study or a suite: beside its folder, with the name of the folder."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.md")


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other processes from running a study in the same folder: they would train the same cells a second time.

    Args:
        folder: the folder of the study, which is made where it is missing.

    Raises:
        ValueError: if another process runs a study there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is running in {folder}; wait until it ends, or give another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def differing_names(kept: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    """The names whose values differ, or that only one of two records has."""
    return [name for name in dict.fromkeys([*kept, *given]) if kept.get(name) != given.get(name)]


def keep_setting(folder: Path, setting: Mapping[str, object]) -> None:
    """Write setting.json.

    Args:
        folder: the folder of the study, which is made where it is missing.
        setting: the model, the data and the optimizer, as the report states them.

    Raises:
        ValueError: if the folder has a study of another setting, whose runs cannot be compared with this one's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTING_FILE
    if kept := read_json(path):
        _refuse_differences(path, kept, setting)
    write_json(path, setting, indent=1)


def refuse_another_setting(folder: Path, part: Mapping[str, object]) -> None:
    """Compare what is known of a setting before models are made with setting.json, if there is one.

    Args:
        folder: the folder of the study.
        part: some entries of the setting.

    Raises:
        ValueError: as in `keep_setting`.
    """
    path = folder / SETTING_FILE
    if kept := read_json(path):
        _refuse_differences(path, {name: kept.get(name) for name in part}, part)


def _refuse_differences(path: Path, kept: Mapping[str, object], setting: Mapping[str, object]) -> None:
    for name in differing_names(kept, setting):
        raise ValueError(
            f"{path} is of another study: {name} is {kept.get(name)!r} there and {setting.get(name)!r} here; give the options "
            "that the study was started with, or another folder."
        )
