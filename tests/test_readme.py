"""The README's blocks, run in order in one folder as a reader would, and the figures that it and docs/recording.md state."""

import os
import re
import shutil

import pytest
from publish_results import COPY, with_results

from .tiny import BIN, REPOSITORY, SCRIPTS, run_command

README = (REPOSITORY / "README.md").read_text()
RECORDING = (REPOSITORY / "docs" / "recording.md").read_text()
PROSE = " ".join(RECORDING.split())
BLOCK = re.compile(r"(<!-- not run by the tests: [^>]+ -->\n)?```(python|bash)\n(.*?)```", re.S)


def blocks():
    return [(language, code) for mark, language, code in BLOCK.findall(README) if not mark]


def test_every_block_runs(tmp_path):
    """The quickstart has a test of its own. `train.py` is a script that has never heard of this package."""
    shutil.copy(SCRIPTS / "unmodified_trainer.py", tmp_path / "train.py")
    shutil.copy(SCRIPTS / "beside_the_script.py", tmp_path)
    for number, (language, code) in enumerate(blocks()):
        if code == "bash scripts/quickstart.sh\n":
            continue
        assert language == "bash"
        file = tmp_path / f"block{number}.sh"
        file.write_text(f"cd {tmp_path}\nset -e\n{code}")
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        done = run_command("bash", file, PATH=path, ACCELERATE_USE_CPU="true")
        assert done.returncode == 0, f"{code}\n{done.stderr}"
    assert (tmp_path / "runs" / "baseline" / "gradient_norms.jsonl").is_file()
    assert sorted(path.name for path in (tmp_path / "runs").glob("*.*")) == [
        "extension.json", "norms_and_schedule.png", "schedule.json"
    ]  # fmt: skip


def test_blocks_are_found():
    languages = [language for language, _ in blocks()]
    assert (languages.count("python"), languages.count("bash")) == (0, 2)


def test_links_to_files_lead_somewhere():
    targets = re.findall(r"\]\((?!http|#)([^)]+)\)", README) + re.findall(r"`((?:scripts|results)/[\w./]+)`", README)
    assert len(targets) >= 4
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_its_tables_and_lists_are_those_that_the_scripts_wrote():
    assert {path for _, _, path, _ in COPY.findall(README)} == {
        "results/quickstart/table.md", "results/studies.md", "results/problem_suite.md",
    }  # fmt: skip
    assert with_results(README, REPOSITORY) == README


def test_its_table_of_studies_has_at_most_twelve_rows():
    (table,) = (copy[0] for copy in COPY.finditer(README) if copy[3] == "results/studies.md")
    assert 3 <= sum(line.startswith("|") for line in table.splitlines()) <= 2 + 12


def test_a_copy_is_made_again(tmp_path):
    (tmp_path / "report.md").write_text("# Report\n\n| a |\n| - |\n| 1 |\n\n- one\n- two\n\n| b |\n")
    text = "Before\n\n<!-- the first table of report.md -->\nold\n<!-- end -->\n\n<!-- the first list of report.md -->\n\n<!-- end -->\n"
    table = "<!-- the first table of report.md -->\n\n| a |\n| - |\n| 1 |\n\n<!-- end -->"
    assert with_results(text, tmp_path) == (
        f"Before\n\n{table}\n\n<!-- the first list of report.md -->\n\n- one\n- two\n\n<!-- end -->\n"
    )
    (tmp_path / "report.md").write_text("# Report\n")
    with pytest.raises(ValueError, match=r"report.md has no table; write the report again."):
        with_results(text, tmp_path)


def test_its_errors_of_the_loss_law_are_those_of_the_report():
    report = (REPOSITORY / "results" / "loss_law.md").read_text()
    errors = [re.search(rf"^\| {size}, one .*?\| (0\.\d+), ", report, re.M)[1] for size in ("25M", "100M")]
    stated = re.search(r"it was off by (\S+) and (\S+) on average", " ".join(README.split()))
    assert list(stated.groups()) == [f"{float(error):.3f}" for error in errors]


def test_its_control_is_that_of_the_reports():
    guide = " ".join((REPOSITORY / "docs" / "which-schedule.md").read_text().split())
    stated = re.search(r"`bounded_warmup` differed from it by (\S+ \[.*?\]) and (\S+ \[.*?\])\.", guide).groups()
    of_smollm2 = re.search(r"at the peak 6\.1e-5, by (\S+ \[.*?\])\.", guide).groups()
    studies = ("trained_start_300", "trained_start_1200", "smollm2")
    for difference, study in zip((*stated, *of_smollm2), studies, strict=True):
        report = (REPOSITORY / "results" / f"{study}.md").read_text()
        section = report[report.index("## Test runs at other peaks") : report.index("## What was forecast")]
        assert f"| {difference} " in section


def test_its_differences_of_logs_are_those_of_the_survey():
    stated = re.search(
        r"by (\S+) of the peak in the median of (\d+) \S+ and by (\S+) at most, plain `refined` by (\S+) and (\S+) \(root",
        " ".join(README.split()),
    )
    report = (REPOSITORY / "results" / "ordinary_logs.md").read_text()
    lines = re.findall(
        r"^- L2 norms of every 10th update: (\S+) in the median and (\S+) at most; in \d+ of (\d+) studies",
        report,
        re.M,
    )
    (bounded_median, bounded_most, count), (median, most, _) = lines
    assert stated.groups() == (bounded_median, count, bounded_most, median, most)


def test_its_launches_are_those_that_ran():
    def rows(text, *columns):
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "
        ]
        places = [lines[0].index(name) for name in columns]
        return [tuple(line[place] for place in places) for line in lines]

    columns = ("cell", "distributed type, processes", "L1", "L2", "result")
    table = RECORDING[RECORDING.index("| cell ") :]
    launches = rows((REPOSITORY / "results" / "launch_matrix.md").read_text(), *columns)
    assert len(rows(table, *columns)) > 25
    assert [row for row in rows(table, *columns)[2:] if row not in launches] == []


def test_its_cost_is_that_of_the_benchmark():
    report = (REPOSITORY / "results" / "benchmark.md").read_text()
    rows = re.findall(r"^\| cpu +\|.*\| 1024 +\|.*\| ([\d.]+) +\| [\d.]+ +\| 1\.01 [^|]*\|$", report, re.M)
    assert len(rows) == 6
    shares = [100 * (float(row) - 1) for row in rows]
    stated = re.search(r"On two CPU cores it took ([\d.]+) to ([\d.]+) % of a step of 1,024 tokens", PROSE)
    assert stated.groups() == (f"{min(shares):.1f}", f"{max(shares):.1f}")


def test_its_kills_are_those_of_the_soak_test():
    report = (REPOSITORY / "results" / "soak.md").read_text()
    counted = re.findall(r"^\| [12] +\| (\d+) +\| (\d+) +\|.*\| 0 +\| 0 +\| 0 +\|$", report, re.M)
    stated = re.search(r"In (\d+) runs of one process \((\d+) kills\) and (\d+) of two \((\d+) kills\)", PROSE)
    assert [stated.group(1, 2), stated.group(3, 4)] == counted
