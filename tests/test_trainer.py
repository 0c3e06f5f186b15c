"""Recording and scheduling in the real Trainer: what it logs, what the file holds, what a resume restores."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from hf_refined_schedule import (
    GradientNormCallback,
    RefinedScheduleArguments,
    RefinedScheduleMixin,
    RefinedScheduleTrainer,
    load_norms,
    refine_schedule,
)
from hf_refined_schedule.recording import measuring

from .tiny import PYTHONPATH, rates, read_rows, tiny_arguments, tiny_data, tiny_model, tiny_options
from .tolerances import BFLOAT16_LOG, FLOAT32_GRADIENTS


def stock_run(tmp_path, model=None, callbacks=None, **options):
    """A stock Trainer with the callback alone."""
    arguments = tiny_arguments(tmp_path, **options)
    callbacks = [GradientNormCallback()] if callbacks is None else callbacks
    trainer = Trainer(model or tiny_model(), arguments, train_dataset=tiny_data(), callbacks=callbacks)
    trainer.train()
    return trainer


def logged(trainer, key):
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


def rows_of(trainer):
    return read_rows(f"{trainer.args.output_dir}/gradient_norms.jsonl")[1]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, FLOAT32_GRADIENTS),  # everything at its default: max_grad_norm=1.0
        ({"max_grad_norm": 0.1}, FLOAT32_GRADIENTS),
        ({"max_grad_norm": 0.0}, FLOAT32_GRADIENTS),  # Trainer does not clip at all
        ({"gradient_accumulation_steps": 3}, FLOAT32_GRADIENTS),
        ({"bf16": True}, FLOAT32_GRADIENTS),  # autocast: the parameters, and so their gradients, are float32
        ({"gradient_checkpointing": True}, FLOAT32_GRADIENTS),
        ({"optim": "adafactor"}, FLOAT32_GRADIENTS),
    ],
    ids=str,
)
def test_stock_trainer_records_the_norm_it_logs(tmp_path, options, tolerance):
    trainer = stock_run(tmp_path, **options)
    rows = rows_of(trainer)
    l2, l1, rate = (logged(trainer, key) for key in ("grad_norm", "grad_norm_l1", "learning_rate"))
    assert [row["step"] for row in rows] == list(range(1, 31))
    for row in rows:
        assert row["l2"] == pytest.approx(l2[row["step"]], rel=tolerance)
        assert row["l1"] == pytest.approx(l1[row["step"]], rel=FLOAT32_GRADIENTS)
        assert row["learning_rate"] == rate[row["step"]]
        assert row["l2"] < row["l1"]
    limit = options.get("max_grad_norm", 1.0)
    if limit:
        expected = [min(1.0, limit / (row["l2"] + 1e-6)) for row in rows]
        assert [row["clip_factor"] for row in rows] == pytest.approx(expected, rel=FLOAT32_GRADIENTS)
        if limit == 0.1:
            assert sum(factor < 1 for factor in expected) > 15, "most updates should be clipped here"
    else:
        assert {row["clip_factor"] for row in rows} == {1.0}


@pytest.mark.parametrize("max_grad_norm", [0.1, 0.0])
def test_where_the_clip_is_exact_the_norm_it_returns_is_recorded(tmp_path, monkeypatch, max_grad_norm):
    """As on an accelerator. At max_grad_norm=0, Trainer calls the clip with an infinite limit to have a norm to log."""
    monkeypatch.setattr(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset())
    trainer = stock_run(tmp_path, max_grad_norm=max_grad_norm, max_steps=5)
    assert {row["step"]: row["l2"] for row in rows_of(trainer)} == logged(trainer, "grad_norm")


def test_bfloat16_parameters(tmp_path):
    trainer = stock_run(tmp_path, model=tiny_model().to(torch.bfloat16), max_grad_norm=0.1)
    l2 = logged(trainer, "grad_norm")
    for row in rows_of(trainer):
        assert row["l2"] == pytest.approx(l2[row["step"]], rel=BFLOAT16_LOG)


def test_frozen_parameters_are_left_out(tmp_path):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "ln_f" in name
    trainer = stock_run(tmp_path, model=model, max_steps=5)
    l2 = logged(trainer, "grad_norm")
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    for row in rows_of(trainer):
        assert row["l2"] == pytest.approx(l2[row["step"]], rel=FLOAT32_GRADIENTS)
        assert row["l1"] <= row["l2"] * count**0.5  # Cauchy-Schwarz over the trained ones alone


def test_lora(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    trainer = stock_run(tmp_path, model=peft.get_peft_model(tiny_model(), config), max_steps=5)
    l2 = logged(trainer, "grad_norm")
    assert [row["l2"] for row in rows_of(trainer)] == pytest.approx(list(l2.values()), rel=FLOAT32_GRADIENTS)


def test_training_is_the_same_with_and_without_recording(tmp_path):
    with_it = stock_run(tmp_path / "with", max_grad_norm=0.1)
    without = stock_run(tmp_path / "without", max_grad_norm=0.1, callbacks=[])
    assert logged(with_it, "loss") == logged(without, "loss")
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "without" / "gradient_norms.jsonl").exists()


def test_nothing_of_transformers_stays_changed(tmp_path):
    before = Accelerator.clip_grad_norm_, Trainer.log
    stock_run(tmp_path, max_steps=3)
    assert (Accelerator.clip_grad_norm_, Trainer.log) == before


def test_header(tmp_path):
    stock_run(tmp_path, max_steps=3)
    header, _ = read_rows(tmp_path / "gradient_norms.jsonl")
    assert header == {
        "format": "gradient_norms", "version": 1, "optimizer": "AdamW", "optimizer_family": "adam", "world_size": 1,
        "max_grad_norm": 1.0, "num_training_steps": 3,
    }  # fmt: skip


def test_equal_runs_give_equal_files_and_the_old_one_is_kept(tmp_path):
    for _ in range(3):
        stock_run(tmp_path, max_steps=4)
    names = [tmp_path / name for name in ("gradient_norms.jsonl", "gradient_norms.1.jsonl", "gradient_norms.2.jsonl")]
    assert len({path.read_text() for path in names}) == 1


def test_l1_reaches_the_trackers(tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    stock_run(tmp_path, max_steps=4, report_to="tensorboard")
    events = tensorboard.EventAccumulator(str(tmp_path / "events")).Reload()
    written = {event.step: event.value for event in events.Scalars("train/grad_norm_l1")}
    assert written == {row["step"]: pytest.approx(row["l1"]) for row in read_rows(tmp_path / "gradient_norms.jsonl")[1]}


def test_logging_every_few_steps_logs_those_steps(tmp_path):
    trainer = stock_run(tmp_path, max_steps=12, logging_steps=5)
    l1 = {row["step"]: row["l1"] for row in rows_of(trainer)}
    assert logged(trainer, "grad_norm_l1") == {5: pytest.approx(l1[5]), 10: pytest.approx(l1[10])}


def test_refined_trainer_records_by_default_and_can_be_told_not_to(tmp_path):
    for record in (True, False):
        arguments = RefinedScheduleArguments(
            **tiny_options(tmp_path / str(record), max_steps=3, record_gradient_norms=record)
        )
        RefinedScheduleTrainer(tiny_model(), arguments, train_dataset=tiny_data()).train()
        assert (tmp_path / str(record) / "gradient_norms.jsonl").exists() is record


def test_mixin_into_another_trainer(tmp_path):
    class RefinedSeq2SeqTrainer(RefinedScheduleMixin, Seq2SeqTrainer):
        pass

    arguments = Seq2SeqTrainingArguments(**tiny_options(tmp_path, max_steps=3))
    RefinedSeq2SeqTrainer(
        tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[GradientNormCallback()]
    ).train()
    assert len(read_rows(tmp_path / "gradient_norms.jsonl")[1]) == 3
    assert not (tmp_path / "gradient_norms.1.jsonl").exists(), "two callbacks recorded the same run"


class UsesUpGradients(torch.optim.SGD):
    """As LOMO does: the parameters move in the backward pass, and no gradient is left."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self.use_up)

    @torch.no_grad()
    def use_up(self, parameter):
        parameter -= 0.01 * parameter.grad
        parameter.grad = None


