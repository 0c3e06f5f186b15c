"""Norms from logs that other tools have written: what is read, how often, which norm; and what is refused."""

import json
import os
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW
from transformers import Trainer

from hf_refined_schedule import get_refined_schedule, load_norms, register

from .records import entries, entry, json_lines, load_schedule, write_norms, write_state
from .refusals import refuses
from .tiny import BIN, rates, run_command, tiny_arguments, tiny_data, tiny_model

VALUES = [5.0, 3.0, *np.linspace(2, 1, 38).round(3).tolist()]
WANDB = "brave-run-7 - train/grad_norm"


def table(path, names, rows, delimiter=","):
    lines = [delimiter.join(names), *(delimiter.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def steps_and(values, every=1, first=None):
    first = every if first is None else first
    return [(first + every * index, value) for index, value in enumerate(values)]


# --- tables ---


def test_a_wandb_export(tmp_path):
    names = [f'"{name}"' for name in ("Step", WANDB, f"{WANDB}__MIN", f"{WANDB}__MAX")]
    rows = [(f'"{step}"', *[f'"{value}"'] * 3) for step, value in steps_and(VALUES, every=10)]
    norms = load_norms(table(tmp_path / "export.csv", names, rows))
    assert norms.l2.tolist() == VALUES
    assert norms.l1 is None
    assert norms.steps.tolist() == list(range(10, 401, 10))
    assert norms.num_training_steps is None
    assert (
        norms.description
        == f"{tmp_path / 'export.csv'} (a table): 40 L2 norms, one every 10 updates, to update 400 of 400"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("step", ["step", "Step", "global_step", "train/global_step"])
def test_a_table_with_both_norms(tmp_path, step, delimiter):
    rows = [(value, 100 * value, place, 0.5) for place, value in steps_and(VALUES)]
    norms = load_norms(table(tmp_path / "log.csv", ["grad_norm", "grad_norm_l1", step, "loss"], rows, delimiter))
    assert norms.l2.tolist() == VALUES
    assert norms.l1.tolist() == [100 * value for value in VALUES]
    assert norms.steps.tolist() == list(range(1, 41))


def test_a_decimal_comma(tmp_path):
    rows = [(step, str(value).replace(".", ",")) for step, value in steps_and(VALUES)]
    assert load_norms(table(tmp_path / "log.csv", ["step", "grad_norm"], rows, ";")).l2.tolist() == VALUES


def test_a_run_with_semicolons_in_its_name(tmp_path):
    names = ['"Step"', '"lr=1;wd=2;bs=4 - train/grad_norm"']
    rows = [(f'"{step}"', f'"{value}"') for step, value in steps_and(VALUES)]
    assert load_norms(table(tmp_path / "export.csv", names, rows)).l2.tolist() == VALUES


def test_steps_counted_from_zero_are_shifted(tmp_path):
    norms = load_norms(table(tmp_path / "log.csv", ["step", "gnorm_l1"], steps_and(VALUES, first=0)))
    assert norms.steps.tolist() == list(range(1, 41))
    assert norms.l1.tolist() == VALUES


def test_without_a_column_of_steps_every_row_is_an_update(tmp_path):
    norms = load_norms(table(tmp_path / "log.csv", ["grad_norm", "loss"], [(value, 1) for value in VALUES]))
    assert norms.steps.tolist() == list(range(1, 41))


def test_of_a_step_that_was_logged_twice_the_last_entry_counts(tmp_path):
    rows = [*steps_and(VALUES[:30]), *[(step, 7.0) for step in range(25, 41)]]
    norms = load_norms(table(tmp_path / "log.csv", ["step", "grad_norm"], rows))
    assert norms.l2.tolist() == VALUES[:24] + [7.0] * 16
    assert norms.steps.tolist() == list(range(1, 41))


def test_rows_without_a_value_are_left_out_and_bad_ones_are_counted(tmp_path):
    rows = steps_and(VALUES)
    rows[4], rows[9], rows[20], rows[21] = (5, ""), (10, "Infinity"), ("x", 9.0), (22,)
    norms = load_norms(table(tmp_path / "log.csv", ["step", "grad_norm"], rows))
    assert norms.steps.tolist() == [step for step in range(1, 41) if step not in (5, 10, 21, 22)]
    assert norms.num_not_finite == 1
    assert "36 L2 norms" in norms.description
    assert "1 not finite" in norms.description


def test_an_underscore_is_no_part_of_a_number(tmp_path):
    """Python reads "1_0" as ten: here a step of none, and a norm that is not finite."""
    rows = [*steps_and(VALUES), ("4_1", 1.0), (42, "1_0")]
    norms = load_norms(table(tmp_path / "log.csv", ["step", "grad_norm"], rows))
    assert norms.steps.tolist() == list(range(1, 41))
    assert norms.num_not_finite == 1


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")],
    ids=["UTF-8", "UTF-16, as PowerShell writes it", "UTF-16, big-endian"],
)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("step,grad_norm\n" + "".join(f"{s},{v}\n" for s, v in steps_and(VALUES)), id="a table"),
        pytest.param("".join(f'{{"step": {s}, "grad_norm": {v}}}\n' for s, v in steps_and(VALUES)), id="JSON Lines"),
        pytest.param(json.dumps({"step": list(range(1, 41)), "grad_norm": VALUES}), id="JSON by column"),
        pytest.param(
            json.dumps({"log_history": [{"step": s, "grad_norm": v} for s, v in steps_and(VALUES)]}, indent=1),
            id="a Trainer's state",
        ),
        pytest.param("".join(f"step: {s}, grad_norm: {v}\n" for s, v in steps_and(VALUES)), id="console output"),
    ],
)
def test_a_byte_order_mark_is_skipped(tmp_path, text, mark, encoding):
    path = tmp_path / "log"
    path.write_bytes(mark + text.encode(encoding))
    norms = load_norms(path)
    assert norms.l2.tolist() == VALUES
    assert norms.steps.tolist() == list(range(1, 41))


