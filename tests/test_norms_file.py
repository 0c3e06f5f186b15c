"""`gradient_norms.jsonl`: written, gone on with, read back, and refused where it is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME, NormsFileWriter, read_norms_file
from hf_refined_schedule.norms.sources import load_norms

from .refusals import refuses
from .tolerances import EXACT_ROUNDING

HEADER = {
    "optimizer": "AdamW",
    "optimizer_family": "adam",
    "world_size": 2,
    "max_grad_norm": 1.0,
    "num_training_steps": 6,
}
FIRST_LINE = (
    '{"format": "gradient_norms", "version": 1, "optimizer": "AdamW", "optimizer_family": "adam", '
    '"world_size": 2, "max_grad_norm": 1.0, "num_training_steps": 6}\n'
)
ROWS = [
    {"step": 1, "l1": 40.0, "l2": 4.0, "clip_factor": 0.25, "learning_rate": 0.5},
    {"step": 2, "l1": 30.0, "l2": 2.5, "clip_factor": 0.4, "learning_rate": 0.25},
    {"step": 3, "l1": None, "l2": None, "clip_factor": None, "learning_rate": 0.125},
    {"step": 4, "l1": 10.5, "l2": 0.5, "clip_factor": 1.0, "learning_rate": 0.0625},
]
LINES = [
    '{"step": 1, "l1": 40.0, "l2": 4.0, "clip_factor": 0.25, "learning_rate": 0.5}\n',
    '{"step": 2, "l1": 30.0, "l2": 2.5, "clip_factor": 0.4, "learning_rate": 0.25}\n',
    '{"step": 3, "l1": null, "l2": null, "clip_factor": null, "learning_rate": 0.125}\n',
    '{"step": 4, "l1": 10.5, "l2": 0.5, "clip_factor": 1.0, "learning_rate": 0.0625}\n',
]
WHOLE = FIRST_LINE + "".join(LINES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / NORMS_FILE_NAME


def text_of(path):
    return path.read_bytes().decode("utf-8")


def header_line(**changes):
    return json.dumps({"format": "gradient_norms", "version": 1, **HEADER, **changes}) + "\n"


def row_line(step, l1="1.0", l2="1.0"):
    return f'{{"step": {step}, "l1": {l1}, "l2": {l2}, "clip_factor": 1.0, "learning_rate": 0.1}}\n'


# --- writing and reading back ---


def test_the_file_is_called_as_the_documentation_says():
    assert NORMS_FILE_NAME == "gradient_norms.jsonl"


def test_a_header_and_one_line_for_each_update_are_written(path):
    writer = NormsFileWriter(path, HEADER)
    assert text_of(path) == FIRST_LINE
    writer.append(ROWS[:1])
    writer.append(ROWS[1:])
    assert text_of(path) == WHOLE
    assert writer.missing_steps == 0


def test_nothing_else_is_left_in_the_folder(path):
    NormsFileWriter(path, HEADER).append(ROWS)
    NormsFileWriter(path, HEADER, start_step=2).append(ROWS[2:])
    assert [entry.name for entry in path.parent.iterdir()] == ["gradient_norms.jsonl"]


def test_a_symbolic_link_is_not_followed(path):
    """A fixed name of the temporary file could be a link that somebody else has put there."""
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.with_name(f"{NORMS_FILE_NAME}.tmp").symlink_to(victim)
    NormsFileWriter(path, HEADER).append(ROWS)
    assert (text_of(path), victim.read_text()) == (WHOLE, "precious")


def test_a_failed_rewrite_leaves_the_file_and_nothing_else(path, monkeypatch):
    writer = NormsFileWriter(path, HEADER)
    writer.append(ROWS)

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        writer.rewrite_header({**HEADER, "num_training_steps": 8})
    assert text_of(path) == WHOLE
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_folder_is_made(tmp_path):
    path = tmp_path / "runs" / "baseline" / NORMS_FILE_NAME
    NormsFileWriter(str(path), HEADER).append(ROWS)
    assert text_of(path) == WHOLE


def test_a_norm_that_is_not_finite_is_never_written(path):
    writer = NormsFileWriter(path, HEADER)
    with refuses():
        writer.append([{**ROWS[0], "l1": float("nan")}])
    assert text_of(path) == FIRST_LINE


def test_written_norms_are_read_back(path):
    NormsFileWriter(path, HEADER).append(ROWS)
    norms = read_norms_file(path)
    assert norms.steps.tolist() == [1, 2, 4], "the update that was not taken has no norm"
    assert norms.l1.tolist() == [40.0, 30.0, 10.5]
    assert norms.l2.tolist() == [4.0, 2.5, 0.5]
    assert (norms.steps.dtype, norms.l1.dtype, norms.l2.dtype) == (np.int64, np.float64, np.float64)
    assert norms.num_training_steps == 6
    assert norms.optimizer == "adam"
    assert norms.source == str(path)
    assert norms.clipped_share == 2 / 3


def test_a_file_that_says_nothing_of_clips(path):
    path.write_text(header_line() + '{"step": 1, "l1": 1.0, "l2": 1.0}\n')
    assert read_norms_file(path).clipped_share is None


def test_every_digit_of_a_norm_survives(path):
    values = np.random.default_rng(0).lognormal(size=(50, 2), sigma=20)
    rows = [{**ROWS[0], "step": t + 1, "l1": l1, "l2": l2} for t, (l1, l2) in enumerate(values.tolist())]
    NormsFileWriter(path, HEADER).append(rows)
    norms = read_norms_file(path)
    np.testing.assert_array_equal(np.stack([norms.l1, norms.l2], axis=1), values)


def test_a_file_in_another_hand_is_read(path):
    path.write_text(
        '{"num_training_steps":3,"version":1,"format":"gradient_norms","note":"by hand"}\n'
        '{"l2":3,"l1":5,"step":1}\n'
        '{"l2":2,"l1":4.0,"step":2,"comment":"other fields do not matter"}\n'
    )
    norms = read_norms_file(path)
    assert norms.l1.tolist() == [5.0, 4.0]
    assert norms.l2.tolist() == [3.0, 2.0]
    assert norms.optimizer is None


def test_an_update_without_an_l2_norm_was_not_taken(path):
    path.write_text(FIRST_LINE + row_line(1) + row_line(2, l2="null") + row_line(3))
    assert read_norms_file(path).steps.tolist() == [1, 3]


@pytest.mark.parametrize("without", [(1, 2, 3), (2,)])
def test_an_update_whose_l1_norm_is_not_known_has_its_l2(path, without):
    """As under DeepSpeed; L1 norms of some updates alone are no run's."""
    path.write_text(FIRST_LINE + "".join(row_line(step, l1="null" if step in without else "1.0") for step in (1, 2, 3)))
    norms = read_norms_file(path)
    assert (norms.steps.tolist(), norms.l2.tolist(), norms.l1) == ([1, 2, 3], [1.0, 1.0, 1.0], None)