def test_where_gradients_cannot_be_seen_the_run_goes_on(tmp_path, caplog):
    model = tiny_model()
    optimizer = UsesUpGradients(model.parameters(), lr=0.01)
    trainer = Trainer(
        model, tiny_arguments(tmp_path, max_steps=5), train_dataset=tiny_data(), callbacks=[GradientNormCallback()],
        optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 5
    assert not (tmp_path / "gradient_norms.jsonl").exists()
    warnings = [record.message for record in caplog.records if record.name.startswith("hf_refined_schedule")]
    assert len(warnings) == 1
    assert "no parameter of the optimizer had a gradient" in warnings[0]


def test_gradients_clipped_by_other_means_are_not_recorded_as_whole(tmp_path, caplog):
    class ClipsByItself(Trainer):
        def _clip_grad_norm(self, model):
            return torch.nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)

    arguments = tiny_arguments(tmp_path, max_steps=5, max_grad_norm=0.1)
    trainer = ClipsByItself(tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[GradientNormCallback()])
    trainer.train()
    assert trainer.state.global_step == 5
    assert not (tmp_path / "gradient_norms.jsonl").exists()
    assert "by other means" in caplog.text


def test_a_file_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "gradient_norms").write_text("a file where a folder should be")
    trainer = stock_run(
        tmp_path, max_steps=5, callbacks=[GradientNormCallback(tmp_path / "gradient_norms" / "file.jsonl")]
    )
    assert trainer.state.global_step == 5
    assert "cannot be written" in caplog.text


