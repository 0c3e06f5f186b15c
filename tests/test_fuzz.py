"""The fuzzer runs, finds nothing in the package, and finds a fault that is put there."""

import random

import pytest
from experiments import fuzzing

from .tiny import BIN, REPOSITORY, run_command

SCRIPT = REPOSITORY / "scripts" / "fuzz.py"


def test_a_few_broken_inputs_find_nothing(tmp_path):
    done = run_command(BIN / "python", SCRIPT, "--inputs", 50, "--num_workers", 1, "--output_dir", tmp_path)
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
