"""The norms of DeepSpeed's ZeRO, from the shards that its optimizers use."""

import logging
from types import SimpleNamespace

import pytest
import torch

from hf_refined_schedule.compatibility.engines import reports_scaled_norm
from hf_refined_schedule.recording import engine_gradients
from hf_refined_schedule.recording.engine_gradients import DeepSpeedEngine
from hf_refined_schedule.recording.gradient_access import OpenUpdate

from .tiny import BIN, REPOSITORY, run_command
from .tolerances import COMMAND_SECONDS, FLOAT32_GRADIENTS

CELLS = ["ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3", "ZeRO 1, raw loop that does not clip"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of the cells in the launch matrix. They run in one command, because DeepSpeed compiles once for it."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp("matrix")
    script = REPOSITORY / "scripts" / "launch_matrix.py"
    words = (script, "--cells", *CELLS, "--output_dir", folder)
    done = run_command(BIN / "python", *words, timeout=2 * COMMAND_SECONDS, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in (folder / "launch_matrix.md").read_text().splitlines() if line.startswith("| ")]
    return {row[1].strip(): row[6].strip() for row in rows}


@pytest.mark.parametrize("cell", CELLS)
def test_two_processes_record_the_norms_of_one(results, cell):
    assert results[cell] == "recorded"


@pytest.mark.parametrize(("dtype", "scaled"), [(torch.float16, True), (torch.bfloat16, False)])
def test_norms_with_a_loss_scale_are_recognized(dtype, scaled):
    unfused = pytest.importorskip("deepspeed.runtime.fp16.unfused_optimizer", reason="DeepSpeed is not installed")
    engine = unfused.FP16_UnfusedOptimizer.__new__(unfused.FP16_UnfusedOptimizer)  # its __init__ needs two processes
    engine.loss_scale_config = unfused.LossScaleConfig(
        low_precision_dtype=dtype,
        dynamic_loss_scale=dtype == torch.float16,
        static_loss_scale=1.0,
        dynamic_loss_args=None,
        profile=unfused.LossScaleProfile.UNFUSED,
    )
    assert reports_scaled_norm(SimpleNamespace(optimizer=engine)) == scaled


# The shards of one rank, hand-made: two groups with the gradients (3, -4) and (0, 12), whose L1 norm is 19 and L2 norm is 13.
LIMIT = 6.5
CLIPPED = [[1.5, -2.0], [0.0, 6.0]]


def engine_of(limit, norm=None, overflow=False):
    """The engine of an optimizer that Accelerate has prepared, which wraps ZeRO's; one process."""
    state = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)
    zero = SimpleNamespace(clip_grad=limit, _global_grad_norm=norm)
    return DeepSpeedEngine(SimpleNamespace(optimizer=zero, accelerator_state=state, step_was_skipped=overflow))


def step(engine, groups):
    """The engine's step, one group after another."""
    update = OpenUpdate()
    for values in groups:
        parameter = torch.nn.Parameter(torch.zeros(len(values)))
        parameter.grad = torch.tensor(values)
        engine.before_taken_step(update, torch.optim.SGD([parameter, torch.nn.Parameter(torch.zeros(3))]))
    return update


def step_and_clip(engine, groups, total_norm):
    """The engine's step, and then the loop's clip."""
    update = step(engine, groups)
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


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_that_each_rank_holds_whole_count_once(monkeypatch, world_size):
    """As without ZeRO and in bf16. The sum over ranks that hold the same is their number times what one holds."""
    ranks = SimpleNamespace(
        is_initialized=lambda: True, get_world_size=lambda: world_size, all_reduce=lambda sums: sums.mul_(world_size)
    )
    monkeypatch.setattr(engine_gradients, "dist", ranks)
    engine = engine_of(LIMIT)
    for _ in range(2):
        _, update = step_and_clip(engine, CLIPPED, 13.0)
        assert update.norms.l1.item() == pytest.approx(19, rel=FLOAT32_GRADIENTS)
        assert update.norms.l2.item() == 13


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


@pytest.mark.parametrize("norm", [13.0, torch.tensor(13.0)])
def test_a_loop_that_does_not_clip(norm):
    engine = engine_of(LIMIT, norm)
    update = step(engine, CLIPPED)
    assert engine.after_step(update) == LIMIT
    assert update.norms.l1.item() == pytest.approx(19, rel=FLOAT32_GRADIENTS)
    assert update.norms.l2.item() == 13
    assert update.clip_factor.item() == pytest.approx(0.5, rel=FLOAT32_GRADIENTS)


def test_a_loop_that_clips_is_not_asked_twice():
    engine = engine_of(LIMIT, 130.0)
    _, update = step_and_clip(engine, CLIPPED, 13.0)
    assert engine.after_step(update) is None
    assert update.norms.l2.item() == 13
    assert update.clip_factor.item() == pytest.approx(0.5, rel=FLOAT32_GRADIENTS)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(engine_of(LIMIT, 13.0, overflow=True), id="an update that overflowed after another"),
        pytest.param(engine_of(LIMIT, None), id="a config with compute_grad_norm false"),
    ],
)
def test_an_engine_without_a_norm(engine):
    update = step(engine, CLIPPED)
    assert engine.after_step(update) is None
    assert update.norms is None


def test_an_update_that_overflowed_first_decides_nothing():
    """DeepSpeed reports 0 then, and later the norm of the update before."""
    engine = engine_of(LIMIT)
    engine._optimizer.step_was_skipped = True
    for stale in (None, 0.0, 13.0):
        limit, update = step_and_clip(engine, [], stale)
        assert (limit, update.norms) == (None, None)
    engine._optimizer.step_was_skipped = False
    assert step_and_clip(engine, CLIPPED, 13.0)[1].norms.l1.item() == pytest.approx(19, rel=FLOAT32_GRADIENTS)