def test_early_stopping_leaves_what_was_recorded_and_no_whole_schedule(tmp_path):
    class StopAtTen(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 10

    stock_run(tmp_path, callbacks=[GradientNormCallback(), StopAtTen()])
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert (header["num_training_steps"], len(rows)) == (30, 10)
    options = {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {"refined_from": str(tmp_path)}}
    with pytest.raises(ValueError, match="covers 10 of 30"):
        stock_run(tmp_path / "refined", **options)


def test_save_strategies_find_the_file_up_to_date(tmp_path):
    """At every checkpoint the file holds every update before it, however the checkpoint was decided on."""
    lengths = []

    class CountAtSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            lengths.append((state.global_step, len(read_rows(tmp_path / "gradient_norms.jsonl")[1])))

    for options in ({"save_strategy": "steps", "save_steps": 7}, {"save_strategy": "epoch"}, {"save_strategy": "best"}):
        evaluation = {"eval_strategy": "steps", "eval_steps": 9, "metric_for_best_model": "loss"}
        arguments = tiny_arguments(tmp_path, per_device_train_batch_size=16, **options, **evaluation)
        # Counted before the recorder's own on_save, so that what it writes there does not help.
        callbacks = [CountAtSave(), GradientNormCallback()]
        Trainer(
            tiny_model(), arguments, train_dataset=tiny_data(), eval_dataset=tiny_data(8), callbacks=callbacks
        ).train()
    assert len(lengths) >= 6
    assert all(step == count for step, count in lengths), lengths


REFINED = {"lr_scheduler_type": "refined"}


def baseline(tmp_path, **options):
    return stock_run(tmp_path / "baseline", **options)


@pytest.mark.parametrize("source", ["folder", "file", "trainer_state", "checkpoint"])
def test_a_refined_run_uses_the_baselines_norms(tmp_path, source):
    trainer = baseline(tmp_path, save_strategy="steps", save_steps=30)
    norms = [row["l1"] for row in rows_of(trainer)]
    folder = tmp_path / "baseline"
    path = {
        "folder": folder,
        "file": folder / "gradient_norms.jsonl",
        "trainer_state": folder / "checkpoint-30" / "trainer_state.json",
        "checkpoint": folder / "checkpoint-30",
    }[source]
    refined = stock_run(
        tmp_path / "refined", **REFINED, lr_scheduler_kwargs={"refined_from": str(path), "smoothing": 0.1}
    )
    # The formula on norms extended by one, on paper: the window of 30 updates is 3 wide, the last value repeated.
    smoothed = [
        sorted(window)[1] for window in zip([norms[0], *norms[:-1]], norms, [*norms[1:], norms[-2]], strict=True)
    ]
    expected = refine_schedule([*smoothed, smoothed[-1]], smoothing=0)[:-1] * 1e-2
    assert rates(refined) == pytest.approx(list(expected), rel=1e-5)


def test_refined_from_the_run_that_is_overwritten(tmp_path):
    """The source is read before the old file is moved aside."""
    first = baseline(tmp_path)
    options = {**REFINED, "lr_scheduler_kwargs": {"refined_from": str(tmp_path / "baseline")}}
    second = baseline(tmp_path, **options)
    assert rates(first) != rates(second)
    assert (tmp_path / "baseline" / "gradient_norms.1.jsonl").exists()


def resumed(tmp_path, folder, step, **options):
    arguments = tiny_arguments(tmp_path / folder, save_strategy="steps", save_steps=10, **options)
    trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[GradientNormCallback()])
    trainer.train(resume_from_checkpoint=str(tmp_path / folder / f"checkpoint-{step}") if step else None)
    return trainer