@pytest.mark.parametrize("cut", [1, 2, 20, len(LINES[3]) - 1])
def test_a_torn_last_line_is_dropped(path, cut):
    path.write_text(WHOLE[:-cut])
    assert read_norms_file(path).steps.tolist() == [1, 2]


def test_a_last_line_torn_inside_a_character_is_dropped(path):
    path.write_bytes((FIRST_LINE + LINES[0]).encode() + '{"step": 2, "é'.encode()[:-1])
    assert read_norms_file(path).steps.tolist() == [1]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(b"\0" * 4096, id="null bytes"),
        pytest.param(b"\0" * 80 + b"\n", id="null bytes and a line feed"),
        pytest.param(LINES[3][:30].encode() + b"\0" * 4096, id="half a line and null bytes"),
    ],
)
def test_null_bytes_at_the_end_are_a_torn_end(path, end):
    """As a power loss leaves them: the file has grown, its last block was not written."""
    path.write_bytes((FIRST_LINE + "".join(LINES[:3])).encode() + end)
    for norms in (read_norms_file(path), load_norms(path)):
        assert norms.steps.tolist() == [1, 2]
    NormsFileWriter(path, HEADER, start_step=3)
    assert text_of(path) == FIRST_LINE + "".join(LINES[:3])


def test_a_byte_order_mark_is_skipped(path):
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    for norms in (read_norms_file(path), load_norms(path)):
        assert norms.l1.tolist() == [40.0, 30.0, 10.5]


