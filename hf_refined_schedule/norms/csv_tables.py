"""Gradient norms from a table: a W&B export, or any other CSV file."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from ..theory.refinement import NormKind
from .gradient_norms import GradientNorms
from .log_rows import Row, RunLog, norms_of_log
from .message_text import shown
from .text_encoding import read_lines


def read_csv(path: Path, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Read the norms of a table whose first line names its columns.

    Args:
        path: the file. Values are separated by commas; or by semicolons or tabs, and a number may have a decimal comma.
        column: the name of the norm; by default, the one that is named like a gradient norm.
        norm: which norm that is, where its name does not say.

    Returns:
        As `norms_of_log`; rows without a value are left out.

    Raises:
        ValueError: as `norms_of_log`.
    """
    header = re.sub(r'"[^"]*"', "", next(read_lines(path), ""))
    delimiter = max(",;\t", key=header.count)
    try:
        names = next(csv.reader(read_lines(path), delimiter=delimiter), [])
        return norms_of_log(RunLog(path, "a table", lambda: _rows(path, delimiter), names), column, norm)
    except csv.Error as error:
        raise ValueError(f"{shown(path)} is damaged ({shown(error)}); export it again.") from None


def _rows(path: Path, delimiter: str) -> Iterator[Row]:
    rows = csv.reader(read_lines(path), delimiter=delimiter)
    names = next(rows, [])
    for row in rows:
        if len(row) != len(names):
            continue
        if delimiter != ",":
            row = [value.replace(",", ".") for value in row]
        yield dict(zip(names, row, strict=True))
