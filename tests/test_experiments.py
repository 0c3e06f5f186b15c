"""The library of the scripts: results, grids, compared schedules, provenance and tables."""

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from experiments.arguments import fraction_of_run, peak_learning_rate, positive_integer
from experiments.cells import BASELINE, TWICE_THE_STEPS, Cell, Result
from experiments.grid import (
    baseline_cells,
    best_baseline,
    compared_cells,
    equal_compute_cells,
    finer_peaks,
    keep_baseline,
    run_each,
    run_missing,
    tune_compared,
)
from experiments.json_file import read_json, write_json
from experiments.markdown_tables import markdown_table
from experiments.processes import PYTHONPATH
from experiments.provenance import (
    ProvenanceFile,
    collect_provenance,
    merge_provenance,
    package_versions,
    render_provenance,
)
from experiments.results_file import ResultsFile
from experiments.schedules_compared import SCHEDULES, sample_multipliers
from experiments.settings import describe_dropout
from transformers import OPTConfig, OPTForCausalLM

from .refusals import refuses
from .tolerances import COMMAND_SECONDS

CELL = Cell("finetune", "wsd", 0.005, seed=1, steps=300)
ROW = {
    "regime": "finetune",
    "schedule": "wsd",
    "peak": 0.005,
    "seed": 1,
    "steps": 300,
    "eval_loss": 4.25,
    "diverged": False,
    "curve": [[10, 5.5], [20, 5.0]],
    "seconds": 16.5,
}
LINE = json.dumps(ROW) + "\n"
OTHER = Cell("finetune", "linear", 0.005, seed=0, steps=300, role=BASELINE)


# --- cells and their results ---


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(ROW, id="compared"),
        pytest.param({**ROW, "eval_loss": None, "diverged": True, "curve": []}, id="diverged"),
        pytest.param({**ROW, "role": "baseline", "finer": True}, id="with a role, and between the peaks of the grid"),
    ],
)
def test_a_row_is_read_and_written_unchanged(row):
    assert json.loads(json.dumps(Result.from_row(row).to_row())) == row


@pytest.mark.parametrize("loss", [math.inf, math.nan, None])
def test_a_loss_that_is_not_finite_has_diverged(loss):
    assert Result.from_row({**ROW, "eval_loss": loss}).loss == math.inf


@pytest.mark.parametrize("end", ["", '{"regime": "fine', "{}", LINE[:-1].replace("wsd", "cosine")[:-2]])
def test_a_grid_continues_after_a_torn_line(tmp_path, end):
    path = tmp_path / "results.jsonl"
    path.write_text(LINE + end)
    results = ResultsFile(tmp_path)
    assert CELL in results and OTHER not in results
    results.append(Result(OTHER, 4.5, [(10, 5.0)], 1.0))
    assert path.read_text().startswith(LINE)
    assert len(path.read_text().splitlines()) == 2
    assert OTHER in ResultsFile(tmp_path)
    assert ResultsFile(tmp_path).seconds == 17.5


def test_a_whole_line_without_its_end_is_kept(tmp_path):
    (tmp_path / "results.jsonl").write_text(LINE[:-1])
    ResultsFile(tmp_path).append(Result(OTHER, 4.5))
    rows = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert [row["schedule"] for row in rows] == ["wsd", "linear"]


def test_a_damaged_line_in_the_middle_is_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text("damaged\n" + LINE)
    with refuses("line 1", "remove the line"):
        ResultsFile(tmp_path)


# --- the grid ---


def test_the_cells_of_a_grid():
    cells = compared_cells("lora", ["linear", "wsd"], [0.1, 0.2], num_seeds=2, steps=10)
    assert [(cell.seed, cell.peak, cell.schedule) for cell in cells] == [
        (1, 0.1, "linear"), (1, 0.1, "wsd"), (1, 0.2, "linear"), (1, 0.2, "wsd"),
        (2, 0.1, "linear"), (2, 0.1, "wsd"), (2, 0.2, "linear"), (2, 0.2, "wsd"),
    ]  # fmt: skip
    assert {(cell.regime, cell.steps, cell.role, cell.finer) for cell in cells} == {("lora", 10, None, False)}
    assert baseline_cells("lora", [0.1], 10) == [Cell("lora", "linear", 0.1, 0, 10, role="baseline")]
    assert equal_compute_cells("lora", [0.1, 0.4], 1, 10) == [
        Cell("lora", "linear", 0.2, 1, 10, finer=True),
        Cell("lora", TWICE_THE_STEPS, 0.1, 1, 20),
        Cell("lora", TWICE_THE_STEPS, 0.4, 1, 20),
    ]
    assert finer_peaks([4e-3, 1e-3, 2e-3]) == [1.41e-3, 2.83e-3]


