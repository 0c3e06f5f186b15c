"""Norms to multipliers: values worked out by hand, literal twins, invariances, refusals."""

import math
import time

import numpy as np
import pytest

from hf_refined_schedule.theory.refinement import (
    average_norms,
    effective_norms,
    linear_decay,
    multiplier_at,
    refine_schedule,
    smooth_norms,
)

from . import reference
from .records import norms_of, schedule_of
from .refusals import refuses
from .tolerances import EXACT_ROUNDING, REFINE_MILLION_SECONDS

NAN, INF = float("nan"), float("inf")

LENGTHS = [2, 3, 19, 20, 101]
SMOOTHINGS = [0, 0.05, 0.1, 0.5, 1.0]


def refined_grid(norms, norm="l1", **options):
    """The schedule that training uses: the formula on the norms of T updates and a repeat of the last."""
    record = norms_of(**{norm: norms}, planned=options.get("num_training_steps", len(norms)))
    return schedule_of(record, "adam" if norm == "l1" else "sgd", pilot=True, **options).grid


def random_norms(steps):
    return np.random.default_rng(steps).lognormal(sigma=1.0, size=steps)


def assert_equal_up_to_rounding(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT_ROUNDING)


# --- linear decay ---


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        pytest.param(1, [1.0], id="one update takes the whole rate"),
        pytest.param(2, [1.0, 0.5], id="the last multiplier is 1/T, not 0"),
        pytest.param(5, [1.0, 0.8, 0.6, 0.4, 0.2], id="steps of 1/T"),
        pytest.param(np.int64(4), [1.0, 0.75, 0.5, 0.25], id="a NumPy integer counts too"),
    ],
)
def test_linear_decay_is_one_minus_progress(num_steps, expected):
    assert_equal_up_to_rounding(linear_decay(num_steps), expected)


@pytest.mark.parametrize("num_steps", [0, -3, 2.0, 2.5, "4", None, NAN])
def test_linear_decay_refuses_what_is_no_number_of_updates(num_steps):
    with refuses("num_steps", repr(num_steps), "positive integer"):
        linear_decay(num_steps)


# --- smoothing ---


@pytest.mark.parametrize(
    ("norms", "smoothing", "expected"),
    [
        pytest.param([3, 1, 2], 0, [3, 1, 2], id="smoothing 0 is a window of one value"),
        pytest.param([3, 1, 2], 0.66, [3, 1, 2], id="int(1.98) = 1, halved 0: still one value"),
        # medians of (5 5 1) (5 1 4) (1 4 1) (4 1 8) (1 8 2) (8 2 2) (2 2 9) (2 9 3) (9 3 6) (3 6 3)
        pytest.param(
            [5, 1, 4, 1, 8, 2, 2, 9, 3, 6],
            0.3,
            [5, 4, 1, 4, 2, 2, 2, 3, 6, 3],
            id="W = 3: first value repeated on the left, mirrored without the last value on the right",
        ),
        # 9 9 | 9 2 7 4 6 | 4 7: medians of (9 9 9 2 7) (9 9 2 7 4) (9 2 7 4 6) (2 7 4 6 4) (7 4 6 4 7)
        pytest.param([9, 2, 7, 4, 6], 0.8, [9, 7, 6, 4, 6], id="W = 5: two values beyond each edge"),
        # (3 3 5) (3 5 3)
        pytest.param([3, 5], 1.0, [3, 3], id="the window may be longer than the run"),
        # (1 1 5) (1 5 2) (5 2 5)
        pytest.param([1, 5, 2], 1.0, [1, 2, 5], id="int(3) = 3, halved 1: W = 3"),
        # 1 1 | 1 9 9 2 9 8 7 7 9 1 | 9 7, windows of five
        pytest.param(
            [1, 9, 9, 2, 9, 8, 7, 7, 9, 1],
            0.59,
            [1, 2, 9, 9, 8, 7, 8, 7, 7, 7],
            id="int(5.9) = 5, halved 2: W = 5, the fraction is cut, not rounded",
        ),
        pytest.param([2] * 4 + [0] + [2] * 5, 0.3, [2] * 10, id="an isolated zero is smoothed away"),
        pytest.param([50] + [1] * 9, 0.3, [50] + [1] * 9, id="the first norm stays: it is repeated"),
        pytest.param([1] * 9 + [50], 0.3, [1] * 10, id="the last norm goes: it is not repeated"),
    ],
)
def test_smoothed_norms_worked_out_by_hand(norms, smoothing, expected):
    smoothed = smooth_norms(norms, smoothing)
    assert smoothed.dtype == np.float64
    np.testing.assert_array_equal(smoothed, expected)


