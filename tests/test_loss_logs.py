"""Losses and learning rates from the records of a run: what is read, how rates between logged ones are rebuilt, what is refused."""

import csv
import json

import numpy as np
import pytest
from transformers import Trainer

from hf_refined_schedule import GradientNormCallback, LossLog, load_losses
from hf_refined_schedule.norms.loss_columns import loss_column, rate_column
from hf_refined_schedule.norms.loss_log import rates_of_every_update
from hf_refined_schedule.norms.step_order import ENTRIES_COUNTED

from .records import entry, json_lines, write_norms, write_state
from .refusals import refuses
from .tiny import rates, tiny_arguments, tiny_data, tiny_model
from .tolerances import EXACT_ROUNDING

STEPS = list(range(10, 410, 10))
LOSSES = [round(4 - 0.05 * number, 2) for number in range(40)]
RATES = [round(4e-3 - 1e-4 * number, 6) for number in range(40)]


def rows(loss="loss", rate="learning_rate", **more):
    return [
        {"step": step, loss: value, rate: learning_rate, **more}
        for step, value, learning_rate in zip(STEPS, LOSSES, RATES, strict=True)
    ]


def table(path, content):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)
    return path


def check(log):
    assert isinstance(log, LossLog)
    assert log.steps.tolist() == STEPS
    assert log.losses.tolist() == LOSSES
    assert len(log.learning_rates) == 400
    assert log.learning_rates[9::10].tolist() == pytest.approx(RATES, rel=EXACT_ROUNDING)
    assert log.learning_rates[14] == pytest.approx((RATES[0] + RATES[1]) / 2)  # halfway from update 10 to 20
    assert log.learning_rates[:10].tolist() == [RATES[0]] * 10


# --- the records ---


def test_a_trainers_state(tmp_path):
    history = [{**row, "epoch": row["step"] / 300} for row in rows()]
    history += [{"step": 400, "eval_loss": 9.0, "epoch": 400 / 300}, {"step": 400, "train_loss": 7.0}]
    log = load_losses(write_state(tmp_path / "trainer_state.json", history, max_steps=500))
    check(log)
    assert (log.num_training_steps, log.total_steps, log.last_step) == (500, 500, 400)
    assert log.num_epochs == pytest.approx(4 / 3)
    assert log.peak == 4e-3
    assert log.description == (
        f"{tmp_path / 'trainer_state.json'} (a Trainer's log): 40 losses, one every 10 updates, to update 400 of 500, "
        "learning rate up to 0.004, 1.33 epochs"
    )


def test_the_losses_of_a_trainer_are_means_since_the_last_entry(tmp_path):
    entries = [{"step": step, "loss": 3.0, "eval_loss": 2.0, "learning_rate": 0.1} for step in [1, *range(10, 400, 10)]]
    log = load_losses(write_state(tmp_path / "trainer_state.json", entries))
    assert log.centres[:4].tolist() == [1, 6, 15, 25]
    assert load_losses(tmp_path / "trainer_state.json", column="eval_loss").centres.tolist() == log.steps.tolist()
    prefixed = load_losses(table(tmp_path / "wandb.csv", rows("train/loss", "train/learning_rate")))
    assert prefixed.centres.tolist() == (prefixed.steps - 5).tolist()
    other = load_losses(table(tmp_path / "other.csv", rows("loss", "lr")))
    assert other.centres.tolist() == other.steps.tolist()


@pytest.mark.parametrize(
    "loss, rate",
    [("loss", "lr"), ("train/loss", "train/learning_rate"), ("run-7 - train/loss", "run-7 - train/learning_rate"),
     ("train_loss", "lr-AdamW"), ("lm loss", "learning-rate")],
)  # fmt: skip
def test_tables_and_json_lines(tmp_path, loss, rate):
    check(load_losses(table(tmp_path / "log.csv", rows(loss, rate, **{"eval/loss": 9.0}))))
    check(load_losses(json_lines(tmp_path / "log.jsonl", rows(loss, rate, grad_norm=1.0))))


