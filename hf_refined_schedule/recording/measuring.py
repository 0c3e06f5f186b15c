"""L1 and L2 norms of gradients, taken as one vector: pure functions of tensors."""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..compatibility.libraries import norm_of_each

USUAL_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
COMPRESSED_LAYOUTS = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)

CHUNK = 2**18
"""Elements that are summed at a time on a CPU: 1 MB in float32, which stays in the cache."""

EXACT_SQUARES = (1e-26, 1e38)
"""Between these bounds the float32 sum of the squares of a chunk is exact enough.

Above, squares overflow. Below, they lose digits: the square of 1e-19 is the smallest normal number.
"""

DEVICES_WITH_FLOAT64 = frozenset({"cpu", "cuda"})
"""Types of device that are known to compute in float64.

MPS, some XPUs and some NPUs do not. There, elements are divided by the largest one before they are squared.
"""

SCALED_CHUNK = 2**24
"""Elements that are divided and squared at a time on a device without float64: a copy of 64 MB."""

DEVICES_WITH_INEXACT_NORM = frozenset({"cpu"})
"""Types of device on which `torch.nn.utils.clip_grad_norm_` computes an L2 norm that is not exact enough.

torch's CPU kernel adds the elements one by one in float32. That loses digits above 10^6 elements: the error of the L2 norm
is 0.04 % at 10^7 elements and 1.1 % at 10^8. Accelerators add in a tree.
"""


@torch.no_grad()
def measure_gradient_norms(
    parameters: Iterable[torch.nn.Parameter], loss_scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Measure the L1 and L2 norm of the gradients of `parameters`, taken as one vector, in float32 or better.

        l1 = sum_i |g_i|,   l2 = sqrt(sum_i g_i^2)

    The gradients are only read, and nothing is copied to the host from an accelerator. On a device without float64 they are
    read twice, first for the largest element m, so that squares stay in float32's range: l2 = m sqrt(sum_i (g_i / m)^2).

    Args:
        parameters: the parameters; those without a gradient are left out.
        loss_scale: the factor by which the gradients are too large, a scalar; None for 1.

    Returns:
        L1 and L2, scalars on the device of the first gradient, or None if no parameter has a gradient.
    """
    groups = _group_gradients(parameters)
    if not groups:
        return None
    unit = None if all(_has_float64(group.device) for group in groups) else _largest_element(groups)
    l1, squares = _sum_groups(groups, with_squares=True, unit=unit)
    l2 = squares.sqrt() if unit is None else squares.sqrt() * unit
    return (l1, l2) if loss_scale is None else (l1 / loss_scale, l2 / loss_scale)


@torch.no_grad()
def measure_l1_norm(
    parameters: Iterable[torch.nn.Parameter], loss_scale: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Measure the L1 norm alone, as `measure_gradient_norms` does.

    Args:
        parameters: the parameters; those without a gradient are left out.
        loss_scale: the factor by which the gradients are too large, a scalar; None for 1.

    Returns:
        L1, a scalar on the device of the first gradient, or None if no parameter has a gradient.
    """
    groups = _group_gradients(parameters)
    if not groups:
        return None
    (l1,) = _sum_groups(groups, with_squares=False)
    return l1 if loss_scale is None else l1 / loss_scale


def clip_returns_l2(
    parameters: Iterable[torch.nn.Parameter], clipped: Iterable[torch.nn.Parameter], norm_type: float | str
) -> bool:
    """Decide whether a clip returns the L2 norm of all gradients of `parameters`, exact enough for a schedule.

    It does where it computes a 2-norm, of these gradients and no others, and all of them are float32 on an accelerator.
    It does not where gradients are in half precision, because torch returns the norm in their type: bfloat16, the type of
    the gradients of bfloat16 parameters, has 8 bits. Nor does it on a CPU (see `DEVICES_WITH_INEXACT_NORM`).

    The clip squares in float32. `squares_stay_in_range` finds the gradients for which that is not enough.

    Args:
        parameters: the parameters whose norm is wanted.
        clipped: the parameters that the clip was called with.
        norm_type: the order of the norm that the clip computes.

    Returns:
        True if the norm that the clip returns can be recorded.
    """
    wanted = {id(parameter): parameter.grad for parameter in parameters if parameter.grad is not None}
    used = [id(parameter) for parameter in clipped if parameter.grad is not None]
    return (
        float(norm_type) == 2
        and bool(wanted)
        and all(
            gradient.dtype == torch.float32 and gradient.device.type not in DEVICES_WITH_INEXACT_NORM
            for gradient in wanted.values()
        )
        and sorted(used) == sorted(wanted)  # as lists: a parameter that is passed twice counts twice
    )


def squares_stay_in_range(l1: float, num_elements: int) -> bool:
    """Decide from the L1 norm of a gradient whether its squares can be summed in float32.

        l1 / sqrt(n) <= l2 <= l1

    Where squares overflow, a clip finds an infinite norm and sets the gradients to 0; where they underflow, it finds 0.

    Args:
        l1: the L1 norm.
        num_elements: n, the number of elements.

    Returns:
        True if the sum of the squares is between the bounds of `EXACT_SQUARES` for sure.
    """
    return EXACT_SQUARES[0] * num_elements < l1 * l1 < EXACT_SQUARES[1]


def clip_factor(max_norm: float, total_norm: torch.Tensor) -> torch.Tensor:
    """Compute the factor that `torch.nn.utils.clip_grad_norm_` multiplies gradients by.

        c = min(1, max_norm / (total_norm + 1e-6))

    Args:
        max_norm: the largest norm that the clip leaves; infinity if it leaves all.
        total_norm: the norm before the clip, a scalar.

    Returns:
        c, a scalar on the same device.
    """
    return torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)


