"""The two pictures and the table beside them, where the answer is known; and sources that give none."""

import re

import numpy as np
import pytest

from .test_cli import write_run
from .tiny import BIN, REPOSITORY, run_command

FIGURES = REPOSITORY / "scripts" / "figures.py"


def rows(text):
    """The cells of each row of the tables."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_our_own_runs_and_synthetic_ones(tmp_path):
    done = run_command(BIN / "python", FIGURES, "--output_dir", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "figures.md").read_text()
    assert report.strip() == done.stdout.strip()
    for name in re.findall(r"\]\((.*\.png)\)", report):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    table = {(cells[0], cells[1]): cells for cells in rows(report)}
    for weights in ("L1 ** -1", "L2 ** -2"):
        warmup, power = re.fullmatch(r"warm-up (\d+)%, power (.*)", table["constant", weights][4]).groups()
        assert warmup == "0"
        assert float(power) == pytest.approx(1, abs=0.1)
    assert {"fine-tuning", "from scratch", "LoRA"} <= {name for name, _ in table}


def test_a_source_of_ones_own(tmp_path):
    """Norms that rise make the rate fall early: the peak at once, a mean below linear decay's."""
    write_run(tmp_path / "rising" / "gradient_norms.jsonl", np.linspace(1, 4, 200).tolist())
    done = run_command(BIN / "python", FIGURES, tmp_path / "rising", "--output_dir", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    (cells,) = [cells for cells in rows(done.stdout) if cells[0] == str(tmp_path / "rising")]
    assert (cells[1], cells[2]) == ("L1 ** -1", "0%")
    assert float(cells[3]) < 0.4


def test_sources_without_an_answer(tmp_path):
    (tmp_path / "log.csv").write_text("step,grad_norm\n" + "".join(f"{step},1.5\n" for step in range(1, 50)))
    for source, words in (("nothing", "no file or folder"), (tmp_path / "log.csv", "--optimizer adam")):
        done = run_command(BIN / "python", FIGURES, source, "--output_dir", tmp_path / "figures")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert words in line
