"""Patches and private names of torch, accelerate and transformers that training and recording need.

transformers is imported inside the functions, so that a plain Accelerate loop never loads it.
"""

import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from .method_wrap import MethodWrap

# --- torch: gradients ---


def norm_of_each(tensors: Sequence[torch.Tensor], order: float, dtype: torch.dtype) -> torch.Tensor:
    """Compute the norm of each tensor in a given type, in a few kernel launches instead of one for each tensor.

    `torch._foreach_norm` (torch 2.6 to 2.13), on which `torch.nn.utils.clip_grad_norm_` is built. The public
    `get_total_norm` returns norms in the type of the gradients, which has 8 bits for bfloat16. It can go when
    `get_total_norm` takes a dtype.

    Args:
        tensors: tensors of any shapes and types, on one device.
        order: 1 or 2.
        dtype: the type in which to sum.

    Returns:
        The norms, in that type, shape (len(tensors),).
    """
    return torch.stack(torch._foreach_norm(list(tensors), order, dtype=dtype))


def change_count(tensor: torch.Tensor) -> int | None:
    """Count how often a tensor was changed in place.

    `torch.Tensor._version` (torch 2.6 to 2.13), by which autograd finds tensors that changed since the forward pass. It can
    go when torch publishes the counter.

    Args:
        tensor: any tensor.

    Returns:
        The count, or None for an inference tensor, which has no counter.
    """
    return None if tensor.is_inference() else tensor._version


def loss_scale(optimizer: AcceleratedOptimizer) -> torch.Tensor | None:
    """Get the factor by which fp16 training multiplies gradients, without waiting for the device.

    `GradScaler._scale` (torch 2.6 to 2.13). The public `GradScaler.get_scale` copies it to the host. It can go when torch
    returns the scale as a tensor.

    Args:
        optimizer: the prepared optimizer.

    Returns:
        The scale, or None where gradients are not scaled.
    """
    scaler = optimizer.scaler
    return scaler._scale if scaler is not None and scaler.is_enabled() else None


