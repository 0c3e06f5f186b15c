"""Rows that wait, the header, the file, and what happens when it cannot be written."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hf_refined_schedule.recording.failures import RecordingError
from hf_refined_schedule.recording.norms_log import FLUSH_EVERY, NormsLog, RecordedUpdate

from .tiny import read_rows

NAME = "gradient_norms.jsonl"


def make_log(path, num_training_steps=None, on_failure="raise", is_main_process=True):
    """A log for an optimizer that looks like a prepared one: one of four processes."""
    optimizer = SimpleNamespace(
        optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1),
        accelerator_state=SimpleNamespace(is_main_process=is_main_process, num_processes=4),
    )
    return NormsLog(path, optimizer, num_training_steps, on_failure)


def update(step, l1=5.0, l2=3.0, clip_factor=0.5, learning_rate=0.1):
    def scalar(value):
        return None if value is None else torch.tensor(value)

    return RecordedUpdate(step, scalar(l1), scalar(l2), scalar(clip_factor), learning_rate)


def steps_of(path):
    return [row["step"] for row in read_rows(path)[1]]


@pytest.mark.parametrize(
    ("given", "l1", "l2", "clip_factor", "learning_rate"),
    [
        pytest.param(update(1), 5.0, 3.0, 0.5, 0.1, id="all known"),
        pytest.param(update(1, clip_factor=None), 5.0, 3.0, 1.0, 0.1, id="not clipped"),
        pytest.param(update(1, l1=None), None, 3.0, 0.5, 0.1, id="L2 alone"),
        pytest.param(update(1, l2=math.inf), None, None, None, 0.1, id="overflow"),
        pytest.param(update(1, l1=math.nan), None, None, None, 0.1, id="overflow in L1 alone"),
        pytest.param(RecordedUpdate(1, None, math.nan, None, 0.1), None, None, None, 0.1, id="skipped"),
        pytest.param(update(1, learning_rate=None), 5.0, 3.0, 0.5, None, id="the optimizer sets its rate"),
        pytest.param(update(1, learning_rate=torch.tensor([0.25])), 5.0, 3.0, 0.5, 0.25, id="a rate in a tensor"),
        pytest.param(
            RecordedUpdate(1, torch.tensor(0.1, dtype=torch.float64), torch.tensor(3.0), None, 0.1), 0.1, 3.0, 1.0, 0.1,
            id="float64 stays float64",
        ),
    ],
)  # fmt: skip
def test_a_row(tmp_path, given, l1, l2, clip_factor, learning_rate):
    log = make_log(tmp_path / NAME)
    log.append(given)
    log.flush()
    (row,) = read_rows(tmp_path / NAME)[1]
    assert row == {"step": 1, "l1": l1, "l2": l2, "clip_factor": clip_factor, "learning_rate": learning_rate}


class CountCopies(TorchFunctionMode):
    """Counts what makes the host wait for a device: each turns tensors into Python numbers."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("tolist", "item", "__float__", "cpu", "numpy"):
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_many_updates_are_one_copy_from_the_device(tmp_path):
    log = make_log(tmp_path / NAME)
    with CountCopies() as copies:
        for step in range(1, FLUSH_EVERY + 1):
            assert not log.is_due
            log.append(update(step, learning_rate=torch.tensor(0.1)))
        assert log.is_due
        assert copies.count == 0
        log.flush()
    assert copies.count == 1
    assert steps_of(tmp_path / NAME) == list(range(1, FLUSH_EVERY + 1))


def test_the_header_is_what_is_known_at_the_first_write(tmp_path):
    log = make_log(tmp_path / NAME, num_training_steps=7)
    log.append(update(1))
    log.max_grad_norm = 1.5
    log.flush()
    assert read_rows(tmp_path / NAME)[0] == {
        "format": "gradient_norms", "version": 1, "optimizer": "SGD", "optimizer_family": "sgd", "world_size": 4,
        "max_grad_norm": 1.5, "num_training_steps": 7,
    }  # fmt: skip


def test_nothing_to_write_makes_no_file(tmp_path):
    log = make_log(tmp_path / NAME)
    log.flush()
    log.finish(0)
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_updates_is_written_at_the_end(tmp_path):
    log = make_log(tmp_path / NAME)
    for step in (1, 2):
        log.append(update(step))
    log.flush()
    assert read_rows(tmp_path / NAME)[0]["num_training_steps"] is None
    log.finish(2)
    assert read_rows(tmp_path / NAME)[0]["num_training_steps"] == 2
    assert steps_of(tmp_path / NAME) == [1, 2]


def written(path, num_updates=5):
    log = make_log(path, num_training_steps=num_updates)
    for step in range(1, num_updates + 1):
        log.append(update(step))
    log.flush()
    return log


def test_a_resumed_log_cuts_the_file_before_its_first_row(tmp_path):
    log = written(tmp_path / NAME)
    log.append(update(6))
    log.resume()
    log.append(update(3, l1=6.0))
    log.flush()
    _, rows = read_rows(tmp_path / NAME)
    assert [(row["step"], row["l1"]) for row in rows] == [(1, 5.0), (2, 5.0), (3, 6.0)]


def test_a_resumed_run_without_an_update_cuts_the_file_at_its_end(tmp_path):
    written(tmp_path / NAME)
    make_log(tmp_path / NAME, num_training_steps=3).finish(3)
    assert steps_of(tmp_path / NAME) == [1, 2, 3]


def test_discarded_rows_are_not_written(tmp_path):
    log = written(tmp_path / NAME)
    log.append(update(4))
    log.discard()
    log.flush()
    assert steps_of(tmp_path / NAME) == [1, 2, 3, 4, 5]


def test_other_ranks_write_nothing_and_hold_nothing(tmp_path):
    log = make_log(tmp_path / NAME, is_main_process=False)
    for step in range(1, FLUSH_EVERY + 2):
        log.append(update(step))
    assert not log.is_due
    log.flush()
    log.finish(FLUSH_EVERY + 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_failure", ["raise", "warn"])
def test_a_file_that_cannot_be_written_is_reported_once(tmp_path, caplog, on_failure):
    (tmp_path / "file").touch()
    log = make_log(tmp_path / "file" / NAME, on_failure=on_failure)
    log.append(update(4))
    if on_failure == "raise":
        with pytest.raises(RecordingError, match="cannot be written"):
            log.flush()
    else:
        log.flush()
        assert "not recorded from update 4 on" in caplog.text
    caplog.clear()
    log.append(update(5))
    log.flush()
    log.finish(5)
    assert caplog.text == ""


def test_a_file_that_is_taken_away_is_not_begun_anew(tmp_path, caplog):
    log = written(tmp_path / NAME, num_updates=1)
    log.num_training_steps = None
    (tmp_path / NAME).unlink()
    log.append(update(2))
    with pytest.raises(RecordingError, match="cannot be written"):
        log.flush()
    assert list(tmp_path.iterdir()) == []