def test_lists_for_columns(tmp_path):
    columns = {name: [row[name] for row in rows()] for name in ("step", "loss", "learning_rate")}
    path = tmp_path / "log.json"
    path.write_text(json.dumps({**columns, "eval_loss": [9.0, 8.0]}))
    check(load_losses(path))


def test_events_of_tensorboard(tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(tmp_path / "runs" / "now")
    for row in rows("train/loss", "train/learning_rate"):
        step = row.pop("step")
        for tag, value in row.items():
            writer.add_scalar(tag, value, step)
    writer.close()
    log = load_losses(tmp_path)
    assert log.origin == "TensorBoard's log"
    assert log.steps.tolist() == STEPS
    assert log.losses.tolist() == pytest.approx(LOSSES, rel=1e-6)  # float32
    assert log.learning_rates[9::10].tolist() == pytest.approx(RATES, rel=1e-6)


def test_console_output(tmp_path):
    """A Trainer prints no steps: its entries are counted."""
    lines = ["Loading weights", *(str({name: row[name] for name in ("loss", "learning_rate")}) for row in rows())]
    path = tmp_path / "log.txt"
    path.write_text("\n".join([*lines, "{'eval_loss': 9.0}", "done"]) + "\n")
    log = load_losses(path)
    assert log.losses.tolist() == LOSSES
    assert log.learning_rates.tolist() == RATES
    assert log.steps.tolist() == list(range(1, 41))
    assert log.remarks == (ENTRIES_COUNTED,)


def test_rates_in_rows_of_their_own(tmp_path):
    content = [{"step": row["step"], "loss": row["loss"]} for row in rows()]
    content += [{"step": row["step"], "lr": row["learning_rate"]} for row in rows()]
    check(load_losses(json_lines(tmp_path / "log.jsonl", content)))


def test_the_loss_of_an_evaluation_is_taken_by_name(tmp_path):
    history = [{**row, "grad_norm": 1.0} for row in rows()]
    history += [{"step": step, "eval_loss": 1 + step / 1000} for step in range(20, 401, 20)]
    log = load_losses(write_state(tmp_path / "trainer_state.json", history), column="eval_loss")
    assert log.steps.tolist() == list(range(20, 401, 20))
    assert log.losses.tolist() == [1 + step / 1000 for step in range(20, 401, 20)]
    assert log.learning_rates[9::10].tolist() == pytest.approx(RATES, rel=EXACT_ROUNDING)


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    history = [*rows()[:30], *[{**row, "loss": 1.0} for row in rows()[20:]]]
    log = load_losses(json_lines(tmp_path / "log.jsonl", history))
    assert log.losses.tolist() == LOSSES[:20] + [1.0] * 20
    assert log.remarks == ("steps dropped where a resumed run goes back: 10",) or log.remarks == ()


def test_a_recorded_run_has_its_losses_in_its_checkpoint_and_its_exact_rates_in_its_file(tmp_path):
    arguments = tiny_arguments(
        tmp_path / "run", max_steps=60, logging_steps=3, save_strategy="steps", save_steps=60, lr_scheduler_type="cosine",
        warmup_steps=7,
    )  # fmt: skip
    trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[GradientNormCallback()])
    trainer.train()
    for source in (tmp_path / "run", tmp_path / "run" / "gradient_norms.jsonl", tmp_path / "run" / "checkpoint-60"):
        log = load_losses(source)
        logged = [one for one in trainer.state.log_history if "loss" in one]
        assert log.steps.tolist() == list(range(3, 61, 3))
        assert log.losses.tolist() == [one["loss"] for one in logged]
        assert log.learning_rates[2::3].tolist() == rates(trainer)
        lines = (tmp_path / "run" / "gradient_norms.jsonl").read_text().splitlines()[1:]
        assert log.learning_rates.tolist() == [json.loads(line)["learning_rate"] for line in lines]
        assert (log.num_training_steps, log.warmup_steps) == (60, 7)


def test_the_recorded_file_of_another_run_is_passed_over(tmp_path):
    write_state(tmp_path / "trainer_state.json", rows(), max_steps=400)
    write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 400)  # at a learning rate of 0.1
    check(load_losses(tmp_path))


# --- which columns ---


