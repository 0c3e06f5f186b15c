"""Which norm, of what, and when: raw loops with known gradients, alone and as whole processes."""

import copy
import json
import math
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from transformers import Adafactor

from hf_refined_schedule.recording import measuring
from hf_refined_schedule.recording.recorder import GradientNormRecorder, RecordingError

from .tiny import BIN, SCRIPTS, accelerate_launch, read_rows, run_command
from .tolerances import FLOAT32_GRADIENTS


@pytest.fixture(params=["measured before the clip", "taken from the clip"])
def l2_source(request, monkeypatch):
    """A test with this fixture runs twice: as on a CPU, and as where the clip's own L2 norm is exact, on an accelerator."""
    if request.param == "taken from the clip":
        monkeypatch.setattr(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset())


def loop(tmp_path, max_grad_norm, updates=10, prepare=True, planned=None, sgd_lr=0.1):
    """A loop whose gradient is known: d/dw of w . x is x, scaled by the update's number."""
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=sgd_lr)
    if prepare:
        optimizer = accelerator.prepare(optimizer)
    with GradientNormRecorder(optimizer, output_dir=tmp_path, num_training_steps=planned) as recorder:
        for update in range(1, updates + 1):
            accelerator.backward((weight * torch.tensor([1.0, -2.0, 2.0])).sum() * update)
            if max_grad_norm is not None:
                accelerator.clip_grad_norm_([weight], max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    return recorder


@pytest.mark.usefixtures("l2_source")
@pytest.mark.parametrize(
    ("max_grad_norm", "factors"),
    [
        (None, [1.0, 1.0, 1.0]),  # a loop that never clips is measured just before the step
        (6.0, [1.0, 6 / 6.000001, 6 / 9.000001]),  # norms 3, 6, 9
        (1e-6, [1e-6 / 3.000001, 1e-6 / 6.000001, 1e-6 / 9.000001]),  # far below every norm
        (math.inf, [1.0, 1.0, 1.0]),  # what Trainer calls at max_grad_norm=0
    ],
)
def test_raw_loop_records_before_clipping(tmp_path, max_grad_norm, factors):
    loop(tmp_path, max_grad_norm, updates=3)
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert header == {
        "format": "gradient_norms", "version": 1, "optimizer": "SGD", "optimizer_family": "sgd", "world_size": 1,
        "max_grad_norm": max_grad_norm if max_grad_norm != math.inf else None, "num_training_steps": 3,
    }  # fmt: skip
    for update, (row, factor) in enumerate(zip(rows, factors, strict=True), start=1):
        assert row == {
            "step": update,
            "l1": pytest.approx(5 * update, rel=FLOAT32_GRADIENTS),
            "l2": pytest.approx(3 * update, rel=FLOAT32_GRADIENTS),
            "clip_factor": pytest.approx(factor, rel=FLOAT32_GRADIENTS),
            "learning_rate": 0.1,
        }


def test_the_loop_is_as_before_afterwards(tmp_path):
    clip = Accelerator.clip_grad_norm_
    recorder = loop(tmp_path, 1.0)
    assert Accelerator.clip_grad_norm_ is clip
    assert "step" not in vars(recorder._optimizer)
    assert not recorder._optimizer.optimizer._optimizer_step_pre_hooks


WEIGHTS = (3.0, -4.0), (12.0, 0.0)
"""Gradients of two parameters: together L1 19 and L2 13."""


def clipped_loop(tmp_path, clips, updates=3, size=1.0):
    """A loop that calls `clips(accelerator, first, second, update)`; True from it skips the batch."""
    accelerator = Accelerator(cpu=True)
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in WEIGHTS)
    optimizer = accelerator.prepare(torch.optim.SGD([first, second], lr=0.1))
    with GradientNormRecorder(optimizer, output_dir=tmp_path):
        for update in range(1, updates + 1):
            loss = sum((w * torch.tensor(g)).sum() for w, g in zip((first, second), WEIGHTS, strict=True))
            accelerator.backward(loss * update * size)
            if not clips(accelerator, first, second, update):
                optimizer.step()
            optimizer.zero_grad()
    _, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    return [(row["l1"], row["l2"], row["clip_factor"]) for row in rows]


