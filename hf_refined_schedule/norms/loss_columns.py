"""Which columns of a log hold the training loss and the learning rate: recognised by name."""

import re
from collections.abc import Sequence
from pathlib import Path

from .columns import NoColumnError, last_part
from .message_text import listed, quoted, shown

LOSS_NAMES = ("loss", "train_loss", "training_loss", "lm_loss", "train_loss_step", "global_avg_loss")
"""Last parts of the names of a training loss, the most likely first. A Trainer's `train_loss` is the mean of the whole run,
beside the `loss` of its updates."""

LOSS_NAME = re.compile(r"loss", re.IGNORECASE)

RATE_NAME = re.compile(r"learning[ _-]?rate|(^|[^a-z])lrs?([^a-z]|$)", re.IGNORECASE)
"""transformers' `learning_rate`, `lr`, and Lightning's `lr-AdamW`."""

LOSS_OR_RATE = re.compile(f"{LOSS_NAME.pattern}|{RATE_NAME.pattern}", re.IGNORECASE)

_LIGHTNING_RATE = re.compile(r"(^|/)lr-\w+(/\w+)*$")
"""The rate of an optimizer, or of one of its groups of parameters, such as `lr-AdamW/pg1`."""

_EVALUATION = re.compile(r"(^|[^a-z])(eval|evaluation|val|valid|validation|dev|test)([^a-z]|$)", re.IGNORECASE)

_RANGE = re.compile(r"__(MIN|MAX)$")
"""The range of a W&B column."""


def loss_column(names: Sequence[str], path: Path, column: str | None = None) -> str:
    """Choose the column of the loss.

    Args:
        names: the names of all columns.
        path: the log, for messages.
        column: the name to take; by default, the one that is named like a training loss.

    Returns:
        The name.

    Raises:
        NoColumnError: if no name is that of a training loss.
        ValueError: if the log lacks the column, or has several that could be meant.
    """
    if column is not None:
        if column not in names:
            raise ValueError(f"{shown(path)} has no column {quoted(column)}; it has {listed(names)}.")
        return column
    for loss_name in LOSS_NAMES:
        found = [name for name in names if _is_named(name, loss_name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{shown(path)} has several columns of losses; pass one as --column (column), of {listed(found)}."
            )
    raise NoColumnError(f"{shown(path)} has no column that is named as a training loss (it has {listed(names)})")


def _is_named(name: str, loss_name: str) -> bool:
    """Whether a column is of this loss, and neither of an evaluation nor the range of another column."""
    last = re.sub(r"[ -]", "_", last_part(name).strip())
    return last == loss_name and not is_evaluation(name) and not _RANGE.search(name)


def is_evaluation(name: str) -> bool:
    """Whether a name is that of an evaluation's loss, of data that no epoch repeats.

    Args:
        name: of a column, such as `eval_loss` or `val/loss`.

    Returns:
        True if so.
    """
    return _EVALUATION.search(name) is not None


def are_trainer_names(loss: str, rate: str) -> bool:
    """Whether transformers' Trainer named these columns, whose loss is the mean since the last entry.

    Args:
        loss: the name of the loss, in a tracker with a prefix such as `train/`.
        rate: the name of the learning rate.

    Returns:
        True if so.
    """
    return (last_part(loss), last_part(rate)) == ("loss", "learning_rate") and not is_evaluation(loss)


def rate_column(names: Sequence[str], loss: str, path: Path) -> str:
    """Choose the column of the learning rate.

    Args:
        names: the names of all columns.
        loss: that of the loss; of several rates, as of two runs in one table, the one that is named most like it is taken.
        path: the log, for messages.

    Returns:
        The name.

    Raises:
        NoColumnError: if no name is that of a learning rate.
    """
    found = [
        name
        for name in names
        if (RATE_NAME.search(last_part(name)) or _LIGHTNING_RATE.search(name)) and not _RANGE.search(name)
    ]
    if not found:
        raise NoColumnError(
            f"{shown(path)} has losses but no column that is named as a learning rate (it has {listed(names)})"
        )
    return max(found, key=lambda name: _common_beginning(name, loss))


def _common_beginning(one: str, other: str) -> int:
    """The number of characters before the first that differs."""
    differs = (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differs, min(len(one), len(other)))
