"""`hf-refined-schedule diagnose`, on runs that went wrong on purpose."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Trainer, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from hf_refined_schedule import GradientNormCallback
from hf_refined_schedule.cli import main
from hf_refined_schedule.norms.rate_log import read_rate_log
from hf_refined_schedule.schedules.applied_rates import Shift, applied_schedule, shifts
from hf_refined_schedule.schedules.diagnosis import clipping_observations, norm_observations, rate_observations

from .records import write_norms, write_state
from .refusals import refuses
from .tiny import tiny_arguments, tiny_data, tiny_model


def diagnose(capsys, *words):
    """The lines of the command, without the first, by their first word; a line that deserves a look has a `!`."""
    capsys.readouterr()
    assert main(["diagnose", *map(str, words)]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    return {line[3:].partition(":")[0] + ("!" if line.startswith(" !") else ""): line for line in lines}


def train(output_dir, scheduler=None, callbacks=(), resume=None, **options):
    """A run with a scheduler that `scheduler(optimizer)` makes, or with that of its arguments."""
    model = tiny_model()
    options = {"max_steps": 24, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 12, **options}
    optimizers = (None, None)
    if scheduler is not None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        optimizers = (optimizer, scheduler(optimizer))
    trainer = Trainer(
        model,
        tiny_arguments(output_dir, **options),
        train_dataset=tiny_data(24),
        optimizers=optimizers,
        callbacks=[*callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return output_dir


def log_of(tmp_path, rates, planned, norms=None, steps=None):
    steps = range(1, len(rates) + 1) if steps is None else steps
    rows = [{"step": step, "learning_rate": rate} for step, rate in zip(steps, rates, strict=True)]
    for row, norm in zip(rows, norms if norms is not None else [], strict=False):
        row["grad_norm"] = norm
    return read_rate_log(str(write_state(tmp_path / "trainer_state.json", rows, planned)))


def linear(total, warmup=0, peak=1e-3, count=None):
    """The rates of updates 1, 2, .. as transformers' schedule sets them."""
    passed = np.arange(total if count is None else count)
    ramp = passed / warmup if warmup else np.full(len(passed), np.inf)
    return list(peak * np.minimum(ramp, np.maximum(0, (total - passed) / (total - warmup))))


# --- with the real Trainer ---


def test_a_run_as_asked(tmp_path, capsys):
    train(tmp_path, lr_scheduler_type="cosine", warmup_steps=4, callbacks=[GradientNormCallback()])
    for source in (tmp_path, tmp_path / "checkpoint-24"):
        lines = diagnose(
            capsys, source, "--", "--lr_scheduler_type", "cosine", "--warmup_steps", 4, "--learning_rate", "1e-2"
        )
        assert "applied as asked" in lines["asked for"]
        assert "cosine, peak 0.01, warm-up of 4 updates, over 24 updates, as planned" in lines["rates"]
        assert "from update 1 to 24; none changed it" in lines["resume"]
        assert not any(name.endswith("!") for name in lines)


def test_a_schedule_that_is_known_by_its_arguments_alone(tmp_path, capsys):
    """By itself, its stable part is a constant schedule that a resume left."""
    kwargs = {"num_decay_steps": 8}
    train(tmp_path, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=kwargs, warmup_steps=2)
    arguments = ("--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", json.dumps(kwargs))
    lines = diagnose(capsys, tmp_path, "--", "--warmup_steps", 2, "--learning_rate", "1e-2", *arguments)
    assert "applied as asked" in lines["asked for"]
    assert "from update 1 to 24; none changed it" in lines["resume"]
    assert not any(name.endswith("!") for name in lines)


def test_a_linear_decay_to_a_floor_is_that_of_the_arguments(tmp_path):
    """Trainer's polynomial schedule ends at 1e-7. By itself, that is linear decay over more updates than the run has."""
    log = log_of(tmp_path, [5e-5 - (5e-5 - 1e-7) * step / 1000 for step in range(1000)], 1000)
    assert [line.text for line in rate_observations(log) if not line.ok] == [
        "rates: linear, peak 5e-05, over 1002 updates, but the run has 1000; at update 1000 the rate is still 0% of its peak; pass the "
        "number of optimizer updates as num_training_steps"
    ]
    assert all(line.ok for line in rate_observations(log, applied_as_asked=True))
    unplanned = rate_observations(replace(log, num_training_steps=None), applied_as_asked=True)
    assert "rates: linear, peak 5e-05, over 1002 updates" in [line.text for line in unplanned]


def test_a_scheduler_that_is_stepped_twice_an_update(tmp_path, capsys):
    """As that of a raw loop with two processes, whose horizon nobody doubled."""

    class Twice(torch.optim.lr_scheduler.LambdaLR):
        def step(self, epoch=None):
            super().step()
            if self.last_epoch > 0:
                super().step()

    def scheduler(optimizer):
        return Twice(optimizer, lambda step: max(0.0, 1 - step / 24))

    train(tmp_path, scheduler)
    lines = diagnose(capsys, tmp_path, "--", "--learning_rate", "1e-2")
    assert "2 times too fast" in lines["asked for!"]
    assert "num_training_steps must count those steps, 48" in lines["asked for!"]
    assert "over 12 updates, but the run has 24: 2 times too fast" in lines["rates!"]


