"""The entries of a log in the order of the run: written down by hand, entry by entry."""

import numpy as np
import pytest

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.step_order import ENTRIES_COUNTED, RestartError, order_by_entry, order_by_step

from .records import json_lines
from .refusals import refuses

NAN = float("nan")


def order(steps, epochs=None):
    epochs = [NAN] * len(steps) if epochs is None else epochs
    return order_by_step(np.array(steps, dtype=np.int64), np.array(epochs, dtype=np.float64))


@pytest.mark.parametrize(
    ("steps", "positions", "expected"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param([7], [0], [7], id="one entry"),
        pytest.param([1, 2, 5], [0, 1, 2], [1, 2, 5], id="in order"),
        pytest.param([5, 5, 5], [2], [5], id="one step, logged three times"),
        pytest.param([1, 2, 2, 3], [0, 2, 3], [1, 2, 3], id="a step logged twice: the last counts"),
        pytest.param([3, 2, 1], [2, 1, 0], [1, 2, 3], id="the newest first"),
        pytest.param([3, 2, 2, 1], [3, 1, 0], [1, 2, 3], id="the newest first, a step logged twice"),
        pytest.param([10, 20, 30, 20, 30, 40], [0, 3, 4, 5], [10, 20, 30, 40], id="resumed from step 10"),
        pytest.param([10, 20, 30, 40, 20], [0, 4], [10, 20], id="resumed, and dead before it got further"),
        pytest.param([10, 20, 30, 40, 50, 30, 40, 20, 30], [0, 7, 8], [10, 20, 30], id="resumed twice"),
        pytest.param([50, 60, 70, 50, 60, 80], [3, 4, 5], [50, 60, 80], id="begun and resumed at step 40"),
        pytest.param([2, 1, 3, 4], [1, 2, 3], [1, 3, 4], id="the first entry was written late"),
        pytest.param([40, 10, 30, 60, 20, 50], [1, 4, 2, 0, 5, 3], [10, 20, 30, 40, 50, 60], id="random order"),
    ],
)
def test_the_entries_that_count(steps, positions, expected):
    entries = order(steps)
    assert (entries.positions.tolist(), entries.steps.tolist()) == (positions, expected)


def test_steps_that_a_resumed_run_did_not_reach_again_are_counted():
    assert order([10, 20, 30, 40, 20]).remark == "steps dropped where a resumed run goes back: 2"  # 30 and 40
    assert order([10, 20, 30, 20, 30, 40]).remark is None


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [
        pytest.param([1, 2, 3, 1, 2, 3], [0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6], id="two epochs from 0"),
        pytest.param([2, 4, 2, 4, 2, 4], [1, 1, 2, 2, 3, 3], [2, 4, 6, 8, 10, 12], id="three epochs from 1"),
        pytest.param([2, 4, 1, 3, 5], [0.4, 0.8, 1.2, 1.6, 2.0], [2, 4, 6, 8, 10], id="epochs with a fraction"),
        pytest.param([2, 4, 2, 4], [0, 0, 2, 2], [2, 4, 10, 12], id="an epoch without entries"),
        pytest.param([9, 9, 9], [1, 2, 3], [9, 18, 27], id="one entry in each epoch"),
    ],
)
def test_steps_within_an_epoch_go_on(steps, epochs, expected):
    entries = order(steps, epochs)
    assert entries.steps.tolist() == expected
    assert entries.positions.tolist() == list(range(len(steps)))
    assert entries.remark == f"steps counted within epochs of {max(steps)}"