@pytest.mark.parametrize(
    "names, loss, rate",
    [
        (["loss", "eval_loss", "train_loss", "learning_rate"], "loss", "learning_rate"),
        (["val_loss", "train_loss", "lr"], "train_loss", "lr"),
        (["train/loss", "train/loss__MIN", "val/loss", "train/lr", "train/lr__MAX"], "train/loss", "train/lr"),
        (["Step", "loss", "lr-AdamW/pg1", "lr-AdamW/pg2"], "loss", "lr-AdamW/pg1"),
        (["a/learning_rate", "b/learning_rate", "b/loss"], "b/loss", "b/learning_rate"),
    ],
)
def test_columns(tmp_path, names, loss, rate):
    assert loss_column(names, tmp_path) == loss
    assert rate_column(names, loss, tmp_path) == rate


@pytest.mark.parametrize(
    "names, words",
    [
        (["step", "eval_loss", "learning_rate"], ["no column that is named as a training loss", "'eval_loss'"]),
        (["a/loss", "b/loss", "lr"], ["several columns of losses", "'a/loss', 'b/loss'"]),
        (["step", "loss", "color"], ["no column that is named as a learning rate", "log of losses and learning rates"]),
    ],
)
def test_unclear_columns_are_refused(tmp_path, names, words):
    with refuses(*words):
        load_losses(table(tmp_path / "log.csv", [dict.fromkeys(names, 1.0)] * 30))


# --- rates of every update ---


@pytest.mark.parametrize(
    "steps, logged, last, warmup, expected",
    [
        ([1, 2, 3], [0.3, 0.2, 0.1], 3, None, [0.3, 0.2, 0.1]),  # of every update
        ([2, 4], [0.4, 0.2], 5, None, [0.4, 0.4, 0.3, 0.2, 0.2]),  # no warm-up in sight; the last rate holds
        ([3, 4], [0.2, 0.3], 5, None, [0.0, 0.1, 0.2, 0.3, 0.3]),  # a warm-up that goes on
        ([5, 6], [0.4, 0.3], 6, 2, [0.0, 0.2, 0.4, 0.4, 0.4, 0.3]),  # a warm-up that the user knows of
        ([3, 5, 7], [0.2, 0.4, 0.3], 7, 4, [0.0, 0.1, 0.2, 0.3, 0.4, 0.35, 0.3]),  # or sees, too
        ([1, 2, 3, 4], [0.0, 0.1, 0.1, 0.2], 4, 4, [0.0, 0.1, 0.1, 0.2]),  # an update that a loss scaler skipped
        ([3, 4, 5], [0.2, 0.1, 0.3], 5, 2, [0.0, 0.1, 0.2, 0.1, 0.3]),  # before a restart with a higher peak
        ([5, 6], [0.4, 0.5], 6, 0, [0.4, 0.4, 0.4, 0.4, 0.4, 0.5]),  # or knows not to be
    ],
)
def test_rates_of_every_update(steps, logged, last, warmup, expected):
    rebuilt = rates_of_every_update(np.array(steps), np.array(logged), last, warmup)
    assert rebuilt.tolist() == pytest.approx(expected, rel=EXACT_ROUNDING)


@pytest.mark.parametrize(
    "logged, warmup, words",
    [
        ([0.4, 0.3, 0.2, 0.1], 6, ["do not rise after update 5"]),
        ([0.1, 0.2, 0.4, 0.3], 11, ["rise to update 7"]),
        ([0.1, 0.2, 0.4, 0.3], 4, ["rise to update 7"]),
        ([0.1, 0.2, 0.1, 0.3], 8, ["rise to update 6"]),  # the later peak is a restart
    ],
)
def test_a_warmup_that_the_log_refutes(logged, warmup, words):
    with refuses(f"--warmup-steps (warmup_steps) is {warmup}", *words):
        rates_of_every_update(np.array([5, 6, 7, 8]), np.array(logged), 8, warmup)


