"""Which columns of a log hold gradient norms, the number of the update, and the epoch: recognised by name."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..theory.refinement import NormKind
from .message_text import listed, quoted, shown

STEP_NAMES = (
    "train/global_step",
    "trainer/global_step",
    "global_step",
    "global_step/max_steps",
    "num_updates",
    "current_steps",
    "update",
    "train_step",
    "step",
    "iteration",
    "iter",
    "_step",
)
"""Names of the number of an update, in lower case. Numbers of updates come before those of log entries, such as `_step`."""

NORM_NAME = re.compile(
    r"grad(ient)?s?[ _-]?norm"  # transformers' grad_norm and most others
    r"|gnorm"  # fairseq
    r"|grad_\d+(\.\d+)?_norm_total"  # Lightning; without "total" it is the norm of a layer
    r"|l\d_norm/grad/global",  # Composer
    re.IGNORECASE,
)

_OTHER_QUANTITY = re.compile(r"__(MIN|MAX)$|max_grad|clip_grad|norm_clip", re.IGNORECASE)
"""The range of a W&B column, and clipping thresholds."""

_ORDER = re.compile(r"grad_(\d+(?:\.\d+)?)_norm_total|l(\d)_norm/grad/global", re.IGNORECASE)
"""Names that give the order of the norm."""

_WHOLE_GRADIENT = re.compile(r"(^|[/.: -])(total_|global_)?(grad[ _-]norm|gnorm)$", re.IGNORECASE)
"""Names of the L2 norm of the whole gradient."""

_KIND_OF_ORDER: dict[float, NormKind] = {1.0: "l1", 2.0: "l2"}


_TRAINER_NORM = re.compile(r"(^|[/ ])grad_norm$")
"""transformers' name of the norm, in its own logs and in those of trackers."""


class NoColumnError(ValueError):
    """Nothing in a log is named like the quantity that is looked for."""


class Wanted(NamedTuple):
    """The quantity that is read from a log."""

    what: str
    """Its name in messages, such as "gradient norm"."""
    plural: str
    names: re.Pattern[str]
    """What the names of its columns look like."""
    choose: Callable[[Sequence[str], Path], str]
    """Its column among those of a log."""
    column: str | None = None
    """The name that the user gave."""

    def includes(self, name: str) -> bool:
        """Whether the values of this name are read."""
        return name == self.column or self.names.search(name) is not None


def norm_columns(
    names: Sequence[str], path: Path, column: str | None = None, norm: NormKind | None = None
) -> dict[NormKind, str]:
    """Choose the columns of gradient norms.

    Args:
        names: the names of all columns.
        path: the log, for messages.
        column: the name to take; by default, the one that is named like a gradient norm.
        norm: which norm that is; by default, what its name says.

    Returns:
        The name of the L1 norm, of the L2 norm, or of both.

    Raises:
        NoColumnError: if no name is that of a gradient norm.
        ValueError: if the log lacks the column, has several that could be meant, or one whose kind is unknown.
    """
    if column is not None:
        if column not in names:
            raise ValueError(f"{shown(path)} has no column {quoted(column)}; it has {listed(names)}.")
        kind = norm or kind_of(column)
        if kind is None:
            raise ValueError(
                f"{shown(path)}: whether {quoted(column)} is an L1 or an L2 norm is not known; pass --norm l1 or l2 "
                "(norm)."
            )
        return {kind: column}
    candidates = [name for name in names if NORM_NAME.search(name) and not _OTHER_QUANTITY.search(name)]
    if not candidates:
        raise NoColumnError(f"{shown(path)} has no column that is named as a gradient norm (it has {listed(names)})")
    known: dict[NormKind, list[str]] = {}
    for name in candidates:
        if (kind := kind_of(name)) is not None:
            known.setdefault(kind, []).append(name)
    if not known and len(candidates) == 1:
        if norm is None:
            raise ValueError(
                f"{shown(path)}: whether {quoted(candidates[0])} is an L1 or an L2 norm is not known; pass --norm l1 or "
                "l2 (norm)."
            )
        return {norm: candidates[0]}
    return {kind: _the_whole_gradient(group, path) for kind, group in (known or {"l2": candidates}).items()}


def _the_whole_gradient(candidates: list[str], path: Path) -> str:
    """The only candidate, or the only one that is the norm of the whole gradient and not of a layer."""
    whole = [name for name in candidates if _WHOLE_GRADIENT.search(name)]
    for group in (candidates, whole):
        if len(group) == 1:
            return group[0]
    raise ValueError(
        f"{shown(path)} has several columns of gradient norms; pass one as --column (column), of {listed(candidates)}."
    )


def kind_of(name: str) -> NormKind | None:
    """The norm that a name says; transformers' `grad_norm` is the L2 norm.

    Args:
        name: the name of a column.

    Returns:
        The kind, or None where the name does not say.
    """
    if order := _ORDER.search(name):
        return _KIND_OF_ORDER.get(float(order[1] or order[2]))
    words = set(re.split(r"[^a-z0-9]+", last_part(name)))
    for kind in _KIND_OF_ORDER.values():
        if kind in words:
            return kind
    return "l2" if _WHOLE_GRADIENT.search(name) else None


def step_candidates(names: Sequence[str]) -> list[str]:
    """The columns that could be the number of the update.

    Args:
        names: the names of all columns.

    Returns:
        Those whose name, or whose last part of it, is in `STEP_NAMES`, the most likely first.
    """
    ranked = []
    for name in names:
        for text in (name.lower(), last_part(name)):
            text = re.sub(r"[ -]", "_", text.strip())
            if text in STEP_NAMES:
                ranked.append((STEP_NAMES.index(text), name))
                break
    return [name for _, name in sorted(ranked, key=lambda candidate: candidate[0])]


def epoch_column(names: Sequence[str]) -> str | None:
    """The column of the epoch.

    Args:
        names: the names of all columns.

    Returns:
        The first name whose last part is "epoch", or None.
    """
    return next((name for name in names if last_part(name) == "epoch"), None)


def last_part(name: str) -> str:
    """What a name says after the run and the section: "grad_norm" of "brave-run-7 - train/grad_norm".

    Args:
        name: the name of a column.

    Returns:
        Its last part, in lower case.
    """
    return re.split(r"[/.:]| - ", name.lower())[-1]


def is_trainer_norm(name: str) -> bool:
    """Whether a column of norms is named as a Hugging Face Trainer names it.

    Args:
        name: the column's name, which a tracker may have prefixed.

    Returns:
        True if so.
    """
    return _TRAINER_NORM.search(name) is not None
