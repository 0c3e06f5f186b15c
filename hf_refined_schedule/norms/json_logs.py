"""Logs in JSON: the state of a Trainer, its log alone, a list for each column, and JSON Lines."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .columns import NoColumnError, Wanted
from .log_rows import Row, RunLog
from .message_text import shown
from .size_limits import MAX_JSON_BYTES, MAX_NESTING, is_step_number
from .text_encoding import open_text, read_lines

TRAINER_COLUMNS = ("loss", "learning_rate", "grad_norm")
"""What a Trainer logs of its updates. `grad_norm` is the L2 norm before clipping; `grad_norm_l1` may be there, too."""


def open_json_document(path: Path, wanted: Wanted) -> RunLog:
    """Open a `trainer_state.json`, its `log_history` alone, or an object with a list for each column.

    Args:
        path: the file.
        wanted: the quantity to read.

    Returns:
        The log.

    Raises:
        NoColumnError: if the file is something else.
        ValueError: if it is too large.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{shown(path)} has {size / 1e6:.0f} MB, and JSON is read up to {MAX_JSON_BYTES / 1e6:.0f} MB; write its "
            "log_history as JSON Lines, one entry per line, whose size has no limit."
        )
    try:
        with open_text(path) as file:
            content = json.loads(file.read().rstrip("\0"))
    except (ValueError, RecursionError):
        content = None
    return _log_of_document(content, path, wanted)


def open_json_lines(path: Path, wanted: Wanted) -> RunLog:
    """Open a log with one JSON object a line.

    Args:
        path: the file.
        wanted: the quantity to read; the log has all of its values, and the names of nested objects are joined by dots.

    Returns:
        The log. Lines that are damaged are left out.
    """
    return RunLog(path, "JSON Lines", lambda: _rows_of_lines(path))


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


def _log_of_document(content: Any, path: Path, wanted: Wanted) -> RunLog:
    if isinstance(content, dict) and isinstance(content.get("log_history"), list):
        rows = [flat(row) for row in _objects(content["log_history"]) if is_step_number(row.get("step"))]
        expected = [name for name in TRAINER_COLUMNS if wanted.includes(name)]
        names = list(dict.fromkeys([*expected, *(name for row in rows for name in row)]))
        planned = content.get("max_steps")
        return RunLog(
            path, "a Trainer's log", lambda: rows, names, "step", planned if is_step_number(planned) else None
        )
    if isinstance(content, list) and (rows := [flat(row) for row in _objects(content)]):
        return RunLog(path, "a Trainer's log", lambda: rows)
    if isinstance(content, dict):
        columns = {name: values for name, values in flat(content).items() if isinstance(values, list)}
        if columns:
            return _log_of_columns(columns, path, wanted)
    raise NoColumnError(f"{shown(path)} is not a log in JSON")


def _log_of_columns(columns: Mapping[str, list[Any]], path: Path, wanted: Wanted) -> RunLog:
    """The rows of lists that are as long as that of the quantity; others hold evaluations."""
    length = len(columns[wanted.choose(list(columns), path)])
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
