"""What a run's own records say of each update: the learning rate, the norm, and whether it was clipped."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint_folders import checkpoint_folders
from .columns import NORM_NAME, NoColumnError, Wanted, epoch_column, norm_columns
from .log_rows import Columns, RunLog, collect, names_of_log, step_column
from .loss_columns import RATE_NAME, rate_column
from .message_text import shown
from .norms_file import clipping_limit, parse_header
from .size_limits import is_step_number
from .sources import SourceFile, find_source, open_log
from .text_encoding import read_lines

Array = NDArray[np.float64]

RATE_OR_NORM = re.compile(f"{RATE_NAME.pattern}|{NORM_NAME.pattern}", re.IGNORECASE)


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
    """Read the learning rates and norms of a run, with the reader for its kind of record.

    Args:
        source: as `load_norms` takes it; whether it has norms does not matter.

    Returns:
        The log. Where an update was logged twice, the last entry counts.

    Raises:
        ValueError: if the source is no record of a run's updates, or holds none.
    """
    file = find_source(source)
    if file.kind == "norms file":
        return _recorded(file.path)
    try:
        return _logged(file)
    except NoColumnError:
        raise _no_log(file.path) from None


def _recorded(path: Path) -> RateLog:
    lines = read_lines(path)
    header = parse_header(next(lines, ""), path)
    by_step = {
        row["step"]: row for row in _recorded_rows(lines) if isinstance(row, dict) and is_step_number(row.get("step"))
    }
    if not by_step:
        raise _no_log(path)
    steps = sorted(by_step)
    ordered = [by_step[step] for step in steps]
    return RateLog(
        steps=np.array(steps, dtype=np.int64),
        rates=_column(ordered, "learning_rate"),
        norms=_column(ordered, "l2"),
        clip_factors=_column(ordered, "clip_factor"),
        num_training_steps=header.get("num_training_steps"),
        max_grad_norm=clipping_limit(header),
        checkpoints=_checkpoints(path),
        source=str(path),
        recorded=True,
    )


def _logged(file: SourceFile) -> RateLog:
    """The log of another tool: rates and norms may be in different entries, and either may be missing."""
    wanted = Wanted("learning rate", "learning rates or gradient norms", RATE_OR_NORM, _rate_or_norm)
    log = open_log(file, wanted)
    names = names_of_log(log)
    rate, norm = _rate(names, file.path), _norm(names, file.path)
    columns = [column for column in (rate, norm) if column is not None]
    if not columns:
        raise _no_log(file.path)
    step, planned = step_column(log, names, columns[0])
    if step is None:
        raise ValueError(
            f"{shown(file.path)} does not say to which update an entry belongs; pass a log that counts updates."
        )
    by_column = {column: _values(log, Columns(column, None, step, epoch_column(names))) for column in columns}
    steps = np.unique(np.concatenate([steps for steps, _ in by_column.values()]))
    if len(steps) == 0:
        raise _no_log(file.path)
    aligned = {column: _aligned(steps, *read) for column, read in by_column.items()}
    unknown = np.full(len(steps), math.nan)
    return RateLog(
        steps=steps,
        rates=aligned.get(rate or "", unknown),
        norms=aligned.get(norm or "", unknown),
        clip_factors=unknown,
        num_training_steps=planned,
        max_grad_norm=None,
        checkpoints=_checkpoints(file.path),
        source=str(file.path),
        recorded=False,
    )


def _rate(names: Sequence[str], path: Path) -> str | None:
    try:
        return rate_column(names, "", path)
    except NoColumnError:
        return None


def _norm(names: Sequence[str], path: Path) -> str | None:
    """The column of the L2 norm; None also where several could be meant."""
    try:
        return norm_columns(names, path).get("l2")
    except ValueError:
        return None


def _rate_or_norm(names: Sequence[str], path: Path) -> str:
    found = _rate(names, path) or _norm(names, path)
    if found is None:
        raise NoColumnError(f"{shown(path)} has neither learning rates nor gradient norms")
    return found


def _values(log: RunLog, columns: Columns) -> tuple[NDArray[np.int64], Array]:
    """The updates of a column, in the order of the run, and its values."""
    logged = collect(log, columns)
    entries = logged.ordered(log.path, counted=False)
    return entries.steps, logged.values[entries.positions]


def _aligned(steps: NDArray[np.int64], some: NDArray[np.int64], values: Array) -> Array:
    """The values at all steps, NaN where there is none."""
    aligned = np.full(len(steps), math.nan)
    aligned[np.searchsorted(steps, some)] = values
    return aligned


def _recorded_rows(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):  # a torn end
            return


def _no_log(path: Path) -> ValueError:
    return ValueError(
        f"{shown(path)} is not the record of a run's updates; pass a gradient_norms.jsonl, a trainer_state.json, or "
        "another log that names its learning rates or gradient norms."
    )


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    return np.array([_number(row.get(name)) for row in rows])


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else math.nan


def _checkpoints(path: Path) -> tuple[int, ...]:
    """The updates after which a checkpoint was saved, in the folder of the run."""
    folder = path.parent.parent if path.parent.name.startswith("checkpoint-") else path.parent
    return tuple(sorted(checkpoint_folders(folder)))