@pytest.mark.parametrize(
    ("steps", "spike_left"),
    [
        pytest.param(19, 50.0, id="int(1.9) = 1: a window of one value at 19 steps"),
        pytest.param(20, 1.0, id="int(2.0) = 2: a window of three values at 20 steps"),
    ],
)
def test_default_smoothing_is_a_tenth_of_the_run(steps, spike_left):
    norms = np.ones(steps)
    norms[10] = 50.0
    assert smooth_norms(norms)[10] == spike_left


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("steps", LENGTHS)
def test_smoothing_equals_its_twin(steps, smoothing):
    norms = random_norms(steps)
    np.testing.assert_array_equal(smooth_norms(norms, smoothing), reference.median_smoothing(norms, smoothing))


def test_arguments_are_not_changed():
    norms = random_norms(50)
    before = norms.copy()
    smooth_norms(norms)
    refine_schedule(norms)
    effective_norms(norms, smoothing=0)
    np.testing.assert_array_equal(norms, before)


# --- the schedule ---


@pytest.mark.parametrize(
    ("norms", "options", "expected"),
    [
        pytest.param([1, 1, 1, 1, 1], {}, [1, 3 / 4, 2 / 4, 1 / 4, 0], id="constant norms: tails 4 3 2 1 0"),
        pytest.param([3, 3], {}, [1, 0], id="two norms: the second update is not used"),
        # w = 1/4 1/2 1 1/2, tails 2 3/2 1/2 0, products 1/2 3/4 1/2 0
        pytest.param([4, 2, 1, 2], {"norm": "l1", "smoothing": 0}, [2 / 3, 1, 2 / 3, 0], id="L1: one over the norm"),
        # w = 1/16 1/4 1 1/4, tails 3/2 5/4 1/4 0, products 3/32 5/16 1/4 0
        pytest.param(
            [4, 2, 1, 2], {"norm": "l2", "smoothing": 0}, [0.3, 1, 0.8, 0], id="L2: one over the squared norm"
        ),
        pytest.param(
            [4, 2, 1, 2],
            {"norm": "l2", "power": -1, "smoothing": 0},
            [2 / 3, 1, 2 / 3, 0],
            id="L2 in the place of L1 for Adam: the power is the exponent itself",
        ),
        # w = 1/4 1 1, tails 2 1 0, products 1/2 1 0
        pytest.param([2, 1, 1], {"norm": "l1", "power": -2, "smoothing": 0}, [0.5, 1, 0], id="L1 with power -2"),
        # w = 1/2 1 1/2, tails 3/2 1/2 0, products 3/4 1/2 0
        pytest.param([4, 1, 4], {"power": -0.5, "smoothing": 0}, [1, 2 / 3, 0], id="a fractional power"),
        # smoothed 5 1 1 1: w = 1/5 1 1 1, tails 3 2 1 0, products 3/5 2 1 0
        pytest.param([5, 1, 1, 1], {"smoothing": 0.75}, [0.3, 1, 0.5, 0], id="a first spike makes a warm-up"),
        pytest.param([1, 1, 1, 5], {"smoothing": 0.75}, [1, 2 / 3, 1 / 3, 0], id="a last spike is smoothed away"),
        pytest.param(
            [1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
            {"smoothing": 0.3},
            [1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9, 0],
            id="an isolated zero is smoothed away",
        ),
        # minimum 4 2 1 1: w = 1/4 1/2 1 1, tails 5/2 2 1 0, products 5/8 1 1 0
        pytest.param(
            [4, 2, 1, 2], {"smoothing": 0, "rising_norms": "ignore"}, [5 / 8, 1, 1, 0], id="a rise that is ignored"
        ),
        pytest.param(
            [1, 9, 9, 9], {"smoothing": 0, "rising_norms": "ignore"}, [1, 2 / 3, 1 / 3, 0], id="norms that only rise"
        ),
        pytest.param(
            [5, 1, 0, 1, 1, 1, 1, 1, 1, 1],
            {"smoothing": 0.3, "rising_norms": "ignore"},
            [9 / 40, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0],
            id="the minimum is of the smoothed norms: an isolated zero does not stay",
        ),
        # w = 1e-300 1 1, tails 2 1 0, products 2e-300 1 0
        pytest.param([1e200, 1e-100, 1e-100], {"smoothing": 0}, [0, 1, 0], id="norms 300 orders of magnitude apart"),
    ],
)
def test_schedules_worked_out_by_hand(norms, options, expected):
    multipliers = refine_schedule(norms, **options)
    assert multipliers.dtype == np.float64
    assert_equal_up_to_rounding(multipliers, expected)


@pytest.mark.parametrize(
    ("norms", "options", "expected"),
    [
        pytest.param([7, 7, 7, 7], {}, [1, 0.75, 0.5, 0.25, 0], id="constant norms: linear decay, zero after the run"),
        pytest.param([3, 3], {}, [1, 0.5, 0], id="two norms: both updates are used"),
        # norms 4 2 1 2 2: w = 1/4 1/2 1 1/2 1/2, tails 5/2 2 1 1/2 0, products 5/8 1 1 1/4 0
        pytest.param([4, 2, 1, 2], {"smoothing": 0}, [0.625, 1, 1, 0.25, 0], id="L1: the last norm is repeated once"),
        # w = 1/16 1/4 1 1/4 1/4, tails 7/4 3/2 1/2 1/4 0, products 7/64 3/8 1/2 1/16 0
        pytest.param([4, 2, 1, 2], {"norm": "l2", "smoothing": 0}, [0.21875, 0.75, 1, 0.125, 0], id="L2"),
        # norms 2 1 1 1 1: w = 1/2 1 1 1 1, tails 4 3 2 1 0, products 2 3 2 1 0
        pytest.param(
            [2, 1],
            {"smoothing": 0, "num_training_steps": 4},
            [2 / 3, 1, 2 / 3, 1 / 3, 0],
            id="a longer run: the last norm goes on",
        ),
        pytest.param(
            [1, 1, 1, 5],
            {"smoothing": 0.75, "num_training_steps": 6},
            [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0],
            id="it is the last *smoothed* norm that goes on",
        ),
        # window int(0.75 * 4) // 2 = 1 each side: medians (1 1 9) (1 9 1) (9 1 1) (1 1 1); of 8 steps it would be 3
        pytest.param(
            [1, 9, 1, 1],
            {"smoothing": 0.75, "num_training_steps": 8},
            [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0],
            id="the window is a fraction of the norms that are there",
        ),
    ],
)
def test_grids_worked_out_by_hand(norms, options, expected):
    assert_equal_up_to_rounding(refined_grid(norms, **options), expected)


# --- several runs ---


@pytest.mark.parametrize(
    ("runs", "options", "expected"),
    [
        pytest.param([[4, 2, 1]], {}, [4, 2, 1], id="one run is itself"),
        pytest.param([[4, 1, 3], [1, 4, 12]], {}, [2, 2, 6], id="the geometric mean"),
        pytest.param([[4, 1, 3], [1, 4, 12]], {"rising_norms": "ignore"}, [2, 2, 2], id="the mean does not rise"),
        pytest.param([[1, 4], [1, 1, 1, 1]], {}, [1, math.sqrt(2.5), 2, 2], id="a shorter run, over its progress"),
        pytest.param([[4], [1, 1]], {"num_training_steps": [2, 2]}, None, id="one norm is too few"),
        pytest.param([[4, 4], [1, 1, 1]], {"num_training_steps": [3, 3]}, [2, 2, 2], id="an unfinished run goes on"),
        pytest.param([[1, 9, 1, 1], [1, 1, 1, 1]], {"smoothing": 0.5}, [1, 1, 1, 1], id="smoothed before averaged"),
    ],
)
def test_averages_worked_out_by_hand(runs, options, expected):
    options = {"smoothing": 0, **options}
    if expected is None:
        with refuses("at least 2"):
            average_norms(runs, **options)
    else:
        assert_equal_up_to_rounding(average_norms(runs, **options), expected)


def test_no_run_at_all_is_refused():
    with refuses("no run"):
        average_norms([])


@pytest.mark.parametrize("power", [-0.5, -1.0, -2.0])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("steps", LENGTHS)
def test_schedule_and_grid_equal_their_twins(steps, smoothing, power):
    norms = random_norms(steps)
    multipliers = refine_schedule(norms, smoothing=smoothing, power=power)
    assert_equal_up_to_rounding(multipliers, reference.refined_schedule(norms, power, smoothing))
    for total in (steps, steps + 1, 3 * steps):
        grid = refined_grid(norms, smoothing=smoothing, power=power, num_training_steps=total)
        assert_equal_up_to_rounding(grid, reference.refined_grid(norms, power, smoothing, total))


@pytest.mark.parametrize(("norm", "power"), [("l1", -1.0), ("l2", -2.0)])
def test_default_power_follows_the_norm(norm, power):
    norms = random_norms(40)
    assert_equal_up_to_rounding(refine_schedule(norms, norm=norm), reference.refined_schedule(norms, power, 0.1))
    assert_equal_up_to_rounding(refined_grid(norms, norm=norm), reference.refined_grid(norms, power, 0.1))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("factor", [1e-250, 1e-6, 3.0, 1e250])
def test_scaling_all_norms_changes_nothing(factor, norm):
    norms = random_norms(101)
    assert_equal_up_to_rounding(refine_schedule(factor * norms, norm=norm), refine_schedule(norms, norm=norm))
    assert_equal_up_to_rounding(refined_grid(factor * norms, norm=norm), refined_grid(norms, norm=norm))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("steps", LENGTHS)
def test_constant_norms_give_linear_decay(steps, norm):
    grid = refined_grid([0.7] * steps, norm=norm)
    assert_equal_up_to_rounding(grid, [1 - t / steps for t in range(steps + 1)])
    assert grid[-1] == 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("steps", LENGTHS)
def test_multipliers_are_not_negative_end_at_zero_and_reach_one(steps, norm):
    for multipliers in (refine_schedule(random_norms(steps), norm=norm), refined_grid(random_norms(steps), norm=norm)):
        assert multipliers.min() >= 0
        assert multipliers.max() == 1
        assert multipliers[-1] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8, np.uint64])
