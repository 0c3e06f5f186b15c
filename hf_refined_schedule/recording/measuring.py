"""L1 and L2 norms of gradients, taken as one vector: pure functions of tensors."""

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

MPS, some XPUs and some NPUs do not. Squares are summed in float32 there, which is right for an L2 norm between about 1e-19
and 1e19.
"""

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

    The gradients are only read, and nothing is copied to the host from an accelerator.

    Args:
        parameters: the parameters; those without a gradient are left out.
        loss_scale: the factor by which the gradients are too large, a scalar; None for 1.

    Returns:
        L1 and L2, scalars on the device of the first gradient, or None if no parameter has a gradient.
    """
    sums = _sum_gradients(parameters, with_squares=True)
    if sums is None:
        return None
    l1, squares = sums
    l2 = squares.sqrt()
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
    sums = _sum_gradients(parameters, with_squares=False)
    if sums is None:
        return None
    (l1,) = sums
    return l1 if loss_scale is None else l1 / loss_scale


def clip_returns_l2(
    parameters: Iterable[torch.nn.Parameter], clipped: Iterable[torch.nn.Parameter], norm_type: float | str
) -> bool:
    """Decide whether a clip returns the L2 norm of all gradients of `parameters`, exact enough for a schedule.

    It does where it computes a 2-norm, of these gradients and no others, and all of them are float32 on an accelerator.
    It does not where gradients are in half precision, because torch returns the norm in their type: bfloat16, the type of
    the gradients of bfloat16 parameters, has 8 bits. Nor does it on a CPU (see `DEVICES_WITH_INEXACT_NORM`).

    The clip squares in float32. Where that overflows, its norm is infinite and it sets the gradients to 0. Where it
    underflows, its norm is 0. Looking for such gradients would cost the pass over them that this function saves.

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


def sums_on_accelerator(tensors: Sequence[torch.Tensor], with_squares: bool) -> torch.Tensor:
    """Sum absolute values, and squares if wanted, in a few kernel launches instead of two for each tensor.

    Squares are summed in float64 where the device has it. Scaling by the largest element, the way to stay in range in
    float32, takes a copy of the gradients, and the host cannot know whether to scale without waiting for the device.

    Args:
        tensors: tensors of any shapes and types, on one device.
        with_squares: whether to sum the squares, too.

    Returns:
        (sum |x|) or (sum |x|, sum x^2), shape (1,) or (2,), in float64, or in float32 on a device without it.
    """
    wide = torch.float64 if tensors[0].device.type in DEVICES_WITH_FLOAT64 else torch.float32
    sums = [norm_of_each(tensors, 1, _summing_dtype(tensors)).sum(dtype=wide)]
    if with_squares:
        sums.append(norm_of_each(tensors, 2, wide).square().sum())
    return torch.stack(sums)


def _summing_dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Float64 if a tensor has it, else float32."""
    return torch.float64 if torch.float64 in {tensor.dtype for tensor in tensors} else torch.float32


def _sum_gradients(parameters: Iterable[torch.nn.Parameter], with_squares: bool) -> torch.Tensor | None:
    """(sum |g|) or (sum |g|, sum g^2) over all gradients, on the device of the first, or None if there is none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return None
    groups: dict[tuple[torch.device, _Sharding | None], list[torch.Tensor]] = {}
    for gradient in gradients:
        groups.setdefault((gradient.device, _sharding_of(gradient)), []).append(_dense_real(gradient))
    sums = [
        _sum_tensors(tensors, with_squares) if sharding is None else _sum_shards(tensors, sharding, with_squares)
        for (_, sharding), tensors in groups.items()
    ]
    device = gradients[0].device
    return sum((others.to(device) for others in sums[1:]), start=sums[0].to(device))


class _Sharding(NamedTuple):
    """How DTensors lie on the processes of a mesh. Those that lie alike are reduced in one call."""

    mesh: Any
    placements: tuple[Any, ...]


def _sharding_of(gradient: Any) -> _Sharding | None:
    return _Sharding(gradient.device_mesh, gradient.placements) if is_dtensor(gradient) else None


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


def _sum_tensors(tensors: Sequence[torch.Tensor], with_squares: bool) -> torch.Tensor:
    sum_on_device = _sums_on_cpu if tensors[0].device.type == "cpu" else sums_on_accelerator
    return sum_on_device(tensors, with_squares)


def _sum_shards(tensors: Sequence[Any], sharding: _Sharding, with_squares: bool) -> torch.Tensor:
    """The same for DTensors: the sums of the local shards, in one reduction."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = sharding
    if any(placement.is_partial() for placement in placements):
        return _sum_tensors([tensor.full_tensor() for tensor in tensors], with_squares)
    sums = _sum_tensors([tensor.to_local() for tensor in tensors], with_squares)
    kinds = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return DTensor.from_local(sums, mesh, kinds, run_check=False).full_tensor()


def _sums_on_cpu(tensors: Sequence[torch.Tensor], with_squares: bool) -> torch.Tensor:
    """The same as `sums_on_accelerator`, in float64, reading each tensor from memory once.

    Tensors go through a buffer that stays in the cache, because a call on one small tensor costs as much as a call on a
    hundred of them. `torch.sum` adds in pairs; `vector_norm` adds one by one in float32 on a CPU, which gives the L1 norm
    of 10^8 elements an error of 46 %.
    """
    buffer = torch.empty(CHUNK, dtype=_summing_dtype(tensors), device="cpu")
    l1 = squares = 0.0
    for pieces, size in _chunks(tensors):
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
    return torch.tensor((l1, squares) if with_squares else (l1,), dtype=torch.float64, device="cpu")


def _chunks(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[list[torch.Tensor], int]]:
    """Flat pieces of `tensors` in groups of at most CHUNK elements, each group with its number of elements."""
    pieces: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        flat = tensor.flatten()
        for piece in (flat,) if flat.numel() <= CHUNK else flat.split(CHUNK):
            if size + piece.numel() > CHUNK:
                yield pieces, size
                pieces, size = [], 0
            pieces.append(piece)
            size += piece.numel()
    yield pieces, size
