"""Patches and private names of the engines that shard or hide gradients: torch's FSDP1, and DeepSpeed.

DeepSpeed is imported inside the functions, where its optimizer is in use.
"""

import math
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from .method_wrap import MethodWrap


class EngineClipWatcher(Protocol):
    """An object that `watch_engine_clips` calls before each clip."""

    def before_engine_clip(self, module: torch.nn.Module, max_norm: float) -> None:
        """See the module whose gradients are about to be clipped, and the limit."""


_watchers: weakref.WeakSet[EngineClipWatcher] = weakref.WeakSet()


def watch_engine_clips(watcher: EngineClipWatcher, distributed_type: DistributedType) -> None:
    """Have `watcher` called before every clip that an engine makes by itself, until `unwatch_engine_clips`.

    A wrap of the public `FullyShardedDataParallel.clip_grad_norm_` (torch 2.6 to 2.13), which `Accelerator.clip_grad_norm_`
    calls: the optimizer does not know the module, and only the module knows which parameters are sharded. It can go with FSDP1,
    which transformers calls deprecated.

    A wrap of `DeepSpeedEngine.clip_fp32_gradients` (deepspeed 0.19), by which DeepSpeed without ZeRO clips at the beginning of
    its step, inside `Accelerator.backward`. It drops the norm that it computes. It can go when `get_global_grad_norm` returns
    that norm and L1 can be had from the clipped gradients.

    Args:
        watcher: called before each clip, and held weakly.
        distributed_type: the engine, as Accelerate calls it.
    """
    _watchers.add(watcher)
    if distributed_type == DistributedType.FSDP:
        from torch.distributed.fsdp import FullyShardedDataParallel

        _fsdp1_clip.install(FullyShardedDataParallel)
    elif distributed_type == DistributedType.DEEPSPEED:
        from deepspeed import DeepSpeedEngine

        _deepspeed_clip.install(DeepSpeedEngine)


def unwatch_engine_clips(watcher: EngineClipWatcher) -> None:
    """End `watch_engine_clips`, and put the methods back after the last watcher.

    Args:
        watcher: the watcher that was passed to `watch_engine_clips`.
    """
    _watchers.discard(watcher)
    if not _watchers:
        _fsdp1_clip.remove()
        _deepspeed_clip.remove()


def _before_fsdp1_clip(clip: Callable[..., Any], module: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
    for watcher in list(_watchers):
        watcher.before_engine_clip(module, float(max_norm))
    return clip(max_norm, *args, **kwargs)


def _before_deepspeed_clip(clip: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    for watcher in list(_watchers):
        watcher.before_engine_clip(engine.module, engine.gradient_clipping())
    return clip(*args, **kwargs)


_fsdp1_clip = MethodWrap("clip_grad_norm_", _before_fsdp1_clip)
_deepspeed_clip = MethodWrap("clip_fp32_gradients", _before_deepspeed_clip)


def sharded_parameters(module: Any) -> set[int]:
    """Find the parameters of which each rank holds a part, as FSDP1's own clip does.

    `_all_handles`, `uses_sharded_strategy`, `_use_orig_params` and `flat_param._params` (torch 2.6 to 2.13). Parameters that
    FSDP1 ignores, and those of `NO_SHARD`, are whole on every rank, and a sum over ranks would count them several times. It can
    go with FSDP1.

    Args:
        module: the outermost `FullyShardedDataParallel`, after a forward pass.

    Returns:
        The ids of the parameters.
    """
    sharded: set[int] = set()
    for handle in module._all_handles:
        if handle.uses_sharded_strategy:
            parameters = handle.flat_param._params if handle._use_orig_params else [handle.flat_param]
            sharded.update(map(id, parameters))
    return sharded


def engine_clip_limit(optimizer: AcceleratedOptimizer) -> float:
    """Get the limit that DeepSpeed's ZeRO clips to. It comes from its config; `Accelerator.clip_grad_norm_` ignores its own.

    `clip_grad` of ZeRO's optimizers (deepspeed 0.19), which is 0 where they do not clip. It can go when accelerate passes
    the limit on.

    Args:
        optimizer: the prepared optimizer.

    Returns:
        The limit; infinity where nothing is clipped.
    """
    return optimizer.optimizer.clip_grad or math.inf


def engine_norm(optimizer: AcceleratedOptimizer) -> float | torch.Tensor | None:
    """Get the L2 norm before clipping of the last step of DeepSpeed's ZeRO.

    `_global_grad_norm` of ZeRO's optimizers (deepspeed 0.19), the value of the public `DeepSpeedEngine.get_global_grad_norm`.
    A loop that does not clip never passes the engine. It can go when accelerate's optimizer returns the norm.

    Args:
        optimizer: the prepared optimizer.

    Returns:
        The norm, or None if the config says that it is not computed.
    """
    return getattr(optimizer.optimizer, "_global_grad_norm", None)


def reports_scaled_norm(optimizer: AcceleratedOptimizer) -> bool:
    """Recognize an engine that reports the norm of gradients with fp16's loss scale in it.

    `FP16_UnfusedOptimizer` (deepspeed 0.19), which DeepSpeed without ZeRO puts around optimizers other than its own fused Adam.
    The scale may have changed by the time the norm can be read. It can go when DeepSpeed divides the scale out, as
    `FP16_Optimizer` does.

    Args:
        optimizer: the prepared optimizer.

    Returns:
        True if the norm cannot be used.
    """
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    engine = optimizer.optimizer
    return isinstance(engine, FP16_UnfusedOptimizer) and engine.loss_scale_config.use_grad_scaling