def test_every_kind_of_real_number_is_taken(dtype):
    norms = np.array([4, 2, 1, 2], dtype=dtype)
    assert_equal_up_to_rounding(refine_schedule(norms, smoothing=0), [2 / 3, 1, 2 / 3, 0])


# --- refusals ---

BAD_NORMS = [
    pytest.param([], ["0 value", "at least 2"], id="empty"),
    pytest.param([1.0], ["1 value", "at least 2"], id="one value"),
    pytest.param(np.ones((2, 3)), ["(2, 3)", "one-dimensional"], id="two-dimensional"),
    pytest.param([[1.0, 2.0]], ["(1, 2)", "one-dimensional"], id="a list in a list"),
    pytest.param(3.0, ["()", "one-dimensional"], id="a number alone"),
    pytest.param("runs/baseline", ["()", "one-dimensional"], id="a path"),
    pytest.param([[1.0, 2.0], [3.0]], ["nested", "one number for each step"], id="a ragged list"),
    pytest.param([1.0, [2.0, 3.0]], ["nested", "one number for each step"], id="a list among numbers"),
    pytest.param(["a", "b"], ["must hold numbers"], id="text"),
    pytest.param([1.0, "2.0"], ["must hold numbers"], id="text among numbers"),
    pytest.param([1.0, None], ["object", "must hold numbers"], id="None among numbers"),
    pytest.param(np.array([1.0, 2.0], dtype=object), ["object", "must hold numbers"], id="dtype object"),
    pytest.param([1.0 + 1.0j, 2.0], ["complex128", "must hold numbers"], id="complex"),
    pytest.param([True, False, True], ["bool", "must hold numbers"], id="bool"),
    pytest.param([10**400, 1.0], ["must hold numbers"], id="an integer beyond float64"),
    pytest.param([1.0, -2.0, 3.0, -4.0], ["norms[1]", "-2.0", "negative"], id="negative"),
    pytest.param([1, 2, -3], ["norms[2]", "negative"], id="a negative integer"),
    pytest.param([1.0, 2.0, NAN, NAN], ["norms[2]", "nan", "not finite"], id="nan"),
    pytest.param([INF, 1.0], ["norms[0]", "inf", "not finite"], id="inf"),
    pytest.param([1.0, 2.0, -INF], ["norms[2]", "-inf"], id="minus inf"),
    pytest.param([1.0, NAN, -1.0], ["norms[1]", "nan"], id="nan before negative: the first is named"),
    pytest.param([1.0, -1.0, NAN], ["norms[1]", "-1.0"], id="negative before nan: the first is named"),
]