@pytest.mark.usefixtures("l2_source")
def test_a_batch_that_is_skipped_after_the_clip_leaves_no_norm(tmp_path):
    def skip_the_second(accelerator, first, second, update):
        accelerator.clip_grad_norm_([first, second], 6.5)
        return update == 2

    rows = clipped_loop(tmp_path, skip_the_second)
    assert rows == [(19.0, 13.0, pytest.approx(0.5)), (57.0, 39.0, pytest.approx(1 / 6))]


@pytest.mark.usefixtures("l2_source")
def test_a_gradient_that_is_clipped_twice_is_measured_before_the_first_clip(tmp_path):
    def twice(accelerator, first, second, update):
        for max_norm in (6.5, 1.3):
            accelerator.clip_grad_norm_([first, second], max_norm)

    rows = clipped_loop(tmp_path, twice)
    assert rows == [(19.0 * n, 13.0 * n, pytest.approx(0.1 / n, rel=1e-5)) for n in (1, 2, 3)]


@pytest.mark.usefixtures("l2_source")
@pytest.mark.parametrize("clear", [False, True])
def test_a_gradient_that_changes_after_a_clip_is_measured_again(tmp_path, clear):
    """By another backward pass, which adds to it, or to a cleared one."""

    def clip_change_clip(accelerator, first, second, update):
        accelerator.clip_grad_norm_([first, second], 6.5)  # leaves (1.5, -2) and (6, 0)
        if clear:
            first.grad = second.grad = None
        for share in (3.0, 6.0):
            accelerator.backward((first * torch.tensor([share, -2 * share])).sum() * update)
        accelerator.clip_grad_norm_([first, second], 10.0)

    def expected(n):
        values = [9.0 * n, 18.0 * n] if clear else [1.5 + 9.0 * n, 2.0 + 18.0 * n, 6.0]
        l1, l2 = sum(values), math.hypot(*values)
        return pytest.approx((l1, l2, 10 / l2), rel=FLOAT32_GRADIENTS)

    assert clipped_loop(tmp_path, clip_change_clip) == [expected(n) for n in (1, 2, 3)]


@pytest.mark.usefixtures("l2_source")
def test_groups_that_are_clipped_apart_are_measured_together(tmp_path):
    def apart(accelerator, first, second, update):
        accelerator.clip_grad_norm_([first], 2.5)
        accelerator.clip_grad_norm_([second], 100.0)

    rows = clipped_loop(tmp_path, apart)
    assert rows == [(19.0 * n, 13.0 * n, pytest.approx(0.5 / n, rel=1e-5)) for n in (1, 2, 3)]


@pytest.mark.usefixtures("l2_source")
@pytest.mark.parametrize(
    "clips",
    [
        lambda clip, first, second: (clip([first], 0.5), clip([first, second], 1.0)),
        lambda clip, first, second: (clip([first, second], 1.0), clip([first], 0.1), clip([second], 0.1)),
    ],
)
def test_a_part_of_the_gradient_that_is_clipped_by_itself_too(tmp_path, clips):
    def clip_both(accelerator, first, second, update):
        clips(accelerator.clip_grad_norm_, first, second)

    rows = clipped_loop(tmp_path, clip_both)
    assert [row[:2] for row in rows] == [(19.0 * n, 13.0 * n) for n in (1, 2, 3)]


@pytest.mark.usefixtures("l2_source")
def test_a_batch_that_is_skipped_leaves_no_norm_to_one_that_is_not_clipped(tmp_path):
    def clip_and_skip_the_second(accelerator, first, second, update):
        if update == 2:
            accelerator.clip_grad_norm_([first, second], 6.5)
        return update == 2

    assert clipped_loop(tmp_path, clip_and_skip_the_second) == [(19.0, 13.0, 1.0), (57.0, 39.0, 1.0)]


@pytest.mark.usefixtures("l2_source")
def test_a_norm_that_is_asked_for_after_the_step_is_not_the_next_ones(tmp_path):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
    with GradientNormRecorder(optimizer, output_dir=tmp_path):
        for update in (1, 2, 3):
            accelerator.backward((weight * torch.tensor([1.0, -2.0, 2.0])).sum() * update)
            optimizer.step()
            accelerator.clip_grad_norm_([weight], math.inf)
            optimizer.zero_grad()
    assert [row["l2"] for row in read_rows(tmp_path / "gradient_norms.jsonl")[1]] == [3.0, 6.0, 9.0]


