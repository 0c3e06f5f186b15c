"""What a run's own records say of each update: the learning rate, the norm, and whether it was clipped."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint_folders import checkpoint_folders
from .message_text import shown
from .norms_file import parse_header
from .size_limits import MAX_JSON_BYTES, MAX_STEPS, is_step_number
from .sources import find_source
from .text_encoding import open_text, read_lines

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RateLog:
    """The learning rates and norms that a run left, in the order of its updates.

    Args:
        steps: optimizer updates, 1-based, increasing, shape (n,).
        rates: the learning rate of each, NaN where it is not known, shape (n,).
        norms: the L2 norm before clipping, NaN where the update was not taken or it is not known, shape (n,).
        clip_factors: the factor that clipping applied, NaN where it is not known, shape (n,).
        num_training_steps: T, the planned number of updates; None if the source does not say.
        max_grad_norm: the threshold of clipping; None if the source does not say.
        checkpoints: the updates after which a checkpoint was saved, as far as they lie beside the source.
        source: the file, for messages.
        recorded: whether the package recorded every update, and its rate as that update used it.
    """

    steps: NDArray[np.int64]
    rates: Array
    norms: Array
    clip_factors: Array
    num_training_steps: int | None
    max_grad_norm: float | None
    checkpoints: tuple[int, ...]
    source: str
    recorded: bool


def read_rate_log(source: str) -> RateLog:
    """Read a `gradient_norms.jsonl` or a `trainer_state.json`.

    Args:
        source: the file, or a folder as `load_norms` takes it.

    Returns:
        The log. Where an update was logged twice, the last entry counts.

    Raises:
        ValueError: if the source is another kind of record, or holds no updates.
    """
    path, kind = find_source(source)
    if kind == "norms file":
        lines = read_lines(path)
        header = parse_header(next(lines, ""), path)
        rows, planned, threshold = _recorded_rows(lines), header.get("num_training_steps"), header.get("max_grad_norm")
    elif kind == "json document":
        state = _state(path)
        rows, planned, threshold = iter(state["log_history"]), state.get("max_steps"), None
    else:
        raise _no_log(path)
    by_step = {row["step"]: row for row in rows if _is_update(row)}
    if not by_step:
        raise _no_log(path)
    steps = sorted(by_step)
    ordered = [by_step[step] for step in steps]
    norm_name = "l2" if kind == "norms file" else "grad_norm"
    return RateLog(
        steps=np.array(steps, dtype=np.int64),
        rates=_column(ordered, "learning_rate"),
        norms=_column(ordered, norm_name),
        clip_factors=_column(ordered, "clip_factor"),
        num_training_steps=planned if is_step_number(planned) else None,
        max_grad_norm=threshold if type(threshold) in (int, float) else None,
        checkpoints=tuple(sorted(checkpoint_folders(_run_folder(path)))),
        source=str(path),
        recorded=kind == "norms file",
    )


def _recorded_rows(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):  # a torn end
            return


def _state(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(
            f"{shown(path)} is larger than {MAX_JSON_BYTES / 1e6:.0f} MB; pass the gradient_norms.jsonl of the run."
        )
    try:
        with open_text(path) as file:
            state = json.loads(file.read().rstrip("\0"))
    except (ValueError, RecursionError):
        raise _no_log(path) from None
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise _no_log(path)
    return state


def _no_log(path: Path) -> ValueError:
    return ValueError(
        f"{shown(path)} is not the record of a run's updates; pass a gradient_norms.jsonl, a trainer_state.json, or the "
        "folder with one of them."
    )


def _is_update(row: Any) -> bool:
    """Whether a row is of an optimizer update, and not of an evaluation or a summary."""
    return (
        isinstance(row, dict)
        and is_step_number(row.get("step"))
        and 0 < row["step"] <= MAX_STEPS
        and any(name in row for name in ("learning_rate", "grad_norm", "l2"))
    )


def _column(rows: list[Mapping[str, Any]], name: str) -> Array:
    return np.array([_number(row.get(name)) for row in rows])


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else math.nan


def _run_folder(path: Path) -> Path:
    return path.parent.parent if path.parent.name.startswith("checkpoint-") else path.parent
