"""Register `"refined"` and other schedules with transformers. No other module changes which schedules it has."""

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from transformers import get_linear_schedule_with_warmup
from transformers.trainer_utils import SchedulerType

from ..autoregister import LAUNCH_VARIABLE
from ..compatibility.libraries import (
    add_scheduler_type,
    normalize_scheduler_kwargs,
    pickle_scheduler_type,
    scheduler_function,
)
from ..compatibility.unmodified_scripts import add_reporting_integration
from .scheduler import get_refined_schedule
from .scheduler_kwargs import parse_scheduler_kwargs

REPORTING_NAME = "gradient_norms"
"""The value of `--report_to` that records."""

_inheritance_begun = False


def register() -> None:
    """Make `"refined"` an `lr_scheduler_type` everywhere in transformers.

    `SchedulerType("refined")`, `TrainingArguments`, the choices of `HfArgumentParser` and `get_scheduler("refined", ...)`
    then accept it. `--report_to gradient_norms` then adds a `GradientNormCallback` to a Trainer. `"linear"` remains transformers' own linear decay. Call this before building an `HfArgumentParser`, which
    fixes its choices when it is built. A second call changes nothing.

    In a child process of a program that `hf-refined-schedule launch` runs, Trainers record from then on, as in the program.

    `TrainingArguments` that name `refined` accept paths in `lr_scheduler_kwargs` and explain malformed ones. Unpickling them,
    as a spawned process does or `torch.load("training_args.bin", weights_only=False)`, calls this function.

    Raises:
        ValueError: if another function is registered as `"refined"` or `"linear"`.

    Example:
        >>> register()
        >>> from transformers import TrainingArguments
        >>> TrainingArguments("out", lr_scheduler_type="refined", report_to="none").lr_scheduler_type.value
        'refined'
    """
    register_scheduler("linear", get_linear_schedule_with_warmup)
    register_scheduler("refined", get_refined_schedule)
    pickle_scheduler_type("refined", registered_member)
    normalize_scheduler_kwargs("refined", parse_scheduler_kwargs)
    # By name, because the module calls this function while it is imported.
    callback = import_module(f"{__package__}.callback").GradientNormCallback
    add_reporting_integration(REPORTING_NAME, callback)
    global _inheritance_begun
    if LAUNCH_VARIABLE in os.environ and not _inheritance_begun:
        _inheritance_begun = True  # the module below calls this function while it is imported
        import_module(f"{__package__}.launch_recording").inherit_launch()


def registered_member() -> SchedulerType:
    """Get `SchedulerType.REFINED` in a process that may not have called `register`. Pickles call this.

    Returns:
        The member.
    """
    register()
    return SchedulerType("refined")


def register_scheduler(name: str, function: Callable[..., Any]) -> SchedulerType:
    """Register a custom schedule as an `lr_scheduler_type`.

    Args:
        name: the value of `--lr_scheduler_type`, a lower-case identifier such as `"refined"`.
        function: creates the scheduler from `optimizer`, `num_warmup_steps`, `num_training_steps` and the options in
            `lr_scheduler_kwargs`; returns a PyTorch scheduler.

    Returns:
        The member of `SchedulerType`.

    Raises:
        ValueError: if the name is not a lower-case identifier, the function does not accept these arguments, or the name
            belongs to another function.

    Example:
        >>> from torch.optim.lr_scheduler import LambdaLR
        >>> def get_halving_schedule(optimizer, num_warmup_steps, num_training_steps, last_epoch=-1):
        ...     return LambdaLR(optimizer, lambda step: 0.5 ** (step / num_training_steps), last_epoch)
        >>> register_scheduler("halving", get_halving_schedule).value
        'halving'
    """
    if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
        raise ValueError(
            f"The schedule's name is {name!r}, but must be a lower-case identifier; pass one such as 'refined'."
        )
    try:
        inspect.signature(function).bind(None, num_warmup_steps=0, num_training_steps=1)
    except TypeError as error:
        raise ValueError(
            f"{function!r} cannot be called with (optimizer, num_warmup_steps=, num_training_steps=): {error}; "
            "give it the signature of transformers' get_*_schedule functions."
        ) from None
    known = scheduler_function(name)
    if known is None:
        add_scheduler_type(name, function)
    elif known is not function:
        raise ValueError(
            f"The name {name!r} already belongs to {known.__module__}.{known.__qualname__}; register your schedule under "
            "another name."
        )
    return SchedulerType(name)
