"""Logs in tables: a W&B export, or any other CSV file."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from .columns import Wanted, step_candidates
from .log_rows import THOUSANDS, Row, RunLog
from .message_text import shown
from .text_encoding import read_lines


def open_csv(path: Path, wanted: Wanted) -> RunLog:
    """Open a table whose first line names its columns.

    Args:
        path: the file. Values are separated by commas; or by semicolons or tabs, and a number may have a decimal comma.
        wanted: the quantity to read; a table has all of its columns.

    Returns:
        The log. Reading its rows raises ValueError where the file is damaged, or a row has more values than there are columns.

    Raises:
        ValueError: if the first line is damaged.
    """
    header = re.sub(r'"[^"]*"', "", next(read_lines(path), ""))
    delimiter = max(",;\t", key=header.count)
    names = next(_records(path, delimiter), [])
    return RunLog(path, "a table", lambda: _rows(path, delimiter), names)


def _records(path: Path, delimiter: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(read_lines(path), delimiter=delimiter)
    except csv.Error as error:
        raise ValueError(f"{shown(path)} is damaged ({shown(error)}); export it again.") from None


def _rows(path: Path, delimiter: str) -> Iterator[Row]:
    rows = _records(path, delimiter)
    names = next(rows, [])
    steps = set(step_candidates(names))
    for number, row in enumerate(rows, 2):
        if any(value.strip() for value in row[len(names) :]):
            raise ValueError(
                f"{shown(path)} has {len(row)} values in row {number}, but {len(names)} columns; is a comma within a number? Export "
                "it with quotes around values."
            )
        row = row[: len(names)]
        if len(row) < len(names):  # a torn end
            continue
        values = dict(zip(names, row, strict=True))
        if delimiter != ",":
            values = {name: _with_point(value, is_step=name in steps) for name, value in values.items()}
        yield values


def _with_point(value: str, *, is_step: bool) -> str:
    """A number with a decimal point instead of a decimal comma. A comma beside a point, or in a step, separates thousands."""
    separates_thousands = "." in value or (is_step and THOUSANDS.fullmatch(value.strip()))
    return value if separates_thousands else value.replace(",", ".")
