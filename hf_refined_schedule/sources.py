"""Gradient norms from any run that exists: found, recognised by content, and checked."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .health import DegenerateScheduleError, check_health, check_shape
from .norms_file import FORMAT, NORMS_FILE_NAME, GradientNorms, read_norms_file
from .refinement import NormKind, RisingNorms
from .run_logs import read_csv, read_json_lines, read_tensorboard, read_trainer_state
from .schedule_file import OptimizerFamily, RefinedSchedule, is_schedule_file, read_schedule

TRAINER_STATE_NAME = "trainer_state.json"

WHAT_TO_PASS = (
    f"pass a {NORMS_FILE_NAME} or the output_dir that holds one, a {TRAINER_STATE_NAME} or the checkpoint that holds "
    "one, TensorBoard events, a CSV or JSON Lines log, or a schedule file written by 'hf-refined-schedule refine'"
)


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


Source = str | os.PathLike[str] | GradientNorms
"""What a schedule is refined from: where norms lie, or norms themselves."""


def listed_sources(source: Source | Sequence[Source]) -> list[Source]:
    """One source or several, as a list.

    Args:
        source: what `load_schedule` takes.

    Returns:
        The sources.

    Raises:
        ValueError: if one of them is of another type.
    """
    several = isinstance(source, Sequence) and not isinstance(source, str)
    sources = list(source) if several else [source]
    for one in sources:
        if not isinstance(one, (str, os.PathLike, GradientNorms)):
            raise ValueError(f"refined_from is {source!r:.80}, which is no run to refine from; {WHAT_TO_PASS}.")
    return sources


def load_schedule(
    source: Source | Sequence[Source],
    optimizer: OptimizerFamily,
    *,
    column: str | None = None,
    norm: NormKind | None = None,
    power: float | None = None,
    smoothing: float | None = None,
    rising_norms: RisingNorms | None = None,
    allow_degenerate: bool = False,
) -> RefinedSchedule:
    """The refined schedule of a source, as training uses it; what is doubtful about it is in its notes.

    Args:
        source: what `load_norms` takes, a schedule file, or norms; or several runs, whose smoothed norms are averaged.
        optimizer: the family of the optimizer to schedule.
        column: as in `load_norms`.
        norm: the norm to use instead of the optimizer's own.
        power: the exponent to use instead of the optimizer's own.
        smoothing: tau, by default 0.1.
        rising_norms: as in `refine_schedule`, by default `"keep"`.
        allow_degenerate: take a schedule that hardly trains but for a moment, too.

    Returns:
        The schedule.

    Raises:
        DegenerateScheduleError: for such a schedule, unless it is allowed.
        ValueError: as `load_norms` and `RefinedSchedule.from_norms`; for a schedule file, if it was made for other
            optimizers, or if another argument on its making is given beside it.
        MissingSourceError: if there is nothing at `source`.
    """
    making = {"norm": norm, "power": power, "smoothing": smoothing, "rising_norms": rising_norms}
    located = [one if isinstance(one, GradientNorms) else find_source_file(one) for one in listed_sources(source)]
    files = [one for one in located if not isinstance(one, GradientNorms) and is_schedule_file(one)]
    if files and len(located) > 1:
        raise ValueError(f"{files[0]} is a schedule file, and stands alone; pass the runs that are to be averaged.")
    if files:
        beside = [name for name, value in {"column": column, **making}.items() if value is not None]
        schedule, doubts = _baked_in(files[0], optimizer, beside), []
    else:
        runs = [one if isinstance(one, GradientNorms) else load_norms(one, column=column, norm=norm) for one in located]
        schedule = RefinedSchedule.from_norms(runs, optimizer, **making)
        doubts = check_health(runs, schedule).doubts
    degenerate = check_shape(schedule.multipliers)
    if degenerate and not allow_degenerate:
        raise DegenerateScheduleError(
            f"The schedule from {schedule.source} is degenerate: {'; '.join(degenerate)}. Use linear decay, a larger smoothing, "
            "or allow_degenerate=True."
        )
    if degenerate or doubts:
        schedule = replace(schedule, notes=(*schedule.notes, f"It is doubtful: {'; '.join([*degenerate, *doubts])}."))
    return schedule


def _baked_in(path: Path, optimizer: OptimizerFamily, beside: list[str]) -> RefinedSchedule:
    """The schedule of a schedule file, whose weights cannot be changed any more."""
    if beside:
        raise ValueError(
            f"{path} is a schedule with its weights baked in, so {' and '.join(beside)} cannot be set beside it; "
            "set it in 'hf-refined-schedule refine', or pass the norms themselves."
        )
    schedule = read_schedule(path)
    if schedule.optimizer != optimizer:
        raise ValueError(
            f"{path} was refined for {schedule.optimizer}, but the optimizer is of the {optimizer} family; refine it "
            f"again with --optimizer {optimizer}."
        )
    return schedule


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
    checkpoints = [entry for entry in path.iterdir() if re.fullmatch(r"checkpoint-\d+", entry.name)]
    checkpoints.sort(key=lambda entry: int(entry.name.split("-")[1]), reverse=True)
    candidates = [path / NORMS_FILE_NAME, path / TRAINER_STATE_NAME]
    candidates += [checkpoint / TRAINER_STATE_NAME for checkpoint in checkpoints]
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