# --- a fresh run and a resumed one ---


def test_a_fresh_run_moves_the_old_file_aside(path):
    for number in (10, 20, 30):
        NormsFileWriter(path, {**HEADER, "num_training_steps": number}).append(ROWS)
    names = sorted(entry.name for entry in path.parent.iterdir())
    assert names == ["gradient_norms.1.jsonl", "gradient_norms.2.jsonl", "gradient_norms.jsonl"]
    assert read_norms_file(path.parent / "gradient_norms.1.jsonl").num_training_steps == 10
    assert read_norms_file(path.parent / "gradient_norms.2.jsonl").num_training_steps == 20
    assert read_norms_file(path).num_training_steps == 30


def test_a_fresh_run_does_not_move_a_folder(path):
    path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        NormsFileWriter(path, {})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_fresh_run_moves_even_what_it_cannot_read(path):
    path.write_text("something of the user's")
    NormsFileWriter(path, HEADER).append(ROWS)
    assert text_of(path.parent / "gradient_norms.1.jsonl") == "something of the user's"
    assert text_of(path) == WHOLE


@pytest.mark.parametrize("start_step", [1, 2, 3, 4])
@pytest.mark.parametrize("torn", ["", '{"step": 5, "l1": 1'], ids=["whole", "torn"])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(path, start_step, torn):
    NormsFileWriter(path, HEADER).append(ROWS)
    path.write_text(text_of(path) + torn)
    writer = NormsFileWriter(path, HEADER, start_step=start_step)
    assert text_of(path) == FIRST_LINE + "".join(LINES[:start_step])
    assert writer.missing_steps == 0
    writer.append(ROWS[start_step:])
    assert text_of(path) == WHOLE


def test_a_resumed_run_rewrites_the_header(path):
    NormsFileWriter(path, HEADER).append(ROWS)
    NormsFileWriter(path, {**HEADER, "world_size": 4, "num_training_steps": 12}, start_step=2)
    assert text_of(path) == header_line(world_size=4, num_training_steps=12) + LINES[0] + LINES[1]


@pytest.mark.parametrize(
    ("content", "start_step", "kept", "missing"),
    [
        pytest.param(None, 7, 0, 7, id="the file is gone"),
        pytest.param(FIRST_LINE, 7, 0, 7, id="nothing was written yet"),
        pytest.param(WHOLE, 7, 4, 3, id="the run was recorded to step 4 only"),
        pytest.param(FIRST_LINE + LINES[2] + LINES[3], 4, 2, 2, id="the run was recorded from step 3 on"),
        pytest.param(WHOLE[:-1], 4, 3, 1, id="line 4 is torn"),
        pytest.param(WHOLE, 4, 4, 0, id="all there"),
        pytest.param(WHOLE, 1, 1, 0, id="more than all there"),
    ],
)
def test_updates_that_the_file_lacks_are_counted(path, content, start_step, kept, missing):
    if content is not None:
        path.write_text(content)
    writer = NormsFileWriter(path, HEADER, start_step=start_step)
    assert writer.missing_steps == missing
    assert text_of(path).startswith(FIRST_LINE)
    assert text_of(path).count("\n") == 1 + kept


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("something of the user's\n", [NORMS_FILE_NAME], id="another file"),
        pytest.param(FIRST_LINE + LINES[0] + "damaged\n" + LINES[1], ["line 3"], id="damaged"),
    ],
)
def test_a_resumed_run_does_not_touch_what_it_cannot_read(path, content, words):
    path.write_text(content)
    with refuses(str(path), *words):
        NormsFileWriter(path, HEADER, start_step=2)
    assert text_of(path) == content