def test_a_warmup_that_the_log_does_not_show(tmp_path):
    late = table(tmp_path / "late.csv", rows()[10:])
    log = load_losses(late)
    assert log.remarks == ("no rates before update 110, a warm-up before it is not seen",)
    assert (log.learning_rates[0], log.warmup_steps) == (RATES[10], 0)
    log = load_losses(late, warmup_steps=50)
    assert log.learning_rates[[0, 25, 50, 100]].tolist() == pytest.approx([0, RATES[10] / 2, RATES[10], RATES[10]])
    assert (log.remarks, log.warmup_steps) == ((), 50)


@pytest.mark.parametrize(
    "learning_rates, expected",
    [([0, 0.1, 0.2, 0.2, 0.1], 2), ([0.2, 0.2, 0.1, 0.1, 0.0], 0), ([0.1, 0.2, 0.1, 0.3, 0.1], 0),
     ([0.2, 0.2, 0.3, 0.3, 0.1], 0)],
)  # fmt: skip
def test_the_length_of_the_warmup(learning_rates, expected):
    assert LossLog([5], [1.0], learning_rates).warmup_steps == expected


# --- refusals ---


@pytest.mark.parametrize(
    "content, words",
    [
        (rows()[:2], ["holds 2 losses", "at least 20", "--logging_steps"]),
        ([{**row, "loss": 0.0} for row in rows()], ["40 of 40 losses are 0", "reinforcement learning"]),
        ([{**row, "loss": -1.0} for row in rows()], ["40 of 40 losses are 0, negative"]),
        ([{**row, "loss": float("nan")} for row in rows()], ["40 of 40 losses"]),
        ([{**row, "learning_rate": None} for row in rows()], ["0 learning rates beside 40 losses"]),
        ([{**row, "learning_rate": 0.0} for row in rows()], ["every learning rate is 0"]),
        ([*rows(), *rows()], ["step 10 follows step 400 at entry 41", "two runs"]),
        ([{**row, "step": row["step"] * 10**5} for row in rows()], ["40 losses cannot describe", "40,000,000 updates"]),
    ],
    ids=["two rows", "zero", "negative", "nan", "no rates", "rates of 0", "two runs", "steps beyond reason"],
)  # fmt: skip
def test_bad_logs_are_refused_in_one_line(tmp_path, content, words):
    with refuses(str(tmp_path), *words):
        load_losses(json_lines(tmp_path / "log.jsonl", content))
    with refuses(*words):
        load_losses(write_state(tmp_path / "trainer_state.json", content))


def test_a_few_bad_losses_are_left_out(tmp_path):
    content = rows()
    content[4]["loss"] = float("inf")
    log = load_losses(json_lines(tmp_path / "log.jsonl", content))
    assert log.losses.tolist() == LOSSES[:4] + LOSSES[5:]
    assert log.remarks == ("1 not positive or not finite",)
    assert len(log.learning_rates) == 400


def test_a_recorded_file_alone_has_no_losses(tmp_path):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 40)
    with refuses("records no losses", "trainer.save_state()"):
        load_losses(path)
    aside = path.rename(tmp_path / "gradient_norms.1.jsonl")
    write_state(tmp_path / "trainer_state.json", rows())  # of a later run
    with refuses("records no losses"):
        load_losses(aside)


@pytest.mark.parametrize("warmup_steps", [-1, 1.5, True])
def test_a_warmup_that_is_no_number_of_updates_is_refused(tmp_path, warmup_steps):
    with refuses("--warmup-steps (warmup_steps) is", "number of updates"):
        load_losses(
            write_state(tmp_path / "trainer_state.json", [entry(step) for step in STEPS]), warmup_steps=warmup_steps
        )


@pytest.mark.parametrize(
    "arrays, words",
    [
        (([1, 2], [1.0], [0.1, 0.1]), ["steps have shape (2,), losses (1,)"]),
        (([2, 1], [1.0, 1.0], [0.1, 0.1]), ["1-based and increasing"]),
        (([1, 2], [1.0, 0.0], [0.1, 0.1]), ["losses must be positive"]),
        (([1, 3], [1.0, 1.0], [0.1, 0.1]), ["the last loss is of update 3"]),
        (([1, 2], [1.0, 1.0], [0.1, -0.1]), ["learning_rates must be finite and not negative"]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, words):
    with refuses("losses in memory", *words):
        LossLog(*arrays)