def test_only_missing_cells_run(tmp_path):
    cells = compared_cells("lora", ["linear"], [0.1, 0.2, 0.4], num_seeds=1, steps=10)
    ran = []

    def run(cell):
        ran.append(cell.peak)
        if cell.peak == 0.4 and len(ran) == 2:
            raise KeyboardInterrupt
        return Result(cell, 1.0)

    results = ResultsFile(tmp_path)
    results.append(Result(cells[1], 2.0))
    with pytest.raises(KeyboardInterrupt):
        run_missing(cells, run, results)
    run_missing(cells, run, ResultsFile(tmp_path))
    assert ran == [0.1, 0.4, 0.4]
    table = ResultsFile(tmp_path).table()
    assert table.set_index("peak")["loss"].to_dict() == {0.1: 1.0, 0.2: 2.0, 0.4: 1.0}


def test_workers_are_processes_of_their_own():
    items = [os.getpid(), os.getpid() + 1, os.getpid() + 2]
    assert sorted(run_each(float, items, num_workers=2)) == items
    assert next(run_each(eval, ["__import__('os').getpid()"], num_workers=2)) == os.getpid(), "one item needs no worker"
    assert os.getpid() not in set(run_each(eval, ["__import__('os').getpid()"] * 2, num_workers=2))


def test_an_error_in_a_worker_ends_the_grid():
    with pytest.raises(ValueError, match="could not convert"):
        list(run_each(float, ["1", "two", "3"], num_workers=2))


def test_what_runs_beside_an_error_is_kept():
    outputs = []
    with pytest.raises(ZeroDivisionError):
        for output in run_each(eval, ["1 / 0", "__import__('time').sleep(1) or 5"], num_workers=2):
            outputs.append(output)
    assert outputs == [5]


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """Also if a kill gives it no chance to stop them."""
    script = tmp_path / "grid.py"
    script.write_text(
        "import os, sys, time\nfrom pathlib import Path\nfrom experiments.grid import run_each\n\n\n"
        "def train(name):\n    Path(name).write_text(str(os.getpid()))\n    time.sleep(60)\n\n\n"
        "if __name__ == '__main__':\n    list(run_each(train, sys.argv[1:], num_workers=2))\n"
    )
    files = [tmp_path / "first", tmp_path / "second"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen([sys.executable, script, *files], env=environment) as grid:
        try:
            deadline = time.monotonic() + COMMAND_SECONDS
            while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
                time.sleep(0.05)
            workers = [psutil.Process(int(file.read_text())) for file in files]
        finally:
            grid.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def write_baseline(folder, losses):
    results = ResultsFile(folder)
    for cell, loss in zip(baseline_cells("lora", losses, 10), losses.values(), strict=True):
        results.append(Result(cell, loss))
    return results


def test_the_norms_of_the_best_baseline_are_kept_once(tmp_path):
    results = write_baseline(tmp_path, {0.1: 3.0, 0.2: 2.0, 0.4: math.inf})
    # Cells that are compared, and those of other regimes, choose nothing.
    results.append(Result(Cell("lora", "linear", 0.1, 1, 10), 0.5))
    results.append(Result(Cell("scratch", "linear", 0.1, 0, 10, role=BASELINE), 0.5))
    assert best_baseline(results, "lora") == 0.2
    recorded = []

    def record(cell: Cell, path: Path) -> None:
        recorded.append(cell.peak)
        path.write_text("norms")

    kept = tmp_path / "baselines" / "lora.jsonl"
    assert keep_baseline(results, "lora", 10, kept, record) == Cell("lora", "linear", 0.2, 0, 10, role=BASELINE)
    assert keep_baseline(results, "lora", 10, kept, record) is None
    assert (recorded, kept.read_text(), list(kept.parent.iterdir())) == ([0.2], "norms", [kept])


def test_a_baseline_that_always_diverged_is_refused(tmp_path):
    results = write_baseline(tmp_path, {0.1: math.inf})
    with refuses("Every baseline run of lora has diverged", "pass lower --peaks"):
        best_baseline(results, "lora")


def test_the_best_peak_is_chosen_over_the_compared_seeds(tmp_path):
    results = write_baseline(tmp_path, {0.1: 0.0, 0.2: 9.0})
    losses = {0.1: (3.0, 3.0, 0.0), 0.2: (1.0, 2.0, 9.0)}  # the third seed is not among those that are compared
    for peak, of_seeds in losses.items():
        for seed, loss in enumerate(of_seeds, start=1):
            results.append(Result(Cell("lora", "linear", peak, seed, 10), loss))
    assert tune_compared(results, "lora", "linear", num_seeds=2).peak == 0.2
    assert tune_compared(results, "lora", "linear", num_seeds=3).peak == 0.1


# --- the compared schedules ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", {"lr_scheduler_type": "linear", "warmup_steps": 0}),
        ("linear+warmup", {"lr_scheduler_type": "linear", "warmup_steps": 10}),
        (
            "wsd",
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "warmup_steps": 10,
                "lr_scheduler_kwargs": {"num_decay_steps": 40, "decay_type": "linear"},
            },
        ),
        (
            "schedule_free",
            {"lr_scheduler_type": "constant", "warmup_steps": 10, "optim": "schedule_free_adamw"},
        ),
        (
            "refined_ignore_rising+warmup",
            {
                "lr_scheduler_type": "refined",
                "warmup_steps": 10,
                "lr_scheduler_kwargs": {
                    "refined_from": "baseline.jsonl", "allow_degenerate": True, "rising_norms": "ignore",
                },
            },
        ),
        (
            "greedy",
            {
                "lr_scheduler_type": "greedy",
                "warmup_steps": 0,
                "lr_scheduler_kwargs": {"min_lr": 0.005, "max_lr": 0.5, "patience": 1, "smooth": False},
                "eval_strategy": "steps",
                "eval_steps": 6,
                "metric_for_best_model": "loss",
            },
        ),
    ],
)  # fmt: skip
def test_the_training_arguments_of_a_schedule(name, expected):
    assert SCHEDULES[name].training_arguments(200, 0.5, Path("baseline.jsonl")) == expected


