"""From a path to the losses and learning rates in it."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .columns import NoColumnError, Wanted, epoch_column
from .log_rows import Columns, RunLog, collect, names_of_log, step_column
from .loss_columns import LOSS_OR_RATE, are_trainer_names, loss_column, rate_column
from .loss_log import LossLog, rates_of_every_update
from .message_text import shown
from .norms_file import NORMS_FILE_NAME, read_learning_rates
from .size_limits import ANY_NUMBER_OF_NORMS, MAX_STEPS, MAX_UPDATES_PER_NORM
from .sources import TRAINER_STATE_NAME, SourceFile, find_source, logs_in, open_log

MIN_LOGGED_LOSSES = 20
"""With fewer losses, a law of five parameters has nothing left to be checked against."""

MAX_LEFT_OUT = 0.1
"""The largest fraction of losses that are not positive and finite."""

SAME_RATE = 1e-3
"""The relative difference up to which a recorded and a logged learning rate are the same; some logs round."""


def load_losses(
    source: str | os.PathLike[str], *, column: str | None = None, warmup_steps: int | None = None
) -> LossLog:
    """Load the losses and learning rates that an existing run logged; the kind of record is recognised by its content.

    A recorded `gradient_norms.jsonl` has learning rates but no losses: these come from the log beside it, and every learning
    rate is then known exactly. Otherwise `rates_of_every_update` rebuilds those between logged ones.

    Args:
        source: as `load_norms` takes it; whether the log has norms does not matter.
        column: the name of the loss in a log, where it is not `loss` or similar, or where it should be `eval_loss`.
        warmup_steps: the updates of a linear warm-up from 0, where the log begins after it.

    Returns:
        The losses, with the learning rate of every update.

    Raises:
        MissingSourceError: if nothing exists at `source`.
        ValueError: if the file holds no losses or no learning rates, too few of them, losses that are not positive, more
            than one column that could be meant, or more than one run.
    """
    if warmup_steps is not None and not (type(warmup_steps) is int and 0 <= warmup_steps <= MAX_STEPS):
        raise ValueError(
            f"--warmup-steps (warmup_steps) is {warmup_steps!r}, but must be a number of updates, 0 for no warm-up."
        )
    file = find_source(source)
    if file.kind == "norms file":
        file = _log_beside(file.path)
    wanted = Wanted(
        what="training loss",
        plural="losses",
        names=LOSS_OR_RATE,
        choose=lambda names, path: loss_column(names, path, column),
        column=column,
    )
    try:
        return _losses_of_log(open_log(file, wanted), column, warmup_steps)
    except NoColumnError as error:
        raise ValueError(
            f"{error}; pass a log of losses and learning rates, such as the {TRAINER_STATE_NAME} of the run, or name the loss as "
            "--column (column)."
        ) from None


def load_learning_rates(source: str | os.PathLike[str], last_step: int) -> NDArray[np.float64]:
    """Load the learning rates of an existing run.

    Args:
        source: as `load_losses` takes it; whether the log has losses does not matter.
        last_step: the last update whose rate is wanted.

    Returns:
        The rate of each update up to that one, rebuilt as `load_losses` does, shape (last_step,).

    Raises:
        ValueError: as `load_losses`.
    """
    file = find_source(source)
    if file.kind == "norms file":
        file = _log_beside(file.path)
    wanted = Wanted("learning rate", "learning rates", LOSS_OR_RATE, lambda names, path: rate_column(names, "", path))
    log = open_log(file, wanted)
    names = names_of_log(log)
    rate = rate_column(names, "", log.path)
    step, _ = step_column(log, names, rate)
    read = _read(log, Columns(rate, None, step, epoch_column(names)))
    usable = np.isfinite(read.values) & (read.steps <= last_step)
    if step is None or not usable.any():
        raise ValueError(
            f"{shown(log.path)} does not say the learning rates of the first {last_step} updates; log them."
        )
    return _every_rate(log.path, read.steps[usable], read.values[usable], last_step)


def _log_beside(norms_file: Path) -> SourceFile:
    """The log in the folder of a recorded file."""
    logs = logs_in(norms_file.parent) if norms_file.name == NORMS_FILE_NAME else []
    if not logs:
        raise ValueError(
            f"{shown(norms_file)} records no losses, and no log of the same run lies beside it; keep a checkpoint, call "
            f"trainer.save_state(), or pass a {TRAINER_STATE_NAME} or another log with losses."
        )
    return find_source(logs[0])


class _Quantity(NamedTuple):
    """A quantity at the updates that have it."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    epochs: NDArray[np.float64]
    remark: str | None
    beside: NDArray[np.float64] | None
    within_epoch: bool


