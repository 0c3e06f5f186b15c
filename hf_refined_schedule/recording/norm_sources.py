"""Chooses once, when recording starts, where the norms come from."""

from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from ..compatibility.engines import reports_scaled_norm
from .engine_gradients import DeepSpeedEngine, FSDP1Gradients
from .failures import RecordingError
from .gradient_access import NormSource, TorchGradients
from .measuring import is_dtensor
from .optimizers import parameters_of


def choose_norm_source(optimizer: Any, *, loop_clips: bool) -> NormSource:
    """Choose where the norms come from, by what Accelerate has prepared the optimizer for.

    Args:
        optimizer: the optimizer.
        loop_clips: whether the loop clips at every update.

    Returns:
        The source.

    Raises:
        RecordingError: if the optimizer was not prepared, or is one of Megatron-LM or of DeepSpeed with fp16 and without ZeRO.
    """
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise RecordingError(
            f"the optimizer is a {type(optimizer).__name__}, but must be one that Accelerator.prepare returned"
        )
    distributed_type = optimizer.accelerator_state.distributed_type
    if distributed_type == DistributedType.MEGATRON_LM:
        raise RecordingError(f"{distributed_type.value} keeps the gradients to itself; use DDP or FSDP2 to record them")
    if distributed_type == DistributedType.FSDP and not any(map(is_dtensor, parameters_of(optimizer))):
        return FSDP1Gradients(optimizer)
    if distributed_type != DistributedType.DEEPSPEED:
        return TorchGradients(optimizer, loop_clips=loop_clips, steps_in_backward=False)
    if isinstance(optimizer.optimizer, torch.optim.Optimizer):  # without ZeRO
        return TorchGradients(optimizer, loop_clips=loop_clips, steps_in_backward=True)
    if reports_scaled_norm(optimizer):
        raise RecordingError(
            "DeepSpeed without ZeRO reports the norm of fp16 gradients with their loss scale in it; use ZeRO stage 1 or more, or "
            "bf16"
        )
    return DeepSpeedEngine(optimizer)