def test_the_header_alone_is_rewritten(path):
    writer = NormsFileWriter(path, {**HEADER, "num_training_steps": None})
    writer.append(ROWS)
    assert (read_norms_file(path).num_training_steps, read_norms_file(path).finished) == (None, False)
    writer.rewrite_header(HEADER)
    assert text_of(path) == WHOLE
    writer.append([{**ROWS[3], "step": 5}])
    assert read_norms_file(path).steps.tolist() == [1, 2, 4, 5]


# --- refusals ---


@pytest.mark.parametrize(
    ("first_line", "words"),
    [
        pytest.param(b"", [], id="empty"),
        pytest.param(b"\n", [], id="an empty line"),
        pytest.param(b"step,l1,l2\n1,2.0,3.0\n", [], id="CSV"),
        pytest.param(bytes(range(256)) * 50, [], id="binary"),
        pytest.param(b"\xff\xfe" + FIRST_LINE.encode("utf-16-le"), [], id="UTF-16"),
        pytest.param(b"\x00" * 5000, [], id="zeros, as a power loss leaves them"),
        pytest.param(b"[" * 100_000 + b"\n", [], id="deep nesting"),
        pytest.param(b'{"format":' * 100_000 + b"\n", [], id="deep nesting of objects"),
        pytest.param(b"[]\n", [], id="a list"),
        pytest.param(b"null\n", [], id="null"),
        pytest.param(b"{}\n", [], id="an empty object"),
        pytest.param(b'{"format": "refined_schedule", "version": 1}\n', [], id="another format"),
        pytest.param(b'{"format": ["gradient_norms"], "version": 1}\n', [], id="the format in a list"),
        pytest.param(LINES[0].encode(), [], id="the header is missing"),
        pytest.param(FIRST_LINE[:-20].encode(), [], id="a torn header"),
        pytest.param(b"9" * 5000 + b"\n", [], id="a number of 5000 digits"),
        pytest.param(header_line(version=2), ["version 2", "version 1", "upgrade"], id="a later version"),
        pytest.param(header_line(version="1"), ["version '1'", "upgrade"], id="a version in quotes"),
        pytest.param(header_line(version=None), ["version None"], id="no version"),
        pytest.param(header_line(num_training_steps=0), ["num_training_steps", "0"], id="no planned updates"),
        pytest.param(header_line(num_training_steps=-5), ["num_training_steps", "-5"], id="negative planned updates"),
        pytest.param(header_line(num_training_steps=1.5), ["num_training_steps", "1.5"], id="1.5 planned updates"),
        pytest.param(header_line(num_training_steps="6"), ["num_training_steps", "'6'"], id="text planned updates"),
        pytest.param(header_line(num_training_steps=True), ["num_training_steps", "True"], id="true planned updates"),
        pytest.param(header_line(num_training_steps=[6]), ["num_training_steps", "[6]"], id="a list of updates"),
        pytest.param(header_line(num_training_steps=10**400), ["num_training_steps"], id="10^400 planned updates"),
        pytest.param(header_line(num_training_steps=float("nan")), ["num_training_steps", "nan"], id="nan updates"),
        pytest.param(header_line(optimizer_family="lion"), ["optimizer_family", "'lion'"], id="unknown optimizer"),
        pytest.param(header_line(optimizer_family=["adam"]), ["optimizer_family", "adam"], id="a list of optimizers"),
    ],
)
def test_a_first_line_that_is_no_header_is_refused(path, first_line, words):
    path.write_bytes((first_line if isinstance(first_line, bytes) else first_line.encode()) + "".join(LINES).encode())
    with refuses(str(path), *words):
        read_norms_file(path)