@pytest.mark.parametrize(
    "text",
    [
        "step,grad_norm\n" + "".join(f"{step},1.5\n" for step in range(1, 31)),
        "".join(f'{{"step": {step}, "grad_norm": 1.5}}\n' for step in range(1, 31)),
        json.dumps({"log_history": [{"step": step, "grad_norm": 1.5} for step in range(1, 31)]}),
    ],
    ids=["a table", "JSON Lines", "a Trainer's state"],
)
def test_null_bytes_at_the_end_of_a_log_are_passed_over(tmp_path, text):
    path = tmp_path / "log"
    path.write_bytes(text.encode() + b"\0" * 4096)
    assert load_norms(path).l2.tolist() == [1.5] * 30


def test_a_step_with_a_comma_between_thousands(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,grad_norm\n" + "".join(f'"{100 * step:,}",{v}\n' for step, v in steps_and(VALUES)))
    assert load_norms(path).steps.tolist() == list(range(100, 4001, 100))


def test_a_row_with_more_values_than_columns(tmp_path):
    """Empty ones, as a comma at the end of each line leaves them, are no values."""
    path = tmp_path / "log.csv"
    path.write_text("step,grad_norm\n" + "".join(f"{step},{v},\n" for step, v in steps_and(VALUES)))
    assert load_norms(path).l2.tolist() == VALUES
    path.write_text("step,grad_norm\n" + "".join(f"{100 * step:,},{v}\n" for step, v in steps_and(VALUES)))
    with refuses("log.csv has 3 values in row 11, but 2 columns"):
        load_norms(path)


def test_a_single_column_is_read_by_its_name(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["grad_norm", *map(str, VALUES)]))
    norms = load_norms(path)
    assert (norms.l2.tolist(), norms.steps.tolist()) == (VALUES, list(range(1, 41)))
    path.write_text("\n".join(["a sentence about a grad_norm", *map(str, VALUES)]))
    with refuses("holds no gradient norms"):
        load_norms(path)


@pytest.mark.parametrize("value, words", [(-1.0, "are negative"), ("n/a", "no numbers")])
def test_values_that_are_no_norms(tmp_path, value, words):
    with refuses("40 of 40 gradient norms", words):
        load_norms(write_state(tmp_path / "trainer_state.json", [entry(step, value) for step in range(1, 41)], 40))