def test_a_horizon_of_micro_batches(tmp_path, capsys):
    train(tmp_path, lambda optimizer: get_linear_schedule_with_warmup(optimizer, 0, 96))
    lines = diagnose(capsys, tmp_path, "--", "--learning_rate", "1e-2")
    assert "applied over 96 updates instead of 24" in lines["asked for!"]
    assert "over 96 updates, but the run has 24; at update 24 the rate is still 76% of its peak" in lines["rates!"]


def test_a_horizon_that_is_too_short(tmp_path, capsys):
    """Beyond its horizon, the cosine of transformers rises again."""
    train(tmp_path, lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 2, 17))
    lines = diagnose(capsys, tmp_path)
    assert "cosine, peak 0.01, warm-up of 2 updates, over 17 updates, but the run has 24" in lines["rates!"]


def test_a_resume_without_the_schedulers_state(tmp_path, capsys):
    """The rate starts again at its peak: someone copied a checkpoint without its scheduler.pt."""
    train(tmp_path, max_steps=24)
    (tmp_path / "checkpoint-12" / "scheduler.pt").unlink()
    (tmp_path / "checkpoint-12" / "optimizer.pt").unlink()
    train(tmp_path, resume=str(tmp_path / "checkpoint-12"))
    lines = diagnose(capsys, tmp_path / "checkpoint-24", "--", "--learning_rate", "1e-2")
    assert "applied until update 13" in lines["asked for!"]
    assert "after update 12 the schedule began again (checkpoint-12 lies there)" in lines["resume!"]


def test_another_peak(tmp_path, capsys):
    train(tmp_path)
    assert "applied times 2;" in diagnose(capsys, tmp_path, "--", "--learning_rate", "5e-3")["asked for!"]
    lines = diagnose(capsys, tmp_path, "--", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant")
    assert "at update 2 the rate is 0.009583, 0.01 was asked for" in lines["asked for!"]


def test_clipping_of_a_recorded_run(tmp_path, capsys):
    train(tmp_path, callbacks=[GradientNormCallback()], max_grad_norm=0.05)
    rows = [json.loads(line) for line in (tmp_path / "gradient_norms.jsonl").read_text().splitlines()][1:]
    assert min(row["l2"] for row in rows) > 0.05
    smallest = 0.05 / max(row["l2"] for row in rows)
    line = diagnose(capsys, tmp_path)["clipping"]
    assert "24 of 24 logged updates (100%) at max_grad_norm 0.05" in line
    assert f"{smallest:.2g} at most; the logged norm is before clipping" in line


# --- from rates alone ---


@pytest.mark.parametrize(
    ("rates", "planned", "expected"),
    [
        pytest.param([0.5] * 9, 9, ("constant", 0.5, 0, np.inf, 0), id="constant"),
        pytest.param([0, 0.25, 0.5, *[0.75] * 9], 12, ("constant_with_warmup", 0.75, 3, np.inf, 0), id="constant after a warm-up"),
        pytest.param(linear(20), 20, ("linear", 1e-3, 0, 20, 0), id="linear"),
        pytest.param(linear(20)[1:], 20, ("linear", 1e-3, 0, 20, 1), id="the log has the next update's rate"),
        pytest.param([*linear(20, 5)[1:], 0.0], 20, ("linear", 1e-3, 5, 20, 1), id="likewise with a warm-up"),
        pytest.param(linear(40, 5, count=20), 20, ("linear", 1e-3, 5, 40, 0), id="a horizon twice as long"),
        pytest.param([1e-3 * (0.55 + 0.45 * np.cos(np.pi * t / 30)) for t in range(30)], 30, ("cosine", 1e-3, 0, 30, 0), id="cosine with a floor"),
    ],
)  # fmt: skip
def test_the_schedule_of_rates(rates, planned, expected):
    schedule, changes = applied_schedule(np.arange(1, len(rates) + 1), np.array(rates, float), planned)
    assert (schedule.name, schedule.warmup, schedule.horizon, schedule.lead) == (expected[0], *expected[2:])
    assert schedule.peak == pytest.approx(expected[1], rel=1e-5)
    assert changes == []


def test_rates_of_no_known_schedule(tmp_path):
    sawtooth = [1e-3 * (1 + step % 3) for step in range(30)]
    assert applied_schedule(np.arange(1, 31), np.array(sawtooth), 30) is None
    (line,) = rate_observations(log_of(tmp_path, sawtooth, 30))
    assert "no constant, linear or cosine schedule; pass what was asked for after --" in line.text


def test_shifts():
    """Behind by one from update 5 on, and by three from 8 on: overflows that skipped updates."""
    rates = np.array([20, 19, 18, 17, 17, 16, 15, 16, 15, 14, 13, 12, 11, 10, 9, 8]) / 20.0

    def schedule(passed):
        return np.maximum(0, 1 - passed / 20)

    assert shifts(schedule, np.arange(1.0, 17), rates)[0] == Shift(5, None)  # three rates are too few to tell a shift
    longer = np.concatenate([1 - np.arange(20) / 60, 1 - np.arange(19, 30) / 60, 1 - np.arange(28, 40) / 60])
    assert shifts(lambda passed: 1 - passed / 60, np.arange(1.0, 44), longer) == [Shift(21, 1), Shift(32, 3)]


def test_a_few_rates_say_nothing(tmp_path):
    (line,) = rate_observations(log_of(tmp_path, [1e-3] * 7, 100))
    assert "7 are logged, too few" in line.text


# --- norms ---


def test_clipping_from_logged_norms(tmp_path):
    log = log_of(tmp_path, [1e-3] * 10, 10, norms=[0.5] * 5 + [2.0, 4.0, 4.0, 5.0, 10.0])
    (line,) = clipping_observations(log)
    assert "5 of 10 logged updates (50%) at Trainer's default max_grad_norm 1" in line.text
    assert "to 0.25 of the gradient in the median and 0.1 at most" in line.text
    (line,) = clipping_observations(log, 4.5)
    assert "2 of 10 logged updates (20%) at max_grad_norm 4.5" in line.text
    (line,) = clipping_observations(log, 0.0)
    assert "0 of 10" in line.text
    (line,) = clipping_observations(log_of(tmp_path, [1e-3] * 10, 10))
    assert "no gradient norms" in line.text


def test_norms_logged_after_clipping(tmp_path):
    (line,) = clipping_observations(log_of(tmp_path, [1e-3] * 20, 20, norms=[0.5, 0.9] * 5 + [1.0, 0.99999] * 5))
    assert (line.ok, "10 of 20 norms are 1, the largest of all" in line.text) == (False, True)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(2.0, "about sqrt(4), at update 31"), (8**-0.5, "by 0.35, about 1/sqrt(8), at"), (1.7, "no jump"), (1.0, "no jump")],
)  # fmt: skip
def test_a_norm_that_looks_sharded(tmp_path, factor, expected):
    noise = np.random.default_rng(0).uniform(0.95, 1.05, 60)
    norms = noise * np.where(np.arange(60) < 30, 1.0, factor)
    lines = list(norm_observations(log_of(tmp_path, [1e-3] * 60, 60, norms=list(norms))))
    assert len(lines) == 1
    assert expected in lines[0].text


