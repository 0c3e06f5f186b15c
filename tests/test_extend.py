"""Runs that go on after a checkpoint with a schedule made for that: the schedule, the resume, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import Trainer

from hf_refined_schedule import GradientNormCallback, extend_run, get_refined_schedule
from hf_refined_schedule.cli import main
from hf_refined_schedule.schedules.extension import extended_multipliers
from hf_refined_schedule.schedules.schedule_file import read_schedule, write_schedule

from .refusals import refuses
from .tiny import SCRIPTS, rates, tiny_arguments, tiny_data, tiny_model, torchrun
from .tolerances import EXACT_ROUNDING

PEAK = 1e-3


def train(folder, resume_from=None, **options):
    """A stock Trainer that saves every 10 updates, logs every rate and records."""
    arguments = tiny_arguments(
        folder, **{"save_strategy": "steps", "save_steps": 10, "max_steps": 40, "learning_rate": PEAK, **options}
    )
    trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[GradientNormCallback()])
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(folder / f"checkpoint-{resume_from}"))
    return trainer


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    """A finished run of 40 updates at a constant rate after a warm-up of 4."""
    folder = tmp_path_factory.mktemp("constant")
    train(folder, lr_scheduler_type="constant_with_warmup", warmup_steps=4)
    return folder


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A finished run of 40 updates with linear decay."""
    folder = tmp_path_factory.mktemp("linear")
    train(folder, lr_scheduler_type="linear")
    return folder


@pytest.fixture
def run(constant, tmp_path):
    return shutil.copytree(constant, tmp_path / "run")


@pytest.fixture
def decayed(linear, tmp_path):
    return shutil.copytree(linear, tmp_path / "run")


def refined(path):
    return {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {"refined_from": str(path)}}


def warnings_of(caplog):
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("hf_refined_schedule")]
    return [message for message in ours if message.startswith("From update")]


# --- the schedule ---


@pytest.mark.parametrize(
    "past, start, total, options, expected",
    [
        ([0.5, 1.0], 1.0, 5, {"cooldown": 0}, [0.5, 1, 1, 1, 1, 1]),
        ([1.0], 1.0, 5, {"cooldown": 2}, [1, 1, 1, 1, 0.5, 0]),
        ([1.0], 0.8, 5, {"cooldown": 4}, [1, 0.8, 0.6, 0.4, 0.2, 0]),  # cool down now
        ([1.0], 1.0, 5, {"cooldown": 4, "decay": "1-sqrt"}, [1, 1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0]),
        ([1.0], 0.0, 6, {"cooldown": 1, "rewarm": 2, "level": 1.0}, [1, 0, 0.5, 1, 1, 1, 0]),
        ([1.0], 0.0, 4, {"cooldown": 1, "rewarm": 2, "level": 2.0}, [1, 0, 1, 2, 0]),  # above the old peak
        ([1.0], 1.0, 3, {"cooldown": 0, "rewarm": 2, "level": 0.5}, [1, 1, 0.75, 0.5]),  # to a lower rate
        ([1.0] * 10, 1.0, 20, {}, [1.0] * 17 + [0.75, 0.5, 0.25, 0.0]),  # 20 % of 20 updates
        ([1.0] * 9, 1.0, 10, {}, [1.0] * 10 + [0.0]),  # or what is left
        ([1.0], 0.0, 3, {"rewarm": 2, "level": 1.0}, [1, 0, 0.5, 1]),  # or none
    ],
)
def test_multipliers(past, start, total, options, expected):
    grid = extended_multipliers(np.array(past), start, total, **options)
    assert grid.tolist() == pytest.approx(expected, rel=EXACT_ROUNDING, abs=EXACT_ROUNDING)