def test_a_state_without_norms(tmp_path):
    rows = [{"step": step, "loss": 2.0} for step in range(1, 41)]
    with refuses("holds no gradient norms", "transformers 4.38"):
        load_norms(write_state(tmp_path / "trainer_state.json", rows, 40))


def test_a_column_is_taken_by_name(tmp_path):
    path = table(tmp_path / "log.csv", ["step", "gn", "other"], [(*row, 1.0) for row in steps_and(VALUES)])
    norms = load_norms(path, column="gn", norm="l1")
    assert norms.l1.tolist() == VALUES
    assert norms.l2 is None
    with refuses("'gn'", "L1 or an L2", "--norm l1"):
        load_norms(path, column="gn")
    with refuses("no column 'gm'", "'step', 'gn', 'other'"):
        load_norms(path, column="gm")
    with refuses("no column that is named as a gradient norm", "'step', 'gn', 'other'"):
        load_norms(path)


def test_a_column_is_named_to_the_scheduler(tmp_path):
    path = table(tmp_path / "log.csv", ["step", "gn", "other"], [(*row, 1.0) for row in steps_and(VALUES)])
    by_name = load_schedule(path, "adam", column="gn", norm="l2", allow_degenerate=True)
    assert (by_name.norm, by_name.power) == ("l2", -1.0)
    kwargs = {"refined_from": path, "column": "gn", "norm": "l2"}
    scheduler = get_refined_schedule(AdamW([Parameter(torch.zeros(1))], lr=1.0), 0, 40, **kwargs)
    rates = [scheduler.optimizer.param_groups[0]["lr"]]
    assert rates == [by_name.grid[0]]


def test_a_name_that_does_not_say_which_norm_needs_it_said(tmp_path):
    path = table(tmp_path / "log.csv", ["step", "gradient_norm"], steps_and(VALUES))
    assert load_norms(path, norm="l2").l2.tolist() == VALUES
    assert load_norms(path, norm="l1").l1.tolist() == VALUES
    with refuses("'gradient_norm'", "--norm l1"):
        load_norms(path)


def test_of_two_runs_in_one_table_one_must_be_named(tmp_path):
    names = ["Step", "a - train/grad_norm", "b - train/grad_norm"]
    path = table(tmp_path / "log.csv", names, [(*row, 1.0) for row in steps_and(VALUES)])
    with refuses("several columns", "'a - train/grad_norm'", "'b - train/grad_norm'"):
        load_norms(path)
    assert load_norms(path, column="a - train/grad_norm").l2.tolist() == VALUES


# --- JSON ---


def test_json_lines(tmp_path):
    rows = [{"step": step, "grad_norm": value, "loss": 1.0} for step, value in steps_and(VALUES, every=2)]
    rows.insert(7, {"step": 14, "eval_loss": 3.0})
    path = json_lines(tmp_path / "log.jsonl", rows)
    path.write_text(path.read_text().replace("\n", "\nnot JSON\n", 1) + '{"step": 82, "grad_no')
    norms = load_norms(path)
    assert norms.l2.tolist() == VALUES
    assert norms.steps.tolist() == list(range(2, 81, 2))
    assert norms.origin == "JSON Lines"


@pytest.mark.parametrize(("logged", "number"), [("2.5", 2.5), ([2.5], 2.5), ([[2.5]], 2.5), ([["2.5"]], 2.5)])
def test_a_norm_as_old_versions_stored_it(tmp_path, logged, number):
    history = [{"step": step, "grad_norm": logged} for step in range(1, 31)]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"max_steps": 30, "log_history": history}))
    norms = load_norms(path)
    assert norms.l2.tolist() == [number] * 30
    assert norms.num_not_finite == 0
    assert norms.origin == "a Trainer's log"


