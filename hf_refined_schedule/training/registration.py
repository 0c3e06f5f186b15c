"""Register `"refined"` and other schedules with transformers. No other module changes which schedules it has."""

import inspect
from collections.abc import Callable
from typing import Any

from transformers import get_linear_schedule_with_warmup
from transformers.trainer_utils import SchedulerType

from ..compatibility import add_scheduler_type, scheduler_function
from .scheduler import get_refined_schedule


def register() -> None:
    """Make `"refined"` an `lr_scheduler_type` everywhere in transformers.

    `SchedulerType("refined")`, `TrainingArguments`, the choices of `HfArgumentParser` and `get_scheduler("refined", ...)`
    then accept it. `"linear"` remains transformers' own linear decay. Call this before building an `HfArgumentParser`, which
    fixes its choices when it is built, and before unpickling a `training_args.bin` that names `refined`. A second call
    changes nothing.

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
