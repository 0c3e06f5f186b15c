"""The fuzzer runs, finds nothing in the package, and finds a fault that is put there."""

import random

import pytest
from experiments import fuzzing

from .tiny import BIN, REPOSITORY, run_command

SCRIPT = REPOSITORY / "scripts" / "fuzz.py"


def test_a_few_broken_inputs_find_nothing(tmp_path):
    done = run_command(BIN / "python", SCRIPT, "--inputs", 200, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "fuzz.md").read_text()
    assert report.startswith("# Broken inputs")
    assert not (tmp_path / "fuzz").exists()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return fuzzing.valid_inputs(tmp_path_factory.mktemp("valid"))


def test_every_valid_input_is_accepted(inputs, tmp_path):
    for number, seed in enumerate(inputs):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert fuzzing.find_faults(seed, seed.content, folder) == ([], True), seed.kind


def test_mutations_break_inputs_in_the_same_way_again(inputs):
    content = inputs[0].content
    one, other = (fuzzing.mutate(content, random.Random(3)) for _ in range(2))
    assert one == other != content


@pytest.mark.parametrize(
    ("raised", "what"),
    [
        (KeyError("step"), "KeyError: 'step'"),
        (ValueError("two\nlines"), "control characters"),
        (ValueError("x" * 400), "400 characters"),
        (SystemExit(3), "SystemExit"),
    ],
)
def test_a_planted_fault_is_found(inputs, tmp_path, monkeypatch, raised, what):
    def broken(*args, **kwargs):
        raise raised

    monkeypatch.setattr(fuzzing, "load_norms", broken)
    faults, accepted = fuzzing.find_faults(inputs[0], inputs[0].content, tmp_path)
    assert [fault.call for fault in faults] == ["load_norms"]
    assert what in faults[0].what
    assert accepted, "the other calls"


def test_commands_that_disagree_are_a_fault(inputs, tmp_path, monkeypatch):
    def refuses_to_rank(words):
        if words[0] == "rank":
            raise ValueError("no")

    monkeypatch.setattr(fuzzing, "_command", refuses_to_rank)
    monkeypatch.setattr(fuzzing, "_refine", lambda path, options: None)
    (fault,), _ = fuzzing.find_faults(inputs[0], inputs[0].content, tmp_path)
    assert fault.call == "agreement"
    assert fault.what == "only check and refine accepted it, with options []"


def test_an_unfinished_run_that_only_check_accepts_is_no_fault(inputs, tmp_path):
    half = b"".join(inputs[0].content.splitlines(keepends=True)[:31])
    assert fuzzing.find_faults(inputs[0], half, tmp_path) == ([], True)


def test_memory_beyond_the_limit_is_a_fault(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "_peak_megabytes", iter(range(0, 10**6, 400)).__next__)
    faults, _ = fuzzing.find_faults(inputs[0], inputs[0].content, tmp_path)
    assert faults[0].what == "400 MB of memory"


def test_a_schedule_file_outside_its_range_is_a_fault(inputs, tmp_path, monkeypatch):
    path = tmp_path / "gradient_norms.jsonl"
    path.write_bytes(inputs[0].content)
    monkeypatch.setattr(fuzzing, "_command", lambda words: (tmp_path / "refined.json").write_text('{"version": 1}'))
    with pytest.raises(RuntimeError, match="refine wrote a file that read_schedule refuses"):
        fuzzing._refine(path, [])