def test_a_state_in_one_line_is_a_state(tmp_path):
    path = tmp_path / "state"
    history = [{"step": step, "grad_norm": 1.0, "sharpness": 3.0} for step in range(1, 31)]
    path.write_text(json.dumps({"log_history": history, "max_steps": 40}) + "\n")
    assert load_norms(path).num_training_steps == 40
    assert load_norms(path, column="sharpness", norm="l1").l1.tolist() == [3.0] * 30


@pytest.mark.parametrize("indent", [None, 1])
def test_a_log_history_alone(tmp_path, indent):
    """As `json.dump(trainer.state.log_history, file)` writes it."""
    path = tmp_path / "history.json"
    history = [{"step": step, "grad_norm": value} for step, value in steps_and(VALUES)]
    path.write_text(json.dumps([*history, {"step": 40, "train_loss": 0.5}], indent=indent))
    norms = load_norms(path)
    assert norms.l2.tolist() == VALUES
    assert norms.num_training_steps is None


def test_lists_for_columns(tmp_path):
    """Evaluations have a list of another length; an indent makes no difference."""
    path = tmp_path / "history.json"
    history = {"step": list(range(2, 81, 2)), "train": {"grad_norm": VALUES}, "eval_loss": [3.0, 2.0]}
    for indent in (None, 1):
        path.write_text(json.dumps(history, indent=indent))
        norms = load_norms(path)
        assert norms.l2.tolist() == VALUES
        assert norms.steps.tolist() == list(range(2, 81, 2))
        assert norms.origin == "JSON by column"
    assert load_norms(path, column="train.grad_norm", norm="l1").l1.tolist() == VALUES


def test_a_state_of_more_than_200_megabytes_is_refused(tmp_path):
    path = tmp_path / "trainer_state.json"
    path.write_bytes(b'{"log_history": [\n' + b" " * 2**16)
    os.truncate(path, 201 * 10**6)
    with refuses(str(path), "201 MB", "JSON Lines"):
        load_norms(path)


# --- TensorBoard ---


@pytest.fixture
def events(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "runs" / "Nov23_host")) as writer:
        for step, value in steps_and(VALUES, every=5):
            writer.add_scalar("train/grad_norm", value, step)
            writer.add_scalar("train/loss", 1.0, step)
        for step, value in steps_and(VALUES[:3], every=5):
            writer.add_scalar("train/sharpness", value, step)
    (path,) = (tmp_path / "runs" / "Nov23_host").iterdir()
    return path


def test_tensorboard_events(events, tmp_path):
    for source in (events, tmp_path):
        norms = load_norms(source)
        np.testing.assert_allclose(norms.l2, VALUES, rtol=1e-7)  # stored as float32
        assert norms.steps.tolist() == list(range(5, 201, 5))
        assert norms.source == str(events)
    with refuses("3 gradient norms", "too few"):
        load_norms(events, column="train/sharpness", norm="l2")
    with refuses("no column 'train/sharp'"):
        load_norms(events, column="train/sharp")


def test_of_the_logs_in_a_folder_the_newest_runs_largest_file_is_read(events, tmp_path):
    older = tmp_path / "runs" / "Nov22_host" / "events.out.tfevents.1600000000.host.1.0"
    older.parent.mkdir()
    older.write_bytes(events.read_bytes() * 2)
    (events.parent / "events.out.tfevents.9999999999.host.1.1").write_bytes(events.read_bytes()[:200])
    assert load_norms(tmp_path).source == str(events)


def test_damaged_events_are_refused_or_read_up_to_the_damage(events):
    whole = events.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2] + b"\xff" * 500, whole[:60] + whole[90:]):
        events.write_bytes(damaged)
        try:
            norms = load_norms(events)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert norms.l2.tolist() == pytest.approx(VALUES[: len(norms.l2)])


