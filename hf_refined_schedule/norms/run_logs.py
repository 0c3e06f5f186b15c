"""Gradient norms out of logs that other tools have written: a Trainer's state, TensorBoard events, CSV, JSON Lines."""

import csv
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..theory.refinement import NormKind
from .gradient_norms import MAX_STEPS, GradientNorms, is_step_number

MIN_LOGGED_NORMS = 20
"""A log with fewer norms says too little about a run: at 20, the default window is a single value."""

MAX_NOT_FINITE = 0.1
"""Of more norms than this share, the ones that are left are not the run's."""

MAX_JSON_BYTES = 200 * 10**6
"""A JSON file is read as a whole, and takes about ten times its size in memory."""

MAX_LINE = 10**6
"""Characters in a line of a table; a longer one is no row of numbers."""

STEP_COLUMNS = ("train/global_step", "global_step", "step", "_step")
"""Names of the number of an update, the best first, in any case."""

ROWS_FOR_NAMES = 10_000
"""Of JSON Lines, whose rows may differ, the ones whose names are looked at."""

_NORM_NAME = re.compile(r"grad(ient)?s?[ _-]?norm|gnorm", re.IGNORECASE)
_NOT_A_VALUE = re.compile(r"__(MIN|MAX)$")


def read_trainer_state(path: Path, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Norms from the `log_history` of a Trainer: `grad_norm` (L2, before clipping), and `grad_norm_l1` where it is.

    Args:
        path: a `trainer_state.json`, or its `log_history` alone.
        column: the name of the logged value to take instead.
        norm: which norm that is, where its name does not say.

    Returns:
        The norms of the logged steps; the last entry counts where a step was logged twice.

    Raises:
        ValueError: if the file is something else, is too large, or holds too few norms.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} has {size / 1e6:.0f} MB, and JSON is read up to {MAX_JSON_BYTES / 1e6:.0f} MB; write its log_history as "
            "JSON Lines, an entry a line, which has no such limit."
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        state = None
    if isinstance(state, list) and any(isinstance(entry, dict) for entry in state):  # the log_history itself
        state = {"log_history": state}
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{path} is not a trainer_state.json; pass one, or a gradient_norms.jsonl.")
    entries = [entry for entry in state["log_history"] if isinstance(entry, dict) and is_step_number(entry.get("step"))]
    names = list(dict.fromkeys(["grad_norm", *(name for entry in entries for name in entry)]))
    planned = state.get("max_steps")
    return _norms_of_rows(
        path,
        "a Trainer's log",
        entries,
        "step",
        _norm_columns(names, path, column, norm),
        planned if is_step_number(planned) else None,
    )


