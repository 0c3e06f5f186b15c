"""Rows that wait, the header, the file, and what happens when it cannot be written."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hf_refined_schedule.recording.failures import RecordingError
from hf_refined_schedule.recording.norms_log import FLUSH_EVERY, NormsLog, RecordedUpdate, norms_path

from .tiny import read_rows

NAME = "gradient_norms.jsonl"


def make_log(path, num_training_steps=None, on_failure="raise", is_main_process=True, estimate_updates=None):
    """A log for an optimizer that looks like a prepared one: one of four processes."""
    optimizer = SimpleNamespace(
        optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1),
        accelerator_state=SimpleNamespace(is_main_process=is_main_process, num_processes=4),
    )
    return NormsLog(path, optimizer, num_training_steps, on_failure, estimate_updates)


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


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("runs/baseline", "runs/baseline/gradient_norms.jsonl"),
        ("runs/norms.d/", "runs/norms.d/gradient_norms.jsonl"),
        ("llama-3.1", "llama-3.1/gradient_norms.jsonl"),  # a suffix that begins with a letter
        ("qwen2.5-7b", "qwen2.5-7b/gradient_norms.jsonl"),
        (".norms", ".norms/gradient_norms.jsonl"),
        ("norms.jsonl", "norms.jsonl"),
        ("runs/norms.txt", "runs/norms.txt"),
        ("a-folder.jsonl", "a-folder.jsonl/gradient_norms.jsonl"),  # exists as a folder
        ("a-file", "a-file"),  # exists as a file
    ],
)
def test_a_name_without_a_suffix_is_a_folder(tmp_path, monkeypatch, given, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-folder.jsonl").mkdir()
    (tmp_path / "a-file").touch()
    assert norms_path(given) == tmp_path / file


def test_home_is_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert norms_path("~/norms.jsonl") == tmp_path / "norms.jsonl"


def test_a_resumed_run_without_an_update_left_keeps_the_header(tmp_path):
    """It has not trained, so it knows neither the clip's limit nor who trained."""
    stored = {"optimizer": "AdamW", "optimizer_family": "adam", "world_size": 8, "max_grad_norm": 0.5}
    rows = [{"step": step, "l1": 5.0, "l2": 3.0, "clip_factor": 0.5, "learning_rate": 0.1} for step in range(1, 8)]
    lines = [{"format": "gradient_norms", "version": 1, **stored, "num_training_steps": None}, *rows]
    (tmp_path / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_log(tmp_path / NAME).finish(6)
    header, kept = read_rows(tmp_path / NAME)
    assert header == {"format": "gradient_norms", "version": 1, **stored, "num_training_steps": 6}
    assert kept == rows[:6]


def test_the_planned_updates_are_in_the_header_until_the_run_ends(tmp_path):
    log = make_log(tmp_path / NAME, estimate_updates=lambda step: 4)
    for step, planned in ((1, 4), (4, 4), (5, None)):  # a fifth update shows that the estimate was too small
        log.append(update(step))
        log.flush()
        assert read_rows(tmp_path / NAME)[0]["num_training_steps"] == planned
    log.finish(5)
    header, rows = read_rows(tmp_path / NAME)
    assert (header["num_training_steps"], [row["step"] for row in rows]) == (5, [1, 4, 5])


@pytest.mark.parametrize(("updates", "horizon"), [(3, 4), (4, 4), (5, 5)])
def test_a_run_that_stops_with_an_error_is_finished_if_it_has_made_all_updates(tmp_path, updates, horizon):
    log = make_log(tmp_path / NAME, estimate_updates=lambda step: 4)
    for step in range(1, updates + 1):
        log.append(update(step))
    log.flush()
    log.finish_if_complete(updates)
    header, rows = read_rows(tmp_path / NAME)
    assert (header["num_training_steps"], len(rows)) == (horizon, updates)


def test_without_an_estimate_a_run_that_stops_with_an_error_has_no_horizon(tmp_path):
    log = make_log(tmp_path / NAME, estimate_updates=lambda step: None)
    log.append(update(1))
    log.flush()
    log.finish_if_complete(1)
    assert read_rows(tmp_path / NAME)[0]["num_training_steps"] is None
