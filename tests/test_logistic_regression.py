"""scripts/logistic_regression.py, run as a user runs it on a grid of a few seconds."""

import json
import logging
import math
import runpy
import sys

import pytest
import torch

from .tiny import BIN, REPOSITORY, read_rows, run_command

pytest.importorskip("sklearn")

SCRIPT = REPOSITORY / "scripts" / "logistic_regression.py"
STEPS = 40
PEAKS = (0.25, 0.5, 1e6)
SCHEDULES = ("constant", "wsd", "linear", "refined")
GRID = (
    *("--datasets", "iris", "--optimizers", "sgd", "adam", "--schedules", *SCHEDULES),
    *("--seeds", 2, "--steps", STEPS, "--peaks", *PEAKS),
)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run the script in this process, where imports cost nothing; returns its exit code and the lines of its errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        capsys.readouterr()
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as exit:
            return exit.code, capsys.readouterr().err.splitlines()
        return 0, capsys.readouterr().err.splitlines()

    threads, logger = torch.get_num_threads(), logging.getLogger("hf_refined_schedule")
    level = logger.level
    yield run
    torch.set_num_threads(threads)
    logger.setLevel(level)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def cell_of(row):
    return row["regime"], row["schedule"], row["peak"], row["seed"]


def outcomes(folder):
    return {cell_of(row): (row["eval_loss"], row["curve"]) for row in rows_of(folder)}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    done = run_command(BIN / "python", SCRIPT, "--output_dir", folder, *GRID)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_cell_is_there_once(grid):
    rows = rows_of(grid)
    expected = []
    for regime in ("iris, SGD", "iris, Adam"):
        expected += [(regime, "linear", peak, 0, "baseline") for peak in PEAKS]
        expected += [(regime, name, peak, seed, None) for name in SCHEDULES for peak in PEAKS for seed in (1, 2)]
    assert sorted(map(str, ((*cell_of(row), row.get("role")) for row in rows))) == sorted(map(str, expected))
    fields = {"regime", "schedule", "peak", "seed", "steps", "eval_loss", "diverged", "curve", "seconds"}
    for row in rows:
        assert row.keys() - {"role"} == fields
        assert row["steps"] == STEPS
        assert 0 < row["seconds"] < 60


def test_a_peak_that_ends_above_the_start_is_recorded_as_diverged(grid):
    for row in rows_of(grid):
        if row["peak"] == 1e6:
            assert (row["eval_loss"], row["diverged"], row["curve"]) == (None, True, [])
        else:
            assert not row["diverged"]
            assert 0.01 < row["eval_loss"] < math.log(3), "trained at all"
            assert [step for step, _ in row["curve"]] == list(range(2, STEPS + 1, 2))


def test_the_order_of_the_data_is_the_seeds_alone(grid):
    """wsd is constant up to its decay, so with the same data both see the same losses up to there, and not after."""
    curves = {cell: curve for cell, (_, curve) in outcomes(grid).items()}
    until = round(0.8 * STEPS) // 2
    for regime in ("iris, SGD", "iris, Adam"):
        constant, wsd, other = (
            curves[regime, name, 0.25, seed] for name, seed in (("constant", 1), ("wsd", 1), ("constant", 2))
        )
        assert constant[:until] == wsd[:until]
        assert constant[until + 1 :] != wsd[until + 1 :]
        assert constant[1:until] != other[1:until]


def test_the_refined_schedule_comes_from_the_best_run_of_the_seed_that_is_not_compared(grid):
    for regime, folder in (("iris, SGD", "iris_sgd"), ("iris, Adam", "iris_adam")):
        baseline = [row for row in rows_of(grid) if row.get("role") and row["regime"] == regime]
        best = min((row["eval_loss"], row["peak"]) for row in baseline if not row["diverged"])[1]
        header, updates = read_rows(grid / "baselines" / folder / "gradient_norms.jsonl")
        assert (header["num_training_steps"], len(updates)) == (STEPS, STEPS)
        assert updates[0]["learning_rate"] == best


def test_the_schedules_are_sampled_at_even_progress(grid):
    for schedules in json.loads((grid / "schedules.json").read_text()).values():
        assert list(schedules) == list(SCHEDULES)
        assert schedules["linear"] == pytest.approx([1 - point / 200 for point in range(201)], abs=1e-5)
        wsd = [1.0] * 161 + [1 - point / 40 for point in range(1, 41)]
        assert schedules["wsd"] == pytest.approx(wsd, abs=1e-5)
        assert len(schedules["refined"]) == 201
        assert max(schedules["refined"]) == pytest.approx(1.0, abs=1e-2)
        assert schedules["refined"] != schedules["linear"]


def test_a_rerun_finishes_what_a_kill_has_left_and_repeats_it_exactly(grid, tmp_path, run_here):
    whole = (grid / "results.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:-8]) + lines[-8][:40])
    assert run_here("--output_dir", tmp_path, *GRID)[0] == 0
    assert (tmp_path / "results.jsonl").read_text().startswith("".join(lines[:-8]))
    assert len(rows_of(tmp_path)) == len(lines)
    assert outcomes(tmp_path) == outcomes(grid)


def test_a_rerun_of_a_finished_grid_changes_nothing(grid, run_here):
    before = {path: path.read_bytes() for path in grid.rglob("*") if path.is_file()}
    assert run_here("--output_dir", grid, *GRID)[0] == 0
    assert {path: path.read_bytes() for path in grid.rglob("*") if path.is_file()} == before


def test_grid_json_holds_the_provenance(grid):
    about = json.loads((grid / "grid.json").read_text())
    assert about["commands"][0].startswith("python scripts/logistic_regression.py --output_dir")
    assert about["seconds"] == pytest.approx(sum(row["seconds"] for row in rows_of(grid)), abs=0.1)
    assert about["versions"].keys() == {"torch", "transformers", "accelerate", "numpy"}
    assert about["model"] == "logistic regression, 40 updates on batches of 16, L2 penalty 0.0001"


def test_cells_of_another_length_are_refused(grid, run_here):
    code, lines = run_here("--output_dir", grid, "--datasets", "iris", "--steps", 50)
    assert (code, len(lines)) == (2, 1)
    assert "holds a grid of logistic regression, 40 updates" in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--schedules", "linear", "sine"), "--schedules: invalid choice: 'sine'"),
        (("--datasets", "mnist"), "--datasets: invalid choice: 'mnist'"),
        (("--peaks", "0.5", "-1"), "--peaks"),
        (("--peaks", "nan"), "nan is not a number"),
        (("--seeds", "0"), "0 is not a whole number of at least 1"),
        (("--penalty", "-1"), "--penalty"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, run_here, words, message):
    code, lines = run_here("--output_dir", tmp_path / "out", *words)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_without_scikit_learn_one_line_says_how_to_get_it(tmp_path, run_here, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, lines = run_here("--output_dir", tmp_path / "out")
    assert (code, len(lines)) == (2, 1)
    assert "pip install scikit-learn" in lines[0]
