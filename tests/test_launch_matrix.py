"""scripts/launch_matrix.py on its cheapest cells, and on reports of launches that are not what they should be."""

import importlib.util
import json
import sys

import psutil
import pytest

from .tiny import BIN, REPOSITORY, run_command

SCRIPT = REPOSITORY / "scripts" / "launch_matrix.py"


@pytest.fixture(scope="module")
def matrix():
    specification = importlib.util.spec_from_file_location("launch_matrix", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["launch_matrix"] = module  # where dataclasses look for their module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["launch_matrix"]


def rows_of(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    header, _, *rows = [[text.strip() for text in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_cheap_cells(tmp_path):
    cells = ("one process", "DDP, torch*", "optimizer that steps*")
    done = run_command(BIN / "python", SCRIPT, "--output_dir", tmp_path, "--cells", *cells)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path / "launch_matrix.md")
    assert list(rows) == ["one process", "DDP, torchrun", "optimizer that steps in the backward pass"]
    one, two, refused = rows.values()
    assert (one["got"], one["result"]) == ("NO, 1", "recorded")
    assert (two["got"], two["result"]) == ("MULTI_CPU, 2", "recorded")
    for row in (one, two):
        for norm in ("L1", "L2"):
            assert max(float(difference) for difference in row[norm].split(", ")) < 1e-5
    assert (refused["L1"], refused["result"]) == (
        "",
        "refused: no parameter of the optimizer had a gradient at its step",
    )
    assert (tmp_path / "launch_matrix.md").read_text() in done.stdout


def test_a_name_that_is_no_cells(tmp_path):
    done = run_command(BIN / "python", SCRIPT, "--output_dir", tmp_path / "out", "--cells", "one process", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "launch_matrix.py: error: No cell is named 'nothing'; --list prints the names.\n"
    assert not (tmp_path / "out").exists()


def good_run(matrix, cell):
    """Reports of the ranks and of the single process, and the file, where nothing is wrong."""
    rates, norms = matrix.known_rates(), [[100.0 - step, 3.0 - step / 10] for step in range(matrix.UPDATES)]
    common = {"facts": [*cell.facts], "network": "", "warnings": ["Refined schedule from x: It is doubtful."]}
    reports = [
        {"world_size": 2, "distributed_type": "MULTI_CPU", "rates": list(rates), "norms": [], **common}
        for _ in range(2)
    ]
    rows = [
        {"step": step, "l1": l1, "l2": l2, "clip_factor": 1 / (l2 + 1e-6), "learning_rate": rate}
        for step, ((l1, l2), rate) in enumerate(zip(norms, rates, strict=True), start=1)
    ]
    return reports, {"rates": rates, "norms": norms}, [{"world_size": 2}, *rows]


def one_update_ahead(reports, reference, lines):
    for row, rate in zip(lines[1:], [*reference["rates"][1:], 0.0], strict=True):
        row["learning_rate"] = rate


def another_norm(reports, reference, lines):
    lines[2]["l1"] *= 1.001


def no_l1(reports, reference, lines):
    for row in lines[1:]:
        row["l1"] = None


def clipped_norms(reports, reference, lines):
    for row in lines[1:]:
        row["l2"] = 1.0


def an_update_too_few(reports, reference, lines):
    lines.pop()


def other_rates_on_a_rank(reports, reference, lines):
    reports[1]["rates"][5] *= 2


def two_single_processes(reports, reference, lines):
    for report in reports:
        report |= {"world_size": 1, "distributed_type": "NO"}


def not_wrapped(reports, reference, lines):
    reports[0]["facts"] = ["GPT2LMHeadModel"]


def a_warning(reports, reference, lines):
    reports[0]["warnings"].append("Gradient norms are not recorded from update 3 on: of something.")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (None, ""),
        (one_update_ahead, "has the learning rate"),
        (another_norm, "L1 differs by 1.0e-03"),
        (no_l1, "update 1 has the l1 None"),
        (clipped_norms, "L2 differs by"),
        (an_update_too_few, "the file has the updates"),
        (other_rates_on_a_rank, "rank 1 applied"),
        (two_single_processes, "rank 0 is one of 1 in NO"),
        (not_wrapped, "rank 0 has no DistributedDataParallel"),
        (a_warning, "the recorder warned"),
    ],
)
def test_what_fails(matrix, tmp_path, spoil, message):
    cell = next(cell for cell in matrix.CELLS if cell.name == "DDP, torchrun")
    reports, reference, lines = good_run(matrix, cell)
    if spoil is not None:
        spoil(reports, reference, lines)
    (tmp_path / "rank0").mkdir()
    (tmp_path / "rank0" / "gradient_norms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = matrix.judge(cell, reports, reference, tmp_path)
    assert outcome.failed == (spoil is not None)
    assert message in outcome.result
    (tmp_path / "rank1").mkdir()
    (tmp_path / "rank1" / "gradient_norms.jsonl").write_text("")
    assert "rank 0 alone should have written a file" in matrix.judge(cell, reports, reference, tmp_path).result


def test_a_launch_that_hangs_is_ended_with_all_its_processes(matrix, tmp_path):
    """Also what has a session of its own, as torchrun's workers have."""
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}], start_new_session=True); {}"
    hangs = child.format("import time; time.sleep(600)", "time.sleep(600)")
    environment = {"PATH": "/usr/bin:/bin", "NAME": str(tmp_path)}
    in_time = matrix.run_launch(
        [[sys.executable, "-c", hangs]], [environment], [tmp_path / "none"], tmp_path / "log", limit=2
    )
    assert not in_time

    def is_ours(process):
        try:
            return process.environ().get("NAME") == str(tmp_path)
        except psutil.Error:
            return False

    assert not any(is_ours(process) for process in psutil.process_iter())


def test_known_rates_by_the_literal_formula(matrix):
    norms = [2.0] * 6 + [1.0] * 7
    weights = [1 / norm for norm in norms]
    products = [weight * sum(weights[t + 1 :]) for t, weight in enumerate(weights)]
    expected = [matrix.LEARNING_RATE * product / max(products) for product in products[: matrix.UPDATES]]
    assert matrix.known_rates() == pytest.approx(expected, rel=1e-12)
