"""Norms from what training scripts print: lines as each tool writes them."""

import numpy as np
import pytest

from hf_refined_schedule import load_losses, load_norms

from .refusals import refuses
from .tiny import BIN, run_command

VALUES = [5.0, 3.0, *np.linspace(2, 1, 28).round(3).tolist()]


def console(path, line, preamble="Loading the model, please wait ...\n", end="\n"):
    """Lines for updates 10, 20, ... 300; `line` is a format of step, value and epoch."""
    lines = [line.format(step=10 * i, value=value, epoch=i / 100) for i, value in enumerate(VALUES, start=1)]
    path.write_text(preamble + end.join(lines) + end)
    return path


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("INFO step: {step}, loss: 2.25, grad_norm: {value}, lr: 1e-05", id="key: value"),
        pytest.param("[2024-05-06 12:00:01,123] [INFO] step={step} loss=2.25 grad_norm={value}", id="key=value"),
        pytest.param("step {step}/300 | loss 2.25 | grad_norm {value}", id="spaces alone"),
        pytest.param("Epoch [1/1], Step [{step}/300], Grad_Norm: {value}", id="brackets"),
        pytest.param(
            " iteration {step:8}/     300 | consumed samples: 640 | lm loss: 2.25E+00 | grad norm: {value} |",
            id="Megatron",
        ),
        pytest.param(
            "\x1b[31mstep: {step:2}  \x1b[32mloss: 2.25  \x1b[38;2;1;1;1mgrad_norm: {value}\x1b[39m", id="torchtitan"
        ),
        pytest.param("step:{step} - global_seqlen/min:1.5 - actor/grad_norm:{value} - lr:1e-6", id="verl"),
        pytest.param("step:{step} - actor/grad_norm:np.float64({value}) - lr:np.float64(1e-6)", id="numpy 2"),
        pytest.param("| epoch 001:  10 / 30 loss=2.25, gnorm={value}, num_updates={step}", id="fairseq"),
        pytest.param("INFO - step {step}: {{'loss': 2.25, 'grad_norm': {value}}}", id="a dictionary after the step"),
        pytest.param("{{'step': {step}, 'loss': tensor(2.25), 'grad_norm': tensor({value})}}", id="tensors"),
        pytest.param('INFO {{"step": {step}, "data": {{"grad_norm": {value}, "ok": true}}}}', id="JSON after text"),
        pytest.param("{{'step': {step}, 'note': 'C:\\data', 'grad_norm': {value}}}", id="a backslash"),
    ],
)
def test_steps_and_norms_in_a_line(tmp_path, line):
    norms = load_norms(console(tmp_path / "train.log", line))
    assert norms.l2.tolist() == VALUES
    assert norms.steps.tolist() == list(range(10, 301, 10))
    assert norms.origin == "console output"


def test_learning_rates_of_megatron(tmp_path):
    line = " iteration {step:8}/     300 | consumed samples: 640 | learning rate: 1.5E-05 | lm loss: 2.25E+00 | grad norm: {value} |"
    log = load_losses(console(tmp_path / "train.log", line))
    assert set(log.learning_rates) == {1.5e-5}
    assert (set(log.losses), log.num_training_steps) == ({2.25}, 300)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("{{'loss': 2.25, 'grad_norm': {value}, 'learning_rate': 1e-05, 'epoch': {epoch}}}", id="numbers"),
        pytest.param(
            "{{'loss': '2.25', 'grad_norm': '{value}', 'learning_rate': '1e-05', 'epoch': '{epoch}'}}", id="text"
        ),
        pytest.param(
            "  3%|3   | {step}/900 [00:10<09:50]{{'loss': 2.25, 'grad_norm': {value}, 'epoch': {epoch}}}", id="tqdm"
        ),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\n  1%|1  | 9/900 [00:01<01:30, 10.0it/s]\r  2%|2  | 18/900 [00:02<01:28]\r"])
def test_a_trainer_without_a_progress_bar_of_the_updates(tmp_path, line, end):
    summary = "{'train_runtime': 10.0, 'train_loss': 2.0, 'epoch': 0.3}\n"
    path = console(tmp_path / "train.log", line, end=end)
    path.write_text(path.read_text() + summary)
    norms = load_norms(path)
    assert norms.l2.tolist() == VALUES
    assert norms.steps.tolist() == list(range(1, 31))
    assert "entries are counted" in norms.description


EVALUATION = "\r 50%|#####     | 1/2 [00:00<00:00]\r          \r{'eval_loss': '2.5', 'epoch': '0.1'}\n"