@pytest.mark.parametrize(
    "total, options, words",
    [
        (4, {}, ["--num-training-steps (num_training_steps) is 4", "made 4 updates already"]),
        (8, {"rewarm": 5, "level": 1.0}, ["take 5 updates together, but 4 are left"]),
        (6, {"cooldown": 3}, ["take 3 updates together, but 2 are left"]),
        (8, {"cooldown": 3, "rewarm": 2, "level": 1.0}, ["take 5 updates together, but 4 are left"]),
        (8, {"decay": "cosine"}, ["decay is 'cosine'", '"linear" or "1-sqrt"']),
    ],
)
def test_multipliers_that_do_not_fit_are_refused(total, options, words):
    with refuses(*words):
        extended_multipliers(np.ones(4), 1.0, total, **options)


def test_a_schedule_holds_the_runs_own_rates_up_to_its_checkpoint(constant, linear):
    schedule, extension = extend_run(constant, 80)
    assert extension == (40, 80, PEAK)
    assert schedule.grid.tolist() == pytest.approx(
        [0, 0.25, 0.5, 0.75, *[1] * 61, *[1 - step / 16 for step in range(1, 17)]], abs=EXACT_ROUNDING
    )
    schedule, _ = extend_run(linear / "checkpoint-10", cooldown=30)
    assert schedule.grid.tolist() == pytest.approx([1 - step / 40 for step in range(41)])  # as it would have gone on


def test_without_logged_rates_those_of_the_past_are_unknown(run):
    (run / "gradient_norms.jsonl").unlink()
    state = json.loads((run / "checkpoint-40" / "trainer_state.json").read_text())
    for one in state["log_history"]:
        one.pop("learning_rate", None)
    (run / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))
    schedule, _ = extend_run(run, 80, cooldown=0)
    assert schedule.grid.tolist() == [1.0] * 81
    assert schedule.notes == (
        "The run logged no learning rates, so those before the checkpoint are unknown: resume from no earlier one.",
    )


def test_a_schedule_survives_its_file(constant, tmp_path):
    schedule, extension = extend_run(constant, 80, rewarm=10, learning_rate=3 * PEAK)
    write_schedule(schedule, tmp_path / "schedule.json")
    again = read_schedule(tmp_path / "schedule.json")
    assert again.grid.max() == 3
    assert again.grid.tolist() == schedule.grid.tolist()
    assert (again.extension, again.weights, again.source) == (extension, None, str(constant / "checkpoint-40"))


@pytest.mark.parametrize(
    "changes",
    [{"start_step": 80}, {"start_step": -1}, {"num_training_steps": 79}, {"learning_rate": 0}, {"learning_rate": "x"},
     {"more": 1}],
    ids=str,
)  # fmt: skip
def test_a_damaged_extension_is_refused(constant, tmp_path, changes):
    path = tmp_path / "schedule.json"
    write_schedule(extend_run(constant, 80).schedule, path)
    content = json.loads(path.read_text())
    content["extension"].update(changes)
    path.write_text(json.dumps(content))
    with refuses("damaged schedule file"):
        read_schedule(path)


# --- the resumed run ---


def test_a_finished_run_goes_on_to_twice_its_length(run, tmp_path, caplog):
    path = tmp_path / "schedule.json"
    assert main(["extend", str(run), "--num-training-steps", "80", "--cooldown", "20", "-o", str(path)]) == 0
    trainer = train(run, 40, max_steps=80, **refined(path))
    expected = [0, 0.25, 0.5, 0.75, *[1] * 56, *[1 - step / 20 for step in range(20)]]
    assert rates(trainer) == pytest.approx([PEAK * multiplier for multiplier in expected])
    fingerprint = read_schedule(path).fingerprint
    assert warnings_of(caplog) == [
        f"From update 40 on, the run follows the extension to 80 updates ({fingerprint}) instead of the schedule it began "
        "with, at a learning rate of 0.001."
    ]
    caplog.clear()
    again = train(run, 70, max_steps=80, **refined(path))  # the extended run is resumed itself
    assert rates(again) == rates(trainer)
    assert warnings_of(caplog) == []