def read_json_lines(path: Path, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Norms from a log with one JSON object a line.

    Args:
        path: the file.
        column: as in `read_trainer_state`; unless given, the name that says it is a gradient norm.
        norm: as in `read_trainer_state`.

    Returns:
        As `read_trainer_state`. Lines that are damaged, or have no norm, are left out.

    Raises:
        ValueError: if it holds no or too few norms, or more than one column that could be meant.
    """
    names = dict.fromkeys(name for row in islice(_json_rows(path), ROWS_FOR_NAMES) for name in row)
    columns = _norm_columns(list(names), path, column, norm)
    return _norms_of_rows(path, "JSON Lines", _json_rows(path), _step_column(names), columns)


def read_csv(path: Path, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Norms from a table with a line of names: a W&B export, or any other.

    Args:
        path: the file; values are parted by commas, or by semicolons or tabs, where a number may have a decimal comma.
        column: as in `read_json_lines`.
        norm: as in `read_json_lines`.

    Returns:
        As `read_trainer_state`; rows without a value are left out.

    Raises:
        ValueError: as `read_json_lines`.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline(MAX_LINE)
        file.seek(0)
        delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", header).count)
        decimal_sign = "." if delimiter == "," else ","
        rows = csv.reader(file, delimiter=delimiter)
        try:
            names = next(rows, [])
            columns = _norm_columns(names, path, column, norm)
            step = _step_column(names)
            wanted = {name: names.index(name) for name in (step, *columns.values()) if name is not None}
            entries = (
                {name: row[place].replace(decimal_sign, ".") for name, place in wanted.items()}
                for row in rows
                if len(row) == len(names)
            )
            return _norms_of_rows(path, "a table", entries, step, columns)
        except csv.Error as error:
            raise ValueError(f"{path} is damaged ({error}); export it again.") from None


def read_tensorboard(path: Path, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Norms from a TensorBoard event file, as `--report_to tensorboard` leaves it.

    Args:
        path: the event file.
        column: the tag; unless given, the one that says it is a gradient norm, such as `train/grad_norm`.
        norm: as in `read_trainer_state`.

    Returns:
        As `read_trainer_state`.

    Raises:
        ValueError: as `read_json_lines`, and if tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise ValueError(f"{path} is of TensorBoard, which reading it needs; pip install tensorboard.") from None
    by_tag: dict[str, dict[int, float]] = {}
    try:
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if _NORM_NAME.search(value.tag) or value.tag == column:
                    number = make_ndarray(value.tensor) if value.HasField("tensor") else value.simple_value
                    by_tag.setdefault(value.tag, {})[event.step] = number
    except Exception as error:  # whatever a damaged file makes of its protocol buffers
        raise ValueError(f"{path} is a damaged event file ({type(error).__name__}); use another log.") from None
    columns = _norm_columns(list(by_tag), path, column, norm)
    steps = sorted({step for tag in columns.values() for step in by_tag[tag]})
    entries = ({"step": step, **{tag: by_tag[tag].get(step) for tag in columns.values()}} for step in steps)
    return _norms_of_rows(path, "TensorBoard's log", entries, "step", columns)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while line := file.readline(MAX_LINE):
            if not line.endswith("\n") and len(line) == MAX_LINE:
                raise ValueError(f"{path} has a line of more than {MAX_LINE:,} characters, which is no row of a log.")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _step_column(names: Iterable[str]) -> str | None:
    lowered = {name.lower(): name for name in reversed(list(names))}
    return next((lowered[name] for name in STEP_COLUMNS if name in lowered), None)


def _norm_columns(names: Sequence[str], path: Path, column: str | None, norm: NormKind | None) -> dict[NormKind, str]:
    """The columns to read, by the norm that they hold."""
    if column is not None:
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}; it has {_listed(names)}.")
        kind = norm or _kind_of(column)
        if kind is None:
            raise ValueError(f"{path}: whether {column!r} is an L1 or an L2 norm is not known; pass norm='l1' or 'l2'.")
        return {kind: column}
    candidates = [name for name in names if _NORM_NAME.search(name) and not _NOT_A_VALUE.search(name)]
    if not candidates:
        raise ValueError(
            f"{path} has no column that is named as a gradient norm; name one as column, of {_listed(names)}, or pass "
            "a gradient_norms.jsonl or a trainer_state.json."
        )
    by_kind: dict[NormKind | None, list[str]] = {}
    for name in candidates:
        by_kind.setdefault(_kind_of(name), []).append(name)
    if len(candidates) == 1 and None in by_kind and norm is not None:
        return {norm: candidates[0]}
    unclear = next((group for group in by_kind.values() if len(group) > 1), None)
    if unclear:
        raise ValueError(f"{path} has several columns of gradient norms; pass one as column, of {_listed(unclear)}.")
    known = {kind: group[0] for kind, group in by_kind.items() if kind is not None}
    if not known:
        raise ValueError(
            f"{path}: whether {candidates[0]!r} is an L1 or an L2 norm is not known; pass norm='l1' or 'l2'."
        )
    return known


def _kind_of(name: str) -> NormKind | None:
    """What a name says; transformers' `grad_norm` is the L2 norm."""
    words = set(re.split(r"[^a-z0-9]+", re.split(r"[/ .]", name.lower())[-1].replace("_", " ")))
    if "l1" in words or "l2" in words:
        return "l1" if "l1" in words else "l2"
    return "l2" if re.split(r"[/ ]", name)[-1] == "grad_norm" else None


def _listed(names: Iterable[str]) -> str:
    names = [repr(name[:60]) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _norms_of_rows(
    path: Path,
    origin: str,
    rows: Iterable[Mapping[str, Any]],
    step_column: str | None,
    columns: Mapping[NormKind, str],
    planned: int | None = None,
) -> GradientNorms:
    """Collect what is finite, the last entry of each step; L2 decides where there are both."""
    main: NormKind = "l2" if "l2" in columns else "l1"
    steps, values, l1_beside = array("q"), array("d"), array("d")
    for number, row in enumerate(rows, start=1):
        value = row.get(columns[main])
        step = number if step_column is None else _step(row.get(step_column))
        if value is None or value == "" or step is None:
            continue
        steps.append(step)
        values.append(_number(value))
        if len(columns) == 2:
            l1_beside.append(_number(row.get(columns["l1"])))
    by_step = np.frombuffer(steps, dtype=np.int64) if len(steps) else np.empty(0, dtype=np.int64)
    if len(by_step) and by_step.min() == 0:  # counted from zero
        by_step = by_step + 1
    # np.unique keeps the first of equals: of the reversed steps, the last that was logged.
    unique, places = np.unique(by_step[::-1], return_index=True)
    places = len(by_step) - 1 - places
    norms = np.array(values)[places]
    num_not_finite = int(np.isnan(norms).sum())
    if num_not_finite > MAX_NOT_FINITE * len(norms):
        raise ValueError(
            f"{path}: {num_not_finite} of {len(norms)} gradient norms are not finite, more than {MAX_NOT_FINITE:.0%}; take "
            "the norms of a run that did not diverge."
        )
    kept = ~np.isnan(norms) & (unique <= (planned or MAX_STEPS))
    if kept.sum() < MIN_LOGGED_NORMS:
        raise ValueError(
            f"{path} holds {kept.sum()} gradient norms, too few for a schedule (at least {MIN_LOGGED_NORMS}); run with "
            "a smaller --logging_steps and --logging_first_step, or record a gradient_norms.jsonl."
        )
    arrays = {main: norms[kept]}
    if len(columns) == 2:
        l1 = np.array(l1_beside)[places][kept]
        arrays |= {"l1": l1} if np.isfinite(l1).all() else {}
    return GradientNorms(
        steps=unique[kept],
        **arrays,
        num_training_steps=planned,
        num_not_finite=num_not_finite,
        source=str(path),
        origin=origin,
    )


def _step(value: Any) -> int | None:
    """The number of an update, or None."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_STEPS else None


def _number(value: Any) -> float:
    """A logged norm as a float, also out of nested lists of one, as old logs have it; NaN where it is none."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return float("nan")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
    return number if 0 <= number < float("inf") else float("nan")
