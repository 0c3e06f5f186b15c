"""scripts/report_comparison.py on results written by the tests, against numbers calculated by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import report_comparison
from experiments.report import read_cells, write_report
from experiments.report_tables import bound_table, equal_compute_table, main_table, regime_tables
from experiments.statistics import paired_difference
from scipy import stats

from .tiny import BIN, REPOSITORY, run_command
from .tolerances import EXACT_ROUNDING

SCRIPT = REPOSITORY / "scripts" / "report_comparison.py"

T_OF_2 = (2 * 0.95**2 / (1 - 0.95**2)) ** 0.5
"""4.302653, the 97.5 % point of Student's t with 2 degrees of freedom, whose P(|T| > t) is 1 - t / sqrt(2 + t^2)."""

NONE = "\N{EN DASH}"

ERROR_OF_123 = 3**-0.5
"""The standard error of the mean of 1, 2, 3: their standard deviation is 1."""


def cell(schedule, peak, seed, loss, regime="finetune", **more):
    row = {"regime": regime, "schedule": schedule, "peak": peak, "seed": seed, "steps": 300, **more}
    curve = [] if loss is None else [[step, loss + 10 / step] for step in range(10, 301, 10)]
    return {**row, "eval_loss": loss, "diverged": loss is None, "curve": curve, "seconds": 1.0}


def cells(schedule, losses_by_peak, **more):
    """Losses of the seeds 1, 2, .. by peak; None has diverged."""
    return [
        cell(schedule, peak, seed, loss, **more)
        for peak, losses in losses_by_peak.items()
        for seed, loss in enumerate(losses, start=1)
    ]


LINEAR = cells("linear", {0.1: [6.0, 6.0, 6.0], 0.2: [5.0, 4.0, 6.0], 0.4: [7.0, 7.0, 7.0]})
BETTER = cells("refined", {0.1: [4.0, 2.0, 3.0], 0.2: [4.5, 4.0, 6.0], 0.4: [9.0, 9.0, 9.0]})  # 1, 2, 3 below linear
WORSE = cells("cosine", {0.1: [9.0, 9.0, 9.0], 0.2: [10.0, 9.0, 11.0], 0.4: [10.0, 10.0, None]})


def write_cells(folder, rows, end=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return folder


def main_rows(folder, rows, end=""):
    return main_table(read_cells(write_cells(folder, rows, end))).set_index("schedule")


def tables_of(folder, rows):
    """The tables as markdown, the pictures left out."""
    frame = read_cells(write_cells(folder, rows))
    equal = equal_compute_table(frame)
    return regime_tables("finetune", frame, main_table(frame), equal)


def row_of(text, *beginning):
    """The cells of the first row of a markdown table that begins so, with or without a rank before it."""
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return next(row for row in rows if beginning in (tuple(row[: len(beginning)]), tuple(row[1 : len(beginning) + 1])))


# --- the arithmetic ---


def test_a_paired_difference_worked_out_by_hand():
    losses, reference = pd.Series({1: 6.0, 2: 6.0, 3: 9.0, 9: 100.0}), pd.Series({3: 6.0, 1: 5.0, 2: 4.0, 8: -100.0})
    result = paired_difference(losses, reference)  # 1, 2, 3 over the common seeds
    assert result["difference"] == pytest.approx(2.0, rel=EXACT_ROUNDING)
    assert result["low"] == pytest.approx(2 - T_OF_2 * ERROR_OF_123, rel=EXACT_ROUNDING)
    assert result["high"] == pytest.approx(2 + T_OF_2 * ERROR_OF_123, rel=EXACT_ROUNDING)
    # t = 2 / 0.57735, t^2 = 12.
    assert result["p_value"] == pytest.approx(1 - (12 / 14) ** 0.5, rel=EXACT_ROUNDING)
    assert result["verdict"] == "undecided"


def test_it_is_the_paired_t_test():
    losses, reference = pd.Series([3.1, 3.3, 2.9, 3.0, 3.4]), pd.Series([3.2, 3.35, 3.1, 3.05, 3.5])
    result, differences = paired_difference(losses, reference), losses - reference
    error = differences.std() / 5**0.5
    reach = stats.t.ppf(0.975, 4) * error
    assert result["p_value"] == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, 4), rel=1e-9)
    assert (result["low"], result["high"]) == pytest.approx(
        (differences.mean() - reach, differences.mean() + reach), rel=1e-9
    )