def test_a_refined_run_is_extended_as_any_other(run, tmp_path, caplog):
    """The checkpoint holds a refined schedule, and the extension wins over it."""
    first = run.with_name("refined")
    train(first, max_steps=40, **refined(run))
    path = tmp_path / "schedule.json"
    write_schedule(extend_run(first / "checkpoint-30", cooldown=5).schedule, path)
    trainer = train(first, 30, max_steps=35, **refined(path))
    own = [step["learning_rate"] for step in json.loads(
        (first / "checkpoint-30" / "trainer_state.json").read_text())["log_history"] if "learning_rate" in step]  # fmt: skip
    assert rates(trainer)[:30] == own
    assert rates(trainer)[30:] == pytest.approx([rates(trainer)[30] * (1 - step / 5) for step in range(5)])
    assert 0 < rates(trainer)[30] <= own[-1]
    assert len(warnings_of(caplog)) == 1


def test_a_run_that_has_cooled_down_is_warmed_up_again(decayed, tmp_path):
    with refuses(
        "has cooled down: its learning rate is 0, 0.0% of the peak 0.001", "pass --rewarm", "earlier checkpoint"
    ):
        extend_run(decayed, 80)
    path = tmp_path / "schedule.json"
    write_schedule(extend_run(decayed, 80, rewarm=10, learning_rate=PEAK / 2, cooldown=10).schedule, path)
    trainer = train(decayed, 40, max_steps=80, **refined(path))
    ahead = [*[step / 20 for step in range(10)], *[0.5] * 20, *[0.5 - step / 20 for step in range(10)]]
    assert rates(trainer)[40:] == pytest.approx([PEAK * multiplier for multiplier in ahead])


def test_resuming_elsewhere_than_at_the_extended_checkpoint(decayed, tmp_path, caplog):
    """From an earlier checkpoint the run repeats its own rates; at a later one the rate jumps, and a warning says so."""
    path = tmp_path / "schedule.json"
    write_schedule(extend_run(decayed / "checkpoint-20", 60, cooldown=0).schedule, path)
    trainer = train(shutil.copytree(decayed, tmp_path / "early"), 10, max_steps=60, **refined(path))
    assert rates(trainer) == pytest.approx([PEAK * (1 - step / 40) for step in range(20)] + [PEAK / 2] * 40)
    assert warnings_of(caplog)[0].endswith("instead of the schedule it began with, at a learning rate of 0.00075.")
    caplog.clear()
    train(shutil.copytree(decayed, tmp_path / "late"), 30, max_steps=60, **refined(path))
    (warning,) = warnings_of(caplog)
    assert "the learning rate jumps from 0.00025 to 0.0005" in warning
    assert "made from the checkpoint at update 20" in warning


def test_an_extension_without_its_checkpoint_repeats_the_run(constant, tmp_path):
    """Every multiplier is in the file, so that a loop of its own that counts every process twice has the same rates."""
    path = tmp_path / "schedule.json"
    write_schedule(extend_run(constant, 80).schedule, path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)  # an extension suits every optimizer
    scheduler = get_refined_schedule(optimizer, 10, 80, refined_from=str(path))
    seen = []
    for _ in range(80):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([2 * multiplier for multiplier in read_schedule(path).grid[:-1]])


def test_two_processes_of_a_raw_loop(constant, tmp_path):
    path = tmp_path / "schedule.json"
    write_schedule(extend_run(constant, 80, cooldown=20).schedule, path)
    done = torchrun(SCRIPTS / "extended_rates.py", path, tmp_path, 2 * 80 - 1)  # one less, by rounding
    for rank in range(2):
        assert (tmp_path / f"rank{rank}.json").exists(), done.stderr
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert seen["world_size"] == 2
        expected = [*[1] * 20, *[1 - step / 20 for step in range(20)]]
        assert seen["rates"] == pytest.approx([PEAK * multiplier for multiplier in expected], abs=PEAK / 20)
    assert done.stderr.count("From update 40 on, the run follows the extension to 80 updates") == 1


