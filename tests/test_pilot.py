"""scripts/pilot.py, run as a user runs it on runs of a few seconds; its arithmetic on invented norms."""

import shutil
import sys

import numpy as np
import pilot
import pytest
from experiments.fine_tuning import Setting
from experiments.pilots import Row, Schedule, compare_pilots, conclusion, first_part, format_spread, read_norms

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.gradient_norms import GradientNorms

from .tiny import BIN, REPOSITORY, read_rows, run_command
from .tolerances import EXACT_ROUNDING

SCRIPT = REPOSITORY / "scripts" / "pilot.py"
STEPS = 20
WORDS = (
    *("--regimes", "scratch", "--steps", STEPS, "--num_seeds", 2, "--num_workers", 1),
    *("--parts", 0.1, 1, "--lengths", 0.25, "--smaller_models"),
)
ROWS = [
    "full run, another seed",
    "linear decay",
    "first 10 % of the run",
    "first 100 % of the run",
    "run of 25 % of the length",
    "run of 25 % of the length, as the first 25 %",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "pilot"
    done = run_command(BIN / "python", SCRIPT, "--output_dir", output_dir, *WORDS)
    assert done.returncode == 0, done.stderr
    return output_dir


def tables_of(folder):
    """Every table of the report: its header, and its rows by name."""
    tables = []
    for part in folder.with_suffix(".md").read_text().split("\n\n"):
        if part.startswith("| "):
            header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
            tables.append((header, {row[0]: dict(zip(header, row, strict=True)) for row in rows}))
    return tables


def norms_files(folder):
    return sorted(folder.rglob("gradient_norms*.jsonl"))


def run_of(norms):
    return GradientNorms(np.arange(1, len(norms) + 1), l1=norms, l2=norms, num_training_steps=len(norms))


def test_a_table_for_each_rule(folder):
    tables = tables_of(folder)
    assert len(tables) == 2
    for header, rows in tables:
        assert header == [
            "schedule of", "RMSE", "times another seed's", "closer than linear decay", "peak at", "mean multiplier", "check",
        ]  # fmt: skip
        assert list(rows) == ROWS
        assert float(rows["full run, another seed"]["RMSE"].split()[0]) > 0
        assert rows["linear decay"]["peak at"] == "0 %"


def test_the_whole_file_as_a_pilot_gives_the_full_runs_schedule(folder):
    for _, rows in tables_of(folder):
        whole, full = rows["first 100 % of the run"], rows["full run, another seed"]
        assert (whole["RMSE"], whole["closer than linear decay"]) == ("0.000", "2 of 2 seeds")
        for column in ("peak at", "mean multiplier", "check"):
            assert whole[column] == full[column]


def test_norms_are_kept_for_the_package_to_read(folder):
    header, *rows = (folder / "norms.csv").read_text().splitlines()
    assert (header.count(", seed "), len(rows)) == (4, STEPS)
    for path in norms_files(folder):
        if path.match(f"scratch_*/cells/linear_*_2_{STEPS}_steps/*"):
            norms = load_norms(folder / "norms.csv", column="scratch, full run, seed 2", norm="l1")
            assert norms.l1 == pytest.approx([row["l1"] for row in read_rows(path)[1]], rel=1e-5)
            break
    else:
        pytest.fail("The full run with seed 2 is not where it should be.")


def test_a_rerun_makes_what_a_kill_has_left_and_nothing_else(folder):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in norms_files(folder)}
    assert len(before) == 4
    report = tables_of(folder)
    interrupted = norms_files(folder)[0]
    lines = interrupted.read_text().splitlines(keepends=True)
    interrupted.write_text("".join(lines[:-3]))
    done = run_command(BIN / "python", SCRIPT, "--output_dir", folder, *WORDS)
    assert done.returncode == 0, done.stderr
    for path, (content, written) in before.items():
        assert path.read_bytes() == content
        assert path == interrupted or path.stat().st_mtime_ns == written
    assert tables_of(folder) == report


def test_the_report_is_made_from_the_kept_norms(folder, tmp_path):
    copy = tmp_path / "pilot"
    copy.mkdir()
    for name in ("norms.csv", "grid.json"):
        shutil.copy(folder / name, copy)
    done = run_command(BIN / "python", SCRIPT, "--output_dir", copy, "--report_only", *WORDS)
    assert done.returncode == 0, done.stderr
    assert copy.with_suffix(".md").read_bytes() == folder.with_suffix(".md").read_bytes()
    assert sorted(path.name for path in copy.iterdir()) == ["grid.json", "norms.csv", "schedules.png"]