def test_schedules_are_sampled_as_they_train():
    wsd = sample_multipliers(SCHEDULES["wsd"], 100, Path())
    assert len(wsd) == 201
    # At even progress: a ramp over 5 % of the run, the peak, linear decay over the last 20 %.
    expected = [*(step / 10 for step in range(10)), *[1.0] * 151, *(1 - step / 40 for step in range(1, 41))]
    assert wsd == pytest.approx(expected, abs=1e-5)


# --- files and arguments ---


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "grid.json"
    assert read_json(path) == {}
    write_json(path, {"a": 1})
    assert (read_json(path), list(tmp_path.iterdir())) == ({"a": 1}, [path])
    for content in ("[]", "{"):
        path.write_text(content)
        with refuses(str(path), "remove the file"):
            read_json(path)


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (positive_integer, {"12": 12}, ["0", "-1", "1.5", "²", ""]),
        (peak_learning_rate, {"1e-3": 1e-3, "1e30": 1e30}, ["0", "-1", "nan", "inf", "1e31", "fast"]),
        (fraction_of_run, {"0.1": 0.1, "1": 1.0}, ["0", "1.1", "nan", "half"]),
    ],
)
def test_arguments(parse, good, bad):
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(text)} is not a "):
            parse(text)


# --- tables and provenance ---


def test_a_table_is_aligned_and_its_cells_cannot_break_it():
    table = pd.DataFrame([["a|b", 1.5, "x"], ["two\nlines", 20.0, "longer"]], columns=["name", "RMSE", "RMSE"])
    assert markdown_table(table).splitlines() == [
        "| name      | RMSE | RMSE   |",
        "| --------- | ---- | ------ |",
        r"| a\|b      | 1.5  | x      |",
        "| two lines | 20.0 | longer |",
    ]


def test_a_table_keeps_whole_numbers_beside_fractions():
    assert markdown_table(pd.DataFrame({"count": [3], "share": [0.5]})).splitlines()[-1] == "| 3     | 0.5   |"


def test_a_table_without_rows_is_its_heading():
    assert markdown_table(pd.DataFrame(columns=["s", "name"])).splitlines() == ["| s   | name |", "| --- | ---- |"]