def event(tag, tensor, step=1):
    """A record of an event file, framed and with its checksums."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    summary = Summary(value=[Summary.Value(tag=tag, tensor=tensor)])
    content = Event(step=step, summary=summary).SerializeToString()
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]


def float_tensor(values, shape):
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    dimensions = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(dtype=1, float_val=values, tensor_shape=TensorShapeProto(dim=dimensions))


@pytest.mark.parametrize("shape", [[], [1], [1, 1]])
def test_a_tensor_with_one_element_is_a_scalar(events, shape):
    records = [event("grad_norm_l1", float_tensor([2.0 * value], shape), step) for step, value in steps_and(VALUES)]
    whole = events.read_bytes()
    events.write_bytes(whole[: 16 + whole[0]] + b"".join(records))  # the first record is the version of the format
    norms = load_norms(events)
    np.testing.assert_allclose(norms.l1, [2.0 * value for value in VALUES], rtol=1e-7)  # stored as float32
    assert norms.steps.tolist() == list(range(1, 41))


def test_a_tensor_with_many_elements_is_no_norm(events):
    """A record of 20 bytes can declare 2 * 10^8 elements."""
    events.write_bytes(events.read_bytes() + event("train/grad_norm", float_tensor([1.0], [200_000_000])))
    np.testing.assert_allclose(load_norms(events).l2, VALUES, rtol=1e-7)


def test_events_without_a_norm_say_what_they_hold(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "runs" / "one")) as writer:
        for step in range(30):
            writer.add_scalar("train/loss", 1.0, step)
    with refuses("events.out.tfevents", "no scalar", "'train/loss'", "name one as --column", "trainer_state.json"):
        load_norms(tmp_path)


def test_a_dangling_link_among_event_files_is_passed_over(events, tmp_path):
    (events.parent / "events.out.tfevents.9999999999.host.1.1").symlink_to(tmp_path / "nowhere")
    assert load_norms(tmp_path).source == str(events)


# --- what is no log ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "step,loss\n" + "1,2.5\n" * 30),
        ("train.jsonl", '{"step": 1, "loss": 2.5}\n' * 30),
        ("train.log", "Training is under way.\n" * 30),
        ("history.json", '{"step": [1, 2], "loss": [2.5, 2.0]}'),
        ("all_results.json", '{"train_loss": 2.5}'),
    ],
)
def test_a_log_without_norms_points_to_the_one_beside_it(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with refuses(name, "gradient_norms.jsonl", "trainer_state.json"):
        load_norms(tmp_path / name)
    write_state(tmp_path / "trainer_state.json", entries(30))
    with refuses(name, "pass the trainer_state.json beside it"):
        load_norms(tmp_path / name)
    write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 30)
    with refuses(name, "pass the gradient_norms.jsonl beside it"):
        load_norms(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"step,grad_norm\n", id="names alone"),
        pytest.param(b"step,grad_norm\n" + b"1,1e999\n" * 30, id="huge numbers"),
        pytest.param(b"step,grad_norm\n" + b"99999999999999999999,1\n" * 30, id="huge steps"),
        pytest.param(b"step,grad_norm\n" + b'1,"' + b"x" * 200_000, id="a value of 200,000 characters"),
        pytest.param(b"step,grad_norm\n1,\x00\n", id="a null byte"),
        pytest.param(b"a,b\n" + b"\xff" * 1000, id="no UTF-8"),
        pytest.param(b"," * 100_000, id="a hundred thousand columns"),
        pytest.param(b'{"step": 1, "grad_norm": 1}\n' + b"[" * 100_000 + b"\n", id="deep nesting in a line"),
        pytest.param(b'{"step": 1, "grad_norm": {"a": 1}}\n' * 30, id="objects for norms"),
        pytest.param(b'{"step": [1], "grad_norm": 1}\n' * 30, id="lists for steps"),
        pytest.param(b'{"step": 1, "grad_norm": 1}\n' + b"9" * 2_000_000, id="a line of two million characters"),
        pytest.param(b"\x18\0\0\0\0\0\0\0abcd" + b"brain.Event:2" + b"\xff" * 5000, id="events of noise"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "log"
    path.write_bytes(content)
    with refuses(str(path)):
        load_norms(path)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("loop", "pipe"):
        with refuses(name):
            load_norms(tmp_path / name)


# --- the command line ---


def test_three_commands_on_a_table(tmp_path):
    rows = [(step, value + 3 * 0.9**step) for step, value in steps_and(np.linspace(2, 1, 200))]
    path = table(tmp_path / "log.csv", ["step", "g"], rows)
    options = ("--column", "g", "--norm", "l2", "--optimizer", "adam")
    for command in (("refine", path, "-o", tmp_path / "schedule.json"), ("check", path), ("rank", path)):
        done = run_command(BIN / "hf-refined-schedule", *command, *options)
        assert done.returncode == 0, done.stderr
        assert f"{path}" in done.stdout
    assert len(json.loads((tmp_path / "schedule.json").read_text())["multipliers"]) == 201


@pytest.fixture(scope="module")
def stock_output(tmp_path_factory):
    """What a stock Trainer leaves that has never heard of this package: checkpoints and TensorBoard's log."""
    output = tmp_path_factory.mktemp("output")
    options = {"report_to": "tensorboard", "logging_first_step": True, "logging_steps": 2, "max_steps": 60}
    arguments = tiny_arguments(output, save_strategy="steps", save_steps=30, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
        trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data())
        trainer.train()
    logged = {entry["step"]: entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry}
    assert list(logged) == [1, *range(2, 61, 2)]
    return output, logged


