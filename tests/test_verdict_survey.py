"""scripts/verdict_survey.py on a folder of logs."""

import numpy as np

from .records import write_norms
from .tiny import BIN, REPOSITORY, run_command

SCRIPT = REPOSITORY / "scripts" / "verdict_survey.py"


def test_each_log_has_a_row(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    write_norms(logs / "constant.jsonl", np.random.default_rng(1).uniform(1, 1.1, 100))
    (logs / "empty.csv").write_text("")
    done = run_command(BIN / "python", SCRIPT, logs, "--output", tmp_path / "verdicts.md")
    assert done.returncode == 0, done.stderr
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "verdicts.md").read_text().splitlines()
    ]
    table = {row[0]: row[1:] for row in rows if row and row[0] in ("constant.jsonl", "empty.csv")}
    assert table["constant.jsonl"][:2] == ["100", "sound"]
    assert table["empty.csv"][1] == "refused"
    assert str(tmp_path) not in table["empty.csv"][2]


def test_a_folder_without_logs_is_refused(tmp_path):
    done = run_command(BIN / "python", SCRIPT, tmp_path)
    assert done.returncode == 2
    assert "holds no log; give a folder of" in done.stderr
