"""launch_matrix.py: its cheapest cells, and the judgement of reports that are wrong in one point."""

import ast
import json
import sys
from dataclasses import replace

import pytest
from experiments.launch_cells import CELLS, LEARNING_RATE, SCRIPTS, UPDATES, known_rates
from experiments.launch_outcomes import Outcome, judge
from experiments.launches import LIBRARY, run_launch
from experiments.rank_reports import RankReport
from launch_matrix import Report, render_report

from .tiny import BIN, REPOSITORY, run_command
from .tiny import SCRIPTS as TEST_SCRIPTS

SCRIPT = REPOSITORY / "scripts" / "launch_matrix.py"


def rows_of(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    header, _, *rows = [[text.strip() for text in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_cheap_cells(tmp_path):
    cells = ("one process", "DDP, torch*", "optimizer that steps*", "unmodified run_clm-style script")
    done = run_command(BIN / "python", SCRIPT, "--output_dir", tmp_path, "--cells", *cells)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path / "launch_matrix.md")
    assert list(rows) == [
        "one process",
        "DDP, torchrun",
        "optimizer that steps in the backward pass",
        "unmodified run_clm-style script",
    ]
    environment = "distributed type, processes"
    one, two, refused, unmodified = rows.values()
    assert (one[environment], one["result"]) == ("NO, 1", "recorded")
    assert (two[environment], two["result"]) == ("MULTI_CPU, 2", "recorded")
    assert (unmodified[environment], unmodified["result"]) == ("NO, 1", "recorded")
    for row in (one, two, unmodified):
        for norm in ("L1", "L2"):
            assert max(float(difference) for difference in row[norm].split(", ")) < 1e-5
    assert (refused["L1"], refused["result"]) == (
        "",
        "refused: no parameter of the optimizer had a gradient at its step",
    )
    assert (tmp_path / "launch_matrix.md").read_text() in done.stdout


def test_the_names_of_the_cells_are_listed():
    done = run_command(BIN / "python", SCRIPT, "--list")
    assert done.stdout.splitlines() == [cell.name for cell in CELLS]
    assert len(set(done.stdout.splitlines())) == len(CELLS)


def test_an_unknown_cell_is_refused(tmp_path):
    done = run_command(BIN / "python", SCRIPT, "--output_dir", tmp_path / "out", "--cells", "one process", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "launch_matrix.py: error: No cell is named 'nothing'; --list prints the names.\n"
    assert not (tmp_path / "out").exists()


def old_report(path, **changes):
    """A report with the rows of two cells and of one that there is no more; `changes` replace text in it."""
    cells = [next(cell for cell in CELLS if cell.name == name) for name in ("one process", "DDP, torchrun")]
    cells.append(replace(cells[0], name="gone"))
    outcomes = [
        Outcome("NO, 1", "6e-08, 9e-08", "4e-08, 4e-08", "recorded", failed=False),
        Outcome("MULTI_CPU, 2", "", "", "FAILED: it hangs", failed=True),
        Outcome("", "", "", "not run: needs a CUDA device", failed=False),
    ]
    text = render_report(cells, outcomes, [50.4, 36.0, 1.0], ["python scripts/launch_matrix.py"])
    path.write_text(text.replace("- versions: torch", changes.get("versions", "- versions: torch")))
    return outcomes


def test_a_report_is_read_back(tmp_path):
    outcomes = old_report(tmp_path / "launch_matrix.md")
    report = Report.read(tmp_path / "launch_matrix.md")
    assert list(report.rows.items()) == [
        ("one process", (outcomes[0], 50)),
        ("DDP, torchrun", (outcomes[1], 36)),
        ("gone", (outcomes[2], 1)),
    ]
    assert report.commands[0] == "python scripts/launch_matrix.py"
    assert set(report.provenance) == {"machine", "python", "system", "versions"}


def test_rows_of_other_cells_are_kept(tmp_path):
    old_report(tmp_path / "launch_matrix.md")
    words = (SCRIPT, "--output_dir", tmp_path, "--cells", "fp16*adamw_torch, on CUDA", "--keep")
    done = run_command(BIN / "python", *words, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "launch_matrix.md").read_text()
    rows = rows_of(tmp_path / "launch_matrix.md")
    new = "fp16 with overflow, adamw_torch, on CUDA"
    assert list(rows) == ["one process", "DDP, torchrun", new]
    assert [row["result"] for row in rows.values()] == [
        "recorded",
        "FAILED: it hangs",
        "not run: needs a CUDA device",
    ]
    assert (rows["one process"]["L1"], rows["one process"]["seconds"]) == ("6e-08, 9e-08", "50")
    assert "2 of 3 cells ran on this machine, and 1 failed" in text
    assert "```bash\npython scripts/launch_matrix.py\n" in text
    assert f"--cells '{words[4]}' --keep\n```" in text


@pytest.mark.parametrize(
    ("versions", "message"),
    [(None, "does not exist; --keep needs a report"), ("- versions: flame", "run all cells, without --keep")],
)
def test_rows_that_cannot_be_kept_are_refused(tmp_path, versions, message):
    if versions:
        old_report(tmp_path / "launch_matrix.md", versions=versions)
    done = run_command(BIN / "python", SCRIPT, "--output_dir", tmp_path, "--cells", "one process", "--keep")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"launch_matrix.py: error: {tmp_path / 'launch_matrix.md'} ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def good_run(cell):
    """The reports of the ranks and of the single process, and the norms file, of a run without a mistake."""
    rates, norms = known_rates(), [[100.0 - step, 3.0 - step / 10] for step in range(UPDATES)]
    report = RankReport(
        2, "MULTI_CPU", rates, setup=[*cell.setup], warnings=["Refined schedule from x: It is doubtful."]
    )
    reports = [replace(report, rates=[*rates], setup=[*report.setup], warnings=[*report.warnings]) for _ in range(2)]
    rows = [
        {"step": step, "l1": l1, "l2": l2, "clip_factor": 1 / (l2 + 1e-6), "learning_rate": rate}
        for step, ((l1, l2), rate) in enumerate(zip(norms, rates, strict=True), start=1)
    ]
    return reports, RankReport(1, "NO", rates, norms), [{"world_size": 2}, *rows]


def one_update_ahead(reports, reference, lines):
    for row, rate in zip(lines[1:], [*reference.rates[1:], 0.0], strict=True):
        row["learning_rate"] = rate


def another_norm(reports, reference, lines):
    lines[2]["l1"] *= 1.001


def no_l1(reports, reference, lines):
    for row in lines[1:]:
        row["l1"] = None


def clipped_norms(reports, reference, lines):
    for row in lines[1:]:
        row["l2"] = 1.0


def wrong_clip_factor(reports, reference, lines):
    lines[4]["clip_factor"] = 1.0


def one_update_missing(reports, reference, lines):
    lines.pop()


def other_rates_on_a_rank(reports, reference, lines):
    reports[1].rates[5] *= 2


def unknown_rates(reports, reference, lines):
    for rates in (*(report.rates for report in reports), reference.rates):
        rates[:] = [rate / 2 for rate in rates]
    for row in lines[1:]:
        row["learning_rate"] /= 2


def two_single_processes(reports, reference, lines):
    for report in reports:
        report.world_size, report.distributed_type = 1, "NO"


def not_wrapped(reports, reference, lines):
    reports[0].setup = ["GPT2LMHeadModel"]


def a_warning(reports, reference, lines):
    reports[0].warnings.append("Gradient norms are not recorded from update 3 on: of something.")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (None, ""),
        (one_update_ahead, "has the learning rate"),
        (another_norm, "L1 differs by 1.0e-03"),
        (no_l1, "update 1 has the l1 None"),
        (clipped_norms, "L2 differs by"),
        (wrong_clip_factor, "update 4 has the clip factor 1.0"),
        (one_update_missing, "the norms file has the updates"),
        (other_rates_on_a_rank, "rank 1 applied"),
        (unknown_rates, "instead of the known rates"),
        (two_single_processes, "rank 0 is one of 1 under NO"),
        (not_wrapped, "without DistributedDataParallel"),
        (a_warning, "the recorder warned"),
    ],
)
def test_mistakes_fail(tmp_path, spoil, message):
    cell = next(cell for cell in CELLS if cell.name == "DDP, torchrun")
    reports, reference, lines = good_run(cell)
    if spoil is not None:
        spoil(reports, reference, lines)
    (tmp_path / "rank0").mkdir()
    (tmp_path / "rank0" / "gradient_norms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = judge(cell, reports, reference, tmp_path)
    assert outcome.failed == (spoil is not None)
    assert message in outcome.result
    (tmp_path / "rank1").mkdir()
    (tmp_path / "rank1" / "gradient_norms.jsonl").write_text("")
    assert "rank 0 alone should have written a norms file" in judge(cell, reports, reference, tmp_path).result


def test_a_refused_cell_leaves_no_file(tmp_path):
    cell = next(cell for cell in CELLS if cell.name == "optimizer that steps in the backward pass")
    reports = [RankReport(1, "NO", known_rates(), [], list(cell.warnings), [*cell.setup])]
    reference = RankReport(1, "NO", known_rates())
    outcome = judge(cell, reports, reference, tmp_path)
    assert (outcome.failed, outcome.result) == (
        False,
        "refused: no parameter of the optimizer had a gradient at its step",
    )
    (tmp_path / "gradient_norms.jsonl").touch()
    outcome = judge(cell, reports, reference, tmp_path)
    assert outcome.failed
    assert "there are norms files" in outcome.result


@pytest.mark.parametrize(("limit", "in_time"), [(2, False), (30, True)])
def test_a_launch_that_hangs_is_killed(tmp_path, monkeypatch, limit, in_time):
    """At its time limit, or soon after all ranks have reported."""
    monkeypatch.setattr("experiments.launches.EXIT_LIMIT", 0.5)
    started = tmp_path / "started"
    reports = [started if in_time else tmp_path / "none"]
    command = [sys.executable, str(TEST_SCRIPTS / "detached_child.py"), str(started)]
    assert run_launch([command], [{}], reports, tmp_path / "log", limit) == in_time


def imported_modules(path):
    """The modules that a file imports, and those that the library's modules import for it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    for module in [module for module in modules if module.startswith("experiments.")]:
        modules |= imported_modules(LIBRARY / f"{module.removeprefix('experiments.')}.py")
    return modules


@pytest.mark.parametrize("name", SCRIPTS)
def test_unmodified_scripts_do_not_use_the_package(name):
    """Otherwise their cells would show nothing."""
    modules = imported_modules(LIBRARY / "unmodified" / f"{name}.py")
    assert {"transformers", "json", "experiments.tiny_models"} <= modules
    assert not [module for module in modules if module.startswith("hf_refined_schedule")]


def test_known_rates_by_the_literal_formula():
    norms = [2.0] * 6 + [1.0] * 7
    weights = [1 / norm for norm in norms]
    products = [weight * sum(weights[t + 1 :]) for t, weight in enumerate(weights)]
    expected = [LEARNING_RATE * product / max(products) for product in products[:UPDATES]]
    assert known_rates() == pytest.approx(expected, rel=1e-12)
