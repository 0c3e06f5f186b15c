"""Where the norms of an update come from: the gradients that torch holds, or DeepSpeed's engine, which hides them.

`choose_norm_source` decides once, when recording starts. The recorder then calls the same methods either way.
"""

import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from ..compatibility.libraries import change_count, engine_clip_limit, loss_scale, loss_scale_of_step
from .failures import RecordingError, in_one_line
from .measuring import (
    clip_factor,
    clip_returns_l2,
    is_dtensor,
    measure_gradient_norms,
    measure_l1_norm,
    squares_stay_in_range,
)
from .optimizers import is_main_process, parameters_of

logger = logging.getLogger(__name__)

LOOK_EVERY = 50
"""Updates from one look at the size of the gradient to the next. Each makes the host wait for the device."""


class Norms(NamedTuple):
    """The norms of one gradient before clipping, scalars on the device; `l1` is None where it is not known."""

    l1: torch.Tensor | None
    l2: torch.Tensor


class GradientMark:
    """Recognizes a gradient that nothing has changed since the mark was set. A backward pass changes it.

    Args:
        gradient: the gradient of the first parameter that has one, which stands for all; None if there is none.
    """

    def __init__(self, gradient: torch.Tensor | None) -> None:
        self._gradient = None if gradient is None else weakref.ref(gradient)
        self._changes = None if gradient is None else change_count(gradient)

    def matches(self, gradient: torch.Tensor | None) -> bool:
        """Compare with the current gradient.

        Args:
            gradient: the gradient of the first parameter that has one; None if there is none.

        Returns:
            True if it is the marked one, unchanged. False also for a tensor that does not count its changes.
        """
        if gradient is None or self._gradient is None or self._changes is None:
            return False
        return self._gradient() is gradient and change_count(gradient) == self._changes


@dataclass
class OpenUpdate:
    """What is known about the update that the loop is computing. To forget it, replace it.

    Attributes:
        norms: the norms before clipping; None until they are known.
        clip_factor: the product of the factors that clips have applied; None if there was no clip.
        l1_before_clip: the L1 norm, measured before a clip that will return the L2 norm.
        mark: recognizes the gradient that was measured.
        shards: of DeepSpeed's shards on this rank, the L1 norm and the sum of squares, after clipping, shape (2,).
        learning_rate: the learning rate of the first parameter group; None if it is not known.
        failure: why the gradient could not be measured.
    """

    norms: Norms | None = None
    clip_factor: torch.Tensor | None = None
    l1_before_clip: torch.Tensor | None = None
    mark: GradientMark | None = None
    shards: torch.Tensor | None = None
    learning_rate: float | torch.Tensor | None = None
    failure: str | None = None

    def note_clip(self, max_norm: float, total_norm: torch.Tensor) -> None:
        """Multiply the factor of a clip into `clip_factor`.

        Args:
            max_norm: the limit of the clip.
            total_norm: the norm that the clip has found, a scalar.
        """
        factor = clip_factor(max_norm, total_norm)
        self.clip_factor = factor if self.clip_factor is None else self.clip_factor * factor


class NormSource(Protocol):
    """Fills in the norms of an open update as the loop goes through it.

    Attributes:
        cleared_by_zero_grad: whether `zero_grad` takes away what was measured.
        reason_without_norms: why an update has none at its end, for the message.
    """

    cleared_by_zero_grad: bool
    reason_without_norms: str

    def before_clip(self, update: OpenUpdate, parameters: list[torch.nn.Parameter], norm_type: float) -> bool:
        """See the parameters that are about to be clipped, and the order of the clip's norm; True if they are ours."""

    def after_clip(self, update: OpenUpdate, max_norm: float, total_norm: torch.Tensor | None) -> float | None:
        """See the result of a clip of ours; the limit that it went by, or None if the clip has not returned a norm."""

    def before_taken_step(self, update: OpenUpdate, optimizer: torch.optim.Optimizer) -> None:
        """See the gradients that the innermost optimizer is about to use."""


