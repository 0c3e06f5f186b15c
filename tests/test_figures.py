"""The two pictures and the table beside them, where the answer is known; and sources that give none."""

import re

import figures
import numpy as np
import pytest

from .records import write_norms
from .refusals import refusal
from .tiny import BIN, REPOSITORY, run_command

FIGURES = REPOSITORY / "scripts" / "figures.py"

SCATTER = 0.03
"""What 10 % of scatter in a synthetic run's norms, smoothed over 100 updates, moves a mean or the place of a clear peak by."""


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
    for name, weights, column, by_hand in (
        # Norms y = 1 + u and w = 1 / y: w * (the integral of w from u to 1) = ln(2 / y) / y, at most ln 2, and ln(2)^2 / 2 in the mean.
        ("rising", "L1 ** -1", 3, 0.347),
        # w = 1 / y^2: (1 / y - 1 / 2) / y^2, at most 1 / 2, and 1 / 8 in the mean.
        ("rising", "L2 ** -2", 3, 0.25),
        # y = 1 - 0.67 u and w = 1 / y^2: (1 / 0.33 - 1 / y) / y^2 up to a factor, greatest at y = 1.5 * 0.33.
        ("falling", "L2 ** -2", 2, 0.754),
    ):
        cell = table[name, weights][column]
        value = float(cell.rstrip("%")) / (100 if cell.endswith("%") else 1)
        assert value == pytest.approx(by_hand, abs=SCATTER), (name, weights)
    assert {"fine-tuning", "from scratch", "LoRA"} <= {name for name, _ in table}


def test_a_source_of_ones_own(tmp_path):
    """Norms that rise make the rate fall early: the peak at once, a mean below linear decay's."""
    write_norms(tmp_path / "rising" / "gradient_norms.jsonl", np.linspace(1, 4, 200).tolist())
    done = run_command(BIN / "python", FIGURES, tmp_path / "rising", "--output_dir", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    (cells,) = [cells for cells in rows(done.stdout) if cells[0] == str(tmp_path / "rising")]
    assert (cells[1], cells[2]) == ("L1 ** -1", "0%")
    assert float(cells[3]) < 0.4


def test_sources_without_an_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text("step,total_grad_norm\n" + "".join(f"{step},1.5\n" for step in range(1, 50)))
    write_norms(tmp_path / "vanished.jsonl", [0.0] * 100)
    write_norms(tmp_path / "half.jsonl", [1.0] * 50, planned=100)
    for source, words in (
        ("nothing", "no file or folder"),
        ("log.csv", "--optimizer adam"),
        ("vanished.jsonl", "100 of 100 gradient norms are 0"),
        ("half.jsonl", "covers 50 of 100"),
    ):
        assert words in refusal(figures.main, (source, "--output_dir", "figures"), monkeypatch, capsys)
    assert not (tmp_path / "figures").exists()


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    done = run_command(BIN / "python", FIGURES, "--output_dir", "taken", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("figures.py: error: ") and "taken" in line
