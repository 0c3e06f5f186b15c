"""Every patch and private name of transformers, accelerate and torch, with its reason and the condition for its removal.

transformers is imported inside the functions, so that a plain Accelerate loop never loads it.
"""

import argparse
import functools
import math
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer


class _MethodWrap:
    """`around(method, self, ...)` in place of a class's method, while it is installed.

    Others may wrap the method meanwhile, and keep ours beneath theirs: each installation goes on to the method that it has
    found, and of several in one call the outermost alone calls `around`.

    Args:
        name: the method's name.
        around: called with the method and its arguments.
    """

    def __init__(self, name: str, around: Callable[..., Any]) -> None:
        self._name = name
        self._around = around
        self._found: Callable[..., Any] | None = None
        self._wrapper: Callable[..., Any] | None = None
        self._inside: set[int] = set()

    def install(self, owner: type) -> None:
        method = getattr(owner, self._name)
        if method is self._wrapper:
            return

        @functools.wraps(method)
        def wrapper(instance: Any, *args: Any, **kwargs: Any) -> Any:
            if id(instance) in self._inside:
                return method(instance, *args, **kwargs)
            self._inside.add(id(instance))
            try:
                return self._around(method, instance, *args, **kwargs)
            finally:
                self._inside.discard(id(instance))

        self._found, self._wrapper = method, wrapper
        setattr(owner, self._name, wrapper)

    def remove(self, owner: type) -> None:
        if getattr(owner, self._name) is self._wrapper:
            setattr(owner, self._name, self._found)
            self._found = self._wrapper = None


class ClippingWatcher(Protocol):
    """What `watch_clipping` calls."""

    def before_clip(self, parameters: list[torch.nn.Parameter]) -> bool:
        """Called with the parameters about to be clipped; True to be told the outcome."""

    def after_clip(self, max_norm: float, total_norm: torch.Tensor | float | None) -> None:
        """Called with the arguments and the result of the clip."""


_clipping_watchers: weakref.WeakSet[ClippingWatcher] = weakref.WeakSet()


def watch_clipping(watcher: ClippingWatcher) -> None:
    """Tell `watcher` of every `Accelerator.clip_grad_norm_` until `unwatch_clipping`.

    A wrap of a public method (accelerate 1.1 to 1.15). Trainer clips before any callback is called and a callback is not
    given the accelerator, so gradients before clipping are to be seen nowhere else. It can go when transformers has an
    event before the clip. Watchers are held weakly: one whose training died does not outlive it.

    Args:
        watcher: told before and after each clip.
    """
    _clipping_watchers.add(watcher)
    _clipping.install(Accelerator)


def unwatch_clipping(watcher: ClippingWatcher) -> None:
    """End `watch_clipping`, and put the method back after the last watcher.

    Args:
        watcher: what was given to `watch_clipping`.
    """
    _clipping_watchers.discard(watcher)
    if not _clipping_watchers:
        _clipping.remove(Accelerator)


def _watched_clip(
    clip_grad_norm_: Callable[..., Any], self: Accelerator, parameters: Any, max_norm: float, norm_type: float = 2
) -> Any:
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    concerned = [watcher for watcher in list(_clipping_watchers) if watcher.before_clip(parameters)]
    total_norm = clip_grad_norm_(self, parameters, max_norm, norm_type=norm_type)
    for watcher in concerned:
        watcher.after_clip(max_norm, total_norm)
    return total_norm


_clipping = _MethodWrap("clip_grad_norm_", _watched_clip)


def wrap_optimizer_method(
    optimizer: AcceleratedOptimizer, name: str, around: Callable[[Callable[[], Any]], Any]
) -> Callable[[], None]:
    """Run `around(call)` in place of a method of the optimizer, `step` or `zero_grad`, on this object alone.

    torch's own step hooks are not called for an update that GradScaler skips, and those updates count too; for `zero_grad`
    it has none. The wrapper keeps the marks that PyTorch's schedulers leave on `step`, and is a bound method because they
    look for one. It can go when accelerate has hooks around the methods of `AcceleratedOptimizer`.

    Args:
        optimizer: the prepared optimizer.
        name: of the method.
        around: given a function that makes the call; returns what it returns.

    Returns:
        A function that takes the wrapper off.
    """
    method = getattr(optimizer, name)
    was_set = name in vars(optimizer)

    @functools.wraps(method)
    def watched(self: AcceleratedOptimizer, *args: Any, **kwargs: Any) -> Any:
        if self is not optimizer:  # a copy, made while this one was watched
            return getattr(type(self), name)(self, *args, **kwargs)
        return around(functools.partial(method, *args, **kwargs))

    bound = types.MethodType(watched, optimizer)
    setattr(optimizer, name, bound)

    def remove() -> None:
        if vars(optimizer).get(name) is not bound:
            return  # a scheduler has wrapped the wrapper since; `around` is a plain call by now
        if was_set:
            setattr(optimizer, name, method)
        else:
            delattr(optimizer, name)

    return remove