# --- the L2 norm that a clip has computed ---


@pytest.fixture
def doubled_norm(monkeypatch):
    """An accelerator whose clip returns twice the norm, so that a norm taken from the clip can be told from one measured."""
    monkeypatch.setattr(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset())
    clip = Accelerator.clip_grad_norm_
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda self, *args, **kwargs: 2 * clip(self, *args, **kwargs))


def whole(accelerator, first, second, update):
    accelerator.clip_grad_norm_([first, second], 1e3)


def by_another_norm(accelerator, first, second, update):
    accelerator.clip_grad_norm_([first, second], 1e3, norm_type=1)


def by_another_norm_without_its_name(accelerator, first, second, update):
    accelerator.clip_grad_norm_([first, second], 1e3, math.inf)


def a_part(accelerator, first, second, update):
    accelerator.clip_grad_norm_([first], 1e3)


def a_part_first(accelerator, first, second, update):
    accelerator.clip_grad_norm_([first], 1e3)
    accelerator.clip_grad_norm_([first, second], 1e3)


def more_than_the_optimizer_has(accelerator, first, second, update):
    other = torch.nn.Parameter(torch.zeros(1))
    other.grad = torch.tensor([84.0])
    accelerator.clip_grad_norm_([first, second, other], 1e3)


def a_parameter_twice(accelerator, first, second, update):
    accelerator.clip_grad_norm_([first, second, second], 1e3)


@pytest.mark.usefixtures("doubled_norm")
@pytest.mark.parametrize(
    ("clips", "l2"),
    [
        (whole, 26.0),
        (by_another_norm, 13.0),
        (by_another_norm_without_its_name, 13.0),
        (a_part, 13.0),
        (a_part_first, 13.0),
        (more_than_the_optimizer_has, 13.0),
        (a_parameter_twice, 13.0),
    ],
)
def test_l2_is_taken_from_a_clip_of_the_whole_gradient_alone(tmp_path, clips, l2):
    rows = clipped_loop(tmp_path, clips)
    assert [row[:2] for row in rows] == [(19.0 * n, pytest.approx(l2 * n)) for n in (1, 2, 3)]


@pytest.mark.usefixtures("doubled_norm")
@pytest.mark.parametrize("size", [1e19, 1e-22])
def test_l2_is_not_taken_from_a_clip_whose_squares_leave_float32(tmp_path, size):
    """Elements 3, -4 and 12 times the size: L1 is 19 and L2 is 13 times the size. A size of 1 is within range."""
    rows = clipped_loop(tmp_path / "far", whole, size=size)
    assert [row[:2] for row in rows] == [
        pytest.approx((19 * n * size, 13 * n * size), rel=FLOAT32_GRADIENTS, abs=0) for n in (1, 2, 3)
    ]
    rows = clipped_loop(tmp_path / "near", whole, size=1.0)
    assert [row[1] for row in rows] == [26.0, 52.0, 78.0]


@pytest.mark.usefixtures("doubled_norm")
def test_the_size_of_the_gradient_is_looked_at_again(tmp_path):
    """Out of range at the first update, and within it from then on: the clip is trusted after the next look."""
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.0))
    with GradientNormRecorder(optimizer, output_dir=tmp_path):
        for update in range(1, 53):
            weight.grad = torch.tensor([3.0 if update > 1 else 3e-22])
            accelerator.clip_grad_norm_([weight], 10.0)
            optimizer.step()
    l2 = [row["l2"] for row in read_rows(tmp_path / "gradient_norms.jsonl")[1]]
    assert l2 == [pytest.approx(3e-22, rel=FLOAT32_GRADIENTS, abs=0), *[3.0] * 49, 6.0, 6.0]


def test_on_a_cpu_l2_is_measured(tmp_path, doubled_norm, monkeypatch):
    monkeypatch.setattr(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset({"cpu"}))
    assert [row[:2] for row in clipped_loop(tmp_path, whole)] == [(19.0 * n, 13.0 * n) for n in (1, 2, 3)]


