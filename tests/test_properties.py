"""The mathematics by its defining properties, on examples that hypothesis finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_refined_schedule import last_iterate_bound, optimize_schedule, rank_schedules, refine_schedule
from hf_refined_schedule.theory.refinement import average_norms, effective_norms, multiplier_at

from . import reference
from .records import norms_of, schedule_of
from .tolerances import SCALE_INVARIANCE

settings.register_profile("reproducible", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("reproducible")

NORM = st.floats(1e-3, 1e3)
NORMS = st.lists(NORM, min_size=2, max_size=30)
SMOOTHING = st.floats(0, 1)
POWER = st.floats(-3, -0.1)
SCALE = st.sampled_from([1e-300, 1e-200, 1e-30, 1.0, 1e30, 1e200, 1e300])


@given(NORMS, SMOOTHING, POWER)
def test_the_schedule_is_its_literal_twin(norms, smoothing, power):
    multipliers = refine_schedule(norms, smoothing=smoothing, power=power)
    np.testing.assert_allclose(multipliers, reference.refined_schedule(norms, power, smoothing), rtol=0, atol=1e-12)


@given(NORMS, SMOOTHING, st.sampled_from(["l1", "l2"]), st.sampled_from(["keep", "ignore"]))
def test_multipliers_lie_between_0_and_1_and_end_at_0(norms, smoothing, norm, rising_norms):
    multipliers = refine_schedule(norms, smoothing=smoothing, norm=norm, rising_norms=rising_norms)
    assert multipliers.min() >= 0
    assert multipliers.max() == 1
    assert multipliers[-1] == 0


@given(NORMS, SCALE, st.sampled_from(["l1", "l2"]))
def test_the_scale_of_the_norms_changes_no_schedule(norms, scale, norm):
    scaled = refine_schedule(np.array(norms) * scale, norm=norm)
    np.testing.assert_allclose(scaled, refine_schedule(norms, norm=norm), rtol=0, atol=SCALE_INVARIANCE)


@given(NORM, st.integers(2, 60), st.sampled_from(["l1", "l2"]))
def test_constant_norms_make_linear_decay(norm, steps, kind):
    grid = refine_schedule([norm] * (steps + 1), norm=kind)
    np.testing.assert_allclose(grid, 1 - np.arange(steps + 1) / steps, rtol=0, atol=1e-12)


@given(NORMS, SMOOTHING)
def test_norms_that_never_rise_are_the_same_under_both_rules(norms, smoothing):
    falling = sorted(norms, reverse=True)
    kept, ignored = (effective_norms(falling, smoothing=0, rising_norms=rule) for rule in ("keep", "ignore"))
    np.testing.assert_array_equal(kept, ignored)
    assert np.all(np.diff(effective_norms(norms, smoothing=smoothing, rising_norms="ignore")) <= 0)


@given(NORMS, SMOOTHING, st.integers(1, 4))
def test_the_average_of_equal_runs_is_the_run(norms, smoothing, count):
    average = average_norms([norms] * count, smoothing=smoothing)
    np.testing.assert_allclose(average, effective_norms(norms, smoothing=smoothing), rtol=1e-12)


@given(st.data())
def test_the_bound_is_its_literal_twin(data):
    norms = data.draw(NORMS)
    multipliers = data.draw(st.lists(st.floats(0.01, 1), min_size=len(norms), max_size=len(norms)))
    for norm, squares in (("l1", norms), ("l2", np.square(norms))):
        bound = last_iterate_bound(multipliers, norms, norm=norm)
        assert tuple(bound) == pytest.approx(reference.bound_terms(multipliers, list(squares)), rel=1e-9)


@given(NORMS, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_bound_scales_with_the_step_sizes_and_the_squared_norms(norms, peak, scale):
    """At peak gamma it is t1 / gamma + gamma (t2 + t3), and the squared norms are a factor of t2 and t3 alone."""
    multipliers = np.linspace(1, 0.5, len(norms))
    one = last_iterate_bound(multipliers, norms, norm="l2")
    higher = last_iterate_bound(peak * multipliers, norms, norm="l2")
    assert tuple(higher) == pytest.approx((one[0] / peak, peak * one[1], peak * one[2]), rel=1e-9)
    noisier = last_iterate_bound(multipliers, scale * np.array(norms), norm="l2")
    assert tuple(noisier) == pytest.approx((one[0], scale**2 * one[1], scale**2 * one[2]), rel=1e-9)


@given(NORMS, SCALE, st.sampled_from(["l1", "l2"]))
def test_the_scale_of_the_norms_changes_no_rank(norms, scale, norm):
    schedules = {"constant": np.ones(len(norms)), "refined": refine_schedule([*norms, norms[-1]], norm=norm)[:-1]}
    one = rank_schedules(schedules, norms, norm=norm)
    other = rank_schedules(schedules, np.array(norms) * scale, norm=norm)
    assert [row.name for row in one] == [row.name for row in other]
    assert [row[1:] for row in other] == [pytest.approx(row[1:], rel=SCALE_INVARIANCE) for row in one]


@settings(max_examples=15)
@given(NORMS)
def test_no_schedule_has_a_smaller_bound_than_the_numerical_one(norms):
    best = last_iterate_bound(optimize_schedule(norms), norms).value
    for other in (refine_schedule([*norms, norms[-1]], smoothing=0)[:-1], np.ones(len(norms))):
        assert best <= last_iterate_bound(other, norms).value * (1 + 1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(-0.5, 1.5))
def test_a_multiplier_lies_between_its_neighbours(grid, progress):
    position = min(max(progress, 0), 1) * (len(grid) - 1)
    around = grid[int(position) : int(position) + 2]
    assert min(around) - 1e-12 <= multiplier_at(np.array(grid), progress) <= max(around) + 1e-12


@given(st.data())
def test_a_norm_of_0_is_a_step_without_a_norm(data):
    norms = data.draw(st.lists(NORM, min_size=6, max_size=30))
    # A step without a norm at the end would shorten the recorded part of the run.
    zeros = data.draw(st.sets(st.integers(0, len(norms) - 2), max_size=len(norms) // 3))
    with_zeros = [0.0 if index in zeros else norm for index, norm in enumerate(norms)]
    left = [index for index in range(len(norms)) if index not in zeros]
    without = norms_of([norms[index] for index in left], steps=[index + 1 for index in left], planned=len(norms))
    grids = [schedule_of(one, smoothing=0.2).grid for one in (norms_of(with_zeros, planned=len(norms)), without)]
    np.testing.assert_array_equal(*grids)
