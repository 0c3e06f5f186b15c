"""Gradient norms from the rows of a log that another tool has written, whatever its format."""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..theory.refinement import NormKind
from .columns import NORM_NAME, Wanted, epoch_column, is_trainer_norm, norm_columns, step_candidates
from .gradient_norms import GradientNorms
from .message_text import quoted, shown
from .size_limits import MAX_STEPS
from .step_order import Entries, RestartError, order_by_entry, order_by_step

MIN_LOGGED_NORMS = 20
"""A log with fewer norms says too little about a run: at 20, the default window is a single value."""

MAX_NOT_FINITE = 0.1
"""The largest fraction of norms that are not finite. With more, the others do not describe the run."""

ROWS_FOR_NAMES = 10_000
"""Columns are chosen from this many rows, because the rows of JSON Lines may differ."""

THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")
"""A whole number with separators of thousands."""

_THOUSANDS_AND_FRACTION = re.compile(THOUSANDS.pattern + r"\.\d*")
"""Without the point, the comma of a value may be that of a decimal fraction."""

Row = Mapping[str, Any]


class RunLog(NamedTuple):
    """A log as rows of named values."""

    path: Path
    origin: str
    """The kind of log, for messages."""
    rows: Callable[[], Iterable[Row]]
    """Reads the rows from the beginning."""
    names: Sequence[str] | None = None
    """The names of all columns; None where they are those of the first rows."""
    step: str | None = None
    """The column of steps, where the format has one; otherwise it is recognised by its name."""
    num_training_steps: int | None = None
    """T, if the log says it."""


class Columns(NamedTuple):
    """The columns that are read."""

    main: str
    """The quantity that decides which entries count: of two norms, L2."""
    beside: str | None
    step: str | None
    """None: the entries are counted."""
    epoch: str | None


class Logged(NamedTuple):
    """The entries that have the quantity, in the order of the log; values are NaN where they are negative or not finite."""

    steps: NDArray[np.int64]
    epochs: NDArray[np.float64]
    values: NDArray[np.float64]
    beside: NDArray[np.float64] | None

    def ordered(self, path: Path, *, counted: bool) -> Entries:
        """The entries that count, in the order of the run.

        Args:
            path: the log, for the message.
            counted: whether the log has no steps, so that its entries are counted.

        Returns:
            The entries.

        Raises:
            ValueError: if the log holds two runs.
        """
        try:
            return (order_by_entry if counted else order_by_step)(self.steps, self.epochs)
        except RestartError as error:
            raise ValueError(f"{shown(path)}: {error}.") from None


def wanted_norms(column: str | None = None, norm: NormKind | None = None) -> Wanted:
    """Gradient norms, as the quantity that is read from a log.

    Args:
        column: as in `norms_of_log`.
        norm: as in `norms_of_log`.

    Returns:
        The quantity, chosen by `norm_columns`.
    """
    return Wanted(
        what="gradient norm",
        plural="gradient norms",
        names=NORM_NAME,
        choose=lambda names, path: _main(norm_columns(names, path, column, norm)),
        column=column,
    )


def _main(by_kind: Mapping[NormKind, str]) -> str:
    return by_kind["l2" if "l2" in by_kind else "l1"]


def norms_of_log(log: RunLog, column: str | None = None, norm: NormKind | None = None) -> GradientNorms:
    """Collect the gradient norms of a log.

    Args:
        log: the log.
        column: the name of the norm; by default, the column that is named like a gradient norm.
        norm: which norm that is, where its name does not say.

    Returns:
        The norms in the order of the run. The last entry counts where a step was logged twice, and those of a resumed run
        replace the earlier ones.

    Raises:
        NoColumnError: if no column is named like a gradient norm.
        ValueError: if the log holds too few norms, more than one column that could be meant, or more than one run.
    """
    names = names_of_log(log)
    by_kind = norm_columns(names, log.path, column, norm)
    main: NormKind = "l2" if "l2" in by_kind else "l1"
    step, planned = step_column(log, names, by_kind[main])
    l1_beside = by_kind["l1"] if len(by_kind) == 2 else None
    logged = collect(log, Columns(by_kind[main], l1_beside, step, epoch_column(names)))
    entries = logged.ordered(log.path, counted=step is None)
    if entries.steps.max(initial=0) > logged.steps.max(initial=0):  # steps within an epoch, so that is the total of one
        planned = None
    norms = _gradient_norms(log, main, logged, entries, planned)
    return replace(norms, logged_by_trainer=is_trainer_norm(by_kind[main]))


def names_of_log(log: RunLog) -> Sequence[str]:
    """The names of a log's columns.

    Args:
        log: the log.

    Returns:
        Those that the log declares, or those of its first rows.
    """
    return list(dict.fromkeys(name for row in _first_rows(log) for name in row)) if log.names is None else log.names


def _first_rows(log: RunLog) -> Iterable[Row]:
    return islice(log.rows(), ROWS_FOR_NAMES)