@pytest.mark.parametrize(
    "steps, options, words",
    [
        (40, {}, ["num_training_steps is 40", "to 80 updates", "max_steps=80"]),
        (160, {}, ["num_training_steps is 160", "max_steps=80"]),  # twice as many, with one process
        (80, {"min_lr_ratio": 0.1}, ["min_lr_ratio is 0.1", "leave it out"]),
        (80, {"smoothing": 0.2}, ["smoothing cannot be set beside it"]),
    ],
)
def test_what_would_break_the_continuity_is_refused(constant, tmp_path, steps, options, words):
    path = tmp_path / "schedule.json"
    write_schedule(extend_run(constant, 80).schedule, path)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with refuses(*words):
        scheduler = get_refined_schedule(optimizer, 0, steps, refined_from=str(path), **options)
        scheduler.raise_if_unavailable()


# --- the command and its refusals ---


def test_the_command(run, tmp_path, capsys):
    path = tmp_path / "out" / "schedule.json"
    assert main(["extend", str(run / "checkpoint-30"), "--cooldown", "15", "-o", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == f"{run}/checkpoint-30: 30 updates made, 15 to come, at a learning rate of 0.001 (100% of the peak)"
    )
    assert lines[1] == "highest rate to come 0.001, last rate 6.67e-05"
    assert lines[-1] == (
        f"""next run: --max_steps 45 --lr_scheduler_type refined --lr_scheduler_kwargs '{{"refined_from": "{path}"}}' """
        f"--resume_from_checkpoint {run}/checkpoint-30"
    )
    assert main(["extend", str(run), "-o", str(path), "--cooldown", "10", "--rewarm", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--resume_from_checkpoint {run}/checkpoint-40")
    for command in (["plot", "--text"], ["plot", "-o", str(tmp_path / "picture.png")]):
        assert main([command[0], str(path), *command[1:]]) == 0
    assert (tmp_path / "picture.png").exists()


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], ["Pass --num-training-steps", "or --cooldown"]),
        (["--cooldown", "0"], ["Pass --num-training-steps"]),
        (["--cooldown", "-3"], ["--cooldown is -3", "0 for none"]),
        (["--num-training-steps", "80", "--rewarm", "-1"], ["--rewarm is -1", "0 for none"]),
        (["--num-training-steps", "40"], ["made 40 updates already"]),
        (["--num-training-steps", "0"], ["--num-training-steps is 0"]),
        (
            ["--num-training-steps", "80", "--learning-rate", "1"],
            ["--learning-rate is 1.0, but nothing leads to it", "pass --rewarm"],
        ),
        (
            ["--num-training-steps", "80", "--learning-rate", "-1", "--rewarm", "3"],
            ["--learning-rate is -1.0", "positive"],
        ),
    ],
)
def test_options_that_do_not_fit(constant, tmp_path, capsys, words, expected):
    assert main(["extend", str(constant), "-o", str(tmp_path / "schedule.json"), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in expected:
        assert word in error
    assert not (tmp_path / "schedule.json").exists()


def test_what_is_no_checkpoint_is_refused(run, tmp_path):
    with refuses(str(tmp_path / "none"), "no scheduler.pt"):
        extend_run(tmp_path / "none", 80)
    checkpoint = run / "checkpoint-40"
    torch.save({"last_epoch": 40}, checkpoint / "scheduler.pt")
    with refuses("does not say its update and its learning rate"):
        extend_run(checkpoint, 80)
    torch.save({"base_lrs": [1.0, 2.0], "_last_lr": [1.0, 1.0]}, checkpoint / "scheduler.pt")
    with refuses("for each group of parameters"):
        extend_run(checkpoint, 80)
    (checkpoint / "scheduler.pt").write_bytes(b"noise")
    with refuses("scheduler.pt is damaged"):
        extend_run(checkpoint, 80)