def trainer_output(path, updates, total=300, bar=" {percent}%|###       | {update}/{total} [00:01<00:02, 150.2it/s]"):
    """What a Trainer and its progress bar write to one file, with an evaluation after each tenth entry."""
    text = "\r  0%|          | 0/300 [00:00<?, ?it/s]A warning in between\n"
    for number, (update, value) in enumerate(zip(updates, VALUES, strict=False), start=1):
        epoch = update / 1000
        drawn = "\r" + bar.format(percent=update * 100 // total, update=update, total=total)
        text += f"\r          \r{{'loss': '{value}', 'grad_norm': '{value}', 'learning_rate': '1e-05', 'epoch': '{epoch}'}}\n"
        text += drawn + (f"{EVALUATION}\r100%|##########| 2/2 [00:00<00:00]{drawn}" if number % 10 == 0 else "")
    path.write_text(text + "\n{'train_runtime': 10.0, 'train_loss': 2.0, 'epoch': 0.3}\n")
    return path


def test_updates_are_read_from_the_progress_bar_of_a_trainer(tmp_path):
    norms = load_norms(trainer_output(tmp_path / "train.log", range(10, 301, 10)))
    assert norms.l2.tolist() == VALUES
    assert norms.steps.tolist() == list(range(10, 301, 10))
    assert "30 L2 norms, one every 10 updates, to update 300 of 300" in norms.description
    losses = load_losses(tmp_path / "train.log")
    assert losses.steps.tolist() == norms.steps.tolist()


@pytest.mark.parametrize(
    "line",
    [
        " {step:3}%|##  | {step}/900 [00:05<00:20]{{'loss': 2.25, 'grad_norm': {value}, 'learning_rate': 1e-05, 'epoch': {epoch}}}",
        " {step:3}%|##  | {step}/900 [00:05<00:20, loss=2.25, grad_norm={value}, learning_rate=1e-5, epoch={epoch}]",
    ],
)
def test_an_entry_on_the_line_of_a_bar_is_not_lost(tmp_path, line):
    norms = load_norms(console(tmp_path / "train.log", line))
    assert norms.l2.tolist() == VALUES
    assert norms.steps.tolist() == list(range(1, 31))


TRAINER_SCRIPT = """
import torch
from transformers import Trainer, TrainingArguments

model = torch.nn.Linear(2, 1)
model.forward = lambda x: {"loss": torch.nn.functional.linear(x, model.weight, model.bias).square().mean()}
arguments = TrainingArguments(
    "out", max_steps=60, logging_steps=2, eval_strategy="steps", eval_steps=20, report_to="none", save_strategy="no", use_cpu=True,
    per_device_train_batch_size=1, dataloader_pin_memory=False,
)
data = [{"x": torch.tensor([float(number), 1.0])} for number in range(40)]
Trainer(model, arguments, train_dataset=data, eval_dataset=data[:4]).train()
"""


def test_what_a_trainer_really_prints_into_a_file(tmp_path):
    (tmp_path / "train.py").write_text(TRAINER_SCRIPT)
    done = run_command("bash", "-c", f"{BIN / 'python'} train.py > train.log 2>&1", folder=tmp_path)
    assert done.returncode == 0, (tmp_path / "train.log").read_text()
    norms = load_norms(tmp_path / "train.log")
    assert norms.steps.tolist() == list(range(2, 61, 2))
    assert norms.num_training_steps == 60


def test_an_early_end_and_a_resumed_run_are_seen_in_the_progress_bar(tmp_path):
    updates = [*range(10, 211, 10), *range(190, 241, 10)]
    norms = load_norms(trainer_output(tmp_path / "train.log", updates))
    assert norms.steps.tolist() == list(range(10, 241, 10))
    assert norms.num_training_steps == 300


def test_a_norm_that_is_not_finite_is_counted(tmp_path):
    path = console(tmp_path / "train.log", "{{'loss': 2.25, 'grad_norm': {value}, 'epoch': {epoch}}}")
    path.write_text(path.read_text().replace("'grad_norm': 3.0", "'grad_norm': nan"))
    norms = load_norms(path)
    assert norms.steps.tolist() == [1, *range(3, 31)]
    assert norms.num_not_finite == 1


def test_a_thousand_is_read_with_its_comma(tmp_path):
    lines = [f"step: {step:,}, grad_norm: 1.5" for step in range(990, 1020)]
    path = tmp_path / "train.log"
    path.write_text("\n".join(lines))
    assert load_norms(path).steps.tolist() == list(range(990, 1020))


def test_norms_may_begin_late(tmp_path):
    path = console(tmp_path / "train.log", "step: {step}, grad_norm: {value}", preamble="Tokenizing, 1 of 9\n" * 20_000)
    assert load_norms(path).l2.tolist() == VALUES


def test_a_value_is_taken_by_name(tmp_path):
    path = console(tmp_path / "train.log", "step: {step}, grad_norm: 1.0, sharpness: {value}")
    assert load_norms(path, column="sharpness", norm="l1").l1.tolist() == VALUES
    with refuses("no column 'sharp'", "'sharpness'"):
        load_norms(path, column="sharp", norm="l1")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("max_grad_norm: 1.0\n" * 30, id="a threshold"),
        pytest.param("grad_norm: 1.0\n" * 10, id="too few"),
        pytest.param("grad_norm: 1.0 {" + "[" * 9000 + "\n" * 30, id="deep nesting"),
        pytest.param("{'grad_norm': 1.0, " + "'a': {" * 1500 + "\n" * 30, id="a deep dictionary"),
        pytest.param("{'grad_norm': {'a': {}}}\n" * 30, id="no number"),
        pytest.param("grad_norm: 1.0 " + "x" * 2_000_000, id="two million characters"),
    ],
)
def test_other_output_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "train.log"
    path.write_text(content)
    with refuses(str(path)):
        load_norms(path)