def _losses_of_log(log: RunLog, column: str | None, warmup_steps: int | None) -> LossLog:
    names = names_of_log(log)
    loss = loss_column(names, log.path, column)
    rate = rate_column(names, loss, log.path)
    step, planned = step_column(log, names, loss)
    if step is None and warmup_steps:
        raise ValueError(
            f"{shown(log.path)} has no steps, so --warmup-steps (warmup_steps) cannot be placed in it; leave it out, or pass a log "
            "with steps."
        )
    epoch = epoch_column(names)
    # Where entries are counted, a rate is that of the loss in the same entry. Otherwise they may be in different ones.
    losses = _read(log, Columns(loss, rate if step is None else None, step, epoch))
    rates = losses if step is None else _read(log, Columns(rate, None, step, epoch))
    good = np.isfinite(losses.values) & (losses.values > 0)
    _check_losses(log.path, losses.values, good)
    last_step = int(losses.steps[good][-1])
    _check_length(log.path, last_step, int(good.sum()))
    epochs = losses.epochs[good]
    remarks = [losses.remark] if losses.remark else []
    if not good.all():
        remarks.append(f"{int((~good).sum())} not positive or not finite")
    rate_values = rates.values if rates.beside is None else rates.beside
    usable = np.isfinite(rate_values) & (rates.steps <= last_step)
    if usable.sum() < min(MIN_LOGGED_LOSSES, int(good.sum())):
        raise ValueError(
            f"{shown(log.path)} holds {int(usable.sum())} learning rates beside {int(good.sum())} losses, too few to rebuild "
            "the schedule; log the learning rate with every loss."
        )
    steps, logged = rates.steps[usable], rate_values[usable]
    learning_rates = _every_rate(log.path, steps, logged, last_step, warmup_steps)
    late = steps[0] > 2 * np.median(np.diff(steps)) and logged[1] <= logged[0]
    if warmup_steps is None and late and learning_rates[0] == logged[0]:
        remarks.append(f"no rates before update {steps[0]}, a warm-up before it is not seen")
    return LossLog(
        steps=losses.steps[good],
        losses=losses.values[good],
        learning_rates=learning_rates,
        num_training_steps=None if losses.within_epoch else planned,
        source=str(log.path),
        origin=log.origin,
        num_epochs=float(np.nanmax(epochs)) if np.isfinite(epochs).any() else None,
        remarks=tuple(remarks),
        means_since_last=are_trainer_names(loss, rate),
    )


def _read(log: RunLog, columns: Columns) -> _Quantity:
    """One quantity of a log in the order of the run."""
    logged = collect(log, columns)
    entries = logged.ordered(log.path, counted=columns.step is None)
    return _Quantity(
        steps=entries.steps,
        values=logged.values[entries.positions],
        epochs=logged.epochs[entries.positions],
        remark=entries.remark,
        beside=None if logged.beside is None else logged.beside[entries.positions],
        within_epoch=entries.steps.max(initial=0) > logged.steps.max(initial=0),
    )


def _check_losses(path: Path, losses: NDArray[np.float64], good: NDArray[np.bool_]) -> None:
    """Refuse too few losses, and those of no likelihood."""
    if good.sum() < (1 - MAX_LEFT_OUT) * len(losses):
        raise ValueError(
            f"{shown(path)}: {int((~good).sum())} of {len(losses)} losses are 0, negative or not finite, more than "
            f"{MAX_LEFT_OUT:.0%}; pass a run whose loss is positive, as a cross-entropy is and that of reinforcement learning "
            "is not, and that did not diverge."
        )
    if good.sum() < MIN_LOGGED_LOSSES:
        raise ValueError(
            f"{shown(path)} holds {int(good.sum())} losses, too few to predict from (at least {MIN_LOGGED_LOSSES}); run with "
            "a smaller --logging_steps."
        )


def _check_length(path: Path, last_step: int, number: int) -> None:
    """Refuse step numbers that would fill the memory."""
    limit = min(MAX_STEPS, max(ANY_NUMBER_OF_NORMS, MAX_UPDATES_PER_NORM * number))
    if last_step > limit:
        raise ValueError(
            f"{shown(path)}: {number} losses cannot describe a run of {last_step:,} updates, but at most {limit:,}; log more "
            "of them, or correct the numbers."
        )


def _every_rate(
    log: Path,
    steps: NDArray[np.int64],
    logged: NDArray[np.float64],
    last_step: int,
    warmup_steps: int | None = None,
) -> NDArray[np.float64]:
    """The rate of every update: recorded where a file of the same run is there, otherwise rebuilt."""
    recorded = _recorded_rates(log, steps, logged, last_step)
    if recorded is not None:
        return recorded
    try:
        return rates_of_every_update(steps, logged, last_step, warmup_steps)
    except ValueError as error:
        raise ValueError(f"{shown(log)}: {error}") from None


def _recorded_rates(
    log: Path, steps: NDArray[np.int64], logged: NDArray[np.float64], last_step: int
) -> NDArray[np.float64] | None:
    """The rates in the recorded file of the same run, beside the log or beside its checkpoint; None if there is none.

    A file of another run is told by its rates. An old Trainer logs the rate of the next update.
    """
    for folder in (log.parent, log.parent.parent):
        file = folder / NORMS_FILE_NAME
        if not file.is_file():
            continue
        try:
            recorded = read_learning_rates(file)
        except ValueError:
            continue
        if len(recorded) < last_step:
            continue
        for shift in (1, 0):
            if np.allclose(recorded[np.minimum(steps - shift, len(recorded) - 1)], logged, rtol=SAME_RATE, atol=0):
                return recorded[:last_step]
    return None
