"""The soak test itself: a few trials, and a difference that it has to see."""

import re

from .tiny import BIN, CAN_RESUME_ON_CPUS, REPOSITORY, run_command

SOAK = REPOSITORY / "scripts" / "soak.py"


def test_a_few_trials(tmp_path):
    report = tmp_path / "soak.md"
    of_two = 1 if CAN_RESUME_ON_CPUS else 0
    done = run_command(BIN / "python", SOAK, "--trials", 2, "--trials_of_two", of_two, "--output", report)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| ([12]) \| (\d+) \| (\d+) \| .* \| (\d+) \| (\d+) \| (\d+) \|$", report.read_text(), re.M)
    assert [(processes, trials) for processes, trials, *_ in rows] == [("1", "2"), ("2", "1")][: 1 + of_two]
    assert all(int(kills) >= 1 for _, _, kills, *_ in rows)
    assert all(differing == ["0", "0", "0"] for _, _, _, *differing in rows)


def test_a_difference_is_seen(tmp_path):
    """A run that forgets a row of its norms file, as a wrong resume would."""
    code = (
        "import sys, runpy\nfrom hf_refined_schedule.norms.norms_file import NormsFileWriter\n"
        "replace = NormsFileWriter._replace\n"
        "def forgetful(self, header, lines):\n"
        "    lines = list(lines)\n"
        "    replace(self, header, lines[:-1])\n"
        "NormsFileWriter._replace = forgetful\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    options = ("--trials", 4, "--trials_of_two", 0, "--output", tmp_path / "soak.md")
    done = run_command(BIN / "python", "-c", code, SOAK, *options, TMPDIR=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "differs: " in done.stdout
    assert "'differing gradient_norms.jsonl': 1" in done.stdout
    assert list(tmp_path.glob("soak_*/1_*/gradient_norms.jsonl")), "kept to be looked at"