def loss_scale_of_step(optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """Get the factor that an optimizer will divide gradients by inside its own step.

    `grad_scale` (torch 2.6 to 2.13), which GradScaler sets on a fused optimizer during a step. Gradients of other optimizers
    are unscaled before the step. It can go when torch documents the attribute.

    Args:
        optimizer: the innermost optimizer, in a hook before its step.

    Returns:
        The scale, or None where the gradients are not scaled at this moment.
    """
    return getattr(optimizer, "grad_scale", None)


def process_group_store() -> dist.Store:
    """Get the key-value store through which the processes of the default group have met.

    `torch.distributed.distributed_c10d._get_default_store` (torch 2.6 to 2.13). It can go when the store has a public name.

    Returns:
        The store, which every process of the group can reach.
    """
    return dist.distributed_c10d._get_default_store()


# --- accelerate ---


class ClippingWatcher(Protocol):
    """An object that `watch_clipping` calls before and after each clip."""

    def before_clip(self, parameters: list[torch.nn.Parameter], norm_type: float) -> bool:
        """See the parameters about to be clipped and the order of the norm; True to have `after_clip` called."""

    def after_clip(self, max_norm: float, total_norm: torch.Tensor | float | None) -> None:
        """See the limit that the clip was called with, and the norm that it has returned."""


_clipping_watchers: weakref.WeakSet[ClippingWatcher] = weakref.WeakSet()


def watch_clipping(watcher: ClippingWatcher) -> None:
    """Have `watcher` called around every `Accelerator.clip_grad_norm_` until `unwatch_clipping`.

    A wrap of a public method (accelerate 1.1 to 1.15). Trainer clips before it calls any callback, and callbacks do not get
    the accelerator, so gradients before clipping cannot be seen anywhere else. It can go when transformers has an event
    before the clip. Watchers are held weakly, so that one whose training has died does not outlive it.

    Args:
        watcher: called before and after each clip.
    """
    _clipping_watchers.add(watcher)
    _clipping.install(Accelerator)


def unwatch_clipping(watcher: ClippingWatcher) -> None:
    """End `watch_clipping`, and put the method back after the last watcher.

    Args:
        watcher: the watcher that was passed to `watch_clipping`.
    """
    _clipping_watchers.discard(watcher)
    if not _clipping_watchers:
        _clipping.remove()


def _watched_clip(
    clip_grad_norm_: Callable[..., Any],
    accelerator: Accelerator,
    parameters: Any,
    max_norm: float,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # A list, because an iterator can be used only once.
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    norm_type = args[0] if args else kwargs.get("norm_type", 2.0)
    concerned = [watcher for watcher in list(_clipping_watchers) if watcher.before_clip(parameters, norm_type)]
    total_norm = clip_grad_norm_(parameters, max_norm, *args, **kwargs)
    for watcher in concerned:
        watcher.after_clip(max_norm, total_norm)
    return total_norm


_clipping = MethodWrap("clip_grad_norm_", _watched_clip)


# --- transformers ---


class LogContributor(Protocol):
    """A callback that adds values to the log entries of its trainer."""

    def add_to_logs(self, logs: dict[str, float]) -> None:
        """Add to the values of one `Trainer.log`."""


_log_contributors: list[weakref.ref[LogContributor]] = []
"""A list, because a callback that is a dataclass has no hash, so that it cannot be in a `WeakSet`."""


def contribute_to_logs(contributor: LogContributor) -> None:
    """Let a callback add to what its trainer logs, until `stop_contributing_to_logs`.

    A wrap of the public `Trainer.log` (transformers 5.3 to 5.23). A key that is added in `on_log` comes too late for
    `log_history` and for trackers that were added before. It can go when transformers asks callbacks for values before it
    logs.

    Args:
        contributor: a callback of the trainer.
    """
    from transformers import Trainer

    _log_contributors.append(weakref.ref(contributor))
    _logging.install(Trainer)


def stop_contributing_to_logs(contributor: LogContributor) -> None:
    """End `contribute_to_logs`, and put the method back after the last contributor.

    Args:
        contributor: the callback that was passed to `contribute_to_logs`.
    """
    _log_contributors[:] = [other for other in _log_contributors if other() is not None and other() is not contributor]
    if not _log_contributors:
        _logging.remove()


def _log_with_contributions(
    log: Callable[..., None], trainer: Any, logs: dict[str, float], *args: Any, **kwargs: Any
) -> None:
    for callback in trainer.callback_handler.callbacks:
        if any(callback is contributor() for contributor in _log_contributors):
            callback.add_to_logs(logs)
    log(logs, *args, **kwargs)


_logging = MethodWrap("log", _log_with_contributions)


def add_scheduler_type(name: str, function: Callable[..., Any]) -> None:
    """Make `name` a member of transformers' `SchedulerType` that `get_scheduler` builds with `function`.

    `TYPE_TO_SCHEDULER_FUNCTION` and the internals of `enum` (transformers 5.3 to 5.23, Python 3.11 to 3.13). The enum is
    the type of `TrainingArguments.lr_scheduler_type` and of the choices on the command line, and enums are closed. It can
    go when transformers has a registry of schedulers.

    Args:
        name: the value on the command line.
        function: called with `optimizer`, `num_warmup_steps=`, `num_training_steps=` and the scheduler's kwargs.
    """
    from transformers import optimization
    from transformers.trainer_utils import SchedulerType

    if name not in SchedulerType._value2member_map_:
        member_name = name.upper()
        member: Any = str.__new__(SchedulerType, name)
        member._name_, member._value_, member.__objclass__ = member_name, name, SchedulerType
        member._sort_order_ = len(SchedulerType._member_names_)
        type.__setattr__(SchedulerType, member_name, member)
        SchedulerType._member_names_.append(member_name)
        SchedulerType._member_map_[member_name] = member
        SchedulerType._value2member_map_[name] = member
    optimization.TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)] = function


