"""Runs that are resumed otherwise than they began, files that something happened to, and Trainers that train more than once."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import Trainer, TrainerCallback

from hf_refined_schedule import GradientNormCallback, RefinedScheduleTrainer, load_norms
from hf_refined_schedule.norms.norms_file import read_norms_file
from hf_refined_schedule.training.checkpoints import last_complete_checkpoint

from .records import schedule_of
from .tiny import (
    CAN_RESUME_ON_CPUS,
    SCRIPTS,
    rates,
    read_rows,
    run_command,
    tiny_arguments,
    tiny_data,
    tiny_model,
    torchrun,
)
from .tolerances import COMMAND_SECONDS, FLOAT32_GRADIENTS

TWO_RANKS = SCRIPTS / "two_ranks.py"
NAME = "gradient_norms.jsonl"


def make_trainer(folder, callbacks=None, model=None, **options):
    """A stock Trainer that records and saves every 10 updates."""
    arguments = tiny_arguments(folder, **{"save_strategy": "steps", "save_steps": 10, **options})
    callbacks = [GradientNormCallback()] if callbacks is None else callbacks
    return Trainer(model or tiny_model(), arguments, train_dataset=tiny_data(), callbacks=callbacks)


def run(folder, resume_from=None, **options):
    """Train, from the checkpoint of an update if there is one to resume from."""
    trainer = make_trainer(folder, **options)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume_from}") if resume_from else None)
    return trainer


def logged(trainer, key):
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


def steps_of(path):
    return [row["step"] for row in read_rows(path)[1]]


def warnings_of(caplog):
    """What the package itself has warned of, without the notes on a schedule."""
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("hf_refined_schedule")]
    return [message for message in ours if not message.startswith("Refined schedule")]


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """Options of a refined schedule that is no straight line."""
    path = tmp_path_factory.mktemp("source") / NAME
    header = {"format": "gradient_norms", "version": 1, "optimizer_family": "adam", "num_training_steps": 60}
    rows = [{"step": step, "l1": 1 + 3 * 0.9**step, "l2": 1.0} for step in range(1, 61)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
    return {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {"refined_from": str(path)}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, refined):
    """An uninterrupted run of 30 updates with its checkpoints at 10, 20 and 30."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, **refined)


@pytest.fixture(scope="module")
def two_ranks(kept, refined, tmp_path_factory):
    """What two processes made of its first checkpoint, each rank's reports, and what they printed."""
    report = tmp_path_factory.mktemp("two_ranks")
    shutil.copytree(kept[0], report / "run", ignore=shutil.ignore_patterns("checkpoint-20", "checkpoint-30"))
    (report / "file").touch()
    done = torchrun(TWO_RANKS, report, report / "run", report / "file" / NAME, json.dumps(refined))
    return report, done.stderr


@pytest.fixture
def whole(kept, tmp_path):
    """A copy of it to work on, and what it logged."""
    folder, trainer = kept
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", trainer


# --- resumed otherwise than it began ---


@pytest.mark.parametrize("num_training_steps", [20, 45])
def test_another_number_of_updates(whole, tmp_path, refined, num_training_steps):
    """The same schedule over the new horizon. The first rate is in the optimizer's own state, as with every scheduler."""
    folder, before = whole
    fresh = run(tmp_path / "fresh", max_steps=num_training_steps, **refined)
    again = run(folder, 10, max_steps=num_training_steps, **refined)
    assert rates(again) == rates(before)[:11] + rates(fresh)[11:]
    header, rows = read_rows(folder / NAME)
    assert header["num_training_steps"] == num_training_steps
    assert [row["step"] for row in rows] == list(range(1, num_training_steps + 1))
    assert [row["learning_rate"] for row in rows] == rates(again)


@pytest.mark.skipif(not CAN_RESUME_ON_CPUS, reason="this Trainer cannot resume on several CPU processes")
def test_another_number_of_processes(kept, two_ranks, tmp_path, refined):
    """Begun by one, resumed by two, and by one again: the same batches, so the same norms but for rounding."""
    (whole, before), (report, printed) = kept, two_ranks
    rows_before = read_rows(whole / NAME)[1]
    assert (report / "resumed1.json").exists(), printed
    for rank in range(2):
        seen = json.loads((report / f"resumed{rank}.json").read_text())
        assert seen == {"world_size": 2, "rates": rates(before)}
    folder = tmp_path / "run"
    shutil.copytree(report / "run", folder)
    header, rows = read_rows(folder / NAME)
    assert header["world_size"] == 2
    assert rows[:10] == rows_before[:10]
    for row, values in zip(rows, rows_before, strict=True):
        assert row == {name: pytest.approx(value, rel=1e-4) for name, value in values.items()}

    shutil.rmtree(folder / "checkpoint-30")
    again = run(folder, 20, **refined)
    header, rows = read_rows(folder / NAME)
    assert header["world_size"] == 1
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["learning_rate"] for row in rows] == rates(before)
    assert logged(again, "grad_norm")[30] == pytest.approx(logged(before, "grad_norm")[30], rel=1e-4)


