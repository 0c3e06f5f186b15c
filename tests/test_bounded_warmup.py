"""The option bounded_warmup: linear decay after a derived warm-up of 5 to 20 % of the run."""

import numpy as np
import pytest
import torch

from hf_refined_schedule import get_refined_schedule
from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.schedules.health import check_health
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule, minimize_bound
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.schedule_file import read_schedule, write_schedule
from hf_refined_schedule.theory.bounded_warmup import bound_warmup

from .refusals import refuses
from .tolerances import EXACT_ROUNDING

STEPS = 100


def norms_of(values, **fields):
    values = np.asarray(values, dtype=float)
    return GradientNorms(
        steps=np.arange(1, len(values) + 1), l1=values, l2=values, num_training_steps=len(values), **fields
    )


def schedule_of(values, optimizer="adam", **options):
    return RefinedSchedule.from_norms(norms_of(values), optimizer, RefinementOptions(bounded_warmup=True, **options))


def with_warmup(warmup):
    grid = [(1 - u) * min(1, u / warmup) for u in np.arange(STEPS + 1) / STEPS]
    return np.array(grid) / max(grid)


def test_by_hand():
    grid = np.array([0.5, 0.75, 0.5, 0.25, 0.0])
    # decay 1, .75, .5, .25, 0; factors .5, 1, 1, 1; at u = 0 both ramps are 0, at u = 1/4 both are 1.
    assert bound_warmup(grid).tolist() == [0.0, 1.0, pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0]


@pytest.mark.parametrize(
    "norms, warmup",
    [
        pytest.param(np.ones(STEPS), 0.05, id="constant"),
        pytest.param(np.linspace(1, 3, STEPS), 0.05, id="rising"),
        pytest.param(np.exp(np.linspace(0, -12, STEPS)), 0.2, id="vanishing"),
    ],
)
def test_the_warm_up_has_a_shortest_and_a_longest_length(norms, warmup):
    assert schedule_of(norms, smoothing=0).grid == pytest.approx(with_warmup(warmup), abs=EXACT_ROUNDING)


def test_between_them_the_norms_decide():
    norms = np.concatenate([np.linspace(3, 1, 12), np.ones(STEPS - 12)])
    grid = schedule_of(norms, smoothing=0).grid
    derived = RefinedSchedule.from_norms(
        norms_of(norms), "adam", RefinementOptions(rising_norms="ignore", smoothing=0)
    ).grid
    factor = derived[6] / 0.94 / (derived[50] / 0.5)
    assert 6 / 20 < factor < 1
    assert grid[6] / grid[50] == pytest.approx(0.94 * factor / 0.5)


def test_vanishing_norms_do_not_make_it_degenerate():
    norms = norms_of(np.exp(np.linspace(0, -12, STEPS)))
    verdicts = [
        check_health(norms, RefinedSchedule.from_norms(norms, "sgd", options)).verdict
        for options in (RefinementOptions(max_grad_norm=0), RefinementOptions(bounded_warmup=True))
    ]
    assert verdicts[0] == "degenerate"
    assert verdicts[1] != "degenerate"


def test_training_and_files_know_it(tmp_path):
    schedule = schedule_of(np.linspace(3, 1, STEPS))
    write_schedule(schedule, tmp_path / "schedule.json")
    assert read_schedule(tmp_path / "schedule.json").weights.bounded_warmup is True
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    source = norms_of(np.linspace(3, 1, STEPS), optimizer="adam")
    trained = get_refined_schedule(optimizer, 0, STEPS, refined_from=source, bounded_warmup=True)
    assert trained.fingerprint == schedule.fingerprint
    assert trained.get_last_lr() == [0.0]


@pytest.mark.parametrize("beside", [{"rising_norms": "keep"}, {"max_grad_norm": 1.0}])
def test_what_contradicts_it_is_refused(beside):
    with refuses("bounded_warmup ignores rising norms and clipping", "leave out"):
        RefinementOptions(bounded_warmup=True, **beside)


def test_a_numerical_minimum_is_refused():
    with refuses("bounded_warmup and a numerical minimum", "choose one"):
        minimize_bound(schedule_of(np.ones(STEPS)))