def test_resume_gives_the_file_and_the_rates_of_the_uninterrupted_run(tmp_path):
    source = {**REFINED, "lr_scheduler_kwargs": {"refined_from": str(tmp_path / "baseline")}}
    baseline(tmp_path)
    whole = resumed(tmp_path, "run", None, **source)
    file = tmp_path / "run" / "gradient_norms.jsonl"
    text = file.read_text()
    file.write_text(text[: len(text) * 4 // 5])  # killed after the checkpoint, in the middle of a line
    (tmp_path / "baseline" / "gradient_norms.jsonl").unlink()
    again = resumed(tmp_path, "run", 10, **source)
    assert file.read_text() == text
    assert rates(again) == rates(whole)


def test_resume_where_recording_was_not_on(tmp_path, caplog):
    stock_run(tmp_path, callbacks=[], save_strategy="steps", save_steps=10)
    resumed(tmp_path, "", 10)
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert [row["step"] for row in rows] == list(range(11, 31))
    assert header["num_training_steps"] == 30
    assert "lacks 10 updates" in caplog.text


def test_resume_with_more_steps_rewrites_the_plan(tmp_path):
    resumed(tmp_path, "run", None)
    resumed(tmp_path, "run", 30, max_steps=40)
    header, rows = read_rows(tmp_path / "run" / "gradient_norms.jsonl")
    assert (header["num_training_steps"], len(rows)) == (40, 40)


@pytest.mark.parametrize("trainer_class", [Trainer, RefinedScheduleTrainer])
def test_a_missing_source_stops_the_run_before_it_learns_anything(tmp_path, trainer_class):
    arguments = tiny_arguments(tmp_path, **REFINED, lr_scheduler_kwargs={"refined_from": str(tmp_path / "nothing")})
    trainer = trainer_class(tiny_model(), arguments, train_dataset=tiny_data())
    with pytest.raises(ValueError, match="There is no file or folder"):
        trainer.train()
    for trained, fresh in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True):
        assert torch.equal(trained, fresh)


def test_a_failed_run_does_not_disturb_the_next(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyError("the run fails")

    callback = GradientNormCallback()
    with pytest.raises(KeyError):
        stock_run(tmp_path / "failed", callbacks=[callback, Fail()])
    trainer = stock_run(tmp_path / "next", callbacks=[callback])
    l2 = logged(trainer, "grad_norm")
    assert [row["l2"] for row in rows_of(trainer)] == pytest.approx(list(l2.values()), rel=FLOAT32_GRADIENTS)


def test_a_folder_named_for_the_file_keeps_its_place(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "model.safetensors").touch()
    stock_run(tmp_path / "run", max_steps=3, callbacks=[GradientNormCallback(tmp_path)])
    assert len(read_rows(tmp_path / "gradient_norms.jsonl")[1]) == 3
    assert (tmp_path / "precious" / "model.safetensors").exists()


@dataclass
class WithoutAHash(TrainerCallback):
    every: int = 5


def test_callbacks_without_a_hash(tmp_path):
    class RecordsToo(WithoutAHash, GradientNormCallback):
        def __init__(self):
            GradientNormCallback.__init__(self)

    trainer = stock_run(tmp_path, max_steps=3, callbacks=[WithoutAHash(), RecordsToo()])
    assert list(logged(trainer, "grad_norm_l1")) == [1, 2, 3]


@pytest.mark.parametrize(("owner", "name"), [(Trainer, "log"), (Accelerator, "clip_grad_norm_")])
def test_a_tool_that_wraps_what_we_wrap_while_we_do(tmp_path, monkeypatch, owner, name):
    """It keeps our wrapper beneath its own, for good; later trainings are recorded once, and end."""
    monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end
    calls = []

    class WrapOnce(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if not calls:
                beneath = getattr(owner, name)
                monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(1) or beneath(*args, **kwargs))

    for run in range(3):
        trainer = stock_run(tmp_path / f"{run}", max_steps=4, callbacks=[GradientNormCallback(), WrapOnce()])
        l2 = logged(trainer, "grad_norm")
        assert [row["l2"] for row in rows_of(trainer)] == pytest.approx(list(l2.values()), rel=FLOAT32_GRADIENTS)
        assert list(logged(trainer, "grad_norm_l1")) == [1, 2, 3, 4]
    assert len(calls) >= 12


def test_two_trainers_side_by_side(tmp_path):
    """The clip of one is not the other's."""
    inner = {}

    class TrainAnother(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                inner["trainer"] = stock_run(tmp_path / "inner", model=tiny_model(seed=3), max_steps=4)

    outer = stock_run(tmp_path / "outer", callbacks=[GradientNormCallback(), TrainAnother()], max_steps=10)
    for trainer in (outer, inner["trainer"]):
        l2 = logged(trainer, "grad_norm")
        assert [row["l2"] for row in rows_of(trainer)] == pytest.approx(list(l2.values()), rel=FLOAT32_GRADIENTS)


def test_early_stopping_callback_and_best_model_work_beside_it(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    arguments = tiny_arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model="loss", **options)
    callbacks = [GradientNormCallback(), EarlyStoppingCallback(2)]
    trainer = Trainer(
        tiny_model(), arguments, train_dataset=tiny_data(), eval_dataset=tiny_data(8, seed=2), callbacks=callbacks
    )
    trainer.train()
    assert len(rows_of(trainer)) == trainer.state.global_step


KILLED = """
import sys, time
from transformers import Trainer, TrainerCallback
from hf_refined_schedule import GradientNormCallback, register
from tests.tiny import tiny_arguments, tiny_data, tiny_model
register()
folder, source = sys.argv[1:]

class Slowly(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(state.global_step, flush=True)
        time.sleep(0.01)

arguments = tiny_arguments(folder, save_strategy="steps", save_steps=8, lr_scheduler_type="refined",
                           lr_scheduler_kwargs={"refined_from": source}, max_steps=60)
Trainer(tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[GradientNormCallback(), Slowly()]).train()
"""


@pytest.mark.parametrize("update", [9, 30, 59])
def test_killed_and_resumed(tmp_path, update):
    """SIGKILL at an arbitrary update; resumed, the run ends with the norms file and the rates of one that was not."""
    baseline(tmp_path)
    words = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(tmp_path / "baseline")]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout:
            if line.strip() == str(update):
                time.sleep(0.005)
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    options = {**REFINED, "lr_scheduler_kwargs": {"refined_from": str(tmp_path / "baseline")}, "max_steps": 60}
    whole = resumed(tmp_path, "whole", None, **options)
    again = resumed(tmp_path, "run", (update - 1) // 8 * 8, **options)
    assert rows_of(again) == rows_of(whole)
    text = (tmp_path / "run" / "gradient_norms.jsonl").read_text()
    assert text == (tmp_path / "whole" / "gradient_norms.jsonl").read_text()
    assert json.loads(text.splitlines()[-1])["step"] == 60
    assert rates(again) == rates(whole)


def test_the_recording_is_a_source(tmp_path):
    trainer = baseline(tmp_path)
    norms = load_norms(tmp_path / "baseline")
    assert list(norms.l1) == [row["l1"] for row in rows_of(trainer)]
    assert (norms.optimizer, norms.num_training_steps) == ("adam", 30)
