"""Sums of gradients against hand-typed values and float64, and where a clip has summed the squares already."""

import math

import numpy as np
import pytest
import torch

from hf_refined_schedule.recording import measuring
from hf_refined_schedule.recording.measuring import (
    clip_factor,
    clip_returns_l2,
    measure_gradient_norms,
    measure_l1_norm,
    squares_stay_in_range,
    sums_on_accelerator,
)

from .tolerances import MEASURING


def parameter_with_gradient(gradient: torch.Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hand_typed_norms(dtype):
    parameters = [
        parameter_with_gradient(torch.tensor([[3.0, -4.0]], dtype=dtype)),
        parameter_with_gradient(torch.tensor([12.0], dtype=dtype)),
        torch.nn.Parameter(torch.ones(5)),  # no gradient: left out
    ]
    l1, l2 = measure_gradient_norms(parameters)
    assert (float(l1), float(l2)) == (19.0, 13.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_many_tensors_at_once(dtype):
    """As on an accelerator; float32 sums: 100,000 is beyond the largest fp16 number, 257 beyond bfloat16's 8 bits."""
    tensors = [
        torch.tensor([[3.0, -4.0]], dtype=dtype),
        torch.full((100,), 1000.0, dtype=dtype),
        torch.ones(257, dtype=dtype),
    ]
    assert sums_on_accelerator(tensors, with_squares=True).tolist() == [7 + 1e5 + 257, pytest.approx(25 + 1e8 + 257)]


def test_no_gradient_is_not_zero():
    assert measure_gradient_norms([torch.nn.Parameter(torch.ones(3))]) is None


def test_within_1e_5_of_float64_for_1e8_elements():
    gradient = torch.randn(10**8, generator=torch.Generator().manual_seed(0))
    l1, l2 = measure_gradient_norms([parameter_with_gradient(gradient)])
    exact = gradient.numpy()
    exact_l1 = sum(np.abs(part.astype(np.float64)).sum() for part in np.array_split(exact, 100))
    exact_l2 = math.sqrt(sum(np.square(part.astype(np.float64)).sum() for part in np.array_split(exact, 100)))
    assert float(l1) == pytest.approx(exact_l1, rel=MEASURING)
    assert float(l2) == pytest.approx(exact_l2, rel=MEASURING)


def test_fp16_norm_beyond_the_largest_fp16_number():
    l1, _ = measure_gradient_norms([parameter_with_gradient(torch.full((1000,), 1000.0, dtype=torch.float16))])
    assert float(l1) == 1e6


def test_sparse_gradient_counts_repeated_rows_once():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    l1, l2 = measure_gradient_norms(embedding.parameters())
    assert (float(l1), float(l2)) == (pytest.approx(6.0), pytest.approx(math.sqrt(10.0)))  # rows of 2, 2 and 1, 1


def test_complex_gradients_count_by_their_absolute_value():
    parameters = [
        parameter_with_gradient(torch.tensor([3 + 4j, -5j])),
        parameter_with_gradient(torch.tensor([2.0])),
    ]
    l1, l2 = measure_gradient_norms(parameters)
    assert (float(l1), float(l2)) == (pytest.approx(12.0), pytest.approx(math.sqrt(54.0)))


def test_sums_are_in_float32_whatever_the_default_is():
    torch.set_default_dtype(torch.float16)
    try:
        l1, l2 = measure_gradient_norms([parameter_with_gradient(torch.full((100,), 1e4, dtype=torch.float32))])
    finally:
        torch.set_default_dtype(torch.float32)
    assert (float(l1), float(l2)) == (1e6, 1e5)


def test_measuring_changes_nothing():
    gradient = torch.randn(1000)
    parameter = parameter_with_gradient(gradient.clone())
    measure_gradient_norms([parameter])
    assert torch.equal(parameter.grad, gradient)
    assert torch.equal(parameter, torch.zeros(1000))


def test_l1_alone():
    parameters = [
        parameter_with_gradient(torch.tensor([[3.0, -4.0]])),
        parameter_with_gradient(torch.full((2**18 + 1,), -1.0)),  # more than one chunk
        torch.nn.Parameter(torch.ones(5)),
    ]
    assert float(measure_l1_norm(parameters)) == 7 + 2**18 + 1
    assert measure_l1_norm(parameters[2:]) is None


def test_l1_of_many_tensors_at_once():
    tensors = [torch.tensor([[3.0, -4.0]]), torch.full((100,), -2.0)]
    assert sums_on_accelerator(tensors, with_squares=False).tolist() == [207.0]


def test_the_loss_scale_is_divided_out():
    parameters = [parameter_with_gradient(torch.tensor([3.0, -4.0]) * 1024)]
    scale = torch.tensor(1024.0)
    l1, l2 = measure_gradient_norms(parameters, scale)
    assert (float(l1), float(l2), float(measure_l1_norm(parameters, scale))) == (7.0, 5.0, 7.0)


@pytest.mark.parametrize(
    ("max_norm", "total_norm", "expected"),
    [
        (1.0, 4.0, 1 / 4.000001),
        (1.0, 0.5, 1.0),  # a small gradient is left alone, not enlarged
        (math.inf, 4.0, 1.0),
        (1.0, 0.0, 1.0),
    ],
)
def test_clip_factor(max_norm, total_norm, expected):
    assert float(clip_factor(max_norm, torch.tensor(total_norm))) == pytest.approx(expected)


@pytest.mark.parametrize("max_norm", [0.5, 4.0, math.inf])
def test_clip_factor_is_that_of_torch(max_norm):
    parameter = parameter_with_gradient(torch.tensor([1.0, -2.0, 2.0]))
    total_norm = torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    assert torch.equal(parameter.grad, torch.tensor([1.0, -2.0, 2.0]) * clip_factor(max_norm, total_norm))


def on(device, dtype=torch.float32):
    """A parameter whose gradient has a device and a type, and no values: the device `meta` stands for any accelerator."""
    parameter = torch.nn.Parameter(torch.zeros(2, device=device, dtype=dtype))
    parameter.grad = torch.zeros_like(parameter)
    return parameter


def without_gradient():
    return torch.nn.Parameter(torch.zeros(2, device="meta"))


A, B, OTHER = on("meta"), on("meta"), on("meta")
ON_CPU, BFLOAT16, FLOAT16 = on("cpu"), on("meta", torch.bfloat16), on("meta", torch.float16)


@pytest.mark.parametrize(
    ("own", "clipped", "norm_type", "expected"),
    [
        pytest.param([A, B], [A, B], 2, True, id="all of them, float32, on an accelerator"),
        pytest.param([A, B], [B, A], 2.0, True, id="in another order"),
        pytest.param([A, without_gradient()], [A, without_gradient()], 2, True, id="frozen parameters do not count"),
        pytest.param([A, B], [A, B], 1, False, id="L1"),
        pytest.param([A, B], [A, B], math.inf, False, id="the largest element"),
        pytest.param([A, B], [A, B], "inf", False, id="the largest element, as text"),
        pytest.param([A, B], [A], 2, False, id="a part"),
        pytest.param([A, B], [A, B, OTHER], 2, False, id="those of another optimizer, too"),
        pytest.param([A, B], [A, OTHER], 2, False, id="as many others"),
        pytest.param([A, B], [A, B, B], 2, False, id="one of them twice"),
        pytest.param([without_gradient()], [without_gradient()], 2, False, id="no gradient: torch returns 0"),
        pytest.param([A, ON_CPU], [A, ON_CPU], 2, False, id="one of them on the CPU"),
        pytest.param([ON_CPU], [ON_CPU], 2, False, id="on the CPU"),
        pytest.param([A, BFLOAT16], [A, BFLOAT16], 2, False, id="one of them bfloat16"),
        pytest.param([FLOAT16], [FLOAT16], 2, False, id="float16"),
    ],
)
def test_where_the_clip_returns_the_l2_norm(own, clipped, norm_type, expected):
    assert clip_returns_l2(own, clipped, norm_type) is expected


# --- gradients at the edge of their type ---


def parameter_with(gradient):
    parameter = torch.nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [1e19, 1e-22, 1e30, 1e-30])
@pytest.mark.parametrize("pieces", [1, 2])
def test_squares_beyond_float32_do_not_spoil_the_norm(dtype, value, pieces):
    """Four elements x: L1 is 4 x, L2 is 2 x."""
    whole = torch.full((4,), value, dtype=dtype)
    exact = float(whole[0])
    l1, l2 = measure_gradient_norms([parameter_with(piece) for piece in whole.chunk(pieces)])
    assert float(l1) == pytest.approx(4 * exact, rel=MEASURING, abs=0)
    assert float(l2) == pytest.approx(2 * exact, rel=MEASURING, abs=0)


def test_float64_gradients_are_measured_in_float64():
    """1 + 2^-40 is 1 in float32."""
    gradient = torch.full((4,), 1 + 2.0**-40, dtype=torch.float64)
    l1, l2 = measure_gradient_norms([parameter_with(gradient)])
    assert float(l1) == 4 + 2.0**-38
    assert float(l2) == pytest.approx(2 + 2.0**-39, rel=1e-15)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_stays_one(value):
    gradient = torch.tensor([1.0, value])
    assert not any(math.isfinite(norm) for norm in measure_gradient_norms([parameter_with(gradient)]))


@pytest.mark.filterwarnings("ignore:Sparse C")  # torch calls these layouts beta
@pytest.mark.parametrize("layout", ["to_sparse_csr", "to_sparse_csc", "to_sparse_bsr"])
def test_compressed_sparse_gradients_are_measured(layout):
    """Elements 3 and -4: L1 is 7, L2 is 5."""
    dense = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    gradient = getattr(dense, layout)(*([(1, 1)] if layout == "to_sparse_bsr" else []))
    l1, l2 = measure_gradient_norms([Holder(gradient)])
    assert (float(l1), float(l2)) == (7.0, 5.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [1e19, 1e-22, 1e30, 1e-30])
def test_squares_beyond_float32_on_an_accelerator(dtype, value):
    """Four elements x: L1 is 4 x, L2 is 2 x."""
    gradient = torch.full((4,), value, dtype=dtype)
    exact = float(gradient[0])
    l1, squares = sums_on_accelerator([gradient], with_squares=True).tolist()
    assert (l1, math.sqrt(squares)) == pytest.approx((4 * exact, 2 * exact), rel=MEASURING, abs=0)


def test_float64_gradients_on_an_accelerator():
    gradients = [torch.tensor([3.0]), torch.full((2,), 1 + 2.0**-40, dtype=torch.float64)]
    l1, squares = sums_on_accelerator(gradients, with_squares=True).tolist()
    assert (l1, squares) == (5 + 2.0**-39, pytest.approx(11 + 2.0**-38, rel=1e-15))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_stays_one_on_an_accelerator(value):
    sums = sums_on_accelerator([torch.tensor([1.0, value], dtype=torch.float16)], with_squares=True)
    assert not sums.isfinite().any()


def test_an_accelerator_without_float64(monkeypatch):
    monkeypatch.setattr(measuring, "DEVICES_WITH_FLOAT64", frozenset())
    sums = sums_on_accelerator([torch.tensor([3.0, -4.0])], with_squares=True)
    assert (sums.dtype, sums.tolist()) == (torch.float32, [7.0, 25.0])


@pytest.fixture
def narrow_accelerator(monkeypatch):
    """The CPU stands for an accelerator without float64, as MPS is one."""
    monkeypatch.setattr(measuring, "DEVICES_WITH_FLOAT64", frozenset())
    monkeypatch.setattr(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset())


@pytest.mark.usefixtures("narrow_accelerator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [1.0, 1e19, 1e-22, 1e30, 1e-30])
@pytest.mark.parametrize("pieces", [1, 2])
def test_squares_beyond_float32_on_an_accelerator_without_float64(dtype, value, pieces):
    """Four elements x: L1 is 4 x, L2 is 2 x."""
    whole = torch.full((4,), value, dtype=dtype)
    exact = float(whole[0])
    norms = measure_gradient_norms([parameter_with(piece) for piece in whole.chunk(pieces)])
    assert [norm.dtype for norm in norms] == [torch.float32] * 2
    assert [float(norm) for norm in norms] == pytest.approx([4 * exact, 2 * exact], rel=MEASURING, abs=0)


@pytest.mark.usefixtures("narrow_accelerator")
def test_elements_of_very_different_size_on_an_accelerator_without_float64():
    """More than one chunk: one element of 1e15, and 2^24 of 2^-12, whose squares sum up to 1 and vanish beside 1e30."""
    gradients = [torch.full((2**24,), 2.0**-12), torch.zeros(0), torch.tensor([1e15])]
    l1, l2 = measure_gradient_norms([parameter_with(gradient) for gradient in gradients])
    assert (float(l1), float(l2)) == pytest.approx((1e15, 1e15), rel=MEASURING)
    l1, l2 = measure_gradient_norms([parameter_with(gradient) for gradient in gradients[:2]])
    assert (float(l1), float(l2)) == (4096.0, 1.0)


@pytest.mark.usefixtures("narrow_accelerator")
@pytest.mark.parametrize(("values", "finite"), [([0.0, 0.0], True), ([1.0, math.inf], False), ([1.0, math.nan], False)])
def test_special_values_on_an_accelerator_without_float64(values, finite):
    norms = measure_gradient_norms([parameter_with(torch.tensor(values))])
    assert [math.isfinite(norm) for norm in norms] == [finite] * 2
    assert not finite or [float(norm) for norm in norms] == [0.0, 0.0]


def test_gradients_on_the_cpu_beside_an_accelerator_without_float64(monkeypatch):
    """The unit of the largest element, 2, holds on both."""
    monkeypatch.setattr(measuring, "DEVICES_WITH_FLOAT64", frozenset())
    sums = [
        add([torch.tensor([1e19, -2e19])], True, torch.tensor(2e19)).tolist()
        for add in (sums_on_accelerator, measuring._sums_on_cpu)
    ]
    assert sums == [pytest.approx([3e19, 1.25])] * 2


@pytest.mark.parametrize(
    ("l1", "num_elements", "expected"),
    [
        pytest.param(100.0, 10**9, True, id="usual"),
        pytest.param(9e18, 1, True, id="the square is just below 1e38"),
        pytest.param(1.1e19, 1, False, id="the square can be above 1e38"),
        pytest.param(1e200, 1, False, id="a float64 number"),
        pytest.param(1.1e-13, 1, True, id="the square of one element is just above 1e-26"),
        pytest.param(1.1e-13, 4, False, id="the squares of four elements can sum up to 3e-27"),
        pytest.param(1e-22, 1, False, id="the square is 0 in float32"),
    ],
)
def test_where_squares_stay_in_range(l1, num_elements, expected):
    assert squares_stay_in_range(l1, num_elements) is expected


def test_l1_beyond_the_largest_float32_number():
    parameters = [parameter_with(torch.full((4,), 2e38))]
    assert float(measure_l1_norm(parameters)) == pytest.approx(8e38, rel=MEASURING)


def test_the_loss_scale_of_large_gradients():
    parameters = [parameter_with(torch.full((4,), 1e19 * 65536))]
    l1, l2 = measure_gradient_norms(parameters, torch.tensor(65536.0))
    assert (float(l1), float(l2)) == pytest.approx((4e19, 2e19), rel=MEASURING)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]
)
def test_float8_gradients_are_measured(dtype):
    """Alone, and next to a gradient of another type."""
    parameters = [Holder(torch.tensor([3.0, -4.0]).to(dtype)), Holder(torch.tensor([12.0]))]
    assert [float(norm) for norm in measure_gradient_norms(parameters[:1])] == [7.0, 5.0]
    assert [float(norm) for norm in measure_gradient_norms(parameters)] == [19.0, 13.0]


class Holder:
    """A parameter's gradient alone: torch lets no dense parameter have such a gradient."""

    def __init__(self, grad):
        self.grad = grad
