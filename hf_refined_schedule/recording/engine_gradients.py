"""Norms of gradients that an engine shards or hides: FSDP1's, and those of DeepSpeed's ZeRO."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer

from ..compatibility.engines import engine_clip_limit, engine_norm, sharded_parameters
from .failures import in_one_line
from .gradient_access import Norms, NormSource, OpenUpdate
from .measuring import clip_factor, measure_gradient_norms, widest_dtype
from .optimizers import is_main_process, parameters_of

logger = logging.getLogger(__name__)

SHARDS_AGREE = 0.02
"""Relative difference of the engine's own L2 norm, which may be summed in bfloat16, from that of all shards."""


class FSDP1Gradients(NormSource):
    """The norms of the shards that FSDP1 leaves on each rank, measured where `Accelerator.clip_grad_norm_` calls FSDP1's own clip.

        L1 = sum over ranks of |g| over sharded parameters + sum of |g| over the others

    The clip's own value could be had by `clip_grad_norm_(inf, norm_type=1)`. But that writes to the gradients, and makes all of
    them NaN if one is infinite. It serves as a check: if its L2 norm is not that of the shards at the first update, recording
    stops.

    Every rank joins each sum, also one that holds nothing, so that all ranks decide alike.

    Args:
        optimizer: the prepared optimizer.
    """

    cleared_by_zero_grad = True
    clips_in_engine = True
    reason_without_norms = (
        "FSDP1 shows its gradients only where accelerator.clip_grad_norm_ gets all parameters of the model, and this loop does "
        "not call it so; use FSDP2"
    )

    def __init__(self, optimizer: AcceleratedOptimizer) -> None:
        self._optimizer = optimizer
        self._norm_type: float | None = None
        """The order of the norm of the clip that is running; None between clips."""
        self._is_checked = False

    def before_clip(self, update: OpenUpdate, parameters: list[torch.nn.Parameter], norm_type: float) -> bool:
        """Wait for FSDP1's clip, which is called once a loss scale has been divided out."""
        own = parameters_of(self._optimizer)
        if {id(parameter) for parameter in parameters}.isdisjoint(map(id, own)):
            return False
        self._norm_type = float(norm_type)
        return True

    def before_engine_clip(self, update: OpenUpdate, module: Any, max_norm: float) -> float | None:
        """Measure before the first clip of an update."""
        if self._norm_type is None or update.norms is not None:
            return None
        try:
            sharded, device, group = sharded_parameters(module), module.compute_device, module.process_group
        except AttributeError as error:  # of another version of torch, so on every rank
            update.failure = f"this version of FSDP1 is not known ({in_one_line(error)})"
            return None
        own = parameters_of(self._optimizer)
        sums = _sums_of((parameter for parameter in own if id(parameter) in sharded), device)
        dist.all_reduce(sums, group=group)
        sums += _sums_of((parameter for parameter in own if id(parameter) not in sharded), device)
        l1, squares, num_gradients = sums
        if self._is_checked or num_gradients > 0:
            update.norms = Norms(l1, squares.sqrt())
        return None

    def after_clip(self, update: OpenUpdate, max_norm: float, total_norm: torch.Tensor | None) -> float | None:
        """Compare with the norm that the clip has used, and note its factor.

        Accelerate clips each rank's shards by themselves if it was not called with all parameters of the model. Then there is
        no norm.
        """
        norm_type, self._norm_type = self._norm_type, None
        if total_norm is None or update.norms is None:
            return None
        if not self._is_checked and norm_type == 2 and math.isfinite(total_norm):
            self._is_checked = True
            l2 = update.norms.l2.to(total_norm.device, torch.float32)
            if not _is_close(l2, total_norm.to(torch.float32)):
                update.failure = "the shards of FSDP1 do not add up to the gradient that it clips"
                return None
        update.note_clip(max_norm, total_norm)
        return max_norm

    def before_taken_step(self, update: OpenUpdate, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: the optimizer does not know which of its parameters are shards."""


def _sums_of(parameters: Iterable[torch.nn.Parameter], device: torch.device) -> torch.Tensor:
    """Of the gradients that this rank holds: L1, the sum of squares, and 1 if there are any. NaN if they cannot be measured."""
    try:
        norms = measure_gradient_norms(parameters)
    except Exception:  # the other ranks wait for this one at the sum
        norms = (torch.tensor(math.nan), torch.tensor(math.nan))
    dtype = widest_dtype(device)
    if norms is None:
        return torch.zeros(3, dtype=dtype, device=device)
    l1, l2 = (norm.to(device, dtype) for norm in norms)
    return torch.stack([l1, l2.square(), torch.ones_like(l1)])


class DeepSpeedEngine(NormSource):
    """The L2 norm that DeepSpeed's ZeRO reports, and the L1 norm of the shards that its optimizers use.

    The engine has clipped and made its step before the loop clips or steps. During the step, the innermost optimizer has seen
    the shards of this rank, clipped and without a loss scale, one parameter group after another:

        L1 = sum over ranks and groups of |g|, divided by the clip factor

    Without ZeRO and in bf16, each rank's optimizer uses the whole gradient. Then the squares add up to as many times the square
    of the engine's L2 norm as there are ranks, at the first update, and the sum is divided by that number.

    Where shards overlap or do not reach the optimizer, as with tensor parallelism, they add up to neither. Then L1 is not recorded.

    Args:
        optimizer: the prepared optimizer, which wraps ZeRO's.
    """

    cleared_by_zero_grad = False
    clips_in_engine = False
    reason_without_norms = "DeepSpeed has not computed the norm of the gradient"

    def __init__(self, optimizer: AcceleratedOptimizer) -> None:
        self._optimizer = optimizer
        self._copies: int | None = None
        """How many ranks hold each element of the gradient, 0 if shards do not add up to it; None before the first update."""

    def before_clip(self, update: OpenUpdate, parameters: list[torch.nn.Parameter], norm_type: float) -> bool:
        """Accept every clip: the engine has one optimizer, and this is it."""
        return True

    def after_clip(self, update: OpenUpdate, max_norm: float, total_norm: torch.Tensor | None) -> float | None:
        """Take the L2 norm. DeepSpeed clips to the limit in its config and ignores that of the loop."""
        # After an overflow, DeepSpeed still reports the norm of the last update that it took, 0 before the first.
        if total_norm is None or self._optimizer.step_was_skipped:
            return None
        limit = engine_clip_limit(self._optimizer)
        update.norms = Norms(self._l1_of_shards(update, limit, total_norm), total_norm)
        update.note_clip(limit, total_norm)
        return limit

    def before_taken_step(self, update: OpenUpdate, optimizer: torch.optim.Optimizer) -> None:
        """Add up the shards that this step uses. Called once for each parameter group."""
        if self._copies == 0:
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

    def after_step(self, update: OpenUpdate) -> float | None:
        """Take the engine's norm where the loop does not clip."""
        if update.norms is not None or self._optimizer.step_was_skipped:
            return None
        norm = engine_norm(self._optimizer)
        return None if norm is None else self.after_clip(update, math.inf, torch.as_tensor(norm))

    def _l1_of_shards(self, update: OpenUpdate, limit: float, total_norm: torch.Tensor) -> torch.Tensor | None:
        if self._copies == 0:
            return None
        sums = torch.zeros(2) if update.shards is None else update.shards
        sums = sums.to(self._optimizer.accelerator_state.device, torch.float32)
        num_ranks = 1
        if dist.is_initialized():
            dist.all_reduce(sums)
            num_ranks = dist.get_world_size()
        l1, squares = sums
        factor = clip_factor(limit, total_norm).to(sums.device)
        if self._copies is None and math.isfinite(total_norm):
            expected = total_norm.to(sums.device, torch.float32) * factor
            self._copies = next((n for n in (1, num_ranks) if _is_close((squares / n).sqrt(), expected)), 0)
            if self._copies == 0:
                _say_that_only_l2_is_known(self._optimizer)
                return None
        return l1 / factor / (self._copies or 1)


def _is_close(norm: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(torch.isclose(norm, expected, rtol=SHARDS_AGREE))


def _say_that_only_l2_is_known(optimizer: AcceleratedOptimizer) -> None:
    if is_main_process(optimizer):
        logger.warning(
            "The shards of DeepSpeed's optimizers do not add up to the gradient, so L1 norms are not recorded; a refined schedule "
            "for Adam will use L2 ** -1 instead of L1 ** -1."
        )