class TorchGradients:
    """Norms of the gradients that the optimizer's parameters hold.

    Args:
        optimizer: the prepared optimizer.
        loop_clips: whether the loop clips at every update.
        steps_in_backward: whether an engine makes the step, and frees the gradients, inside `Accelerator.backward`. Then
            the loop's own clip, step and `zero_grad` come too late to change what was measured.
    """

    reason_without_norms = (
        "no parameter of the optimizer had a gradient at its step (some optimizers use gradients up in the backward pass, "
        "and a closure makes them too late unless it clips)"
    )

    def __init__(self, optimizer: AcceleratedOptimizer, *, loop_clips: bool, steps_in_backward: bool) -> None:
        self.cleared_by_zero_grad = not steps_in_backward
        self._optimizer = optimizer
        self._loop_clips = loop_clips
        self._steps_in_backward = steps_in_backward
        self._until_look = 0
        self._clip_is_exact = True

    def before_clip(self, update: OpenUpdate, parameters: list[torch.nn.Parameter], norm_type: float) -> bool:
        """Measure the whole gradient before its first clip, also if the clip is called with a part of it.

        Where the clip computes the L2 norm of the same gradient well enough, L1 alone is measured here.
        """
        own = parameters_of(self._optimizer)
        if {id(parameter) for parameter in parameters}.isdisjoint(map(id, own)):
            return False
        if update.norms is not None and (self._steps_in_backward or self._is_measured(update)):
            return True
        scale = loss_scale(self._optimizer)
        if not self._steps_in_backward and clip_returns_l2(own, parameters, norm_type):
            l1 = self._measure(update, lambda: measure_l1_norm(own, scale))
            if l1 is None or self._trusts_clip(l1, own):
                update.l1_before_clip = l1
                return True
        self._measure_both(update, scale)
        return True

    def after_clip(self, update: OpenUpdate, max_norm: float, total_norm: torch.Tensor | None) -> float | None:
        """Take the L2 norm from the clip if only L1 was measured, and note the factor that the clip has applied.

        The clip divides fp16's loss scale out first, so the norm that it returns needs no division.
        """
        update.mark = GradientMark(self._first_gradient())
        l1, update.l1_before_clip = update.l1_before_clip, None
        if total_norm is None:  # DeepSpeed without ZeRO clips nothing here
            if l1 is not None:
                update.failure = "Accelerator.clip_grad_norm_ has returned no norm"
            return None
        if l1 is not None:
            update.norms = Norms(l1, total_norm)
        update.note_clip(max_norm, total_norm)
        return max_norm

    def before_taken_step(self, update: OpenUpdate, optimizer: torch.optim.Optimizer) -> None:
        """Measure where nothing was clipped."""
        if update.norms is not None:
            return
        self._measure_both(update, loss_scale_of_step(optimizer))
        if self._loop_clips and update.norms is not None:
            update.failure = (
                "the loop clips by other means than Accelerator.clip_grad_norm_, so its gradients are clipped already when "
                "they can be measured"
            )

    def _trusts_clip(self, l1: torch.Tensor, parameters: list[torch.nn.Parameter]) -> bool:
        """Whether the gradient is of a size that the clip can square in float32. A norm of 0 or infinity has no size."""
        if self._until_look == 0:
            size = float(l1)
            if not 0 < size < math.inf:
                return True
            num_elements = sum(parameter.numel() for parameter in parameters if parameter.grad is not None)
            self._clip_is_exact = squares_stay_in_range(size, num_elements)
            self._until_look = LOOK_EVERY
        self._until_look -= 1
        return self._clip_is_exact

    def _measure_both(self, update: OpenUpdate, scale: torch.Tensor | None) -> None:
        norms = self._measure(update, lambda: measure_gradient_norms(parameters_of(self._optimizer), scale))
        update.norms = None if norms is None else Norms(*norms)

    def _measure(self, update: OpenUpdate, measure: Callable[[], Any]) -> Any:
        """Measure, in place of all that was known about an earlier gradient of this update."""
        update.norms = update.clip_factor = update.l1_before_clip = None
        update.mark = GradientMark(self._first_gradient())
        try:
            return measure()
        except Exception as error:  # a gradient may be any subclass of a tensor
            update.failure = f"a gradient cannot be measured ({in_one_line(error)})"
            return None

    def _is_measured(self, update: OpenUpdate) -> bool:
        return update.mark is not None and update.mark.matches(self._first_gradient())

    def _first_gradient(self) -> torch.Tensor | None:
        parameters = parameters_of(self._optimizer)
        return next((parameter.grad for parameter in parameters if parameter.grad is not None), None)


SHARDS_AGREE = 0.02
"""Relative difference of DeepSpeed's own L2 norm, which may be summed in bfloat16, from that of all shards."""