def test_runs_of_unequal_length_are_kept_in_one_table(folder):
    lengths = {name: len(norms.steps) for name, norms in read_norms(folder / "norms.csv").items()}
    short = STEPS // 4
    assert lengths == {
        "scratch, full run, seed 1": STEPS,
        "scratch, full run, seed 2": STEPS,
        "scratch, run of 25 % of the length, seed 1": short,
        "scratch, run of 25 % of the length, seed 2": short,
    }


def test_every_run_has_a_folder_of_its_own(monkeypatch, tmp_path):
    def prepared(model, data, training, size=None):
        return Setting(training.regime, "", "", "", f"{training.output_dir}/{size or ''}", 8, False, 1)

    monkeypatch.setattr(pilot, "prepare_setting", prepared)
    options = pilot.make_parser().parse_args(["--output_dir", str(tmp_path)])
    runs = [run for regime in ("finetune", "scratch") for run in pilot.plan_runs(options, regime)]
    assert len({run.norms_file for run in runs}) == len(runs) == 2 * 3 * 5
    assert not any(run.is_recorded for run in runs)
    steps = {run.name: run.cell.steps for run in runs}
    assert steps == {
        "full run": 1000, "run of 10 % of the length": 100, "run of 25 % of the length": 250,
        "model half as wide": 1000, "model half as wide, half the layers": 1000,
    }  # fmt: skip
    for run in runs:
        assert ("n_embd=48" in str(run.norms_file)) is run.name.startswith("model")
        assert ("n_layer=1" in str(run.norms_file)) is run.name.endswith("layers")


def test_distances_calculated_by_hand():
    """The norms halve at half the run, of which the first half, and a run of constant norms, know nothing."""
    falling, constant = run_of(np.repeat([2.0, 1.0], 500)), run_of(np.ones(1000))
    sources = {
        "full run": [falling, falling],
        "half": [first_part(falling, 0.5)] * 2,
        "constant": [constant] * 2,
        "twice as often": [run_of(np.repeat([2.0, 1.0], 1000))] * 2,
    }
    other, linear, half, flat, finer = compare_pilots(sources, "keep")
    assert other.distances == [0, 0]
    for row in (flat, half):
        assert row.distances == pytest.approx(linear.distances, rel=EXACT_ROUNDING)
    # The weights are 1/2, then 1, and what is left of their sum is (3/2 - u) / 2, then 1 - u; the largest product is 1/2.
    progress = np.linspace(0, 1, 100_001)
    schedule = np.where(progress < 0.5, 0.75 - progress / 2, 2 - 2 * progress)
    assert linear.distance == pytest.approx(np.sqrt(np.mean((schedule - (1 - progress)) ** 2)), abs=2e-3)
    assert finer.distance < 2e-3
    assert finer.num_closer_than(linear) == 2


def test_the_first_part_of_a_run():
    norms = run_of(np.linspace(2, 1, 100))
    part = first_part(norms, 0.25)
    assert (list(part.steps), part.num_training_steps) == (list(range(1, 26)), 100)
    assert first_part(norms, 1.0).l1.tolist() == norms.l1.tolist()


def test_the_conclusion_from_a_table():
    def row(name, distances, *verdicts):
        return Row(name, distances, [Schedule(np.array([1.0, 0.0]), verdict) for verdict in verdicts])

    rows = [
        row("full run, another seed", [0.1, 0.1], "doubtful", "linear will do"),
        row("linear decay", [0.3, 0.3], "-", "-"),
        row("good", [0.1, 0.1], "doubtful", "linear will do"),
        row("fair", [0.2, 0.31], "doubtful", "linear will do"),
        row("bad", [0.3, 0.4], "linear will do", "doubtful"),
    ]
    assert conclusion(rows) == (
        "Closer to the full run's schedule than linear decay with every seed: good. With some seeds only: fair. With no seed, so "
        "that linear decay is the better guess: bad. As close on average as a full run with another seed: good. Another verdict "
        "than the full run's with some seed: bad."
    )
    assert format_spread([0.1, 0.3], "{:.1f}".format) == "0.2 [0.1, 0.3]"
    assert format_spread([0.11, 0.12], "{:.1f}".format) == "0.1"
    assert rows[3].distance == pytest.approx(0.255, rel=EXACT_ROUNDING)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_seeds", "1"), "--num_seeds is 1"),
        (("--steps", "15"), "--steps 15 has fewer than 2 updates"),
        (("--parts", "2"), "2 is not a fraction of the run"),
        (("--regimes", "lora"), "invalid choice: 'lora'"),
        (("--report_only", "--output_dir", "nowhere"), "norms.csv is missing"),
    ],
)
def test_bad_usage(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["pilot.py", *words])
    with pytest.raises(SystemExit) as exit:
        pilot.main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