@pytest.mark.parametrize("clip_a_part", [False, True])
def test_a_clip_that_fails_leaves_half_a_measurement_to_nobody(tmp_path, monkeypatch, clip_a_part):
    """The loop catches the error, and steps or clips a part alone: either way both norms are measured again."""
    monkeypatch.setattr(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset())
    clip = Accelerator.clip_grad_norm_

    def fail_for_all(self, parameters, max_norm, norm_type=2):
        if len(parameters) > 1:
            raise RuntimeError("not today")
        return clip(self, parameters, max_norm, norm_type)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", fail_for_all)

    def go_on(accelerator, first, second, update):
        with pytest.raises(RuntimeError, match="not today"):
            accelerator.clip_grad_norm_([first, second], 1.0)
        if clip_a_part:
            accelerator.clip_grad_norm_([first], 1e3)

    assert clipped_loop(tmp_path, go_on) == [(19.0 * n, 13.0 * n, 1.0) for n in (1, 2, 3)]


def test_a_clip_that_returns_nothing_is_one_clear_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset())
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda self, parameters, max_norm, norm_type=2: None)
    with pytest.raises(RecordingError, match="clip_grad_norm_ has returned no norm"):
        clipped_loop(tmp_path, whole)


def test_a_keyword_that_this_package_does_not_know_reaches_the_clip(tmp_path, monkeypatch):
    clip, given = Accelerator.clip_grad_norm_, []

    def newer_clip(self, parameters, max_norm, norm_type=2, error_if_nonfinite=False):
        given.append((norm_type, error_if_nonfinite))
        return clip(self, parameters, max_norm, norm_type=norm_type)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", newer_clip)

    def with_keywords(accelerator, first, second, update):
        accelerator.clip_grad_norm_(parameters=iter([first, second]), max_norm=6.5, error_if_nonfinite=True)

    rows = clipped_loop(tmp_path, with_keywords)
    assert rows == [(19.0 * n, 13.0 * n, pytest.approx(0.5 / n, rel=1e-5)) for n in (1, 2, 3)]
    assert given == [(2, True)] * 3


