"""Patches and private names with which the launcher reaches scripts that do not import this package.

As in `libraries`, each has its reason, versions and end.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim.lr_scheduler import LambdaLR

from .method_wrap import MethodWrap


@contextmanager
def prepared_optimizers(notify: Callable[[Accelerator, Any], None]) -> Iterator[None]:
    """Call `notify` for every optimizer that an Accelerator prepares in the `with` block.

    A wrap of the public `Accelerator.prepare` and `Accelerator.prepare_optimizer`, and the list `Accelerator._optimizers`
    (accelerate 1.1 to 1.15), for raw loops in scripts that do not import this package. It can go when accelerate has callbacks.

    Args:
        notify: called with the Accelerator and the prepared optimizer, once the outermost of these calls returns: until then
            FSDP2 has not put shards in the place of the parameters, and DeepSpeed never calls `prepare_optimizer`.

    Yields:
        None.
    """

    preparing: list[Accelerator] = []

    def prepare_and_notify(prepare: Callable[..., Any], accelerator: Accelerator, *args: Any, **kwargs: Any) -> Any:
        if accelerator in preparing:
            return prepare(*args, **kwargs)
        before = list(accelerator._optimizers)
        preparing.append(accelerator)
        try:
            prepared = prepare(*args, **kwargs)
        finally:
            preparing.remove(accelerator)
        for optimizer in accelerator._optimizers:
            if not any(optimizer is one for one in before):
                notify(accelerator, optimizer)
        return prepared

    with ExitStack() as exits:
        for method in ("prepare", "prepare_optimizer"):
            exits.enter_context(MethodWrap(method, prepare_and_notify).installed(Accelerator))
        yield


def is_prepared_by(accelerator: Accelerator, optimizer: AcceleratedOptimizer) -> bool:
    """Decide whether an Accelerator still holds an optimizer that it has prepared. `free_memory` lets go of them.

    `Accelerator._optimizers` (accelerate 1.1 to 1.15). It can go when accelerate lists them publicly.

    Args:
        accelerator: the Accelerator.
        optimizer: the prepared optimizer.

    Returns:
        True if the Accelerator holds it.
    """
    return any(held is optimizer for held in accelerator._optimizers)


@contextmanager
def created_schedulers(notify: Callable[[LambdaLR], None]) -> Iterator[None]:
    """Call `notify` for every `LambdaLR` that is created in the `with` block, as by all of transformers' `get_*_schedule`.

    A wrap of the public `LambdaLR.__init__` (torch 2.6 to 2.13), for scripts that do not import this package. It can go when
    transformers calls back when it creates a scheduler.

    Args:
        notify: called with the scheduler.

    Yields:
        None.
    """

    def create_and_notify(init: Callable[..., None], scheduler: LambdaLR, *args: Any, **kwargs: Any) -> None:
        init(*args, **kwargs)
        notify(scheduler)

    with MethodWrap("__init__", create_and_notify).installed(LambdaLR):
        yield


def scheduler_horizon(scheduler: LambdaLR) -> int | None:
    """Get the `num_training_steps` that a schedule of transformers was created with.

    The keywords of its `functools.partial` (transformers 5.3 to 5.23); warmup-stable-decay has the lengths of its parts. It
    can go when schedulers have a horizon.

    Args:
        scheduler: any `LambdaLR`.

    Returns:
        The number of scheduler steps, or None for a schedule without an end or from elsewhere.
    """
    keywords = getattr(scheduler.lr_lambdas[0], "keywords", {})
    if "num_training_steps" in keywords:
        horizon = keywords["num_training_steps"]
    else:
        parts = [keywords.get(f"num_{part}_steps") for part in ("warmup", "stable", "decay")]
        horizon = None if None in parts else sum(parts)
    return horizon if isinstance(horizon, int) and horizon > 0 else None


def steps_per_update(accelerator: Accelerator, scheduler: LambdaLR) -> int:
    """Get the steps that a prepared scheduler makes for each optimizer update.

    `Accelerator._schedulers` (accelerate 1.1 to 1.15). It can go when accelerate lists them publicly.

    Args:
        accelerator: the Accelerator of the loop.
        scheduler: the scheduler, as it was before `Accelerator.prepare`.

    Returns:
        The number of processes, unless a batch is split over them. 1 for a scheduler that the loop steps by itself.
    """
    for prepared in accelerator._schedulers:
        if getattr(prepared, "scheduler", None) is scheduler and prepared.step_with_optimizer:
            return 1 if prepared.split_batches else accelerator.num_processes
    return 1


def add_default_callback(callback: type) -> None:
    """Give a callback to every Trainer that is created from now on.

    `transformers.trainer.DEFAULT_CALLBACKS` (transformers 5.3 to 5.23), for scripts that do not import this package. It can
    go when transformers has a public way to add default callbacks.

    Args:
        callback: a class of `TrainerCallback`. Each Trainer creates its own.
    """
    from transformers import trainer

    callbacks: list[Any] = trainer.DEFAULT_CALLBACKS
    callbacks.append(callback)


def add_reporting_integration(name: str, callback: type) -> None:
    """Let `--report_to NAME` give a callback to a Trainer, as transformers does for the trackers that it knows.

    `transformers.integrations.INTEGRATION_TO_CALLBACK` (transformers 5.3 to 5.23). It can go when transformers has a public
    way to add integrations.

    Args:
        name: the value of `report_to`.
        callback: a class of `TrainerCallback`. Each Trainer creates its own.
    """
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    INTEGRATION_TO_CALLBACK[name] = callback


@contextmanager
def widened_choices(names: list[str]) -> Iterator[None]:
    """Add `names` to argparse options whose literal list of choices has transformers' schedules.

    A wrap of `argparse`'s `add_argument` (Python 3.11 to 3.13) while a script runs: the `*_no_trainer.py` examples list
    their choices. It can go when they take them from `SchedulerType`.

    Args:
        names: the schedules to offer.

    Yields:
        None.
    """

    def widen(add_argument: Callable[..., Any], parser: Any, *args: Any, **kwargs: Any) -> Any:
        choices = kwargs.get("choices")
        if isinstance(choices, (list, tuple)):
            values = {str(getattr(choice, "value", choice)) for choice in choices}
            if {"linear", "cosine"} <= values:
                kwargs["choices"] = [*choices, *(name for name in names if name not in choices)]
        return add_argument(*args, **kwargs)

    with MethodWrap("add_argument", widen).installed(argparse._ActionsContainer):
        yield
