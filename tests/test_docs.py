"""The documentation: its blocks run, its table of mistakes is what the package says, its links and names are there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

import hf_refined_schedule
from hf_refined_schedule import RefinedScheduleTrainer, refine_schedule
from hf_refined_schedule.cli import main
from hf_refined_schedule.schedules.refinement_options import RefinementOptions, keyword_of

from .records import entries, write_norms, write_state
from .refusals import refuses
from .tiny import BIN, PYTHONPATH, REPOSITORY, SCRIPTS, tiny_arguments, tiny_model
from .tolerances import COMMAND_SECONDS

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"(<!-- not run by the tests: [^>]+ -->\n)?```(python|bash)\n(.*?)```", re.S)

PAGES = (
    *(
        "index.md",
        "how-to/preview.md",
        "how-to/diagnose.md",
        "how-to/model-card.md",
        "how-to/extend-and-predict.md",
        "method.md",
        "file-formats.md",
    ),
    *("how-to/unmodified-script.md", "how-to/accelerate-loop.md"),
)
"""The pages with blocks, in an order in which each finds the runs that it needs. A page about another tool has a test of its own."""


def blocks(page):
    return [(language, code) for mark, language, code in BLOCK.findall((DOCS / page).read_text()) if not mark]


def test_every_block_runs(tmp_path):
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": PYTHONPATH}
    environment["ACCELERATE_USE_CPU"] = "true"
    shutil.copy(SCRIPTS / "unmodified_trainer.py", tmp_path / "train.py")
    shutil.copy(SCRIPTS / "beside_the_script.py", tmp_path)
    for page in PAGES:
        assert blocks(page), f"{page} has no blocks; take it off the list"
        for language, code in blocks(page):
            command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=COMMAND_SECONDS
            )
            assert done.returncode == 0, f"{page}: {code}\n{done.stderr}"
    assert sorted(path.name for path in (tmp_path / "runs").glob("*.*")) == [
        "extension.json", "norms_and_schedule.png", "rates.png", "schedule.json"
    ]  # fmt: skip


def test_no_other_page_has_blocks_that_nothing_runs():
    others = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - set(PAGES)
    assert [page for page in others if not page.startswith("how-to/") and blocks(page)] == []


# --- the table of mistakes ---


ROWS = re.findall(r"^\| ([^|]+) \| `(.+?)` \| ([^|]+) \|$", (DOCS / "mistakes.md").read_text(), re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the table speaks of."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_norms(folder / "runs" / "baseline" / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    write_norms(folder / "runs" / "stopped" / "gradient_norms.jsonl", [2.0] * 40, planned=100)
    write_norms(folder / "runs" / "interpolating" / "gradient_norms.jsonl", list(0.9 ** np.arange(200)))
    write_state(folder / "runs" / "short" / "trainer_state.json", entries(5))
    (folder / "empty").mkdir()
    for name, columns in (
        ("losses", "loss"),
        ("layers", "layer0/grad_norm,layer1/grad_norm"),
        ("other_tool", "total_gradient_norm_l2"),
    ):
        values = ",1.0" * len(columns.split(","))
        (folder / f"{name}.csv").write_text(f"step,{columns}\n" + "".join(f"{step}{values}\n" for step in range(1, 50)))
    assert main(["refine", str(folder / "runs" / "baseline"), "-o", str(folder / "schedule.json")]) == 0
    return folder


@pytest.mark.parametrize(("mistake", "typed", "answer"), [pytest.param(*row, id=row[0]) for row in ROWS])
def test_a_mistake_is_answered_as_the_table_says(folder, monkeypatch, capsys, mistake, typed, answer):
    monkeypatch.chdir(folder)
    if not typed.startswith("hf-refined-schedule "):
        model, arguments = tiny_model(), tiny_arguments("out")
        names = {"model": model, "arguments": arguments, "refine_schedule": refine_schedule}
        with refuses(answer):
            eval(typed, {**names, "RefinedScheduleTrainer": RefinedScheduleTrainer})
        return
    command, *words = shlex.split(typed)[1:]
    assert main([command, *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"hf-refined-schedule {command}: error: {answer}"


def test_the_table_has_the_likeliest_mistakes():
    assert len(ROWS) >= 20
    assert len({mistake for mistake, _, _ in ROWS}) == len(ROWS)


def test_without_register_transformers_answers():
    """A process of its own, because this one has registered the schedule."""
    code = "from transformers import TrainingArguments; TrainingArguments('out', lr_scheduler_type='refined')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=COMMAND_SECONDS)
    answer = "refined is not a valid SchedulerType"
    assert answer in done.stderr
    assert answer in (DOCS / "mistakes.md").read_text()


# --- names, links, numbers ---


def test_links_lead_somewhere():
    """In the repository; a hook of the site turns those to results/ into its own."""
    targets = [
        (page, target)
        for page in DOCS.rglob("*.md")
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text())
    ]
    assert len(targets) > 15
    assert [(page.name, target) for page, target in targets if not (page.parent / target).exists()] == []


def test_every_public_name_is_in_the_api():
    documented = re.findall(r"^::: hf_refined_schedule\.(?:.*)\.(\w+)$", (DOCS / "api.md").read_text(), re.M)
    assert sorted(documented) == hf_refined_schedule.__all__
    homes = re.findall(r"^::: hf_refined_schedule\.(.*)\.(\w+)$", (DOCS / "api.md").read_text(), re.M)
    assert {name: home for home, name in homes} == hf_refined_schedule._HOMES


def test_every_option_is_in_the_table():
    keywords = {keyword_of(option) for option in fields(RefinementOptions)}
    table = "".join(re.findall(r"^\|.*", (DOCS / "options.md").read_text(), re.M))
    assert [keyword for keyword in keywords if f"`{keyword}`" not in table] == []


def test_every_field_of_the_files_is_described(folder):
    page = (DOCS / "file-formats.md").read_text()
    norms = (folder / "runs" / "baseline" / "gradient_norms.jsonl").read_text().splitlines()
    names = {name for text in (*norms[:2], (folder / "schedule.json").read_text()) for name in json.loads(text)}
    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in page and f'"{name}"' not in page] == []


def test_the_site_builds_without_a_warning(tmp_path):
    """MkDocs in strict mode, where it is installed: a page that is missing or a docstring that cannot be read is an error."""
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", DOCS / "site" / "mkdocs.yml"]
    done = subprocess.run([*command, "--site-dir", tmp_path], capture_output=True, text=True, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api" / "index.html").stat().st_size > 20_000
    assert (tmp_path / "results" / "finetune" / "index.html").is_file()
