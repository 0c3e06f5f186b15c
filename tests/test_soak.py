"""soak.py: a few trials, a difference that it must find, and the moments of its kills."""

import random
import re

import pytest
from experiments.interruptions import Moment, kill_condition, unfinished_checkpoint

from .tiny import BIN, CAN_RESUME_ON_CPUS, REPOSITORY, SCRIPTS, run_command

SOAK = REPOSITORY / "scripts" / "soak.py"


def test_a_few_trials(tmp_path):
    report = tmp_path / "soak.md"
    of_two = 1 if CAN_RESUME_ON_CPUS else 0
    done = run_command(BIN / "python", SOAK, "--trials", 2, "--trials_of_two", of_two, "--output", report)
    assert done.returncode == 0, done.stderr
    text = report.read_text()
    assert text in done.stdout
    rows = re.findall(r"^\| ([12]) +\| (\d+) +\| (\d+) +\| .* \| (\d+) +\| (\d+) +\| (\d+) +\|$", text, re.M)
    assert [(processes, trials) for processes, trials, *_ in rows] == [("1", "2"), ("2", "1")][: 1 + of_two]
    assert all(int(kills) >= 1 for _, _, kills, *_ in rows)
    assert all(differing == ["0", "0", "0"] for _, _, _, *differing in rows)
    assert "python scripts/soak.py --trials 2" in text


def test_a_difference_is_seen(tmp_path):
    options = ("--trials", 4, "--trials_of_two", 0, "--output", tmp_path / "soak.md")
    done = run_command(BIN / "python", SCRIPTS / "forgetful_soak.py", *options, TMPDIR=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "differs: " in done.stdout
    assert "'different norms file': 1" in done.stdout
    assert list(tmp_path.glob("soak_*/1_*/gradient_norms.jsonl")), "the folder of a run that differs is kept"


def test_a_negative_number_of_trials_is_refused():
    done = run_command(BIN / "python", SOAK, "--trials_of_two", -1)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "--trials_of_two is -1, but must be at least 0; pass a number of trials"
    )


def write_checkpoint(folder, step, finished):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(exist_ok=True)
    if finished:
        (checkpoint / "trainer_state.json").touch()
    return checkpoint


def test_the_newest_checkpoint_is_found_by_its_number(tmp_path):
    assert unfinished_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, 8, finished=True)
    newest = write_checkpoint(tmp_path, 12, finished=False)
    assert unfinished_checkpoint(tmp_path) == newest
    write_checkpoint(tmp_path, 12, finished=True)
    assert unfinished_checkpoint(tmp_path) is None


def test_a_kill_waits_for_its_checkpoint(tmp_path):
    class Third(random.Random):
        def randint(self, a, b):
            return 3

    is_due = kill_condition(Moment.CHECKPOINT, tmp_path, Third(0), duration=1.0)
    for step in (4, 8):
        write_checkpoint(tmp_path, step, finished=False)
        assert not is_due()
        assert not is_due()
        write_checkpoint(tmp_path, step, finished=True)
    write_checkpoint(tmp_path, 12, finished=False)
    assert is_due()


@pytest.mark.parametrize("moment", [None, Moment.LINE, Moment.REPLACEMENT])
def test_runs_that_kill_themselves_are_not_killed_from_outside(tmp_path, moment):
    write_checkpoint(tmp_path, 4, finished=False)
    is_due = kill_condition(moment, tmp_path, random.Random(0), duration=0.0)
    assert not any(is_due() for _ in range(100))