def test_a_run_resumed_within_an_epoch():
    """Updates 1 to 3, 4, 5, and again from 5 on."""
    entries = order([1, 2, 3, 1, 2, 3, 2, 3], [0, 0, 0, 1, 1, 1, 1, 1])
    assert entries.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert entries.positions.tolist() == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize(
    ("steps", "epochs", "words"),
    [
        pytest.param(
            [1, 2, 3, 1, 2, 3], None, ["step 1 follows step 3 at entry 4", "two runs"], id="from step 1 again"
        ),
        pytest.param([10, 20, 30, 10, 20], None, ["step 10 follows step 30"], id="from the first logged step again"),
        pytest.param([1, 2, 3, 4, 10, 20, 30, 5, 10, 15], None, ["step 5 follows step 30"], id="another interval"),
        pytest.param([1, 2, 3, 1, 2, 3], [0.1, 0.2, 0.3, 0.1, 0.2, 0.3], ["two runs"], id="epochs begin again, too"),
        pytest.param([1, 2, 1, 2, 1, 2, 1, 2], [0, 0, 1, 1, 0, 0, 1, 1], ["entry 3"], id="two runs of two epochs"),
        pytest.param([1, 2, 3, 1, 2, 3], [0, 0, 0, NAN, 1, 1], ["two runs"], id="an epoch is missing"),
        pytest.param([1, 2, 3, 1, 2, 3], [0, 0, 0, 1e300, 1e300, 1e300], ["two runs"], id="an absurd epoch"),
    ],
)
def test_two_runs_in_one_log_are_refused(steps, epochs, words):
    with refuses(*words, error=RestartError):
        order(steps, epochs)


@pytest.mark.parametrize(
    ("numbers", "epochs", "positions", "expected"),
    [
        pytest.param([1, 2, 4], [NAN] * 3, [0, 1, 2], [1, 2, 4], id="no epochs"),
        pytest.param([1, 2, 3], [0.01, 0.01, 0.02], [0, 1, 2], [1, 2, 3], id="epochs of two digits"),
        pytest.param([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.2, 0.3], [0, 1, 3, 4], [1, 2, 3, 4], id="resumed at 0.2"),
        pytest.param([1, 2, 3, 4, 6], [0.1, 0.2, 0.3, 0.15, 0.3], [0, 3, 4], [1, 2, 4], id="an entry without a norm"),
    ],
)
def test_entries_without_steps_are_counted(numbers, epochs, positions, expected):
    entries = order_by_entry(np.array(numbers), np.array(epochs))
    assert (entries.positions.tolist(), entries.steps.tolist()) == (positions, expected)
    assert entries.remark == ENTRIES_COUNTED


def test_two_runs_without_steps_are_refused():
    with refuses("epoch 0.1 follows epoch 0.3 at entry 4", "two runs", error=RestartError):
        order_by_entry(np.arange(1, 7), np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))


# --- through a reader ---


def test_a_log_by_epochs_and_steps_is_read(tmp_path):
    rows = [
        {"epoch": epoch, "iter": step, "grad_norm": 100.0 * epoch + step}
        for epoch in (1, 2, 3)
        for step in range(10, 101, 10)
    ]
    norms = load_norms(json_lines(tmp_path / "log.jsonl", rows))
    assert norms.steps.tolist() == list(range(10, 301, 10))
    assert norms.l2.tolist() == [100.0 * epoch + step for epoch in (1, 2, 3) for step in range(10, 101, 10)]
    assert norms.description.endswith("to update 300 of 300, steps counted within epochs of 100")


def test_two_runs_appended_to_one_file_are_refused(tmp_path):
    rows = [{"step": step, "grad_norm": 1.0} for step in (*range(1, 31), *range(1, 41))]
    path = json_lines(tmp_path / "log.jsonl", rows)
    with refuses(str(path), "step 1 follows step 30 at entry 31", "pass the log of one run"):
        load_norms(path)


def test_a_resumed_run_is_read(tmp_path):
    rows = [
        {"step": step, "grad_norm": value}
        for steps, value in ((range(1, 31), 1.0), (range(21, 41), 2.0))
        for step in steps
    ]
    norms = load_norms(json_lines(tmp_path / "log.jsonl", rows))
    assert norms.steps.tolist() == list(range(1, 41))
    assert norms.l2.tolist() == [1.0] * 20 + [2.0] * 20
