"""The classical schedules against hand-typed values and transformers' own, and their rank by the bound."""

import time

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from hf_refined_schedule import rank_schedules
from hf_refined_schedule.theory.classical import classical_schedules

from .tolerances import EXACT_ROUNDING, RANK_SECONDS

SQRT = 2**-0.5
HAND_TYPED = [
    ("constant", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("linear", [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ("wsd 20% linear", [1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),  # the decay begins at 0.8: its first value is the peak
    ("wsd 40% 1-sqrt", [1, 1, 1, 1, 1, 1, 1, 0.5, 1 - SQRT, 1 - 0.75**0.5]),
    ("inverse sqrt", [n**-0.5 for n in range(1, 11)]),
]


@pytest.mark.parametrize(("name", "expected"), HAND_TYPED, ids=[name for name, _ in HAND_TYPED])
def test_hand_typed(name, expected):
    assert classical_schedules(10)[name] == pytest.approx(expected, abs=EXACT_ROUNDING)


def of_transformers(name, steps, warmup, **kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, optimizer, warmup, steps, kwargs)
    multipliers = []
    for _ in range(steps):
        multipliers.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return multipliers


TWINS = [
    ("cosine", "cosine", 0, {}),
    ("linear, warm-up", "linear", 5, {}),
    ("cosine, warm-up", "cosine", 5, {}),
    ("constant, warm-up", "constant_with_warmup", 5, {}),
    ("inverse sqrt, warm-up", "inverse_sqrt", 5, {}),
    ("wsd 30% linear", "warmup_stable_decay", 0, {"num_decay_steps": 30, "decay_type": "linear"}),
]


@pytest.mark.parametrize(("name", "theirs", "warmup", "kwargs"), TWINS, ids=[row[0] for row in TWINS])
def test_as_transformers_has_them(name, theirs, warmup, kwargs):
    assert classical_schedules(100)[name] == pytest.approx(of_transformers(theirs, 100, warmup, **kwargs), abs=1e-9)


def test_nothing_to_schedule():
    with pytest.raises(ValueError, match="num_steps is 0"):
        classical_schedules(0)


def test_constant_norms_rank_as_real_language_model_runs_do():
    """Final losses of published 124M-parameter runs come in this order: WSD and linear, then cosine, then constant."""
    rows = [row.name for row in rank_schedules(classical_schedules(5000), np.ones(5000))]
    places = [rows.index(name) for name in ("linear", "wsd 50% linear", "wsd 20% linear", "wsd 10% linear", "constant")]
    assert places == sorted(places)
    assert rows.index("cosine") < rows.index("constant")


def test_the_table_is_quick_at_1e5_steps():
    started = time.perf_counter()
    rank_schedules(classical_schedules(10**5), np.ones(10**5))
    assert time.perf_counter() - started < RANK_SECONDS


def test_a_bad_schedule_is_named():
    with pytest.raises(ValueError, match="The schedule 'short'"):
        rank_schedules({"short": [1.0, 0.5]}, [1.0, 1.0, 1.0])
