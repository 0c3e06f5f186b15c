"""The norms of DeepSpeed's ZeRO, from the shards that its optimizers use."""

import logging
from types import SimpleNamespace

import pytest
import torch

from hf_refined_schedule.recording.engine_gradients import DeepSpeedEngine
from hf_refined_schedule.recording.gradient_access import OpenUpdate

from .tiny import BIN, REPOSITORY, run_command
from .tolerances import FLOAT32_GRADIENTS


@pytest.mark.parametrize("cell", ["ZeRO 1", "ZeRO 2", "ZeRO 3"])
def test_two_processes_record_the_norms_of_one(tmp_path, cell):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    script = REPOSITORY / "scripts" / "launch_matrix.py"
    words = (script, "--cells", cell, "--output_dir", tmp_path)
    done = run_command(BIN / "python", *words, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [
        line for line in (tmp_path / "launch_matrix.md").read_text().splitlines() if line.startswith(f"| {cell} ")
    ]
    assert row.split("|")[6].strip() == "recorded"


# The shards of one rank, hand-made: two groups with the gradients (3, -4) and (0, 12), whose L1 norm is 19 and L2 norm is 13.
LIMIT = 6.5
CLIPPED = [[1.5, -2.0], [0.0, 6.0]]


def engine_of(limit):
    """The engine of an optimizer that Accelerate has prepared, which wraps ZeRO's; one process."""
    state = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)
    return DeepSpeedEngine(SimpleNamespace(optimizer=SimpleNamespace(clip_grad=limit), accelerator_state=state))


def step_and_clip(engine, groups, total_norm):
    """The engine's step, one group after another, and then the loop's clip."""
    update = OpenUpdate()
    for values in groups:
        parameter = torch.nn.Parameter(torch.zeros(len(values)))
        parameter.grad = torch.tensor(values)
        engine.before_taken_step(update, torch.optim.SGD([parameter, torch.nn.Parameter(torch.zeros(3))]))
    limit = engine.after_clip(update, 1.0, total_norm if total_norm is None else torch.tensor(total_norm))
    return limit, update


def test_what_the_engine_has_clipped_is_divided_out():
    limit, update = step_and_clip(engine_of(LIMIT), CLIPPED, 13.0)
    assert limit == LIMIT
    assert update.norms.l1.item() == pytest.approx(19, rel=FLOAT32_GRADIENTS)
    assert update.norms.l2.item() == 13
    assert update.clip_factor.item() == pytest.approx(0.5, rel=FLOAT32_GRADIENTS)


def test_an_engine_that_does_not_clip():
    _, update = step_and_clip(engine_of(0.0), [[3.0, -4.0], [0.0, 12.0]], 13.0)
    assert update.norms.l1.item() == pytest.approx(19, rel=FLOAT32_GRADIENTS)


@pytest.mark.parametrize(
    "shards",
    [
        pytest.param(CLIPPED * 2, id="held by two ranks each, as with tensor parallelism"),
        pytest.param(CLIPPED[:1], id="a group that another optimizer steps"),
        pytest.param([], id="nothing reaches the optimizer"),
    ],
)
def test_shards_that_are_not_the_gradient_are_said_once(shards, caplog):
    engine = engine_of(LIMIT)
    with caplog.at_level(logging.WARNING):
        updates = [step_and_clip(engine, shards, 13.0)[1] for _ in range(2)]
    assert [update.norms.l1 for update in updates] == [None, None]
    assert [update.norms.l2.item() for update in updates] == [13, 13]
    assert len(caplog.records) == 1
    assert "L1 norms are not recorded" in caplog.text


def test_an_update_that_overflowed_first_decides_nothing():
    engine = engine_of(LIMIT)
    assert step_and_clip(engine, [], None)[0] is None
    step_and_clip(engine, [], float("inf"))
    assert step_and_clip(engine, CLIPPED, 13.0)[1].norms.l1.item() == pytest.approx(19, rel=FLOAT32_GRADIENTS)