def loss_scale(optimizer: AcceleratedOptimizer) -> torch.Tensor | None:
    """The factor that fp16 training multiplies gradients by, as a tensor: `GradScaler.get_scale` would synchronise.

    `GradScaler._scale` (torch 2.6 to 2.13). It can go when torch gives the scale without a synchronisation.

    Args:
        optimizer: the prepared optimizer.

    Returns:
        The scale, or None where gradients are not scaled.
    """
    scaler = optimizer.scaler
    return scaler._scale if scaler is not None and scaler.is_enabled() else None


def engine_clip_limit(optimizer: AcceleratedOptimizer) -> float:
    """The norm that DeepSpeed's ZeRO clips to: that of its config, whatever `Accelerator.clip_grad_norm_` is asked for.

    `clip_grad` of ZeRO's optimizers (deepspeed 0.19), which is 0 where they do not clip. It can go when accelerate passes
    on the limit that it is given.

    Args:
        optimizer: the prepared optimizer.

    Returns:
        The limit; infinity where nothing is clipped.
    """
    return optimizer.optimizer.clip_grad or math.inf


def process_group_store() -> dist.Store:
    """The key-value store of the default process group.

    `torch.distributed.distributed_c10d._get_default_store` (torch 2.6 to 2.13): the store through which the processes met
    has no public name. It can go when it has one.

    Returns:
        The store, which every process of the group reaches.
    """
    return dist.distributed_c10d._get_default_store()