@pytest.mark.parametrize("function", [smooth_norms, refine_schedule])
@pytest.mark.parametrize(("norms", "words"), BAD_NORMS)
def test_unusable_norms_are_refused(norms, words, function):
    with refuses("norms", *words):
        function(norms)


@pytest.mark.parametrize(
    ("norms", "smoothing", "position"),
    [
        pytest.param([1, 1, 0, 1, 0, 1], 0, 2, id="without smoothing every zero counts"),
        pytest.param([0, 1, 1, 1, 1, 1, 1, 1, 1, 1], 0.3, 0, id="a zero at the start is repeated, so it stays"),
        # medians of three: (1 1 1) ... (1 0 0) = 0 at position 5
        pytest.param([1, 1, 1, 1, 1, 0, 0, 1, 1, 1], 0.3, 5, id="two zeros side by side stay"),
        # 1 0 1 0 1: (1 0 1) = 1, (0 1 0) = 0 at position 4
        pytest.param([1, 1, 1, 0, 1, 0, 1, 1, 1, 1], 0.3, 4, id="the position is of the smoothed norms"),
        pytest.param([0, 0], 0, 0, id="zeros alone"),
    ],
)
def test_a_smoothed_norm_of_zero_is_refused(norms, smoothing, position):
    with refuses("smoothed", f"position {position} is 0"):
        refine_schedule(norms, smoothing=smoothing)