@pytest.mark.usefixtures("l2_source")
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.LBFGS])
@pytest.mark.parametrize("clip", [True, False])
def test_a_gradient_that_a_closure_makes(tmp_path, make, clip):
    """It is seen where it is clipped. Without a clip it comes after the last moment to see it."""
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(make([weight], lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = (weight * torch.tensor([1.0, -2.0, 2.0])).sum() * (recorder.step + 1)
        accelerator.backward(loss)
        if clip:
            accelerator.clip_grad_norm_([weight], 1.0)
        return loss

    outcome = nullcontext() if clip else pytest.raises(RecordingError, match="a closure makes them too late")
    with outcome, GradientNormRecorder(optimizer, output_dir=tmp_path) as recorder:
        for _ in range(3):
            optimizer.step(closure)
    if clip:
        rows = read_rows(tmp_path / "gradient_norms.jsonl")[1]
        assert [(row["l2"], row["learning_rate"]) for row in rows] == [(3.0, 0.1), (6.0, 0.1), (9.0, 0.1)]


def test_an_optimizer_that_sets_its_own_rate(tmp_path):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(Adafactor([weight], lr=None, relative_step=True))
    with GradientNormRecorder(optimizer, output_dir=tmp_path):
        accelerator.backward((weight * torch.tensor([1.0, -2.0, 2.0])).sum())
        optimizer.step()
    assert [(row["l2"], row["learning_rate"]) for row in read_rows(tmp_path / "gradient_norms.jsonl")[1]] == [
        (3.0, None)
    ]


def test_what_was_measured_before_a_failure_is_kept(tmp_path, caplog):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
    with GradientNormRecorder(optimizer, output_dir=tmp_path, num_training_steps=9, on_failure="warn"):
        for update in range(1, 10):
            weight.grad = None if update == 6 else torch.ones(3)
            optimizer.step()
    assert [row["step"] for row in read_rows(tmp_path / "gradient_norms.jsonl")[1]] == [1, 2, 3, 4, 5]
    assert "not recorded from update 6 on" in caplog.text


@pytest.mark.parametrize(("updates", "warnings"), [(4, 0), (5, 0), (9, 1)])
def test_more_updates_than_planned(tmp_path, caplog, updates, warnings):
    """A Trainer that resumes a run which was over makes one more, and that is no reason to warn."""
    loop(tmp_path, 1.0, updates=updates, planned=4)
    assert [row["step"] for row in read_rows(tmp_path / "gradient_norms.jsonl")[1]] == [1, 2, 3, 4]
    assert caplog.text.count("more updates than num_training_steps=4") == warnings


def test_a_copy_of_the_optimizer_is_not_recorded_and_moves_alone(tmp_path):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
    with GradientNormRecorder(optimizer, output_dir=tmp_path) as recorder:
        weight.grad = torch.ones(3)
        twin = copy.deepcopy(optimizer)
        (moves,) = twin.param_groups[0]["params"]
        moves.grad = torch.ones(3)
        twin.step()
        assert (recorder.step, weight.tolist()) == (0, [0.0, 0.0, 0.0])
        assert moves.tolist() == pytest.approx([-0.1] * 3)
        optimizer.step()
    assert recorder.step == 1


def test_a_block_entered_again_after_a_scheduler_was_built_in_it(tmp_path):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
    recorder = GradientNormRecorder(optimizer, output_dir=tmp_path)
    for epoch in range(2):
        with recorder:
            if epoch == 0:
                torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            for _ in range(3):
                weight.grad = torch.ones(3)
                optimizer.step()
    assert [row["step"] for row in read_rows(tmp_path / "gradient_norms.jsonl")[1]] == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_without_an_update_left_cuts_the_file(tmp_path):
    loop(tmp_path, 1.0, updates=9, planned=9)
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1))
    with GradientNormRecorder(optimizer, output_dir=tmp_path, num_training_steps=5, start_step=5):
        pass
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert header["num_training_steps"] == 5
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_a_block_entered_again_goes_on_with_the_file(tmp_path):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
    recorder = GradientNormRecorder(optimizer, output_dir=tmp_path)
    for epoch in range(1, 4):
        with recorder:
            for _ in range(4):
                accelerator.backward((weight * torch.tensor([1.0, -2.0, 2.0])).sum() * epoch)
                optimizer.step()
                optimizer.zero_grad()
        header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
        assert header["num_training_steps"] == 4 * epoch
        assert [row["step"] for row in rows] == list(range(1, 4 * epoch + 1))
    assert [row["l2"] for row in rows] == [3.0] * 4 + [6.0] * 4 + [9.0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["gradient_norms.jsonl"]


def test_a_folder_as_path_gets_the_file(tmp_path):
    (tmp_path / "precious").mkdir()
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1))
    assert GradientNormRecorder(optimizer, path=tmp_path).path == tmp_path / "gradient_norms.jsonl"


def test_a_folder_that_does_not_exist_yet_is_there_when_the_block_begins(tmp_path):
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1))
    with GradientNormRecorder(optimizer, path=f"{tmp_path}/runs/baseline/"):
        (
            tmp_path / "runs" / "baseline" / "model.bin"
        ).touch()  # as a loop that saves its model before any norm is written


def test_a_folder_that_cannot_be_made_is_one_clear_failure(tmp_path, caplog):
    (tmp_path / "runs").touch()
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1))
    with pytest.raises(RecordingError, match=r"^Gradient norms cannot be recorded: \S+ cannot be written \(.*\)\.$"):
        GradientNormRecorder(optimizer, path=tmp_path / "runs" / "norms.jsonl").__enter__()
    with GradientNormRecorder(optimizer, path=tmp_path / "runs" / "norms.jsonl", on_failure="warn"):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        optimizer.step()
    assert caplog.text.count("not recorded from update 1 on") == 1


def test_another_working_directory_is_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
    (tmp_path / "elsewhere").mkdir()
    with GradientNormRecorder(optimizer, output_dir="run") as recorder:
        for folder in (".", "elsewhere"):
            monkeypatch.chdir(folder)
            weight.grad = torch.ones(3)
            optimizer.step()
            recorder.flush()
    assert [row["step"] for row in read_rows(tmp_path / "run" / "gradient_norms.jsonl")[1]] == [1, 2]
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == ["gradient_norms.jsonl"]