def test_provenance_holds_the_command_and_what_it_ran_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["anything.py", "--name", "a b"])
    record = collect_provenance("soak.py", 90.04, packages=["torch", "no-package-of-this-name"], threads=2)
    assert record["commands"] == ["python scripts/soak.py --name 'a b'"]
    assert list(record) == ["commands", "machine", "python", "threads", "versions", "seconds"]
    assert record["python"] == platform.python_version()
    assert record["versions"]["no-package-of-this-name"] == "not installed"
    assert re.fullmatch(r".+, \d+ cores, .+", record["machine"])
    rendered = render_provenance(record)
    assert rendered.startswith("## Provenance\n\n```bash\npython scripts/soak.py --name 'a b'\n```\n\n- machine: ")
    assert rendered.endswith(", no-package-of-this-name not installed\n- duration: 1.5 minutes")
    assert "\n- threads: 2\n" in rendered


def test_versions_are_of_the_installed_packages():
    assert package_versions(["pandas"]) == {"pandas": pd.__version__}


def test_a_provenance_file_adds_runs_up(tmp_path, monkeypatch):
    (tmp_path / "grid.json").write_text(json.dumps({"commands": ["first"], "seconds": 100.0}))
    monkeypatch.setattr(sys, "argv", ["pilot.py"])
    for _ in range(2):
        with ProvenanceFile(tmp_path, "pilot.py", processes=1) as file:
            assert file.previous["commands"][0] == "first"
            file.write()
    record = json.loads((tmp_path / "grid.json").read_text())
    assert record["commands"] == ["first", "python scripts/pilot.py"]
    assert 100.0 <= record["seconds"] < 160.0
    assert record["processes"] == 1


def test_an_interrupted_run_leaves_its_provenance(tmp_path):
    with pytest.raises(KeyboardInterrupt), ProvenanceFile(tmp_path, "pilot.py") as file:
        file.write()
        file.path.unlink()
        raise KeyboardInterrupt
    assert len(json.loads((tmp_path / "grid.json").read_text())["commands"]) == 1


def test_a_run_without_results_leaves_no_provenance(tmp_path):
    with pytest.raises(ValueError, match="an option"), ProvenanceFile(tmp_path, "pilot.py"):
        raise ValueError("an option")
    with ProvenanceFile(tmp_path, "pilot.py"):
        pass
    assert not (tmp_path / "grid.json").exists()


def test_a_run_on_another_machine_is_added(tmp_path):
    (tmp_path / "grid.json").write_text(json.dumps({"machine": "an abacus", "seconds": 1.0}))
    for _ in range(2):
        with ProvenanceFile(tmp_path, "pilot.py") as file:
            file.write()
    machines = json.loads((tmp_path / "grid.json").read_text())["machine"].split("; ")
    assert (machines[0], len(machines)) == ("an abacus", 2)


def test_dropout_without_a_layer_is_described():
    config = OPTConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        ffn_dim=8,
        word_embed_proj_dim=8,
        dropout=0.3,
    )
    assert describe_dropout(OPTForCausalLM(config)) == "0.3"
    assert describe_dropout(torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Dropout(0.0))) == "0.2"
    assert describe_dropout(torch.nn.Linear(1, 1)) == "none"


def test_merged_records_name_every_machine_and_version():
    one = {"commands": ["a"], "machine": "an abacus", "versions": {"torch": "2.6"}, "seconds": 1.0, "processes": 2}
    two = {"commands": ["b", "a"], "machine": "a loom", "versions": {"torch": "2.13", "scipy": "1.17"}, "seconds": 2.5}
    assert merge_provenance([one, {}, two, {**one, "processes": 1, "threads": 4}]) == {
        "commands": ["a", "b"],
        "machine": "an abacus; a loom",
        "versions": {"torch": "2.6; 2.13", "scipy": "1.17"},
        "seconds": 4.5,
        "processes": "2; 1",
        "threads": 4,
    }


def test_writing_twice_does_not_count_the_time_twice(tmp_path):
    (tmp_path / "grid.json").write_text(json.dumps({"commands": [], "seconds": 1000.0}))
    with ProvenanceFile(tmp_path, "pilot.py") as file:
        assert file.write()["seconds"] < 1500
    assert json.loads((tmp_path / "grid.json").read_text())["seconds"] < 1500


def test_a_cell_breaks_no_table():
    table = pd.DataFrame({"name": ["a|b", "<b>x</b>", "two\nlines"], "p": ["< 0.001", "1 < 2", "x"]})
    rows = [line.split(" | ") for line in markdown_table(table).splitlines()[2:]]
    assert [[cell.strip("| ") for cell in row] for row in rows] == [
        [r"a\|b", "< 0.001"],
        ["&lt;b>x&lt;/b>", "1 < 2"],
        ["two lines", "x"],
    ]