def pickle_scheduler_type(name: str, function: Callable[[], Any]) -> None:
    """Pickle a member of `SchedulerType` as a call of `function`, which returns the member where it is unpickled.

    An instance attribute in place of `enum`'s `__reduce_ex__` (Python 3.11 to 3.13), which looks the member up and fails in
    a process that has not added it: a spawned process, or one that loads a `training_args.bin`. It can go with
    `add_scheduler_type`.

    Args:
        name: the value of the member.
        function: a function of a module.
    """
    from transformers.trainer_utils import SchedulerType

    member: Any = SchedulerType(name)
    member.__reduce_ex__ = lambda protocol: (function, ())


_normalizers: dict[str, Callable[[Any], Any]] = {}


def normalize_scheduler_kwargs(name: str, normalize: Callable[[Any], Any]) -> None:
    """Pass the `lr_scheduler_kwargs` of every `TrainingArguments` that names a schedule through a function, from now on.

    A wrap of the public `TrainingArguments.__post_init__` (transformers 5.3 to 5.23), which parses text that begins with a
    brace and accepts everything else. It can go when schedules can check their own arguments.

    Args:
        name: the value of the schedule.
        normalize: returns the kwargs to use, or raises a ValueError.
    """
    from transformers import TrainingArguments

    _normalizers[name] = normalize
    _argument_checks.install(TrainingArguments)


def _check_arguments(post_init: Callable[..., None], arguments: Any, *args: Any, **kwargs: Any) -> None:
    normalize = _normalizers.get(arguments.lr_scheduler_type)
    if normalize is None or arguments.lr_scheduler_kwargs is None:
        post_init(*args, **kwargs)
        return
    normalize(arguments.lr_scheduler_kwargs)  # before transformers, whose error would be json's
    post_init(*args, **kwargs)
    arguments.lr_scheduler_kwargs = normalize(arguments.lr_scheduler_kwargs)


_argument_checks = MethodWrap("__post_init__", _check_arguments)


def scheduler_function(name: str) -> Callable[..., Any] | None:
    """Get the function that `get_scheduler` builds a schedule with.

    `TYPE_TO_SCHEDULER_FUNCTION`, as in `add_scheduler_type`.

    Args:
        name: the name of the schedule.

    Returns:
        The function, or None if transformers does not know the name.
    """
    from transformers import optimization

    functions: Mapping[Any, Any] = optimization.TYPE_TO_SCHEDULER_FUNCTION
    return functions.get(name)


def trial_folder_name(callback: Any) -> str | None:
    """Get the folder in `output_dir` to which a Trainer saves the current trial of a hyperparameter search, such as `run-3`.

    `Trainer._get_output_dir` and `Trainer._trial` (transformers 5.3 to 5.23). Events do not get the trial. It can go when
    `TrainerState` has the trial's number.

    Args:
        callback: a callback of the Trainer, during one of its events.

    Returns:
        The folder relative to `output_dir`; None if no Trainer has called.
    """
    trainer = _calling_trainer(callback)
    if trainer is None:
        return None
    return os.path.relpath(trainer._get_output_dir(trainer._trial), trainer.args.output_dir)


def callbacks_beside(callback: Any) -> list[Any]:
    """Get the callbacks of the Trainer that a callback belongs to, among them those of the trackers.

    `Trainer.callback_handler` (transformers 5.3 to 5.23). It can go when events get the other callbacks.

    Args:
        callback: a callback of the Trainer, during one of its events.

    Returns:
        The callbacks; none if no Trainer has called.
    """
    trainer = _calling_trainer(callback)
    return [] if trainer is None else list(trainer.callback_handler.callbacks)


def _calling_trainer(callback: Any) -> Any:
    """The Trainer that has called a callback. Events do not get it, so it is looked up among the callers."""
    from transformers import Trainer

    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, Trainer) and any(one is callback for one in trainer.callback_handler.callbacks):
            return trainer
        frame = frame.f_back
    return None