class DeepSpeedEngine:
    """The L2 norm that DeepSpeed's ZeRO reports where the loop clips, and the L1 norm of the shards that its optimizers use.

    The engine has clipped and made its step before the loop clips. During the step, the innermost optimizer has seen the shards
    of this rank, clipped and without a loss scale, one parameter group after another:

        L1 = sum over ranks and groups of |g|, divided by the clip factor

    Where shards overlap or do not reach the optimizer, as with tensor parallelism, their L2 norm is not the engine's at the first
    update. Then L1 is not recorded.

    Args:
        optimizer: the prepared optimizer, which wraps ZeRO's.
    """

    cleared_by_zero_grad = False
    reason_without_norms = (
        "DeepSpeed reports its norm only through accelerator.clip_grad_norm_, and this loop does not call it"
    )

    def __init__(self, optimizer: AcceleratedOptimizer) -> None:
        self._optimizer = optimizer
        self._shards_agree: bool | None = None
        """The same on all ranks. None before the first update."""

    def before_clip(self, update: OpenUpdate, parameters: list[torch.nn.Parameter], norm_type: float) -> bool:
        """Accept every clip: the engine has one optimizer, and this is it."""
        return True

    def after_clip(self, update: OpenUpdate, max_norm: float, total_norm: torch.Tensor | None) -> float | None:
        """Take the L2 norm. The engine has clipped to the limit of its config, whatever limit the loop passes."""
        if total_norm is None:  # of an update that was not taken
            return None
        limit = engine_clip_limit(self._optimizer)
        update.norms = Norms(self._l1_of_shards(update, limit, total_norm), total_norm)
        update.note_clip(limit, total_norm)
        return limit

    def before_taken_step(self, update: OpenUpdate, optimizer: torch.optim.Optimizer) -> None:
        """Add up the shards that this step uses. Called once for each parameter group."""
        if self._shards_agree is False:
            return
        try:
            norms = measure_gradient_norms(parameters_of(optimizer))
        except (
            Exception
        ):  # the other ranks wait for this one at the sum, so that it takes part with a norm that is none
            norms = (torch.tensor(math.nan), torch.tensor(math.nan))
        if norms is not None:
            l1, l2 = norms
            sums = torch.stack([l1, l2.square()])
            update.shards = sums if update.shards is None else update.shards + sums

    def _l1_of_shards(self, update: OpenUpdate, limit: float, total_norm: torch.Tensor) -> torch.Tensor | None:
        if self._shards_agree is False:
            return None
        sums = torch.zeros(2) if update.shards is None else update.shards
        sums = sums.to(self._optimizer.accelerator_state.device, torch.float32)
        if dist.is_initialized():
            dist.all_reduce(sums)
        l1, squares = sums
        factor = clip_factor(limit, total_norm).to(sums.device)
        if self._shards_agree is None and math.isfinite(total_norm):
            expected = total_norm.to(sums.device, torch.float32) * factor
            self._shards_agree = bool(torch.isclose(squares.sqrt(), expected, rtol=SHARDS_AGREE))
            if not self._shards_agree:
                _say_that_only_l2_is_known(self._optimizer)
                return None
        return l1 / factor


def _say_that_only_l2_is_known(optimizer: AcceleratedOptimizer) -> None:
    if is_main_process(optimizer):
        logger.warning(
            "The shards of DeepSpeed's optimizers do not add up to the gradient, so L1 norms are not recorded; a refined schedule "
            "for Adam will use L2 ** -1 instead of L1 ** -1."
        )


def choose_norm_source(optimizer: Any, *, loop_clips: bool) -> NormSource:
    """Choose where the norms come from, by what Accelerate has prepared the optimizer for.

    Args:
        optimizer: the optimizer.
        loop_clips: whether the loop clips at every update.

    Returns:
        The source.

    Raises:
        RecordingError: if the optimizer was not prepared, or an engine hides its gradients or keeps them in pieces.
    """
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise RecordingError(
            f"the optimizer is a {type(optimizer).__name__}, but must be one that Accelerator.prepare returned"
        )
    distributed_type = optimizer.accelerator_state.distributed_type
    is_fsdp1 = distributed_type == DistributedType.FSDP and not any(
        is_dtensor(parameter) for parameter in parameters_of(optimizer)
    )
    if is_fsdp1 or distributed_type == DistributedType.MEGATRON_LM:
        engine = "FSDP1" if is_fsdp1 else distributed_type.value
        raise RecordingError(f"{engine} keeps the gradients to itself or in pieces; use DDP or FSDP2 to record them")
    if distributed_type != DistributedType.DEEPSPEED:
        return TorchGradients(optimizer, loop_clips=loop_clips, steps_in_backward=False)
    if isinstance(optimizer.optimizer, torch.optim.Optimizer):  # without ZeRO
        if loop_clips:
            raise RecordingError(
                "DeepSpeed without ZeRO clips inside its own step, before gradients can be seen; use ZeRO stage 1 or more, "
                "DDP, or max_grad_norm=0"
            )
        return TorchGradients(optimizer, loop_clips=False, steps_in_backward=True)
    return DeepSpeedEngine(optimizer)