DAMAGED_LINES = [
    pytest.param("\n", id="an empty line"),
    pytest.param("damaged\n", id="text"),
    pytest.param(LINES[2][:20] + LINES[3], id="two lines in one"),
    pytest.param("\x00" * 80 + "\n", id="zeros, as a power loss leaves them"),
    pytest.param(b'{"step": 3, \xff\xfe}\n', id="no UTF-8"),
    pytest.param("[" * 100_000 + "\n", id="deep nesting"),
    pytest.param('{"step":' * 100_000 + "\n", id="deep nesting of objects"),
    pytest.param("null\n", id="null"),
    pytest.param("3\n", id="a number"),
    pytest.param('"step"\n', id="a string"),
    pytest.param("[1, 2, 3]\n", id="a list"),
    pytest.param("{}\n", id="an empty object"),
    pytest.param('{"step": 3, "l2": 1.0}\n', id="without l1"),
    pytest.param('{"step": 3, "l1": 1.0}\n', id="without l2"),
    pytest.param('{"l1": 1.0, "l2": 1.0}\n', id="without a step"),
    pytest.param(row_line(0), id="step 0"),
    pytest.param(row_line(-3), id="a negative step"),
    pytest.param(row_line("3.0"), id="a step with a fraction"),
    pytest.param(row_line('"3"'), id="a step in quotes"),
    pytest.param(row_line("true"), id="a step true"),
    pytest.param(row_line("null"), id="a step null"),
    pytest.param(row_line("[3]"), id="a step in a list"),
    pytest.param(row_line("NaN"), id="a step NaN"),
    pytest.param(row_line(10**30), id="a step of 31 digits"),
    pytest.param(row_line("9" * 5000), id="a step of 5000 digits"),
]
BAD_VALUES = ["NaN", "Infinity", "-Infinity", "-1.0", "1e400", '"1.0"', "true", "[1.0]", "{}", "9" * 5000]
BAD_VALUES += ["9" * 400]  # an integer that JSON reads and float64 cannot hold
DAMAGED_LINES += [pytest.param(row_line(3, l1=value), id=f"l1 {value[:12]} ({len(value)})") for value in BAD_VALUES]
DAMAGED_LINES += [pytest.param(row_line(3, l2=value), id=f"l2 {value[:12]} ({len(value)})") for value in BAD_VALUES]


@pytest.mark.parametrize("line", DAMAGED_LINES)
def test_a_damaged_line_is_refused_with_its_number(path, line):
    damaged = line if isinstance(line, bytes) else line.encode()
    path.write_bytes((FIRST_LINE + LINES[0] + LINES[1]).encode() + damaged + LINES[3].encode())
    with refuses(str(path), "line 4"):
        read_norms_file(path)


@pytest.mark.parametrize("steps", [[1, 3, 2], [1, 2, 2], [2, 1, 3]])
def test_steps_out_of_order_are_refused(path, steps):
    path.write_text(FIRST_LINE + "".join(row_line(step) for step in steps))
    with refuses(str(path), "increasing"):
        read_norms_file(path)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param("", id="the header alone"),
        pytest.param(LINES[2], id="no update was taken"),
        pytest.param(LINES[0][:-1], id="the only line is torn"),
    ],
)
def test_a_file_without_norms_is_refused(path, lines):
    path.write_text(FIRST_LINE + lines)
    with refuses(str(path), "no gradient norms"):
        read_norms_file(path)


@pytest.mark.parametrize("changes", [{"num_training_steps": None}, {}], ids=["null", "missing"])
def test_a_run_of_unknown_length_did_not_end(path, changes):
    header = {name: value for name, value in HEADER.items() if name != "num_training_steps"} | changes
    path.write_text(json.dumps({"format": "gradient_norms", "version": 1, **header}) + "\n" + "".join(LINES))
    norms = read_norms_file(path)
    assert (norms.num_training_steps, norms.finished, norms.last_step) == (None, False, 4)


