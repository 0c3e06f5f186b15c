"""Gradient norms from JSON: the state of a Trainer, its log alone, a list for each column, and JSON Lines."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..theory.refinement import NormKind
from .columns import NoNormsError, norm_columns
from .gradient_norms import GradientNorms
from .log_rows import Row, RunLog, norms_of_log
from .message_text import shown
from .size_limits import MAX_JSON_BYTES, MAX_NESTING, is_step_number
from .text_encoding import open_text, read_lines


def read_json_document(path: Path, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Read the norms of a `trainer_state.json`, of its `log_history` alone, or of an object with a list for each column.

    Of a Trainer's log these are `grad_norm` (L2, before clipping), and `grad_norm_l1` where it is there.

    Args:
        path: the file.
        column: the name of the logged value to take instead.
        norm: which norm that is, where its name does not say.

    Returns:
        As `norms_of_log`.

    Raises:
        ValueError: if the file is something else, is too large, or holds too few norms.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{shown(path)} has {size / 1e6:.0f} MB, and JSON is read up to {MAX_JSON_BYTES / 1e6:.0f} MB; write its "
            "log_history as JSON Lines, an entry a line, which has no such limit."
        )
    try:
        with open_text(path) as file:
            content = json.loads(file.read().rstrip("\0"))
    except (ValueError, RecursionError):
        content = None
    return norms_of_log(_log_of_document(content, path, column, norm), column, norm)


def read_json_lines(path: Path, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Read the norms of a log with one JSON object a line.

    Args:
        path: the file.
        column: the name of the norm; by default, the one that is named like a gradient norm. The names of nested objects
            are joined by dots.
        norm: which norm that is, where its name does not say.

    Returns:
        As `norms_of_log`. Lines that are damaged, or have no norm, are left out.

    Raises:
        ValueError: as `norms_of_log`.
    """
    return norms_of_log(RunLog(path, "JSON Lines", lambda: _rows_of_lines(path)), column, norm)


def flat(row: Mapping[str, Any], depth: int = MAX_NESTING) -> dict[str, Any]:
    """Join the names of nested objects by dots.

    Args:
        row: an object of a JSON log.
        depth: how many objects inside each other to open.

    Returns:
        The values by name: `{"data": {"grad_norm": 1}}` becomes `{"data.grad_norm": 1}`.
    """
    values: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and depth > 1:
            values.update({f"{name}.{inner}": number for inner, number in flat(value, depth - 1).items()})
        else:
            values[name] = value
    return values


def _log_of_document(content: Any, path: Path, column: str | None, norm: NormKind | None) -> RunLog:
    if isinstance(content, dict) and isinstance(content.get("log_history"), list):
        rows = [flat(row) for row in _objects(content["log_history"]) if is_step_number(row.get("step"))]
        names = list(dict.fromkeys(["grad_norm", *(name for row in rows for name in row)]))
        planned = content.get("max_steps")
        return RunLog(
            path, "a Trainer's log", lambda: rows, names, "step", planned if is_step_number(planned) else None
        )
    if isinstance(content, list) and (rows := [flat(row) for row in _objects(content)]):
        return RunLog(path, "a Trainer's log", lambda: rows)
    if isinstance(content, dict):
        columns = {name: values for name, values in flat(content).items() if isinstance(values, list)}
        if columns:
            return _log_of_columns(columns, path, column, norm)
    raise NoNormsError(f"{shown(path)} is not a log in JSON")


def _log_of_columns(columns: Mapping[str, list[Any]], path: Path, column: str | None, norm: NormKind | None) -> RunLog:
    """The rows of lists that are as long as that of the norm; others hold evaluations."""
    by_kind = norm_columns(list(columns), path, column, norm)
    length = len(columns[by_kind["l2" if "l2" in by_kind else "l1"]])
    names = [name for name, values in columns.items() if len(values) == length]
    lists = [columns[name] for name in names]
    return RunLog(
        path, "JSON by column", lambda: (dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)), names
    )


def _objects(values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict))


def _rows_of_lines(path: Path) -> Iterator[Row]:
    for line in read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield flat(row)