def test_differences_that_are_equal_up_to_rounding():
    reference = pd.Series([0.1, 0.7, 5.3])
    result = paired_difference(reference + 0.3, reference)
    assert len(set((reference + 0.3) - reference)) > 1
    assert (result["low"], result["high"], result["p_value"]) == (result["difference"], result["difference"], 0.0)


def test_the_bound_beside_measured_losses():
    """Constant norms and 1,000 steps: constant's bound is known to be 1.45 of linear's, its best peak 0.34 of it.

    The losses here say the opposite of the bound for one of the three pairs: one in the wrong order of three, tau 1/3.
    """
    table = pd.DataFrame(
        {
            "schedule": ["constant", "linear", "cosine", "greedy"],
            "mean": [2.1, 2.0, 2.2, 1.0],
            "peak": [1e-3, 2e-3, 4e-3, 1e-3],
            "problem": [""] * 4,
        }
    )
    progress = np.linspace(0, 1, 201)
    grids = {"constant": np.ones(201), "linear": 1 - progress, "cosine": 0.5 * (1 + np.cos(np.pi * progress))}
    rows, sentences = bound_table(table, grids, np.full(1000, 7.0))
    assert list(rows["schedule"]) == ["constant", "linear", "cosine"], "in the order of the table, the unknown left out"
    for kind in ("constant norms", "the baseline's norms"):
        assert rows[f"bound, {kind}"][:2].astype(float).tolist() == pytest.approx([1.45, 1.0], abs=0.006)
        assert rows[f"best peak, {kind}"][:2].tolist() == ["0.34", "1.00"]
    assert list(rows["best peak, measured"]) == ["0.5", "1", "2"]
    assert [("67% of the pairs" in sentence, "tau +0.33" in sentence) for sentence in sentences] == [(True, True)] * 2


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        pytest.param([1.0, 2.0, 3.0], "undecided", id="the interval holds 0, from above"),
        pytest.param([-1.0, -2.0, -3.0], "undecided", id="the interval holds 0, from below"),
        pytest.param([11.0, 12.0, 13.0], "worse", id="wholly above 0"),
        pytest.param([-11.0, -12.0, -13.0], "better", id="wholly below 0"),
        pytest.param([-5.0], "undecided", id="one seed proves nothing"),
        pytest.param([], "undecided", id="no common seed"),
        pytest.param([-0.5, -0.5, -0.5], "better", id="the same difference always"),
        pytest.param([0.5, 0.5], "worse", id="the same difference twice"),
        pytest.param([0.0, 0.0, 0.0], "undecided", id="no difference at all"),
    ],
)
def test_verdicts(differences, verdict):
    result = paired_difference(pd.Series(differences, dtype=float), pd.Series([0.0] * len(differences)))
    assert result["verdict"] == verdict
    if len(set(differences)) == 1 and len(differences) > 1:
        assert result["p_value"] == (1.0 if differences[0] == 0 else 0.0)


# --- the best peak ---


def test_the_main_table_worked_out_by_hand(tmp_path):
    table = main_rows(tmp_path, LINEAR + BETTER + WORSE)
    assert list(table.index) == ["refined", "linear", "cosine"]
    assert list(table["rank"]) == [1, 2, 3]
    assert list(table["peak"]) == [0.1, 0.2, 0.1]
    assert list(table["on_edge"]) == [True, False, True]
    assert list(table["mean"]) == pytest.approx([3.0, 5.0, 9.0], rel=EXACT_ROUNDING)
    assert table["standard_error"].tolist() == pytest.approx([ERROR_OF_123, ERROR_OF_123, 0.0], rel=EXACT_ROUNDING)
    # By seed: refined -1, -2, -3; cosine 4, 5, 3.
    assert table.loc["refined", "difference"] == pytest.approx(-2.0, rel=EXACT_ROUNDING)
    assert table.loc["cosine", "difference"] == pytest.approx(4.0, rel=EXACT_ROUNDING)
    assert list(table["verdict"]) == ["undecided", NONE, "worse"]


def test_the_table_as_it_is_printed(tmp_path):
    text = tables_of(tmp_path, LINEAR + BETTER + WORSE)
    # exp(3) = 20.09, exp(5) = 148.41, exp(9) = 8103.08; 4.302653 * 0.57735 = 2.4841; p of t^2 = 12, and of 48.
    assert row_of(text, "refined") == [
        "1", "refined", "0.1 (edge)", "3", "3.0000 ± 0.5774", "20.09", "-2.0000 [-4.4841, +0.4841]", "0.074", "undecided",
    ]  # fmt: skip
    assert row_of(text, "linear") == ["2", "linear", "0.2", "3", "5.0000 ± 0.5774", "148.41", NONE, NONE, NONE]
    assert row_of(text, "cosine") == [
        "3", "cosine", "0.1 (edge)", "3", "9.0000 ± 0.0000", "8103.08", "+4.0000 [+1.5159, +6.4841]", "0.020", "worse",
    ]  # fmt: skip
    assert "better one may lie beyond it, for refined (0.1), cosine (0.1)." in text
    assert "1 of 27 runs diverged (cosine 1)" in text