def test_smooth_norms_itself_takes_zeros():
    np.testing.assert_array_equal(smooth_norms([0, 0, 1], smoothing=0), [0, 0, 1])


@pytest.mark.parametrize("function", [smooth_norms, refine_schedule])
@pytest.mark.parametrize("smoothing", [-0.1, 1.0001, 10, NAN, INF, "0.1", None, 1j])
def test_smoothing_that_is_no_fraction_is_refused(smoothing, function):
    with refuses("smoothing", repr(smoothing), "fraction of the run"):
        function([1.0, 2.0, 3.0], smoothing=smoothing)


@pytest.mark.parametrize("power", [0, 1, 2.0, NAN, INF, -INF, "-1", 1j])
def test_power_that_is_not_negative_is_refused(power):
    with refuses("power", repr(power), "negative number"):
        refine_schedule([1.0, 2.0, 3.0], power=power)


@pytest.mark.parametrize("rising_norms", ["Keep", "", None, True])
def test_unknown_treatment_of_rising_norms_is_refused(rising_norms):
    with refuses("rising_norms", repr(rising_norms), '"keep"', '"ignore"'):
        refine_schedule([1.0, 2.0], rising_norms=rising_norms)


@pytest.mark.parametrize("norm", ["L1", "linf", "", 1, None])
def test_unknown_norm_is_refused(norm):
    with refuses("norm", repr(norm), '"l1"', '"l2"'):
        refine_schedule([1.0, 2.0, 3.0], norm=norm)


def test_a_schedule_without_any_positive_multiplier_is_refused():
    # relative weights 1e-400 (0 in float64), 1e-400, 1: no weight has a tail with weight
    with refuses("too far apart"):
        refine_schedule([1e200, 1e200, 1e-200], smoothing=0)


@pytest.mark.parametrize("num_training_steps", [2, 1, 0, -1])
def test_more_norms_than_steps_are_refused(num_training_steps):
    with refuses("3 norms", f"num_training_steps={num_training_steps}"):
        effective_norms([1.0, 2.0, 3.0], num_training_steps=num_training_steps)


# --- the schedule as a function of progress ---


@pytest.mark.parametrize(
    ("grid", "progress", "expected"),
    [
        pytest.param([1.0, 0.5, 0.0], 0.0, 1.0, id="the start"),
        pytest.param([1.0, 0.5, 0.0], 1.0, 0.0, id="the end"),
        pytest.param([0.2, 1.0, 0.4, 0.0, 0.0], 0.25, 1.0, id="on a grid point"),
        pytest.param([0.2, 1.0, 0.4, 0.0, 0.0], 0.125, 0.6, id="halfway between two"),
        pytest.param([0.2, 1.0, 0.4, 0.0, 0.0], 0.3125, 0.85, id="a quarter between two"),
        pytest.param([0.3, 0.7], 0.25, 0.4, id="two points are a line"),
        pytest.param([1.0, 0.5, 0.25], -0.5, 1.0, id="before the start is the start"),
        pytest.param([1.0, 0.5, 0.25], 1.5, 0.25, id="after the end is the end"),
        pytest.param([1.0, 0.5, 0.25], 7, 0.25, id="an integer far after the end"),
        pytest.param([0.0, 0.0, 1.0], 2 / 3, 1 / 3, id="a grid that ends at one"),
    ],
)
def test_multiplier_at_interpolates(grid, progress, expected):
    value = multiplier_at(np.array(grid), progress)
    assert type(value) is float
    assert value == pytest.approx(expected, rel=0, abs=EXACT_ROUNDING)


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 49, 1000])
def test_multiplier_at_returns_the_grid_at_its_own_points(steps):
    grid = np.random.default_rng(steps).random(steps + 1)
    assert_equal_up_to_rounding([multiplier_at(grid, t / steps) for t in range(steps + 1)], grid)


def test_a_million_norms_are_refined_quickly():
    norms = np.random.default_rng(0).lognormal(size=1_000_000)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        refine_schedule(norms)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < REFINE_MILLION_SECONDS
