"""What is known about an update, where its norms come from, and the usual source: the gradients that torch holds.

`engine_gradients` has the sources for engines that hide gradients, and `norm_sources` chooses. The recorder calls the same
methods either way.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.optimizer import AcceleratedOptimizer

from ..compatibility.libraries import change_count, loss_scale, loss_scale_of_step
from .failures import in_one_line
from .measuring import (
    clip_factor,
    clip_returns_l2,
    measure_gradient_norms,
    measure_l1_norm,
    squares_stay_in_range,
)
from .optimizers import parameters_of

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
        clips_in_engine: whether `before_engine_clip` is to be called.
        reason_without_norms: why an update has none at its end, for the message.
    """

    cleared_by_zero_grad: bool
    clips_in_engine: bool
    reason_without_norms: str

    def before_clip(self, update: OpenUpdate, parameters: list[torch.nn.Parameter], norm_type: float) -> bool:
        """See the parameters that are about to be clipped, and the order of the clip's norm; True if they are ours."""

    def after_clip(self, update: OpenUpdate, max_norm: float, total_norm: torch.Tensor | None) -> float | None:
        """See the result of a clip of ours; the limit that it went by, or None if the clip has not returned a norm."""

    def before_engine_clip(self, update: OpenUpdate, module: torch.nn.Module, max_norm: float) -> float | None:
        """See the module whose gradients FSDP1 or DeepSpeed is about to clip; the limit, or None if it is not known."""
        return None

    def before_taken_step(self, update: OpenUpdate, optimizer: torch.optim.Optimizer) -> None:
        """See the gradients that the innermost optimizer is about to use."""

    def after_step(self, update: OpenUpdate) -> float | None:
        """See that the loop has stepped, its last call in an update; the limit of a clip that is known only now."""
        return None


class TorchGradients(NormSource):
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
        self.clips_in_engine = steps_in_backward
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

    def before_engine_clip(self, update: OpenUpdate, module: torch.nn.Module, max_norm: float) -> float | None:
        """Measure before DeepSpeed clips, in its own step."""
        if {id(parameter) for parameter in module.parameters()}.isdisjoint(map(id, parameters_of(self._optimizer))):
            return None
        self._measure_both(update, None)  # the engine has divided a loss scale out
        if update.norms is not None:
            update.note_clip(max_norm, update.norms.l2)
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