STOPPED = """
import os, sys, torch
from accelerate import Accelerator
from hf_refined_schedule import GradientNormRecorder
accelerator = Accelerator(cpu=True)
weight = torch.nn.Parameter(torch.zeros(3))
optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
recorder = GradientNormRecorder(optimizer, path=sys.argv[1], num_training_steps=9).__enter__()
for step in range(4):
    accelerator.backward((weight * torch.tensor([1.0, -2.0, 2.0])).sum())
    optimizer.step()
    optimizer.zero_grad()
child = os.fork()
if child == 0:
    sys.exit()  # writes nothing
os.waitpid(child, 0)
raise {error}
"""


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit(3)", "RuntimeError('evaluation')"])
def test_a_block_that_nobody_leaves_is_written_when_the_program_ends(tmp_path, error):
    """As that of a Trainer, whose callbacks are not called when it stops with an error."""
    run_command(BIN / "python", "-c", STOPPED.format(error=error), tmp_path / "norms.jsonl")
    header, rows = read_rows(tmp_path / "norms.jsonl")
    assert (header["num_training_steps"], [row["l2"] for row in rows]) == (9, [3.0] * 4)
    assert [path.name for path in tmp_path.iterdir()] == ["norms.jsonl"]


class Unwatchable(torch.optim.Optimizer):
    """Wraps an optimizer without having been made as one, so that it has no hooks."""

    def __init__(self, base):
        self.base = base

    param_groups = property(lambda self: self.base.param_groups)

    def state_dict(self):
        return self.base.state_dict()

    def load_state_dict(self, state_dict):
        self.base.load_state_dict(state_dict)

    def step(self, closure=None):
        return self.base.step(closure)

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad(set_to_none)


class NoSums(torch.Tensor):
    """A gradient of unusual make."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("abs", "cat", "copy_"):
            raise TypeError("no such thing\nfor this tensor")
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("trouble", ["optimizer", "gradient", "gradient at the clip"])
@pytest.mark.parametrize("on_failure", ["raise", "warn"])
def test_what_cannot_be_watched_or_measured_is_one_clear_failure(tmp_path, caplog, trouble, on_failure):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    base = torch.optim.SGD([weight], lr=0.1)
    if trouble != "optimizer":
        base.register_step_pre_hook(lambda *_: None)
    optimizer = accelerator.prepare(Unwatchable(base) if trouble == "optimizer" else base)
    called = []
    clip = Accelerator.clip_grad_norm_

    def train():
        with GradientNormRecorder(optimizer, output_dir=tmp_path, on_failure=on_failure):
            # After ours: it would be passed over if hooks were taken off while they are called.
            if trouble != "optimizer":
                base.register_step_pre_hook(lambda *_: called.append("another tool's hook"))
            for _ in range(3):
                weight.grad = torch.ones(3) if trouble == "optimizer" else torch.ones(3).as_subclass(NoSums)
                if trouble == "gradient at the clip":
                    accelerator.clip_grad_norm_([weight], 100.0)
                optimizer.step()

    if on_failure == "raise":
        with pytest.raises(RecordingError) as caught:
            train()
        message = str(caught.value)
    else:
        train()
        assert torch.equal(weight.detach(), torch.full((3,), -0.3))
        (message,) = [record.message for record in caplog.records if record.name.startswith("hf_refined_schedule")]
        assert len(called) == (0 if trouble == "optimizer" else 3)
    assert ("cannot be watched" if trouble == "optimizer" else "TypeError: no such thing for this tensor") in message
    assert "\n" not in message
    assert Accelerator.clip_grad_norm_ is clip
    assert "step" not in vars(optimizer)
    assert list(tmp_path.iterdir()) == []


class Motionless(torch.optim.Optimizer):
    """Steps without a look at the gradients, which few optimizers can use in an unusual layout or type."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        return None


def record_gradient(folder, gradient, on_failure):
    """Record two updates with this gradient."""
    weight = torch.nn.Parameter(gradient.clone())
    optimizer = Accelerator(cpu=True).prepare(Motionless([weight]))
    with GradientNormRecorder(optimizer, output_dir=folder, on_failure=on_failure):
        for _ in range(2):
            weight.grad = gradient
            optimizer.step()