def test_a_checkpoint_from_before_the_recording(tmp_path, caplog):
    """The file has the later updates alone, and whoever refines from it is told so; cut short, it is no whole run."""
    run(tmp_path, callbacks=[])
    run(tmp_path, 10)
    assert len(warnings_of(caplog)) == 1
    assert "lacks 10 updates from before this run was resumed" in warnings_of(caplog)[0]
    norms = load_norms(tmp_path)
    assert (norms.steps[0], norms.steps[-1], norms.num_training_steps) == (11, 30, 30)
    assert any("first 10 updates are missing" in note for note in schedule_of(norms, "adam").notes)
    file = tmp_path / NAME
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:15]))
    with pytest.raises(ValueError, match="covers 24 of 30"):
        schedule_of(load_norms(tmp_path), "adam")


# --- something happened to the file ---


def delete(path):
    path.unlink()


def move(path):
    path.rename(path.with_name("elsewhere.jsonl"))


def end_early(path):
    """As after a full disk: the last updates before the checkpoint are not there, and the last line is torn."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]) + '{"step": 8, "l1": 3.0')


def put_a_folder_there(path):
    path.unlink()
    path.mkdir()


def put_something_else_there(path):
    path.write_text('{"format": "something else"}\n')


def damage_a_line(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "\x00" * 50 + "\n", *lines[6:]]))


@pytest.mark.parametrize(
    ("happens", "first_steps", "warning"),
    [
        (delete, [], "lacks 10 updates"),
        (move, [], "lacks 10 updates"),
        (end_early, [1, 2, 3, 4, 5, 6, 7], "lacks 3 updates"),
    ],
)
def test_a_resumed_run_goes_on_with_what_is_there(whole, refined, caplog, happens, first_steps, warning):
    folder, before = whole
    happens(folder / NAME)
    again = run(folder, 10, **refined)
    assert rates(again) == rates(before)
    assert steps_of(folder / NAME) == first_steps + list(range(11, 31))
    assert len(warnings_of(caplog)) == 1
    assert warning in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    ("happens", "warning"),
    [
        (put_a_folder_there, "Is a directory"),
        (put_something_else_there, "is not a gradient_norms.jsonl"),
        (damage_a_line, "is damaged at line 6"),
    ],
)
def test_what_cannot_be_gone_on_with_is_left_alone(whole, refined, caplog, happens, warning):
    """The run is as it would have been, its logs included."""
    folder, before = whole
    happens(folder / NAME)
    text = None if (folder / NAME).is_dir() else (folder / NAME).read_text()
    again = run(folder, 10, **refined)
    assert (rates(again), logged(again, "grad_norm_l1")) == (rates(before), logged(before, "grad_norm_l1"))
    assert text is None or (folder / NAME).read_text() == text
    assert not list(folder.glob(f".{NAME}.*"))
    assert len(warnings_of(caplog)) == 1
    assert "not recorded from update 11 on" in warnings_of(caplog)[0]
    assert warning in warnings_of(caplog)[0]


class At(TrainerCallback):
    """Does something at the end of an update."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.what(control)


def test_a_file_that_is_moved_away_during_the_run(tmp_path, caplog):
    """No file without a header begins in its place, and the one that was moved can be read."""
    at_15 = At(15, lambda control: move(tmp_path / NAME))
    trainer = run(tmp_path, callbacks=[GradientNormCallback(), at_15])
    assert trainer.state.global_step == 30
    assert not (tmp_path / NAME).exists()
    assert read_norms_file(tmp_path / "elsewhere.jsonl").steps[-1] == 10
    assert len(warnings_of(caplog)) == 1
    assert "not recorded from update 11 on" in warnings_of(caplog)[0]
    assert "No such file" in warnings_of(caplog)[0]