def sums_at_once(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The sums of all absolute values and of all squares, in a few launches on an accelerator instead of two a tensor.

    `torch._foreach_norm` (torch 2.6 to 2.13), which `torch.nn.utils.clip_grad_norm_` is made of: the public
    `get_total_norm` returns norms in the gradients' own type, 8 bits of a bfloat16 one. It can go when that takes a dtype.

    Args:
        tensors: of any shapes and types, on one device.

    Returns:
        (sum |x|, sum x^2), in float32, shape (2,).
    """
    l1, l2 = (torch.stack(torch._foreach_norm(tensors, order, dtype=torch.float32)) for order in (1, 2))
    return torch.stack((l1.sum(), l2.square().sum()))


class LogContributor(Protocol):
    """A callback whose values join the log entries of its trainer."""

    def add_to_logs(self, logs: dict[str, float]) -> None:
        """Called with the entries of one `Trainer.log`, to add to."""


_log_contributors: list[weakref.ref[LogContributor]] = []
"""References, not a set: a callback that is a dataclass has no hash."""


def contribute_to_logs(contributor: LogContributor) -> None:
    """Let a callback add to what its trainer logs, until `stop_contributing_to_logs`.

    A wrap of the public `Trainer.log` (transformers 5.3 to 5.23): a key added in `on_log` comes after `log_history` and
    the trackers have taken theirs. It can go when callbacks are asked for entries before that.

    Args:
        contributor: a callback of the trainer.
    """
    from transformers import Trainer

    _log_contributors.append(weakref.ref(contributor))
    _logging.install(Trainer)


def stop_contributing_to_logs(contributor: LogContributor) -> None:
    """End `contribute_to_logs`, and put the method back after the last contributor.

    Args:
        contributor: what was given to `contribute_to_logs`.
    """
    from transformers import Trainer

    _log_contributors[:] = [other for other in _log_contributors if other() is not None and other() is not contributor]
    if not _log_contributors:
        _logging.remove(Trainer)


def _contributed_log(log: Callable[..., None], self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
    for callback in self.callback_handler.callbacks:
        if any(callback is contributor() for contributor in _log_contributors):
            callback.add_to_logs(logs)
    log(self, logs, *args, **kwargs)


_logging = _MethodWrap("log", _contributed_log)


def add_scheduler_type(name: str, function: Callable[..., Any]) -> None:
    """Make `name` a member of transformers' `SchedulerType` that `get_scheduler` builds with `function`.

    `TYPE_TO_SCHEDULER_FUNCTION` and the inside of `enum` (transformers 5.3 to 5.23, Python 3.11 to 3.13): the enum is the
    type of `TrainingArguments.lr_scheduler_type` and of the command line's choices, and it is closed. It can go when
    transformers has a registry of schedulers.

    Args:
        name: the value on the command line.
        function: called with `optimizer`, `num_warmup_steps=`, `num_training_steps=` and the scheduler's kwargs.
    """
    from transformers import optimization
    from transformers.trainer_utils import SchedulerType

    if name not in SchedulerType._value2member_map_:
        member_name = name.upper()
        member = str.__new__(SchedulerType, name)
        member._name_, member._value_, member.__objclass__ = member_name, name, SchedulerType
        member._sort_order_ = len(SchedulerType._member_names_)
        type.__setattr__(SchedulerType, member_name, member)
        SchedulerType._member_names_.append(member_name)
        SchedulerType._member_map_[member_name] = member
        SchedulerType._value2member_map_[name] = member
    optimization.TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)] = function


def scheduler_function(name: str) -> Callable[..., Any] | None:
    """The function that `get_scheduler` builds a schedule with.

    `TYPE_TO_SCHEDULER_FUNCTION`, as above.

    Args:
        name: the schedule.

    Returns:
        The function, or None where transformers does not know the name.
    """
    from transformers import optimization

    return optimization.TYPE_TO_SCHEDULER_FUNCTION.get(name)


def add_default_callback(callback: type) -> None:
    """Give every Trainer made from now on a callback.

    `transformers.trainer.DEFAULT_CALLBACKS` (transformers 5.3 to 5.23), for scripts that have never heard of us. It can
    go when transformers has a public way to add default callbacks.

    Args:
        callback: a `TrainerCallback` class, made anew for each trainer.
    """
    from transformers import trainer

    trainer.DEFAULT_CALLBACKS.append(callback)


@contextmanager
def widened_choices(names: list[str]) -> Iterator[None]:
    """Let argparse options that offer transformers' schedules by a literal list offer `names` too.

    A wrap of `argparse`'s `add_argument`, while a script runs: the `*_no_trainer.py` examples list their `choices`. It can
    go when they take them from `SchedulerType`.

    Args:
        names: the schedules to offer.

    Yields:
        None.
    """
    add_argument = argparse._ActionsContainer.add_argument

    def widened_add_argument(self: Any, *args: Any, **kwargs: Any) -> Any:
        choices = kwargs.get("choices")
        if isinstance(choices, (list, tuple)) and {"linear", "cosine"} <= {
            str(getattr(c, "value", c)) for c in choices
        }:
            kwargs["choices"] = [*choices, *(name for name in names if name not in choices)]
        return add_argument(self, *args, **kwargs)

    argparse._ActionsContainer.add_argument = widened_add_argument
    try:
        yield
    finally:
        argparse._ActionsContainer.add_argument = add_argument


@contextmanager
def prepared_optimizers(notify: Callable[[Accelerator, Any], None]) -> Iterator[None]:
    """Be told of every optimizer that an Accelerator prepares.

    A wrap of the public `Accelerator.prepare_optimizer` (accelerate 1.1 to 1.15), for raw loops in scripts that have never
    heard of us. It can go when accelerate has callbacks.

    Args:
        notify: called with the Accelerator and the prepared optimizer.

    Yields:
        None.
    """
    prepare_optimizer = Accelerator.prepare_optimizer

    @functools.wraps(prepare_optimizer)
    def watched_prepare_optimizer(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare_optimizer(self, *args, **kwargs)
        notify(self, prepared)
        return prepared

    Accelerator.prepare_optimizer = watched_prepare_optimizer
    try:
        yield
    finally:
        Accelerator.prepare_optimizer = prepare_optimizer


def is_prepared_by(accelerator: Accelerator, optimizer: AcceleratedOptimizer) -> bool:
    """Whether an Accelerator still holds an optimizer that it has prepared, or has let go of it (`free_memory`).

    `Accelerator._optimizers` (accelerate 1.1 to 1.15). It can go when accelerate has a public list of them.

    Args:
        accelerator: the Accelerator.
        optimizer: the prepared optimizer.

    Returns:
        True if it holds it.
    """
    return any(one is optimizer for one in accelerator._optimizers)