# --- norms in memory ---


def test_norms_take_lists_and_keep_arrays():
    norms = GradientNorms(steps=[1, 3], l1=[2, 4], source="a list")
    assert (norms.steps.dtype, norms.l1.dtype) == (np.int64, np.float64)
    assert norms.l1.tolist() == [2.0, 4.0]
    assert norms.l2 is None
    assert norms.num_training_steps is None
    assert norms.optimizer is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"steps": [1, 2]}, ["neither L1 nor L2"], id="no norms at all"),
        pytest.param({"steps": [], "l1": []}, ["no gradient norms"], id="empty"),
        pytest.param({"steps": [1, 2], "l1": [1.0]}, ["l1", "(1,)", "(2,)"], id="fewer L1 norms than steps"),
        pytest.param(
            {"steps": [1, 2], "l1": [1.0, 1.0], "l2": [1.0] * 3}, ["l2", "(3,)", "(2,)"], id="more L2 norms than steps"
        ),
        pytest.param({"steps": [1, 2], "l2": [[1.0, 2.0]]}, ["l2", "(1, 2)", "(2,)"], id="a list in a list"),
        pytest.param({"steps": [[1, 2]], "l2": [[1.0, 2.0]]}, [], id="two-dimensional"),
        pytest.param({"steps": 1, "l2": 1.0}, [], id="numbers alone"),
        pytest.param({"steps": [0, 1], "l1": [1.0, 1.0]}, ["1-based"], id="counted from 0"),
        pytest.param({"steps": [1, 1], "l1": [1.0, 1.0]}, ["increasing", "repeats"], id="a step twice"),
        pytest.param({"steps": [2, 1], "l1": [1.0, 1.0]}, ["increasing", "sort"], id="out of order"),
    ],
)
def test_norms_that_do_not_fit_together_are_refused(fields, words):
    with refuses("the source's name", *words):
        GradientNorms(**fields, source="the source's name")


@pytest.mark.parametrize(
    ("steps", "l1", "l2", "kept", "zeros"),
    [
        pytest.param([1, 2, 3], [5, 0, 2], [4, 0, 1], [1, 3], [2], id="both norms are 0"),
        pytest.param([1, 2, 3], [5, 1e-30, 2], [4, 0, 1], [1, 3], [2], id="the squares of L2 underflow"),
        pytest.param([3, 5, 9], None, [0, 1, 1], [5, 9], [3], id="the first"),
        pytest.param([3, 5, 9], [1, 1, 0], None, [3, 5], [9], id="the last"),
        pytest.param([1, 2, 3, 4], None, [0, 1, 0, 1], [2, 4], [1, 3], id="half of them"),
        pytest.param([1, 2], [5, 1], None, [1, 2], [], id="none"),
    ],
)
def test_norms_of_0_are_left_out(steps, l1, l2, kept, zeros):
    norms = GradientNorms(steps=steps, l1=l1, l2=l2)
    assert (norms.steps.tolist(), norms.zero_steps.tolist(), norms.num_zero) == (kept, zeros, len(zeros))
    assert norms.last_step == max(steps)
    again = replace(norms, num_training_steps=20)
    assert (again.steps.tolist(), again.zero_steps.tolist(), again.last_step) == (kept, zeros, max(steps))


def test_norms_that_are_mostly_0_are_refused():
    with refuses("the run", "3 of 5", "are 0", "at update 2", "at most half"):
        GradientNorms(steps=range(1, 6), l1=[1, 0, 0, 1, 0], source="the run")


