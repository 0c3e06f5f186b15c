"""Schedules for SGD with clipped gradients: the rates that give the steps of the rule."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from hf_refined_schedule import get_refined_schedule, load_norms, refine_schedule
from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule, minimize_bound
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.schedule_file import read_schedule, write_schedule
from hf_refined_schedule.theory.bounds import rank_by_squared_norms

from .refusals import refuses
from .tolerances import EXACT_ROUNDING

STEPS = 200
FALLING = np.linspace(8, 0.5, STEPS)


def norms_of(l2=FALLING, **fields):
    return GradientNorms(steps=np.arange(1, len(l2) + 1), l2=l2, num_training_steps=len(l2), optimizer="sgd", **fields)


def schedule_of(runs, **options):
    return RefinedSchedule.from_norms(runs, "sgd", RefinementOptions(**options))


def test_the_rates_by_hand():
    # Weights 1/16, 1/4, 1, 1: steps 1/16 * 9/4, 1/4 * 2, 1 * 1, 0; factors 1/2, 1, 1, 1 with norms 4, 2, 1, 1 clipped to 2.
    rates = refine_schedule([4.0, 2.0, 1.0, 1.0], norm="l2", smoothing=0, max_grad_norm=2)
    assert rates == pytest.approx([9 / 32, 1 / 2, 1, 0])
    clipped_to_one = refine_schedule([4.0, 2.0, 1.0, 1.0], norm="l2", smoothing=0, max_grad_norm=1)
    assert clipped_to_one == pytest.approx([9 / 16, 1, 1, 0])


@pytest.mark.parametrize("rising_norms", ["keep", "ignore"])
def test_the_steps_are_those_of_the_rule(rising_norms):
    norms = np.concatenate([FALLING, FALLING[::-1]])
    clipped = schedule_of(norms_of(norms, max_grad_norm=1.0), rising_norms=rising_norms)
    plain = schedule_of(norms_of(norms, max_grad_norm=0.0), rising_norms=rising_norms)
    steps = clipped.grid[:-1] * clipped.clip_factors
    assert steps / steps.max() == pytest.approx(plain.grid[:-1] / plain.grid.max(), abs=EXACT_ROUNDING)
    assert clipped.grid.max() == 1
    assert any("divided by the smoothed clip factors" in note for note in clipped.notes)
    assert not any("clipped" in note for note in plain.notes)


def test_where_nothing_is_clipped_nothing_changes():
    gentle = norms_of(FALLING / 10, max_grad_norm=1.0)
    schedule = schedule_of(gentle)
    assert schedule.grid.tolist() == schedule_of(gentle, max_grad_norm=0).grid.tolist()
    assert schedule.notes == ()


def test_the_run_to_come_may_clip_otherwise():
    recorded = norms_of(max_grad_norm=1.0)
    assert schedule_of(recorded, max_grad_norm=2.0).weights.max_grad_norm == 2.0
    assert schedule_of(recorded, max_grad_norm=0.0).weights.max_grad_norm is None
    other = dataclasses.replace(recorded, max_grad_norm=0.5)
    with refuses("clip at", "pass max_grad_norm"):
        schedule_of([recorded, other])
    assert schedule_of([recorded, other], max_grad_norm=1.0).weights.max_grad_norm == 1.0


def test_adam_has_no_use_for_it():
    norms = norms_of(max_grad_norm=1.0)
    adam = RefinedSchedule.from_norms(norms, "adam", RefinementOptions())
    assert adam.clip_factors is None
    assert adam.weights.max_grad_norm is None
    with refuses("max_grad_norm", "SGD alone"):
        RefinedSchedule.from_norms(norms, "adam", RefinementOptions(max_grad_norm=1.0))
    with refuses("max_grad_norm", 'norm="l2"'):
        refine_schedule([1.0, 2.0], max_grad_norm=1)


@pytest.mark.parametrize("limit", [-1, float("nan"), float("inf"), "1", True])
def test_a_limit_that_is_no_norm_is_refused(limit):
    with refuses("max_grad_norm is", "at least 0"):
        RefinementOptions(max_grad_norm=limit)


def test_the_bound_is_that_of_the_steps():
    schedule = schedule_of(norms_of(max_grad_norm=1.0))
    linear = 1 - np.arange(STEPS) / STEPS
    refined, plain = rank_by_squared_norms(
        {"refined": schedule.grid[:-1], "linear": linear}, schedule.squared_norms, schedule.clip_factors
    )
    assert (refined.name, plain.relative_bound) == ("refined", 1)
    assert refined.best_peak_ratio == pytest.approx(schedule.best_peak_ratio)
    unclipped = schedule_of(norms_of(max_grad_norm=0.0))
    assert schedule.bound_of(schedule.grid[:-1]).value == pytest.approx(unclipped.bound_of(unclipped.grid[:-1]).value)
    minimized = minimize_bound(schedule)
    assert minimized.bound_of(minimized.grid[:-1]).value <= schedule.bound_of(schedule.grid[:-1]).value


def test_a_recorded_file_and_a_schedule_file_know_the_limit(tmp_path):
    path = tmp_path / "gradient_norms.jsonl"
    rows = [
        {"step": step, "l1": norm, "l2": norm, "clip_factor": min(1.0, 1 / norm), "learning_rate": 0.1}
        for step, norm in enumerate(np.linspace(3, 1.5, STEPS), start=1)
    ]
    header = {
        "format": "gradient_norms",
        "version": 1,
        "optimizer_family": "sgd",
        "num_training_steps": STEPS,
        "max_grad_norm": 1.0,
    }
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
    norms = load_norms(path)
    assert norms.max_grad_norm == 1.0
    schedule = schedule_of(norms)
    write_schedule(schedule, tmp_path / "schedule.json")
    assert read_schedule(tmp_path / "schedule.json").weights.max_grad_norm == 1.0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    kept, undone = (
        get_refined_schedule(optimizer, 0, STEPS, refined_from=str(path), **options).fingerprint
        for options in ({"max_grad_norm": 0.0}, {})
    )
    assert undone == schedule.fingerprint != kept
