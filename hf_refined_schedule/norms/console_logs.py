"""Logs in what a training script printed: dictionaries, and values with a name, among other text."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from .columns import NORM_NAME, NoColumnError, Wanted
from .json_logs import flat
from .log_rows import Row, RunLog
from .message_text import shown
from .size_limits import MAX_CONSOLE_CHARACTERS
from .text_encoding import read_lines

_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)"

_VALUE = rf"(?:[\w.]*[\[(]+)?['\"]?(?P<value>{_NUMBER}(?:[ ]*/[ ]*\d+)?)"
"""A number; also in quotes, in brackets, as `tensor(1.2)`, or with a total as "10/438"."""

_NAMED_VALUE = re.compile(
    rf"""(?<![\w./@-])['"]?(?P<name>(?:(?:grad|gradient|global|learning)[ ])*[a-z_][\w./@-]*)['"]?[ \t]*[:=][ \t]*{_VALUE}""",
    re.IGNORECASE,
)

_SPACED_VALUE = re.compile(
    rf"(?<![\w./@-])(?P<name>epoch|(?:global_)?step|iteration|iter|update|grad(?:ient)?[ _-]?norm|gnorm)[ \t]+{_VALUE}",
    re.IGNORECASE,
)
"""A step or a norm that only a space separates from its value: "step 10", "iteration 10/ 438"."""

_NORM_AND_VALUE = re.compile(rf"(?:{NORM_NAME.pattern})\w*['\"]?[ \t]*[:=\t ][ \t]*{_VALUE}", re.IGNORECASE)

_LOSS_AND_VALUE = re.compile(rf"loss['\"]?[ \t]*[:=][ \t]*{_VALUE}", re.IGNORECASE)
"""Stricter than for a norm, because the header of a table may name losses."""

_PROGRESS_BAR = re.compile(r"\d+%\|[^|]*\|[ ]*(?P<update>\d+)/(?P<total>\d+)[ ]\[")
"""tqdm's: " 43%|####3     | 130/300 [00:03<00:04, 40.1it/s]"."""

_TRAINING_ENTRY = frozenset({"learning_rate", "epoch"})
"""What a Trainer prints with the quantities of training, and not with those of an evaluation."""

MOSTLY = 0.9
"""The fraction of entries that a progress bar must number to be believed."""

_COLOR = re.compile(r"\x1b\[[0-9;]*m")

_NOT_FINITE = re.compile(r"(?<![\w'\"])[-+]?(?:nan|inf)(?![\w'\"])")
"""As a dictionary is printed; no literal of Python."""


def is_console_output(text: str) -> bool:
    """Whether a text holds gradient norms or losses beside their name, and not in a column under it.

    Args:
        text: the beginning of a file.

    Returns:
        True for console output; also for JSON.
    """
    return any(pattern.search(text) is not None for pattern in (_NORM_AND_VALUE, _LOSS_AND_VALUE))


def open_console_log(path: Path, wanted: Wanted) -> RunLog:
    """Open what a training script printed.

    Args:
        path: the file. A line with a norm is `{'loss': 0.2, 'grad_norm': 1.2}`, as a Trainer prints it, or has
            `grad_norm: 1.2` or `grad_norm=1.2` among other values; all other lines are passed over.
        wanted: the quantity to read.

    Returns:
        The log. A Trainer prints no steps: they are read from its progress bar, or entries are counted where there is none.

    Raises:
        NoColumnError: if no line holds the quantity.
    """
    read = _numbered_rows if _bar_counts_updates(path, wanted) else _rows
    log = RunLog(path, "console output", lambda: read(path, wanted))
    if wanted.column is None and next(iter(log.rows()), None) is None:
        raise NoColumnError(f"{shown(path)} holds no {wanted.plural}")
    return log


def _rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    for line in _lines(path):
        if _holds(line, wanted):
            yield _values(_COLOR.sub("", line))


def _numbered_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """The rows. One that a progress bar follows has its count as the step, such as "130/300".

    After each entry of a Trainer, tqdm draws its bars again. The bar of training is the first one after an entry of training, and later the one
    with the same total.
    """
    entry: Row | None = None
    total: str | None = None
    for line in _lines(path):
        if _holds(line, wanted):
            if entry is not None:
                yield entry
            entry = _values(_COLOR.sub("", line))
        elif entry is not None and (bar := _PROGRESS_BAR.search(line)):
            if total is None and _is_training_entry(entry):
                total = bar["total"]
            if bar["total"] == total:
                yield {"step": f"{bar['update']}/{total}", **entry}
                entry = None
    if entry is not None:
        yield entry


def _lines(path: Path) -> Iterator[str]:
    return (line[:MAX_CONSOLE_CHARACTERS] for line in read_lines(path))


def _holds(line: str, wanted: Wanted) -> bool:
    return wanted.names.search(line) is not None or (wanted.column is not None and wanted.column in line)


def _is_training_entry(row: Row) -> bool:
    return row.keys() >= _TRAINING_ENTRY


def _bar_counts_updates(path: Path, wanted: Wanted) -> bool:
    """Whether a progress bar numbers the entries of training: nearly all of them, and nearly always upwards."""
    numbers: list[int] = []
    num_entries = 0
    for row in _numbered_rows(path, wanted):
        if _is_training_entry(row):
            num_entries += 1
            update = str(row.get("step")).partition("/")[0]
            numbers += [int(update)] if update.isdigit() else []
    upwards = sum(before < after for before, after in pairwise(numbers))
    return len(numbers) > 1 and len(numbers) >= MOSTLY * num_entries and upwards >= MOSTLY * (len(numbers) - 1)


def _values(line: str) -> dict[str, Any]:
    """The values in a line, by name: those of a dictionary and of the text before it, or those of the whole line."""
    beginning, end = line.find("{"), line.rfind("}")
    printed = _dictionary(line[beginning : end + 1]) if 0 <= beginning < end else None
    text = line if printed is None else line[:beginning]
    values = {}
    for pattern in (_SPACED_VALUE, _NAMED_VALUE):
        values.update({found["name"]: found["value"].replace(",", "") for found in pattern.finditer(text)})
    return values | (printed or {})


def _dictionary(text: str) -> dict[str, Any] | None:
    """A dictionary, as JSON or as Python prints it; None where the text is something else."""
    for parse in (json.loads, _literal):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict):
            return flat({str(name): number for name, number in value.items()})
    return None


def _literal(text: str) -> Any:
    if "\\" in text:  # Python would warn of an escape that it does not know
        return None
    return ast.literal_eval(_NOT_FINITE.sub("'nan'", text))
