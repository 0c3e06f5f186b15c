"""Gradient norms from any run that exists: found, recognised by content, and checked."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .health import DegenerateScheduleError, check_health, check_shape
from .norms_file import FORMAT, MAX_STEPS, NORMS_FILE_NAME, GradientNorms, is_step_number, read_norms_file
from .refinement import NormKind, RisingNorms
from .schedule_file import OptimizerFamily, RefinedSchedule, is_schedule_file, read_schedule

TRAINER_STATE_NAME = "trainer_state.json"

MIN_LOGGED_NORMS = 20
"""A log with fewer norms says too little about a run: at 20, the default window is a single value."""

MAX_NOT_FINITE = 0.1
"""Of more norms than this share, the ones that are left are not the run's."""

WHAT_TO_PASS = (
    f"pass a {NORMS_FILE_NAME} or the output_dir that holds one, a {TRAINER_STATE_NAME} or the checkpoint that holds "
    "one, or a schedule file written by 'hf-refined-schedule refine'"
)


class MissingSourceError(FileNotFoundError, ValueError):
    """There is nothing at the path of a source, or nothing that could be one."""


def load_norms(source: str | os.PathLike[str]) -> GradientNorms:
    """The gradient norms of an existing run.

    Args:
        source: a `gradient_norms.jsonl`, a `trainer_state.json`, or a folder that holds one of them: a run's
            `output_dir` or a checkpoint. In a folder the former is preferred, and the newest checkpoint comes last.

    Returns:
        The norms, with what the source says about the run.

    Raises:
        MissingSourceError: if there is nothing at `source`.
        ValueError: if what is there holds no norms.
    """
    path = find_source_file(source)
    with open(path, encoding="utf-8", errors="replace") as file:
        beginning = file.readline(4096)
    try:
        first_line = json.loads(beginning)
    except (ValueError, RecursionError):
        first_line = None
    if isinstance(first_line, dict) and first_line.get("format") == FORMAT:
        return read_norms_file(path)
    if beginning.lstrip().startswith("{"):
        return read_trainer_state(path)
    raise ValueError(f"{path} holds no gradient norms that can be read; {WHAT_TO_PASS}.")


def load_schedule(
    source: str | os.PathLike[str] | GradientNorms,
    optimizer: OptimizerFamily,
    *,
    norm: NormKind | None = None,
    power: float | None = None,
    smoothing: float | None = None,
    rising_norms: RisingNorms | None = None,
    allow_degenerate: bool = False,
) -> RefinedSchedule:
    """The refined schedule of a source, as training uses it; what is doubtful about it is in its notes.

    Args:
        source: what `load_norms` takes, a schedule file, or norms.
        optimizer: the family of the optimizer to schedule.
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
    if not isinstance(source, GradientNorms):
        path = find_source_file(source)
        if is_schedule_file(path):
            beside = [name for name, value in making.items() if value is not None]
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
            doubts: list[str] = []
        else:
            source = load_norms(path)
    if isinstance(source, GradientNorms):
        schedule = RefinedSchedule.from_norms(source, optimizer, **making)
        doubts = check_health(source, schedule).doubts
    degenerate = check_shape(schedule.multipliers)
    if degenerate and not allow_degenerate:
        raise DegenerateScheduleError(
            f"The schedule from {schedule.source} is degenerate: {'; '.join(degenerate)}. Use linear decay, a larger smoothing, "
            "or allow_degenerate=True."
        )
    if degenerate or doubts:
        schedule = replace(schedule, notes=(*schedule.notes, f"It is doubtful: {'; '.join([*degenerate, *doubts])}."))
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
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MissingSourceError(
        f"The folder {str(source)!r} holds neither {NORMS_FILE_NAME} nor {TRAINER_STATE_NAME}; {WHAT_TO_PASS}."
    )


def read_trainer_state(path: str | os.PathLike[str]) -> GradientNorms:
    """Norms from the `log_history` of a Trainer: `grad_norm` (L2, before clipping), and `grad_norm_l1` where it is.

    Args:
        path: a `trainer_state.json`.

    Returns:
        The norms of the logged steps; the last entry counts where a step was logged twice.

    Raises:
        ValueError: if the file is something else or holds too few norms.
    """
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{path} is not a {TRAINER_STATE_NAME}; {WHAT_TO_PASS}.")
    planned = state.get("max_steps")
    planned = planned if is_step_number(planned) else None
    logged: dict[int, tuple[float, float]] = {}
    for entry in state["log_history"]:
        if isinstance(entry, Mapping) and "grad_norm" in entry and is_step_number(entry.get("step")):
            logged[entry["step"]] = (_number(entry["grad_norm"]), _number(entry.get("grad_norm_l1")))
    num_not_finite = sum(not np.isfinite(l2) for l2, _ in logged.values())
    if num_not_finite > MAX_NOT_FINITE * len(logged):
        raise ValueError(
            f"{path}: {num_not_finite} of {len(logged)} gradient norms are not finite, more than {MAX_NOT_FINITE:.0%}; take "
            "the norms of a run that did not diverge."
        )
    last = planned or MAX_STEPS
    by_step = {step: norms for step, norms in logged.items() if np.isfinite(norms[0]) and step <= last}
    if len(by_step) < MIN_LOGGED_NORMS:
        raise ValueError(
            f"{path} holds {len(by_step)} gradient norms, too few for a schedule (at least {MIN_LOGGED_NORMS}); run with "
            f"a smaller --logging_steps and --logging_first_step, or record a {NORMS_FILE_NAME}."
        )
    steps = sorted(by_step)
    l2, l1 = np.array([by_step[step] for step in steps]).T
    return GradientNorms(
        steps=np.array(steps),
        l1=l1 if np.isfinite(l1).all() else None,
        l2=l2,
        num_training_steps=planned,
        num_not_finite=num_not_finite,
        source=str(path),
    )


def _number(value: Any) -> float:
    """A logged norm as a float; NaN where it is none."""
    if isinstance(value, bool):
        return float("nan")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
    return number if number >= 0 else float("nan")
