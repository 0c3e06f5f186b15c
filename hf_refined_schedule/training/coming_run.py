"""The learning rates of a run that has not begun, from the functions that training uses."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import HfArgumentParser, get_scheduler
from transformers.trainer_utils import SchedulerType

from ..norms.message_text import listed, quoted, shown
from .training_args import KEYWORDS, RefinedScheduleArguments

MAX_UPDATES = 1_000_000
"""The longest run whose rates are computed: the scheduler takes some microseconds a step."""

BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules whose rates follow from losses that only the run itself will show."""

_DECISIVE = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "optim", *KEYWORDS
)  # fmt: skip
"""The arguments that decide the rates. Others, such as a precision that this machine lacks, must not stop a preview."""

_ABSENT = object()
"""Stands for an argument that the command line lacks; its default would look as if it had been given."""


def run_arguments(**given: Any) -> RefinedScheduleArguments:
    """The arguments of a run, of which only those that decide its learning rates are used.

    Args:
        **given: arguments of `RefinedScheduleArguments` by name; others than the decisive ones are left out.

    Returns:
        The arguments.

    Raises:
        ValueError: if one of them is out of range, or the schedule is not known or follows from evaluations.
    """
    _check_name(given.get("lr_scheduler_type", "linear"))
    peak = given.get("learning_rate", 0.0)
    if not 0 <= peak < float("inf"):
        raise ValueError(
            f"learning_rate is {peak!r}, but must be a finite number from 0 on; pass the peak learning rate."
        )
    decisive = {name: value for name, value in given.items() if name in _DECISIVE}
    try:
        return RefinedScheduleArguments(report_to="none", use_cpu=True, **decisive)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"These arguments cannot be used: {shown(error)}; pass them as to the training script."
        ) from None


def parse_run_arguments(words: Sequence[str], **defaults: Any) -> tuple[RefinedScheduleArguments, list[str]]:
    """Read the arguments of a training script.

    Args:
        words: as on its command line, such as `--learning_rate 1e-3 --max_steps 500`.
        **defaults: arguments by name, for those that `words` lack.

    Returns:
        The arguments, and the words that are no arguments of a Trainer.

    Raises:
        ValueError: if a value cannot be read or is out of range.
    """
    names = [option.name for option in fields(RefinedScheduleArguments)]
    absent = dict.fromkeys(names, _ABSENT)
    schedule = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    schedule.add_argument("--lr_scheduler_type", "--lr-scheduler-type", default="linear")
    parser = HfArgumentParser(RefinedScheduleArguments, allow_abbrev=False, exit_on_error=False, add_help=False)
    try:
        _check_name(schedule.parse_known_args(list(words))[0].lr_scheduler_type)
        namespace, ignored = parser.parse_known_args(list(words), argparse.Namespace(**absent))
    except argparse.ArgumentError as error:
        raise ValueError(f"{shown(error, 200)}; pass the arguments as to the training script.") from None
    given = {name: value for name in names if (value := getattr(namespace, name)) is not _ABSENT}
    return run_arguments(**{**defaults, **given}), ignored


def _check_name(schedule: Any) -> None:
    """Refuse an `lr_scheduler_type` that transformers does not have, or whose rates cannot be known before the run."""
    name, known = getattr(schedule, "value", schedule), [member.value for member in SchedulerType]
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {quoted(near[0])}?" if near else f"pass one of {listed(known, 120)}."
        raise ValueError(f"There is no lr_scheduler_type {quoted(name)}; {hint}")
    if name in BY_EVALUATION:
        raise ValueError(f"The rates of {name} follow from evaluations during the run; preview another schedule.")


def scheduler_keywords(arguments: RefinedScheduleArguments) -> dict[str, Any]:
    """The `lr_scheduler_kwargs` of a run.

    Args:
        arguments: of the run, which have turned JSON text into a dictionary.

    Returns:
        A copy.
    """
    return dict(arguments.lr_scheduler_kwargs) if isinstance(arguments.lr_scheduler_kwargs, dict) else {}


def learning_rates(
    arguments: RefinedScheduleArguments, num_training_steps: int, num_rates: int | None = None
) -> NDArray[np.float64]:
    """The learning rate of each update of a run, as a Trainer with these arguments sets it.

    The scheduler is made by `transformers.get_scheduler`, as the Trainer makes it, and stepped over an optimizer with one
    parameter.

    Args:
        arguments: of the run.
        num_training_steps: T, the number of optimizer updates.
        num_rates: how many rates to compute, T if not given; beyond T the scheduler is stepped on.

    Returns:
        The rate of each update from the first, shape (T,) or (num_rates,).

    Raises:
        ValueError: if the schedule lacks an option that it needs, or T is out of range.
    """
    name = SchedulerType(arguments.lr_scheduler_type).value
    num_rates = num_training_steps if num_rates is None else num_rates
    if num_training_steps < 1 or max(num_training_steps, num_rates) > MAX_UPDATES:
        raise ValueError(
            f"The run has {num_training_steps:,} updates, but must have from 1 to {MAX_UPDATES:,} for this; pass a shorter --max_steps."
        )
    parameter = torch.nn.Parameter(torch.zeros(1))
    family = torch.optim.SGD if str(getattr(arguments.optim, "value", arguments.optim)) == "sgd" else torch.optim.AdamW
    optimizer = family([parameter], lr=arguments.learning_rate)
    try:
        scheduler = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=arguments.get_warmup_steps(num_training_steps),
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs=scheduler_keywords(arguments),
        )
        rates = np.empty(num_rates)
        for step in range(num_rates):
            rates[step] = optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()
    except (TypeError, ArithmeticError) as error:
        raise ValueError(
            f"The schedule {name} refuses its lr_scheduler_kwargs: {shown(error)}; pass what it needs."
        ) from None
    return rates