def test_a_peak_where_a_seed_diverged_cannot_be_the_best(tmp_path):
    rows = cells("wsd", {0.1: [5.0, 5.0, 5.0], 0.2: [1.0, 1.0, None], 0.4: [6.0, 6.0, 6.0]})
    table = main_rows(tmp_path, LINEAR + rows)
    assert (table.loc["wsd", "peak"], table.loc["wsd", "mean"]) == (0.1, 5.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_has_diverged(tmp_path, bad):
    rows = cells("wsd", {0.1: [5.0, 5.0, 5.0], 0.2: [1.0, 1.0, bad]})
    assert main_rows(tmp_path, LINEAR + rows).loc["wsd", "peak"] == 0.1


def test_a_schedule_that_always_diverged_comes_last(tmp_path):
    text = tables_of(tmp_path, cells("constant", {0.1: [None, 1.0], 0.2: [None, None]}) + LINEAR + WORSE)
    assert row_of(text, "constant") == [NONE, "constant", NONE, "0", "diverged", NONE, NONE, NONE, NONE]
    assert text.index("| constant") > text.index("| cosine") > text.index("| linear")


def test_linear_that_always_diverged_leaves_the_others_undecided(tmp_path):
    table = main_rows(tmp_path, cells("linear", {0.1: [None, None, None]}) + BETTER)
    assert list(table.index) == ["refined", "linear"]
    assert table.loc["refined", "verdict"] == "undecided"


def test_peaks_are_compared_over_the_seeds_that_all_have(tmp_path):
    # Over its own seeds 0.2 would win: 3 against 3.5. Over seed 1 alone it is 3 against 2.
    rows = [cell("wsd", 0.1, 1, 2.0), cell("wsd", 0.1, 2, 5.0), cell("wsd", 0.2, 1, 3.0)]
    table = main_rows(tmp_path, LINEAR + rows)
    assert table.loc["wsd", ["peak", "seeds", "mean", "difference", "verdict"]].tolist() == [
        0.1, 1, 2.0, -3.0, "undecided",
    ]  # fmt: skip


def test_a_schedule_whose_peaks_share_no_seed_is_incomplete(tmp_path):
    rows = [cell("wsd", 0.1, 1, 2.0), cell("wsd", 0.2, 2, 3.0)]
    assert main_rows(tmp_path, LINEAR + rows).loc["wsd", "problem"] == "incomplete"


def test_a_single_peak_has_no_edge(tmp_path):
    table = main_rows(tmp_path, LINEAR + cells("wsd", {0.1: [5.0, 5.0]}))
    assert not table.loc["wsd", "on_edge"]
    assert "No best peak is on the edge" in tables_of(tmp_path, LINEAR)


# --- what is read ---


def test_the_baseline_and_the_equal_compute_runs_are_not_compared(tmp_path):
    rows = cells("linear", {0.2: [0.1, 0.1, 0.1]}, role="baseline")
    rows += cells("linear", {0.15: [0.1, 0.1, 0.1]}, finer=True)
    rows += cells("linear, twice the steps", {0.1: [0.1, 0.1, 0.1]})
    table = main_rows(tmp_path, LINEAR + rows)
    assert list(table.index) == ["linear"]
    assert table.loc["linear", ["peak", "mean"]].tolist() == [0.2, 5.0]


@pytest.mark.parametrize("end", ['{"regime": "fine', "\n", '{"regime": "finetune"}', "17", "[]\n"])
def test_a_torn_last_line_is_left_out(tmp_path, end):
    assert main_rows(tmp_path, LINEAR, end).loc["linear", "mean"] == 5.0


def test_a_whole_last_line_without_its_end_counts(tmp_path):
    end = json.dumps(cell("wsd", 0.1, 1, 2.0))
    assert main_rows(tmp_path, LINEAR, end).loc["wsd", "mean"] == 2.0


def test_of_a_cell_that_was_run_again_the_last_counts(tmp_path):
    rows = [cell("wsd", 0.1, 1, 7.0), cell("wsd", 0.1, 1, 2.0)]
    assert main_rows(tmp_path, LINEAR + rows).loc["wsd", "mean"] == 2.0


# --- at equal compute ---

FINER = cells("linear", {0.15: [4.5, 3.5, 4.0]}, finer=True)
TWICE = [
    {**row, "steps": 600} for row in cells("linear, twice the steps", {0.1: [2.5, 1.0, 1.0], 0.2: [9.0, 9.0, 9.0]})
]


def test_equal_compute_worked_out_by_hand(tmp_path):
    frame = read_cells(write_cells(tmp_path, LINEAR + BETTER + FINER + TWICE))
    table = equal_compute_table(frame)
    assert list(table["reference"]) == ["linear, finer peaks", "linear, twice the steps"]
    assert list(table["reference_peak"]) == [0.15, 0.1]
    # By seed -0.5, -1.5, -1 against finer peaks; 1.5, 1, 2 against twice the steps.
    assert list(table["difference"]) == pytest.approx([-1.0, 1.5], rel=EXACT_ROUNDING)
    assert list(table["high"]) == pytest.approx(
        [-1.0 + T_OF_2 * ERROR_OF_123 / 2, 1.5 + T_OF_2 * ERROR_OF_123 / 2], rel=EXACT_ROUNDING
    )
    assert list(table["verdict"]) == ["undecided", "worse"]


def test_the_finer_grid_has_the_ordinary_peaks_too(tmp_path):
    rows = LINEAR + BETTER + cells("linear", {0.15: [8.0, 8.0, 8.0]}, finer=True)
    table = equal_compute_table(read_cells(write_cells(tmp_path, rows)))
    assert table[["reference_peak", "difference"]].to_numpy().tolist() == [[0.2, -2.0]]


def test_every_refined_schedule_is_compared_at_its_best_peak(tmp_path):
    warmup = cells("refined+warmup", {0.1: [2.0, 2.0, 2.0], 0.2: [1.5, 1.0, 2.0]})
    text = tables_of(tmp_path, LINEAR + BETTER + warmup + TWICE).split("### At equal compute (finetune)")[1]
    assert row_of(text, "refined")[3:6] == ["0.1 (edge)", "3", "+1.5000 [+0.2579, +2.7421]"]
    assert row_of(text, "refined+warmup")[:4] == [
        "refined+warmup",
        "0.2 (edge)",
        "linear, twice the steps",
        "0.1 (edge)",
    ]


@pytest.mark.parametrize("rows", [LINEAR + BETTER, LINEAR + FINER + TWICE], ids=["no such runs", "no refined"])
def test_equal_compute_is_left_out_without_its_runs(tmp_path, rows):
    assert "equal compute" not in tables_of(tmp_path, rows)


# --- the whole report ---


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    digits = [{**row, "regime": "digits, SGD", "eval_loss": row["eval_loss"] / 1000} for row in LINEAR + BETTER]
    write_cells(folder, LINEAR + BETTER + WORSE + FINER + TWICE + digits)
    about = {"commands": ["python grid.py --seeds 3"], "versions": {"torch": "2.6"}, "model": "tiny", "seconds": 90.0}
    (folder / "grid.json").write_text(json.dumps(about))
    (folder / "schedules.json").write_text(json.dumps({"finetune": {"linear": [1, 0], "wsd": [1, 1, 0]}}))
    output = folder / "report.md"
    done = run_command(BIN / "python", "-W", "error", SCRIPT, folder, "--output", output, "--title", "Three schedules")
    assert done.returncode == 0, done.stderr
    return folder, output, done.stdout


def test_the_pictures_are_written_and_embedded(reported):
    _, output, _ = reported
    pictures = {f"finetune_{name}.png" for name in ("loss_by_peak", "final_loss", "schedules", "training_curves")}
    pictures |= {f"digits_sgd_{name}.png" for name in ("loss_by_peak", "final_loss", "training_curves")}
    beside = output.with_suffix("")
    assert {path.name for path in beside.iterdir()} == pictures | {"tables.csv"}
    text = output.read_text()
    for name in pictures:
        assert f"](report/{name})" in text
        assert (beside / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_has_a_table_for_each_regime(reported):
    folder, output, printed = reported
    text = output.read_text()
    assert text.startswith("# Three schedules\n\n## finetune\n")
    before, after = text.split("## digits, SGD\n")
    assert "perplexity" in before
    assert "perplexity" not in after
    assert row_of(after, "refined")[4:6] == ["0.0030000 ± 0.0005774", "-0.0020000 [-0.0044841, +0.0004841]"]
    for table in (before, after):
        assert table.split("\n\n")[2 if table is before else 0].strip() in printed
    assert sorted(path.name for path in folder.iterdir()) == [
        "grid.json",
        "report",
        "report.md",
        "results.jsonl",
        "schedules.json",
    ]


def test_the_report_states_its_provenance(reported):
    text = reported[1].read_text().split("## Provenance\n")[1]
    assert text == (
        "\n```bash\npython grid.py --seeds 3\n```\n\n- versions: torch 2.6\n- model: tiny\n- duration: 1.5 minutes\n"
    )


def test_the_csv_has_every_row_of_the_tables(reported):
    table = pd.read_csv(reported[0] / "report" / "tables.csv")
    assert table[["regime", "schedule", "reference"]].to_numpy().tolist() == [
        ["finetune", "refined", "linear"],
        ["finetune", "linear", "linear"],
        ["finetune", "cosine", "linear"],
        ["finetune", "refined", "linear, finer peaks"],
        ["finetune", "refined", "linear, twice the steps"],
        ["digits, SGD", "refined", "linear"],
        ["digits, SGD", "linear", "linear"],
    ]
    assert table["difference"].round(9).fillna(0).tolist() == [-2.0, 0.0, 4.0, -1.0, 1.5, -0.002, 0.0]


def test_one_cell_of_linear_is_reported_beside_it(tmp_path):
    write_cells(tmp_path, [cell("linear", 0.1, 1, 5.0, curve=[])])
    text = write_report(tmp_path, tmp_path / "report.md", "Title")
    assert row_of(text, "linear") == ["1", "linear", "0.1", "1", "5.0000", "148.41", NONE, NONE, NONE]
    assert "Provenance" not in (tmp_path / "report.md").read_text()


def test_only_diverged_runs_are_reported_too(tmp_path):
    write_cells(tmp_path, cells("linear", {0.1: [None, None]}) + cells("refined", {0.1: [None, None]}))
    text = write_report(tmp_path, tmp_path / "report.md", "Title")
    assert row_of(text, "refined")[4] == row_of(text, "linear")[4] == "diverged"
    assert "4 of 4 runs diverged" in text


# --- refusals ---

LINE = json.dumps(LINEAR[0]) + "\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param(None, ["results.jsonl", "missing"], id="no folder"),
        pytest.param({}, ["results.jsonl", "missing"], id="no results"),
        pytest.param({"results.jsonl": ""}, ["no finished cell"], id="empty results"),
        pytest.param({"results.jsonl": '{"regime": "fi'}, ["no finished cell"], id="only a torn line"),
        pytest.param({"results.jsonl": "what\n" + LINE}, ["line 1"], id="a damaged line amid"),
        pytest.param({"results.jsonl": LINE.replace("linear", "refined")}, ["linear", "finetune"], id="no linear"),
        pytest.param(
            {"results.jsonl": LINE + LINE.replace("linear", "wsd").replace("finetune", "lora")},
            ["linear in lora"],
            id="a regime without linear",
        ),
        pytest.param(
            {"results.jsonl": json.dumps({**LINEAR[0], "role": "baseline"})}, ["linear"], id="only the baseline"
        ),
        pytest.param(
            {"results.jsonl": LINE + LINE.replace("300", "200", 1)}, ["numbers of steps"], id="runs of other lengths"
        ),
        pytest.param({"results.jsonl": LINE, "grid.json": "{"}, ["grid.json"], id="damaged grid.json"),
        pytest.param({"results.jsonl": LINE, "schedules.json": "[]"}, ["schedules.json"], id="a list of schedules"),
        pytest.param(
            {"results.jsonl": LINE, "schedules.json": '{"finetune": {"linear": ["x"]}}'},
            ["schedules.json"],
            id="text for multipliers",
        ),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, files, words):
    folder = tmp_path / "runs"
    for name, content in (files or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    monkeypatch.setattr("sys.argv", ["report_comparison.py", str(folder)])
    with pytest.raises(SystemExit) as ended:
        report_comparison.main()
    printed, error = capsys.readouterr()
    assert (ended.value.code, printed) == (2, "")
    assert error.startswith("report_comparison.py: error: ") and error.count("\n") == 1
    for word in words:
        assert word in error


def test_a_user_sees_no_traceback(tmp_path):
    done = run_command(BIN / "python", SCRIPT, tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("report_comparison.py: error: ") and done.stderr.count("\n") == 1
