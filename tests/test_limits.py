"""What would fill the memory, or a terminal, is refused: in one short line, in under a second and 100 MB."""

import json
import os
import sys

import numpy as np
import pytest

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.gradient_norms import GradientNorms, UnfinishedRunError
from hf_refined_schedule.norms.message_text import listed, quoted, shown
from hf_refined_schedule.norms.size_limits import is_step_number
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources

from .records import entries, write_norms, write_state
from .refusals import refuses
from .tiny import run_command

HEADER = '{"format": "gradient_norms", "version": 1, "optimizer_family": "adam", "num_training_steps": %s}\n'
ROW = '{"step": %d, "l1": 1.0, "l2": 1.0}\n'

MEASURED = """
import resource, sys, time
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources
import tensorboard.util.tensor_util, tensorboard.compat.proto.event_pb2
path, options = sys.argv[1], eval(sys.argv[2])
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    refine_sources(path, "adam", RefinementOptions(**options))
    print("accepted")
except ValueError as error:
    print(error)
print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def cost_of_refusal(path, **options):
    """The message of a refusal in a process of its own; fails above one second or 100 MB."""
    done = run_command(sys.executable, "-c", MEASURED, path, repr(options))
    assert done.returncode == 0, done.stderr
    message, figures = done.stdout.splitlines()
    seconds, kilobytes = map(float, figures.split())
    assert message != "accepted"
    assert len(message) <= 300
    assert seconds < 1
    assert kilobytes < 100_000
    return message


def sparse(path, beginning, size=20 * 10**9):
    """A file that claims 20 GB and takes none."""
    path.write_bytes(beginning)
    os.truncate(path, size)
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param(
            "gradient_norms.jsonl", HEADER % 3 + ROW % 1 + ROW % 2 + ROW % 50_000_000, "3 gradient norms", id="steps"
        ),
        pytest.param("gradient_norms.jsonl", HEADER % 50_000_000 + ROW % 1 + ROW % 2, "50,000,000", id="a horizon"),
        pytest.param("gradient_norms.jsonl", HEADER % 10**12 + ROW % 1, "50,000,000", id="a horizon beyond the limit"),
        pytest.param(
            "log.csv",
            "step,grad_norm\n" + "".join(f"{s},1\n" for s in (*range(1, 51), 49_999_999)),
            "49,999,999",
            id="CSV",
        ),
        pytest.param(
            "log.jsonl",
            "".join(f'{{"step": {s}, "grad_norm": 1}}\n' for s in (*range(1, 51), 49_999_999)),
            "49,999,999",
            id="JSON Lines",
        ),
        pytest.param(
            "trainer_state.json",
            json.dumps({"max_steps": 50_000_000, "log_history": entries(30)}),
            "50,000,000",
            id="a Trainer's state",
        ),
        pytest.param(
            "train.log",
            "".join(f"step: {s}, grad_norm: 1.0\n" for s in (*range(1, 51), 49_999_999)),
            "49,999,999",
            id="console output",
        ),
    ],
)
def test_sparse_steps_and_huge_horizons(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    assert words in cost_of_refusal(tmp_path / name, pilot=True)


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        pytest.param("gradient_norms.jsonl", (HEADER % 9 + ROW % 1 + ROW % 2).encode(), id="a recorded file"),
        pytest.param("log.csv", b"step,grad_norm\n1,1.5\n2,1.5\n", id="CSV"),
        pytest.param("log.jsonl", b'{"step": 1, "grad_norm": 1.5}\n' * 3, id="JSON Lines"),
        pytest.param("train.log", b"step: 1, grad_norm: 1.5\n" * 3, id="console output"),
        pytest.param("trainer_state.json", b'{"log_history": [', id="JSON"),
        pytest.param(
            "events.out.tfevents.1.host", b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22brain.Event:2", id="TensorBoard"
        ),
        pytest.param("zeros", b"", id="nothing but null bytes"),
    ],
)
def test_a_sparse_file_of_20_gigabytes(tmp_path, name, beginning):
    assert name in cost_of_refusal(sparse(tmp_path / name, beginning))


@pytest.mark.parametrize("length", [800_000_000, 2**64 - 1])
def test_an_event_that_holds_a_huge_tensor(tmp_path, length):
    """A record with the right checksum of its length, in a sparse file of 800 MB."""

    def checksum(content):
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        return masked_crc32c(content).to_bytes(4, "little")

    version = b"\x09\0\0\0\0\0\0\0\0\x1a\x0dbrain.Event:2"
    first, second = (number.to_bytes(8, "little") for number in (len(version), length))
    beginning = first + checksum(first) + version + checksum(version) + second + checksum(second)
    path = sparse(tmp_path / "events.out.tfevents.1.host", beginning, 800_000_100)
    assert "no scalar that is named as a gradient norm" in cost_of_refusal(path)


@pytest.mark.parametrize("steps", [10**12, 50_000_001, 10**400])
def test_a_huge_option(steps):
    with refuses("num_training_steps is 1" if steps != 50_000_001 else "50000001", "from 1 to 50,000,000"):
        RefinementOptions(num_training_steps=steps, pilot=True)


def test_a_horizon_that_the_norms_cannot_describe(tmp_path):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 3)
    with refuses(str(path), "3 gradient norms", "50,000,000", "at most 1,000,000", error=UnfinishedRunError):
        refine_sources(path, "adam", RefinementOptions(num_training_steps=50_000_000, pilot=True))
    assert (
        len(refine_sources(path, "adam", RefinementOptions(num_training_steps=10**6, pilot=True)).schedule.grid)
        == 1_000_001
    )


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"steps": [1, 2, 1_000_001]}, ValueError, id="a step"),
        pytest.param({"steps": [1, 2, 3], "num_training_steps": 1_000_001}, UnfinishedRunError, id="planned updates"),
    ],
)
def test_norms_in_memory_obey_the_same_limit(fields, error):
    with pytest.raises(error, match=r"3 gradient norms .* 1,000,001 updates, but at most 1,000,000") as caught:
        GradientNorms(l1=np.ones(3), **fields)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (1, True),
        (50_000_000, True),
        (0, False),
        (50_000_001, False),
        (True, False),
        (2.0, False),
        ("3", False),
        (None, False),
    ],
)
def test_a_step_number(value, valid):
    assert is_step_number(value) is valid


# --- text from outside ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("runs/baseline", "runs/baseline", id="a path"),
        pytest.param("an étude", "an étude", id="letters"),
        pytest.param("a\nb\tc\r", r"a\nb\tc\r", id="line feed, tabulator, carriage return"),
        pytest.param("\x1b[31mred\x07", r"\x1b[31mred\x07", id="colours and bells of a terminal"),
        pytest.param("evil\u202egpj.exe", r"evil\u202egpj.exe", id="right to left"),
        pytest.param("\udcff", r"\udcff", id="a byte that is no UTF-8"),
        pytest.param("x" * 100, "x" * 100, id="100 characters"),
        pytest.param("x" * 60 + "y" * 60, "x" * 33 + "...xxxx" + "y" * 60, id="more"),
    ],
)
def test_text_is_shown(text, expected):
    assert shown(text) == expected


def test_a_value_is_quoted():
    assert quoted("a\nb") == r"'a\nb'"
    assert quoted(10**400).startswith("100000000000")
    assert len(quoted("x" * 1000)) == 40


def test_names_are_listed_as_far_as_they_fit():
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(["a" * 30, "b" * 30, "c" * 30]) == f"'{'a' * 30}', '{'b' * 30}' and 1 more"
    assert listed(["x" * 100] * 3).endswith(" and 2 more")


NAME = "\x1b[31m\n" + "n" * 300
ROWS = [{"step": step, NAME: 1.0, f"{NAME}/grad_norm": 1.0, f"other {NAME}/grad_norm": 2.0} for step in range(1, 31)]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        pytest.param("log.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS), {}, id="several columns"),
        pytest.param("log.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS), {"column": NAME}, id="no kind"),
        pytest.param(
            "log.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS), {"column": "a\n" * 99}, id="no column"
        ),
        pytest.param("log.csv", f'step,"{NAME}"\n' + "1,2\n" * 30, {}, id="no norm"),
        pytest.param("log.csv", "step,grad_norm\n" + '1,"' + "x" * 200_000, {}, id="damaged CSV"),
        pytest.param("log.csv", "step,grad_norm\n" + "1,2\n" * 30, {}, id="too few"),
        pytest.param("log.csv", "step,grad_norm\n" + "".join(f"{s},nan\n" for s in range(30)), {}, id="not finite"),
        pytest.param("log.csv", "step,grad_norm\n" + "".join(f"{s},0\n" for s in range(30)), {}, id="zeros"),
        pytest.param("log.csv", "step,grad_norm\n" + "".join(f"{s},1\n" for s in [*range(30)] * 2), {}, id="two runs"),
        pytest.param("log.csv", "step,grad_norm\n" + "1" * 2_000_000, {}, id="a long line"),
        pytest.param("file.json", "{", {}, id="a brace"),
        pytest.param("file.txt", "text\n", {}, id="text"),
        pytest.param("gradient_norms.jsonl", HEADER % json.dumps(NAME), {}, id="planned updates of a norms file"),
        pytest.param("gradient_norms.jsonl", (HEADER % 3).replace("adam", "\\u001b" * 99), {}, id="its optimizer"),
        pytest.param(
            "gradient_norms.jsonl", (HEADER % 3).replace(": 1,", f": {json.dumps(NAME)},"), {}, id="its version"
        ),
        pytest.param("gradient_norms.jsonl", HEADER % "null" + ROW % 1 + ROW % 2, {}, id="no length"),
        pytest.param("gradient_norms.jsonl", HEADER % 9 + ROW % 1 + ROW % 2, {}, id="unfinished"),
        pytest.param("gradient_norms.jsonl", HEADER % 9 + "damaged\n", {}, id="a damaged line"),
        pytest.param("gradient_norms.jsonl", HEADER % 9, {}, id="no norms yet"),
        pytest.param("missing", None, {}, id="no file"),
        pytest.param(".", None, {}, id="an empty folder"),
    ],
)
def test_an_error_is_one_line_of_at_most_300_characters(tmp_path, name, content, options):
    folder = tmp_path / "\x1b[31m\n" / ("f" * 200)
    folder.mkdir(parents=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        refine_sources(folder / name, "adam", RefinementOptions(**options))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= 300, message


def test_a_description_shows_no_control_characters(tmp_path):
    folder = tmp_path / "\x1b[31m\n"
    folder.mkdir()
    assert load_norms(write_state(folder / "trainer_state.json", entries(30))).description.isprintable()