def test_three_commands_on_a_downloaded_checkpoint(stock_output, tmp_path):
    checkpoint = shutil.copytree(stock_output[0] / "checkpoint-60", tmp_path / "checkpoint-60")
    for command in (
        ("refine", checkpoint, "-o", tmp_path / "schedule.json"),
        ("check", checkpoint),
        ("rank", checkpoint),
    ):
        done = run_command(BIN / "hf-refined-schedule", *command, "--optimizer", "adam")
        assert done.returncode == 0, done.stderr
    register()
    trainer = Trainer(
        tiny_model(),
        tiny_arguments(
            tmp_path / "run",
            max_steps=5,
            lr_scheduler_type="refined",
            lr_scheduler_kwargs={"refined_from": str(tmp_path / "schedule.json"), "allow_degenerate": True},
        ),
        train_dataset=tiny_data(),
    )
    trainer.train()
    grid = json.loads((tmp_path / "schedule.json").read_text())["multipliers"]
    assert rates(trainer) == pytest.approx([1e-2 * grid[12 * step] for step in range(5)])


def test_a_trainers_own_tensorboard_log(stock_output, tmp_path):
    output, logged = stock_output
    shutil.copytree(output, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*", "trainer_state.json"))
    norms = load_norms(tmp_path / "run")
    assert norms.origin == "TensorBoard's log"
    assert dict(zip(norms.steps.tolist(), norms.l2.tolist(), strict=True)) == pytest.approx(logged)


# --- size ---


RECORDED_HEADER = '{"format": "gradient_norms", "version": 1, "num_training_steps": 1000000}\n'


@pytest.mark.parametrize(
    ("first_line", "row"),
    [
        pytest.param("step,grad_norm\n", "%d,1.5\n", id="a table"),
        pytest.param("", '{"step": %d, "grad_norm": 1.5}\n', id="JSON Lines"),
        pytest.param(
            RECORDED_HEADER,
            '{"step": %d, "l1": 9.5, "l2": 1.5, "clip_factor": 1.0, "learning_rate": 0.001}\n',
            id="a recorded file",
        ),
    ],
)
def test_a_million_rows_are_read_in_seconds(tmp_path, first_line, row):
    path = tmp_path / "log"
    with path.open("w") as file:
        file.write(first_line)
        file.writelines(row % step for step in range(1, 10**6 + 1))
    started = time.perf_counter()
    norms = load_norms(path)
    assert time.perf_counter() - started < 12
    assert len(norms.steps) == 10**6


def test_the_memory_of_a_table_grows_by_tens_of_bytes_a_row(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,grad_norm\n" + "".join(f"{step},1.5\n" for step in range(1, 500_001)))
    code = (
        "import resource, sys\nfrom hf_refined_schedule import load_norms, linear_decay\n"
        "from hf_refined_schedule.norms import log_rows\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load_norms(sys.argv[1])\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = run_command(BIN / "python", "-c", code, path)
    assert int(done.stdout) * 1024 / 500_000 < 200, "10^7 rows have to fit into 2 GB"