def plain_scalar(value: Any) -> torch.Tensor:
    """Make a plain tensor of a norm that may be a number or a DTensor.

    Args:
        value: the norm. That of a DTensor takes a call by all ranks.

    Returns:
        The norm, a scalar.
    """
    if is_dtensor(value):
        value = value.full_tensor()
    return torch.as_tensor(value)


def is_dtensor(value: object) -> bool:
    """Recognize a tensor that is distributed over processes, without importing its class.

    Args:
        value: anything.

    Returns:
        True for a `torch.distributed.tensor.DTensor`.
    """
    return hasattr(value, "full_tensor")


def sums_on_accelerator(
    tensors: Sequence[torch.Tensor], with_squares: bool, unit: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum absolute values, and squares if wanted, in a few kernel launches instead of two for each tensor.

    Squares are summed in float64 where the device has it. Scaling by the largest element, the way to stay in range in
    float32, takes a copy of the gradients, and the host cannot know whether to scale without waiting for the device.

    Args:
        tensors: tensors of any shapes and types, on one device.
        with_squares: whether to sum the squares, too.
        unit: what elements are divided by before they are squared, a scalar; None for 1.

    Returns:
        (sum |x|) or (sum |x|, sum (x / unit)^2), shape (1,) or (2,), in float64, or in float32 on a device without it.
    """
    wide = widest_dtype(tensors[0].device)
    sums = [norm_of_each(tensors, 1, _summing_dtype(tensors)).sum(dtype=wide)]
    if with_squares and unit is not None and wide == torch.float32:
        scaled = (torch.cat(pieces).float().div_(unit) for pieces, _ in _chunks(tensors, SCALED_CHUNK))
        sums.append(torch.stack([values.square_().sum() for values in scaled]).sum())
    elif with_squares:
        squares = norm_of_each(tensors, 2, wide).square().sum()
        sums.append(squares if unit is None else squares / unit.double().square())
    return torch.stack(sums)


def widest_dtype(device: torch.device) -> torch.dtype:
    """Find the type in which sums lose the least.

    Args:
        device: where the sum is computed.

    Returns:
        float64, or float32 on a device without it.
    """
    return torch.float64 if _has_float64(device) else torch.float32


def _has_float64(device: torch.device) -> bool:
    return device.type in DEVICES_WITH_FLOAT64


def _summing_dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Float64 if a tensor has it, else float32."""
    return torch.float64 if torch.float64 in {tensor.dtype for tensor in tensors} else torch.float32


class _Sharding(NamedTuple):
    """How DTensors lie on the processes of a mesh. Those that lie alike are reduced in one call."""

    mesh: Any
    placements: tuple[Any, ...]

    def reduce(self, value: torch.Tensor, operation: str) -> torch.Tensor:
        """Reduce what each process has computed from its shards, by `"sum"` or `"max"`."""
        from torch.distributed.tensor import DTensor, Partial, Replicate

        kinds = [Replicate() if placement.is_replicate() else Partial(operation) for placement in self.placements]
        return DTensor.from_local(value, self.mesh, kinds, run_check=False).full_tensor()


class _Group(NamedTuple):
    """Gradients, or this process's shards of them, that are on one device and lie alike on the processes."""

    device: torch.device
    sharding: _Sharding | None
    tensors: list[torch.Tensor]


def _group_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[_Group]:
    """The groups of all gradients, that of the first gradient first."""
    groups: dict[tuple[torch.device, _Sharding | None], list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            sharding, tensor = _local(_dense_real(parameter.grad))
            groups.setdefault((parameter.grad.device, sharding), []).append(tensor)
    return [_Group(device, sharding, tensors) for (device, sharding), tensors in groups.items()]


def _local(gradient: Any) -> tuple[_Sharding | None, torch.Tensor]:
    """This process's shard of a DTensor, and how it lies; the whole of another tensor, or of one that is yet to be summed."""
    if not is_dtensor(gradient):
        return None, gradient
    if any(placement.is_partial() for placement in gradient.placements):
        return None, gradient.full_tensor()
    return _Sharding(gradient.device_mesh, gradient.placements), gradient.to_local()


def _sum_groups(groups: Sequence[_Group], with_squares: bool, unit: torch.Tensor | None = None) -> torch.Tensor:
    """(sum |g|) or (sum |g|, sum (g / unit)^2) over all gradients, on the device of the first."""
    device = groups[0].device
    parts = []
    for group in groups:
        own_unit = None if unit is None else unit.to(group.device)
        sum_on_device = _sums_on_cpu if group.device.type in DEVICES_WITH_INEXACT_NORM else sums_on_accelerator
        sums = sum_on_device(group.tensors, with_squares, own_unit)
        if group.sharding is not None:
            sums = group.sharding.reduce(sums, "sum")
        parts.append(sums.to(widest_dtype(device)).to(device))
    return functools.reduce(torch.add, parts)


def _largest_element(groups: Sequence[_Group]) -> torch.Tensor:
    """The largest |g| over all gradients, a scalar on the device of the first; 1 if there is none above 0."""
    device = groups[0].device
    largest = []
    for group in groups:
        tensors = [tensor for tensor in group.tensors if tensor.numel()]
        own = torch.zeros((), device=group.device)
        if tensors:
            own = norm_of_each(tensors, math.inf, torch.float32).amax()
        largest.append((own if group.sharding is None else group.sharding.reduce(own, "max")).to(device))
    unit = torch.stack(largest).amax()
    return torch.where(unit > 0, unit, torch.ones_like(unit))


def _dense_real(gradient: torch.Tensor) -> torch.Tensor:
    """The values of a sparse gradient, each row counted once; the absolute values of a complex one.

    Float8 becomes bfloat16, which holds each of its values: torch does not promote float8.
    """
    if gradient.layout is torch.strided and gradient.dtype in USUAL_DTYPES:
        return gradient
    if gradient.layout in COMPRESSED_LAYOUTS:
        gradient = gradient.values()
    elif gradient.is_sparse:
        gradient = gradient.coalesce().values()
    if gradient.dtype.itemsize == 1:
        return gradient.to(torch.bfloat16)
    return gradient.abs() if gradient.is_complex() else gradient


def _sums_on_cpu(tensors: Sequence[torch.Tensor], with_squares: bool, unit: torch.Tensor | None = None) -> torch.Tensor:
    """The same as `sums_on_accelerator`, in float64, reading each tensor from memory once.

    Tensors go through a buffer that stays in the cache, because a call on one small tensor costs as much as a call on a
    hundred of them. `torch.sum` adds in pairs; `vector_norm` adds one by one in float32 on a CPU, which gives the L1 norm
    of 10^8 elements an error of 46 %.
    """
    buffer = torch.empty(CHUNK, dtype=_summing_dtype(tensors), device="cpu")
    l1 = squares = 0.0
    for pieces, size in _chunks(tensors, CHUNK):
        values = buffer[:size]
        if len(pieces) > 1:
            torch.cat(pieces, out=values).abs_()
        elif pieces[0].dtype == values.dtype:
            torch.abs(pieces[0], out=values)
        else:
            values.copy_(pieces[0]).abs_()
        chunk_l1 = values.sum().item()
        chunk_squares = values.square_().sum().item() if with_squares else 1.0
        is_in_range = math.isfinite(chunk_l1) and EXACT_SQUARES[0] < chunk_squares < EXACT_SQUARES[1]
        if chunk_l1 != 0 and not is_in_range:
            exact = torch.cat([piece.double() for piece in pieces]).abs_()
            chunk_l1, chunk_squares = exact.sum().item(), exact.square_().sum().item()
        l1 += chunk_l1
        squares += chunk_squares
    if unit is not None:
        squares /= unit.item() ** 2
    return torch.tensor((l1, squares) if with_squares else (l1,), dtype=torch.float64, device="cpu")


def _chunks(tensors: Iterable[torch.Tensor], limit: int) -> Iterator[tuple[list[torch.Tensor], int]]:
    """Flat pieces of `tensors` in groups of at most `limit` elements, each group with its number of elements."""
    pieces: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        flat = tensor.flatten()
        for piece in (flat,) if flat.numel() <= limit else flat.split(limit):
            if size + piece.numel() > limit:
                yield pieces, size
                pieces, size = [], 0
            pieces.append(piece)
            size += piece.numel()
    yield pieces, size