def step_column(log: RunLog, names: Sequence[str], main: str) -> tuple[str | None, int | None]:
    """The column of steps.

    Args:
        log: the log.
        names: the names of all of its columns.
        main: the column of the quantity.

    Returns:
        The column of steps that most rows with the quantity have, or None; and T, if it says "10/438" or the log says it.
    """
    candidates = step_candidates(names) if log.step is None else [log.step]
    counts: Counter[str] = Counter()
    totals: dict[str, set[int | None]] = {name: set() for name in candidates}
    num_rows = 0
    for row in _first_rows(log):
        if not _is_given(row.get(main)):
            continue
        num_rows += 1
        for name in candidates:
            if _is_given(value := row.get(name)):
                counts[name] += 1
                totals[name].add(_step(value.partition("/")[2]) if isinstance(value, str) else None)
    chosen = next((name for name in candidates if 2 * counts[name] >= num_rows), None)
    total = totals[chosen].pop() if chosen is not None and len(totals[chosen]) == 1 else None
    return chosen, total or log.num_training_steps


def collect(log: RunLog, columns: Columns) -> Logged:
    """Collect the values of the rows that have the quantity.

    Args:
        log: the log.
        columns: the columns to read.

    Returns:
        The values. Steps that are counted from zero are shifted.

    Raises:
        ValueError: if no row with the quantity has a readable step.
    """
    steps, epochs, values, values_beside = array("q"), array("d"), array("d"), array("d")
    main, beside, step_name, epoch_name = columns
    number, unreadable = 0, None
    for row in log.rows():
        if main not in row:
            continue
        number += 1
        value = row[main]
        step = number if step_name is None else _step(row.get(step_name))
        if step is None or not _is_given(value):
            if step is None and _is_given(value):
                unreadable = row.get(step_name or "") or unreadable
            continue
        steps.append(step)
        values.append(_norm(value))
        epochs.append(float("nan") if epoch_name is None else _epoch(row.get(epoch_name)))
        if beside is not None:
            values_beside.append(_norm(row.get(beside)))
    if not steps and unreadable is not None:
        raise ValueError(
            f"{shown(log.path)}: {quoted(step_name or '')} holds no numbers of updates, such as {quoted(str(unreadable))}; write "
            "whole numbers, or leave the column out to count the entries."
        )
    by_step = np.array(steps, dtype=np.int64)
    if len(by_step) and by_step.min() == 0:  # counted from zero
        by_step += 1
    return Logged(by_step, np.array(epochs), np.array(values), None if beside is None else np.array(values_beside))


def _gradient_norms(
    log: RunLog, main: NormKind, logged: Logged, entries: Entries, planned: int | None
) -> GradientNorms:
    norms = logged.values[entries.positions]
    finite = np.isfinite(norms)
    num_not_finite = int((~finite).sum())
    if num_not_finite > MAX_NOT_FINITE * len(norms):
        raise ValueError(
            f"{shown(log.path)}: {num_not_finite} of {len(norms)} gradient norms are negative, not finite or no numbers, more than "
            f"{MAX_NOT_FINITE:.0%}; take the norms of a run that did not diverge."
        )
    _check_number(log.path, int(finite.sum()), entries.remark)
    norms = norms[finite]
    l1 = norms if main == "l1" else None
    if logged.beside is not None:
        beside = logged.beside[entries.positions][finite]
        l1 = beside if np.isfinite(beside).all() else None
    gradient_norms = GradientNorms(
        steps=entries.steps[finite],
        l1=l1,
        l2=norms if main == "l2" else None,
        num_training_steps=planned,
        num_not_finite=num_not_finite,
        source=str(log.path),
        origin=log.origin,
        remarks=(entries.remark,) if entries.remark else (),
    )
    _check_number(log.path, len(gradient_norms.steps), f"{gradient_norms.num_zero} more are 0")
    return gradient_norms


def _check_number(path: Path, number: int, remark: str | None) -> None:
    if number == 0 and remark is None:
        raise ValueError(
            f"{shown(path)} holds no gradient norms; pass the log of a run that logs grad_norm, as transformers 4.38 and later do, "
            "or record a gradient_norms.jsonl."
        )
    if number < MIN_LOGGED_NORMS:
        raise ValueError(
            f"{shown(path)} holds {number} gradient norms, too few for a schedule (at least {MIN_LOGGED_NORMS}"
            f"{'; ' + remark if remark else ''}); run with a smaller --logging_steps and --logging_first_step, or record a "
            "gradient_norms.jsonl."
        )


def _is_given(value: Any) -> bool:
    return value is not None and value != ""


def _step(value: Any) -> int | None:
    """Parse the number of an update, such as 10, "10/438" or "2,000"; None if the value is no whole number."""
    if type(value) is str:
        count = value.partition("/")[0].strip()
        value = _number(count.replace(",", "") if THOUSANDS.fullmatch(count) else count)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_STEPS else None


def _epoch(value: Any) -> float:
    return _norm(value.partition("/")[0] if isinstance(value, str) else value)


def _norm(value: Any) -> float:
    """A logged value as a float, also out of nested lists of one, as old logs have it; NaN where it is none."""
    while type(value) is list and len(value) == 1:
        value = value[0]
    number = value if type(value) is float else _number(value)
    return number if 0 <= number < float("inf") else float("nan")


def _number(value: Any) -> float:
    """A number or its text as a float. Python's own `float` takes "1_0" for ten."""
    if type(value) is bool or (type(value) is str and "_" in value):
        return float("nan")
    if type(value) is str and _THOUSANDS_AND_FRACTION.fullmatch(value.strip()):
        value = value.replace(",", "")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