DIAGONAL = torch.tensor([[3.0, 0.0], [0.0, -4.0]])


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize(
    ("convert", "l1", "l2"),
    [
        pytest.param(torch.Tensor.to_sparse_csr, 7.0, 5.0, id="CSR"),
        pytest.param(torch.Tensor.to_sparse_csc, 7.0, 5.0, id="CSC"),
        pytest.param(lambda dense: dense.to_sparse_bsr((1, 1)), 7.0, 5.0, id="BSR"),
        pytest.param(lambda dense: dense.to(torch.float8_e4m3fn), 7.0, 5.0, id="float8 e4m3"),
        pytest.param(lambda dense: dense.to(torch.float8_e5m2), 7.0, 5.0, id="float8 e5m2"),
        pytest.param(lambda dense: dense.double() * (1 + 2**-40), 7 + 7 * 2**-40, 5 + 5 * 2**-40, id="float64"),
        pytest.param(lambda dense: dense * 2.0**64, 7 * 2.0**64, 5 * 2.0**64, id="float32 near 1e19"),
        pytest.param(lambda dense: dense * 2.0**-74, 7 * 2.0**-74, 5 * 2.0**-74, id="float32 near 1e-22"),
    ],
)
def test_unusual_gradients_are_recorded(tmp_path, convert, l1, l2):
    record_gradient(tmp_path, convert(DIAGONAL), on_failure="raise")
    rows = read_rows(tmp_path / "gradient_norms.jsonl")[1]
    assert [(row["l1"], row["l2"]) for row in rows] == [(l1, l2)] * 2


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: DIAGONAL.to_mkldnn(), id="MKL-DNN"),
        pytest.param(lambda: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), id="two float4 in a byte"),
    ],
)
def test_gradients_that_torch_cannot_sum_are_refused(tmp_path, caplog, make):
    try:
        gradient = make()
    except (AttributeError, RuntimeError):
        pytest.skip("this torch has no such tensor")
    with pytest.raises(RecordingError, match=r"a gradient cannot be measured \(NotImplementedError: "):
        record_gradient(tmp_path / "raise", gradient, on_failure="raise")
    record_gradient(tmp_path / "warn", gradient, on_failure="warn")
    assert caplog.text.count("a gradient cannot be measured (NotImplementedError: ") == 1
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_more_updates_than_one_write_holds(tmp_path):
    loop(tmp_path, 1.0, updates=123)
    _, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 124))


def test_an_error_in_the_loop_leaves_the_number_of_updates_open(tmp_path):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
    with pytest.raises(KeyError), GradientNormRecorder(optimizer, output_dir=tmp_path):
        weight.sum().backward()
        optimizer.step()
        raise KeyError
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert header["num_training_steps"] is None
    assert len(rows) == 1


def test_saved_and_loaded_through_accelerate(tmp_path):
    """Interrupted after update 4 of 7, resumed from a checkpoint after update 3: the file of an uninterrupted run."""

    def run(folder, stop, resume=False, save_at=None):
        accelerator = Accelerator(cpu=True)
        weight = torch.nn.Parameter(torch.zeros(3))
        optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
        recorder = GradientNormRecorder(optimizer, output_dir=folder, num_training_steps=7)
        accelerator.register_for_checkpointing(recorder)
        with recorder:
            if resume:
                accelerator.load_state(tmp_path / "checkpoint")
            while recorder.step < stop:
                (weight * torch.tensor([1.0, -2.0, 2.0])).sum().mul(recorder.step + 1).backward()
                optimizer.step()
                optimizer.zero_grad()
                if recorder.step == save_at:
                    accelerator.save_state(tmp_path / "checkpoint")

    run(tmp_path / "interrupted", stop=4, save_at=3)
    run(tmp_path / "interrupted", stop=7, resume=True)
    run(tmp_path / "whole", stop=7)
    whole = (tmp_path / "whole" / "gradient_norms.jsonl").read_text()
    assert (tmp_path / "interrupted" / "gradient_norms.jsonl").read_text() == whole
    assert len(whole.splitlines()) == 8