@pytest.mark.parametrize(
    ("steps", "values", "expected"),
    [
        pytest.param([1, 2, 3], [5, 0, 2], [5, 3.5, 2], id="a norm of 0 is interpolated"),
        pytest.param([1, 2, 3], [0, 6, 2], [6, 6, 2], id="a first norm of 0 is the next one"),
        pytest.param([1, 2, 3], [5, 6, 0], [5, 6, 6], id="a last norm of 0 is the one before"),
        pytest.param([1, 2, 3], [5, 1, 2], [5, 1, 2], id="one for each step"),
        pytest.param([1, 5], [1, 9], [1, 3, 5, 7, 9], id="on a line between two"),
        pytest.param([1, 2, 4], [6, 2, 3], [6, 2, 2.5, 3], id="an update that was not taken"),
        pytest.param([3, 4], [7, 8], [7, 7, 7, 8], id="before the first, the first"),
        pytest.param([2, 4, 6], [10, 20, 40], [10, 10, 15, 20, 30, 40], id="a log every two steps"),
        pytest.param([3], [7], [7, 7, 7], id="a single one"),
    ],
)
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_norms_at_every_step(steps, values, expected, kind):
    other = {"l1": "l2", "l2": "l1"}[kind]
    norms = GradientNorms(steps=steps, **{kind: values, other: [99.0] * len(steps)})
    np.testing.assert_allclose(norms.at_every_step(kind), expected, rtol=0, atol=EXACT_ROUNDING)


def test_a_file_that_another_run_has_begun_anew_is_not_written_into(path):
    first = NormsFileWriter(path, HEADER)
    first.append(ROWS[:1])
    NormsFileWriter(path, HEADER).append(ROWS[:2])
    before = path.read_text()
    with pytest.raises(OSError, match="another run has begun it anew"):
        first.append(ROWS[1:2])
    assert path.read_text() == before == FIRST_LINE + "".join(LINES[:2])


def test_the_second_of_two_runs_that_begin_at_the_same_moment_is_told(path, monkeypatch):
    NormsFileWriter(path, HEADER)
    move = Path.replace

    def moved_by_another_run_first(file, target):
        move(file, file.with_name("of another run.jsonl"))
        return move(file, target)

    monkeypatch.setattr(Path, "replace", moved_by_another_run_first)
    with refuses("another run begins there at the same moment", "a folder of its own", error=FileNotFoundError):
        NormsFileWriter(path, HEADER)
    assert [file.name for file in path.parent.iterdir()] == ["of another run.jsonl"]


def test_runs_that_begin_at_the_same_moment_lose_no_earlier_file(path, monkeypatch):
    """Each of them finds the first numbers free, and the file that another run moved there stays."""
    NormsFileWriter(path, HEADER).append(ROWS[:1])
    touch = Path.touch

    def another_run_is_faster(file, **keywords):
        if file.name == "gradient_norms.1.jsonl":
            file.write_text("of another run")
        touch(file, **keywords)

    monkeypatch.setattr(Path, "touch", another_run_is_faster)
    NormsFileWriter(path, HEADER)
    assert (path.parent / "gradient_norms.1.jsonl").read_text() == "of another run"
    assert (path.parent / "gradient_norms.2.jsonl").read_text() == FIRST_LINE + LINES[0]


def test_the_header_of_another_run_is_not_rewritten(path):
    first = NormsFileWriter(path, HEADER)
    NormsFileWriter(path, HEADER).append(ROWS[:2])
    with pytest.raises(OSError, match="another run has begun it anew"):
        first.rewrite_header({**HEADER, "num_training_steps": 8})
    assert text_of(path) == FIRST_LINE + "".join(LINES[:2])


def test_an_emptied_file_is_resumed_as_if_there_were_none(path):
    """A kill between creating the file and writing its header leaves it empty."""
    path.touch()
    writer = NormsFileWriter(path, HEADER, start_step=2)
    writer.append(ROWS[2:])
    assert text_of(path) == FIRST_LINE + "".join(LINES[2:])
    assert writer.missing_steps == 2