def test_updates_that_were_not_taken(tmp_path):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0, None, 1.0, None], l2=[1.0, None, 1.0, None])
    (line,) = norm_observations(read_rate_log(str(path)))
    assert "2 of 4 updates, the first 2" in line.text


# --- what is refused ---


def test_other_logs(tmp_path):
    """A table whose rates and norms are in different rows, as a tracker exports them."""
    rows = "".join(
        f"{step},,{2 + step / 99 if step % 2 else 0.5}\n{step},{1e-3 * (1 - (step - 1) / 40)!r},\n"
        for step in range(1, 41)
    )
    (tmp_path / "export.csv").write_text("train/global_step,train/learning_rate,train/grad_norm\n" + rows)
    log = read_rate_log(str(tmp_path / "export.csv"))
    assert next(rate_observations(log)).text == "rates: linear, peak 0.001, over 40 updates"
    assert "20 of 40 logged updates (50%)" in next(clipping_observations(log)).text
    (tmp_path / "console.txt").write_text("{'loss': 2.0, 'learning_rate': 0.1}\n" * 9)
    with refuses("does not say to which update an entry belongs"):
        read_rate_log(str(tmp_path / "console.txt"))


def test_refusals(tmp_path, capsys):
    (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{step},1.0\n" for step in range(30)))
    with refuses("is not the record of a run's updates", "pass a gradient_norms.jsonl"):
        read_rate_log(str(tmp_path / "log.csv"))
    with refuses("is not the record of a run's updates"):
        read_rate_log(str(write_state(tmp_path / "empty" / "trainer_state.json", [{"step": 3, "eval_loss": 1.0}])))
    write_norms(tmp_path / "short" / "gradient_norms.jsonl", [1.0] * 5)
    for words, part in (
        ([tmp_path / "nothing"], "There is no file or folder"),
        ([tmp_path / "short", "--", "--learning_rate", "1"], "5 learning rates, too few to compare"),
        ([tmp_path / "short", "--max-grad-norm", "-1"], "--max-grad-norm is -1.0, but must be at least 0"),
        ([tmp_path / "short", "--", "--max_steps", "9", "--", "--max_steps", "9"], "several --"),
    ):
        assert main(["diagnose", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line