@pytest.fixture
def fp16_on_cpu():
    """An Accelerator with fp16 autocast and torch's loss scale, which Accelerate refuses on a CPU."""
    accelerator = Accelerator(cpu=True)
    precision = accelerator.state._mixed_precision
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    yield accelerator
    accelerator.state._mixed_precision = precision


@pytest.mark.usefixtures("l2_source")
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("fused", "skips"),
    # The fused kernel divides by the loss scale and skips an overflow itself, so that its step is called all the same.
    [(False, True), (True, False)],
)
def test_loss_scale_is_divided_out_and_an_overflow_has_no_norm(tmp_path, fp16_on_cpu, fused, skips, clip):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = fp16_on_cpu.prepare(torch.optim.AdamW([weight], lr=0.1, fused=fused))
    moved, skipped = [], []
    with GradientNormRecorder(optimizer, output_dir=tmp_path, num_training_steps=4) as recorder:
        for factor in (1.0, 2.0**10, 2.0, 3.0):
            before = weight.detach().clone()
            half = weight.half() * factor  # a gradient of 2.0 ** 10, times the loss scale, overflows in fp16
            fp16_on_cpu.backward((half.float() * torch.tensor([1.0, -2.0, 2.0])).sum())
            if clip:
                fp16_on_cpu.clip_grad_norm_([weight], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            moved.append(not torch.equal(weight, before))
            skipped.append(optimizer.step_was_skipped)
    assert moved == [True, False, True, True]
    assert skipped == [False, skips, False, False]
    _, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert [(row["step"], row["l1"], row["l2"]) for row in rows] == [
        (1, 5.0, 3.0),
        (2, None, None),
        (3, 10.0, 6.0),
        (4, 15.0, 9.0),
    ]
    if clip:
        factors = [row["clip_factor"] for row in rows]
        assert factors.pop(1) is None
        assert factors == pytest.approx([1 / 3, 1 / 6, 1 / 9], rel=FLOAT32_GRADIENTS)
    assert recorder.step == 4


def test_an_optimizer_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"Accelerator\.prepare"):
        loop(tmp_path, None, prepare=False)


def test_an_optimizer_that_was_not_prepared_trains_on_without_a_record(tmp_path, caplog):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with GradientNormRecorder(optimizer, output_dir=tmp_path, on_failure="warn"):
        weight.grad = torch.ones(3)
        optimizer.step()
    assert weight.tolist() == pytest.approx([-0.1] * 3)
    assert caplog.text.count("must be one that Accelerator.prepare returned") == 1
    assert list(tmp_path.iterdir()) == []


def test_gradients_used_up_before_the_step_are_refused(tmp_path):
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    refused = pytest.raises(RecordingError, match="no parameter of the optimizer had a gradient")
    with refused, GradientNormRecorder(optimizer, output_dir=tmp_path):
        optimizer.step()
    assert not (tmp_path / "gradient_norms.jsonl").exists()


@pytest.mark.parametrize("arguments", [{}, {"output_dir": "a", "path": "b"}])
def test_one_place_for_the_file(arguments):
    with pytest.raises(ValueError, match="Pass either output_dir"):
        GradientNormRecorder(None, **arguments)


@pytest.mark.parametrize(
    "options", [{"max_grad_norm": 0.5}, {"max_grad_norm": None}, {"max_grad_norm": 0.5, "accumulation": 2}]
)
def test_two_processes_record_what_one_does(tmp_path, options):
    files = {}
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        words = (SCRIPTS / "raw_loop.py", json.dumps({**options, "output_dir": str(folder)}))
        done = accelerate_launch(*words) if processes == 2 else run_command(BIN / "python", *words)
        for rank in range(processes):
            report = tmp_path / f"{processes}.rank{rank}"
            assert report.exists(), done.stderr
            assert json.loads(report.read_text()) == {"world_size": processes, "steps": 24}
        files[processes] = read_rows(folder / "gradient_norms.jsonl")
    assert [files[processes][0]["world_size"] for processes in (1, 2)] == [1, 2]
    for one, two in zip(files[1][1], files[2][1], strict=True):
        for kind in ("l1", "l2", "clip_factor"):
            assert two[kind] == pytest.approx(one[kind], rel=FLOAT32_GRADIENTS)