@pytest.fixture
def one_page(tmp_path):
    """A disk of 4 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or run_command("mount", "-t", "tmpfs", "-o", "size=4k", "none", folder).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    run_command("umount", folder)


def test_a_full_disk(tmp_path, one_page, caplog):
    """One warning, a file that can be read, logs that go on; resumed with room, the file is that of a run that had it."""
    options = {"max_steps": 40}
    before = run(tmp_path / "whole", **options)
    file = one_page / NAME

    full = run(tmp_path / "run", callbacks=[GradientNormCallback(file)], **options)
    assert full.state.global_step == 40
    assert len(warnings_of(caplog)) == 1
    assert "No space left on device" in warnings_of(caplog)[0]
    written = read_norms_file(file).steps.tolist()
    assert written == list(range(1, len(written) + 1))
    assert 20 <= len(written) < 40
    assert not file.read_text().endswith("\n"), "the last line should be torn here"
    assert logged(full, "grad_norm_l1") == logged(before, "grad_norm_l1")

    caplog.clear()
    text = file.read_text()
    run(tmp_path / "run", 20, callbacks=[GradientNormCallback(file)], **options)
    assert len(warnings_of(caplog)) == 1
    assert file.read_text() == text
    assert [path.name for path in one_page.iterdir()] == [NAME]

    caplog.clear()
    assert run_command("mount", "-o", "remount,size=64k", one_page).returncode == 0
    run(tmp_path / "run", 20, callbacks=[GradientNormCallback(file)], **options)
    assert file.read_text() == (tmp_path / "whole" / NAME).read_text()
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("when", ["before the run", "during the run", "before the resume"])
def test_a_disk_that_is_read_only(tmp_path, one_page, caplog, when):
    """One warning, and the file as it was."""

    def read_only(control=None):
        assert run_command("mount", "-o", "remount,ro", one_page).returncode == 0

    file, text = one_page / NAME, None
    if when == "before the run":
        read_only()
    at_seven = [At(7, read_only)] if when == "during the run" else []
    trainer = run(tmp_path, callbacks=[GradientNormCallback(file), *at_seven], max_steps=20, save_steps=5)
    if when == "before the resume":
        text = file.read_text()
        read_only()
        trainer = run(tmp_path, 5, callbacks=[GradientNormCallback(file)], max_steps=20)
        assert file.read_text() == text
    elif when == "during the run":
        assert steps_of(file) == [1, 2, 3, 4, 5]
    else:
        assert not file.exists()
    assert trainer.state.global_step == 20
    assert list(logged(trainer, "grad_norm_l1")) == list(range(1, 21))
    assert len(warnings_of(caplog)) == 1
    assert "Read-only file system" in warnings_of(caplog)[0]


def test_a_main_process_that_cannot_write_leaves_nobody_waiting(two_ranks):
    """The norm of a sharded gradient takes all ranks, also after the file of one of them has failed."""
    report, printed = two_ranks
    assert (report / "shards1.json").exists(), printed
    ranks = [json.loads((report / f"shards{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["world_size"] == 2
    assert ranks[0]["l1"] == [8.0 * step for step in range(120)]
    assert printed.count("are not recorded from update 1 on") == 1
    assert ranks[0]["norms"] == pytest.approx([15.0, 27.0**0.5], rel=FLOAT32_GRADIENTS)
    assert ranks[0]["reductions"] == 1  # of the sharded ones together; what every rank has whole needs none


def test_large_sharded_gradients_are_measured_without_float64(two_ranks):
    report, printed = two_ranks
    assert (report / "large1.json").exists(), printed
    for rank in (0, 1):
        assert json.loads((report / f"large{rank}.json").read_text()) == pytest.approx(
            [103.0, 85.0], rel=FLOAT32_GRADIENTS
        )


def test_the_norm_that_a_clip_of_sharded_gradients_returns_is_that_of_all_ranks(two_ranks):
    """Two parameters with the gradient (1, -2, 2), each sharded over two ranks: L1 is 10, and L2 the root of 18, which this clip doubles."""
    report, printed = two_ranks
    assert (report / "clipped1.json").exists(), printed
    for rank in range(2):
        seen = json.loads((report / f"clipped{rank}.json").read_text())
        assert seen == {"l1": 10.0, "l2": pytest.approx(2 * 18**0.5, rel=FLOAT32_GRADIENTS)}


def test_a_callback_that_decides_to_save_after_the_recorder(tmp_path):
    lengths = {}

    class CountAtSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            lengths[state.global_step] = len(steps_of(tmp_path / NAME))

    def save(control):
        control.should_save = True

    run(tmp_path, callbacks=[GradientNormCallback(), At(7, save), CountAtSave()], max_steps=10)
    assert lengths == {7: 7, 10: 10}


# --- checkpoints that were not written to their end ---


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_header(folder, header, tensors=b""):
    """A model file of a given header, whose length is right."""
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + tensors)


DAMAGES = {
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "half a state": lambda folder: halve(folder / "trainer_state.json"),
    "an empty state": lambda folder: (folder / "trainer_state.json").write_text(""),
    "a state that is nested too deeply": lambda folder: (folder / "trainer_state.json").write_text("[" * 100_000),
    "a state that is not text": lambda folder: (folder / "trainer_state.json").write_bytes(b"\xff\xfe\xff"),
    "a state of another update": lambda folder: shutil.copy(
        folder.parent / "checkpoint-10" / "trainer_state.json", folder
    ),
    # Over an older checkpoint of the same update, whose state is there.
    "half an optimizer": lambda folder: halve(folder / "optimizer.pt"),
    "an empty scheduler": lambda folder: (folder / "scheduler.pt").write_bytes(b""),
    "half a random state": lambda folder: halve(folder / "rng_state.pth"),
    "half a model": lambda folder: halve(folder / "model.safetensors"),
    "half a model's header": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:40]
    ),
    "an empty model": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "a model of zeros": lambda folder: (folder / "model.safetensors").write_bytes(bytes(5000)),
    "a model without its last byte": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-1]
    ),
    "a model whose header is nested too deeply": lambda folder: write_header(folder, b'{"a":' * 100_000),
    "a model whose header is a list": lambda folder: write_header(folder, b"[1]"),
    "a model whose tensors have no offsets": lambda folder: write_header(
        folder, b'{"a": {"dtype": "F32", "shape": [1]}}'
    ),
    "a model whose tensors overlap": lambda folder: write_header(
        folder,
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},'
        b' "b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
        b"1234",
    ),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "one rank's random state of several": lambda folder: (folder / "rng_state.pth").rename(folder / "rng_state_0.pth"),
    "a rank's random state left out": lambda folder: [
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{rank}.pth") for rank in (0, 2)
    ],
    "Trainer's own mark": lambda folder: (folder / "checkpoint-is-incomplete.txt").touch(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_that_is_not_whole_is_passed_over(whole, damage):
    folder, _ = whole
    shutil.rmtree(folder / "checkpoint-30")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-20")
    damage(folder / "checkpoint-20")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-10")


def test_a_trainer_of_ours_resumes_from_a_whole_one(whole, refined):
    folder, before = whole
    DAMAGES["no state"](folder / "checkpoint-30")

    def train():
        arguments = tiny_arguments(folder, save_strategy="steps", save_steps=10, **refined)
        trainer = RefinedScheduleTrainer(tiny_model(), arguments, train_dataset=tiny_data())
        trainer.train(resume_from_checkpoint=True)
        return trainer

    again = train()
    assert again.state.log_history[0]["step"] == 1
    assert rates(again) == rates(before)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match="There is no complete checkpoint in the output directory"):
        train()


def test_every_checkpoint_of_a_trainer_is_whole(whole):
    folder, _ = whole
    for step in (30, 20, 10):
        assert last_complete_checkpoint(folder) == str(folder / f"checkpoint-{step}")
        shutil.rmtree(folder / f"checkpoint-{step}")
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize("damage", ["no state", "half an optimizer"])
def test_resuming_writes_over_a_torn_checkpoint(whole, refined, damage):
    """Rotation removes the oldest ones, not those just made."""
    folder, before = whole
    text = (folder / NAME).read_text()
    for step in (20, 30):
        DAMAGES[damage](folder / f"checkpoint-{step}")
    halve(folder / NAME)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-10")
    again = run(folder, 10, save_total_limit=2, **refined)
    assert (folder / NAME).read_text() == text
    assert rates(again) == rates(before)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-30"]
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-30")
    shutil.rmtree(folder / "checkpoint-30")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-20")


# --- Trainers that train more than once ---


def running_out_of_memory():
    """A model that fails as on an accelerator, at every third batch of more than 16."""
    model, batches = tiny_model(), []

    def remember(module, args, kwargs):
        if len(kwargs["input_ids"]) > 16:
            batches.append(1)
            if len(batches) % 3 == 0:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.register_forward_pre_hook(remember, with_kwargs=True)
    return model


def test_auto_find_batch_size(tmp_path, refined):
    """Batches of 20, 18 and 16: the file and the horizon are those of 16, over 256 samples."""
    options = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "no", **refined}
    batches = {"auto_find_batch_size": True, "per_device_train_batch_size": 20}
    trainer = run(tmp_path / "found", model=running_out_of_memory(), **batches, **options)
    alone = run(tmp_path / "alone", per_device_train_batch_size=16, **options)
    header, rows = read_rows(tmp_path / "found" / NAME)
    assert header["num_training_steps"] == 32
    assert [row["step"] for row in rows] == list(range(1, 33))
    l2 = logged(trainer, "grad_norm")
    assert [row["l2"] for row in rows] == pytest.approx(list(l2.values())[-32:], rel=FLOAT32_GRADIENTS)
    assert [row["learning_rate"] for row in rows] == rates(alone)


def test_hyperparameter_search(tmp_path, refined):
    """One callback, and for each trial a file in the folder to which the Trainer saves it."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = tiny_arguments(tmp_path, max_steps=8, logging_steps=2, eval_strategy="steps", eval_steps=4, **refined)
    trainer = Trainer(
        None, arguments, train_dataset=tiny_data(), eval_dataset=tiny_data(8), callbacks=[GradientNormCallback()],
        model_init=lambda: tiny_model(),
    )  # fmt: skip
    peaks, steps = [], []

    def space(trial):
        peaks.append(trial.suggest_float("learning_rate", 1e-4, 1e-2))
        steps.append(trial.suggest_int("max_steps", 6, 9))
        return {"learning_rate": peaks[-1], "max_steps": steps[-1]}

    best = trainer.hyperparameter_search(
        space, n_trials=3, backend="optuna", direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    files = [tmp_path / f"run-{number}" / NAME for number in range(3)]
    assert len(set(peaks)) == 3
    for file, peak, count in zip(files, peaks, steps, strict=True):
        header, rows = read_rows(file)
        assert (header["num_training_steps"], len(rows)) == (count, count)
        alone = run(
            tmp_path / "alone" / file.parent.name, learning_rate=peak, max_steps=count, save_strategy="no", **refined
        )
        assert [row["learning_rate"] for row in rows] == rates(alone)
    assert list(tmp_path.glob("*.jsonl")) == []
    assert load_norms(tmp_path / f"run-{best.run_id}").num_training_steps == steps[int(best.run_id)]


def test_a_trainer_that_trains_again_and_resumes(tmp_path):
    trainer = run(tmp_path, max_steps=20)
    first = (tmp_path / NAME).read_text()
    trainer.train()
    second = (tmp_path / NAME).read_text()
    assert (tmp_path / "gradient_norms.1.jsonl").read_text() == first
    assert second != first, "the model has gone on learning"
    assert steps_of(tmp_path / NAME) == list(range(1, 21))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert (tmp_path / NAME).read_text() == second
    assert not (tmp_path / "gradient_norms.2.jsonl").exists()


class TakeTurns(TrainerCallback):
    """Lets another Trainer go on, in the middle of an update and at its end."""

    def __init__(self, mine, other):
        self.mine, self.other = mine, other

    def take_turns(self, args, state, control, **kwargs):
        self.other.release()
        assert self.mine.acquire(timeout=COMMAND_SECONDS)

    on_pre_optimizer_step = on_step_end = take_turns


def test_trainers_that_take_turns(tmp_path):
    """One clips while the other is about to step: each file has the norms that its own Trainer logs."""
    turns, limits = [threading.Semaphore(0), threading.Semaphore(0)], [0.1, 1.0]

    # Made one after the other: whoever makes TrainingArguments resets the state that all of accelerate shares.
    trainers = [
        make_trainer(
            tmp_path / str(number),
            callbacks=[TakeTurns(turns[number], turns[1 - number]), GradientNormCallback()],
            model=tiny_model(seed=number),
            max_grad_norm=limits[number],
            save_strategy="no",
        )
        for number in range(2)
    ]

    def train(number):
        trainers[number].train()
        turns[1 - number].release(100)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, range(2)))
    for number, trainer in enumerate(trainers):
        rows = read_rows(tmp_path / str(number) / NAME)[1]
        norms = logged(trainer, "grad_norm")
        assert [row["step"] for row in rows] == list(norms) == list(range(1, 31))
        assert [row["l2"] for row in rows] == pytest.approx(list(norms.values()), rel=FLOAT32_GRADIENTS)
        assert [row["l1"] for row in rows] == pytest.approx(list(logged(trainer, "grad_norm_l1").values()))
        factors = [min(1.0, limits[number] / (row["l2"] + 1e-6)) for row in rows]
        assert [row["clip_factor"] for row in rows] == pytest.approx(factors, rel=FLOAT32_GRADIENTS)
