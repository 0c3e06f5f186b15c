"""The protocol's choices and verdicts against values typed by hand, and scripts/finetuning_study.py as a user runs it."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import finetuning_study
import numpy as np
import pandas as pd
import pytest
import torch
from experiments.cells import Cell, Result
from experiments.fine_tuning import (
    START_FINGERPRINT,
    TrainingOptions,
    describe_setting,
    prepare_setting,
    refuse_another_start,
)
from experiments.language_modeling import DataArguments, ModelArguments, train_byte_level_bpe
from experiments.protocol import (
    LINEAR_SCHEDULES,
    MAX_PEAKS,
    OTHER_SCHEDULES,
    SELECTION,
    SUMMARIZED,
    WITHOUT_CAP,
    baseline_file,
    choose,
    next_peak,
)
from experiments.results_file import ResultsFile
from experiments.results_table import read_results, results_table
from experiments.rule_scores import descriptive_verdict
from experiments.rules import BETWEEN_WARMUPS
from experiments.size_report import change_with_size, num_parameters, write_size_report
from experiments.statistics import TunedSchedule, holm
from experiments.study import Study, StudyOptions
from experiments.study_folder import keep_setting
from experiments.study_pictures import draw_loss_by_peak, draw_schedules
from experiments.study_report import comparison_table, notes, other_peaks_table, unclear_over_baselines, without_test
from experiments.study_results import (
    StudyResults,
    compare_with,
    read_studies,
    read_study,
    verdict,
    with_divergence_as_worst,
)
from experiments.tiny_models import tiny_model
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_refined_schedule import load_norms

from .records import write_norms
from .refusals import refusal, refuses
from .tiny import BIN, REPOSITORY, accelerate_launch, run_command

SCRIPT = REPOSITORY / "scripts" / "finetuning_study.py"
REPORT = REPOSITORY / "scripts" / "report_studies.py"
SIZES = REPOSITORY / "scripts" / "report_sizes.py"


def tuned(peak, *, on_edge=False, problem=""):
    return TunedSchedule("linear", peak, on_edge, pd.Series([1.0]), problem)


@pytest.mark.parametrize(
    ("peaks", "best", "expected"),
    [
        pytest.param([0.5, 1, 2], tuned(1.0), None, id="the best lies inside"),
        pytest.param([0.5, 1, 2], tuned(2.0, on_edge=True), 4.0, id="the highest is the best"),
        pytest.param([0.5, 1, 2], tuned(0.5, on_edge=True), 0.25, id="the lowest is the best"),
        pytest.param([0.5, 1, 2], tuned(math.nan, problem="diverged"), 0.25, id="all diverged"),
        pytest.param([2.0**power for power in range(MAX_PEAKS)], tuned(128.0, on_edge=True), None, id="wide enough"),
    ],
)
def test_a_grid_of_peaks_is_widened_until_the_best_lies_inside(peaks, best, expected):
    assert next_peak(peaks, best) == expected


def loss_at(cell):
    """The best peak of WSD is 4, of other schedules 1."""
    best = 4.0 if cell.schedule == "WSD" else 1.0
    return Result(cell, 2 + abs(math.log2(cell.peak / best)) + cell.seed / 1e6)


def write_falling_norms(cell, folder):
    """The norms of a baseline, which fall to 1 in the first tenth."""
    path = folder / f"{cell.seed}.jsonl"
    write_norms(path, [*np.linspace(3, 1, 10), *[1.0] * 90])
    return path


@pytest.mark.parametrize("num_kept", [0, 1, 5, 20, 60])
def test_a_study_that_was_killed_chooses_from_all_peaks(tmp_path, num_kept):
    def run(folder):
        study = Study(
            folder,
            "x",
            StudyOptions(100, 1.0, num_test_seeds=2),
            loss_at,
            lambda cell: write_falling_norms(cell, tmp_path),
        )
        study.run()
        cells = [result.cell for result in read_results(folder / "results.jsonl")]
        return [cell for cell in cells if cell.role != "baseline"]  # their norms are kept

    whole = run(tmp_path / "whole")
    assert sorted({cell.peak for cell in whole if cell.schedule == "WSD"}) == [0.5, 1, 2, 4, 8]
    assert sorted({cell.peak for cell in whole if cell.schedule == "linear, 5 % warm-up"}) == [0.5, 1, 2]
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    path = tmp_path / "killed" / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:num_kept]))
    assert set(run(tmp_path / "killed")) == set(whole)


@pytest.mark.parametrize("num_norms", [0, 40])
def test_norms_that_a_kill_cut_off_are_recorded_again(tmp_path, num_norms):
    norms = [*np.linspace(3, 1, 10), *[1.0] * 90]
    recorded = tmp_path / "recorded.jsonl"
    trained = []

    def train(cell):
        if cell.role == "baseline":
            trained.append(cell.seed)
            write_norms(recorded, norms)
        return loss_at(cell)

    options = StudyOptions(100, 1.0, 1, num_test_seeds=1, others=[])
    Study(tmp_path / "study", "x", options, train, lambda cell: recorded).run()
    assert trained == [2000, 2001, 2002]
    (tmp_path / "study" / "baseline_norms" / "baseline_1.jsonl").unlink()
    if num_norms:
        write_norms(recorded, norms[:num_norms], planned=100)
    else:  # only its first line, which has no norm
        recorded.write_text(recorded.read_text().partition("\n")[0] + "\n")
    Study(tmp_path / "study", "x", options, train, lambda cell: recorded).run()
    assert trained[3:] == [2001]
    assert len(load_norms(tmp_path / "study" / "baseline_norms" / "baseline_1.jsonl").steps) == 100


@pytest.mark.parametrize(("ahead", "reference"), [(1.5, "linear, 10 % warm-up"), (-0.1, "linear")])
def test_the_reduced_protocol_tries_few_peaks(tmp_path, ahead, reference):
    """Linear decay is best at 1, all others at 2. Only the best warm-up at 1 and the longest get more than one peak."""

    def loss(cell):
        best = 1.0 if cell.schedule == "linear" else 2.0
        gain = {"linear": 0.0, "linear, 10 % warm-up": ahead}.get(cell.schedule, -0.1)
        return Result(cell, 3 - gain + abs(math.log2(cell.peak / best)) + cell.seed / 1e6)

    options = StudyOptions(100, 2.0, 1, num_test_seeds=2, others=WITHOUT_CAP, reduced=True)
    study = Study(tmp_path / "study", "x", options, loss, lambda cell: write_falling_norms(cell, tmp_path))
    study.run()
    cells = [result.cell for result in read_results(tmp_path / "study" / "results.jsonl")]
    peaks = {}
    for cell in cells:
        if cell.role == SELECTION:
            peaks.setdefault(cell.schedule, set()).add(cell.peak)
    assert peaks == {
        "linear": {0.5, 1, 2, 4},
        "linear, 2 % warm-up": {1},
        "linear, 5 % warm-up": {1},
        "linear, 10 % warm-up": {1} if reference == "linear" else {1, 2, 4},
        "linear, 20 % warm-up": {1, 2, 4},
        "refined": {1, 2, 4},
        "rising norms ignored": {1, 2, 4},
        "cosine": {1, 2, 4},
        "WSD": {0.5, 1, 2, 4},
    }
    compared = {cell.schedule: cell.peak for cell in cells if cell.role is None}
    assert compared == {reference: 2, "linear": 1, **dict.fromkeys(WITHOUT_CAP, 2)}
    assert not any(study.choices().tuned[name].on_edge for name in compared)


@pytest.mark.parametrize("reduced", [False, True])
def test_baselines_keep_the_peak_of_linear_decay_on_the_edge_of_the_widest_grid(tmp_path, reduced):
    def loss(cell):
        return Result(cell, 3 + abs(math.log2(cell.peak / 2**-9)))

    options = StudyOptions(100, 1.0, 1, num_test_seeds=1, others=["cosine"], reduced=reduced)
    for num_test_seeds in (1, 2):
        seeds = replace(options, num_test_seeds=num_test_seeds)
        Study(tmp_path / "study", "x", seeds, loss, lambda cell: write_falling_norms(cell, tmp_path)).run()
    cells = [result.cell for result in read_results(tmp_path / "study" / "results.jsonl")]
    assert len({cell.peak for cell in cells if cell.schedule == "linear" and cell.role == SELECTION}) == MAX_PEAKS
    assert {cell.peak for cell in cells if cell.schedule == "linear" and cell.role != SELECTION} == {2.0**-6}


def test_control_peaks_are_reported_and_not_compared(tmp_path):
    """Every schedule is best at 1; bounded_warmup is below the control on each seed."""

    def loss(cell):
        gain = 0.1 if cell.schedule in ("linear, 10 % warm-up", BETWEEN_WARMUPS) else 0.0
        return Result(cell, 3 - gain + abs(math.log2(cell.peak)) + cell.seed / 1e6)

    options = StudyOptions(
        100, 1.0, 1, num_test_seeds=2, others=["refined", BETWEEN_WARMUPS], control_peaks=[1.5, 1.5, 1]
    )
    Study(tmp_path / "study", "x", options, loss, lambda cell: write_falling_norms(cell, tmp_path)).run()
    rows = [result.cell for result in read_results(tmp_path / "study" / "results.jsonl")]
    assert len(set(rows)) == len(rows)
    study = read_study(tmp_path / "study")
    assert study.choices.tuned["linear, 10 % warm-up"].peak == 1
    assert study.losses["linear, 10 % warm-up"].tolist() == pytest.approx([2.9, 2.900001])
    (row,) = [line.split("|") for line in other_peaks_table(study).splitlines()[2:]]
    name, peak, seeds, final, versus_linear, versus_best, bounded = (cell.strip() for cell in row[1:-1])
    assert (name, peak, seeds, final) == ("linear, 10 % warm-up", "1.5", "2", "3.4850")
    assert (versus_linear[:7], versus_best[:7], bounded[:7]) == ("+0.4850", "+0.5850", "-0.5850")


def test_seeds_that_not_all_schedules_have_finished_are_left_out(study, tmp_path):
    folder = tmp_path / "growing"
    shutil.copytree(study, folder)
    whole = read_study(folder)
    label = whole.label
    linear = whole.choices.tuned["linear"].peak
    ResultsFile(folder).append(Result(Cell(label, "linear", linear, 7, int(whole.cells["steps"].iloc[0])), 1.0))
    growing = read_study(folder)
    pd.testing.assert_frame_equal(growing.losses, whole.losses)
    assert not growing.is_under_way
    assert "Test seeds that are not finished are left out: 7." in notes(growing)


def test_a_schedule_that_was_added_is_left_out_until_it_has_caught_up(study, tmp_path):
    folder = tmp_path / "growing"
    shutil.copytree(study, folder)
    whole = read_study(folder)
    steps = int(whole.cells["steps"].iloc[0])
    peaks = {name: whole.choices.tuned[name].peak for name in whole.losses}
    for seed in (2, 3):
        for name in peaks:
            ResultsFile(folder).append(Result(Cell(whole.label, name, peaks[name], seed, steps), 1.0 + seed))
    path = folder / "results.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    behind = [row for row in rows if row["schedule"] != "WSD" or "role" in row or row["seed"] == 0]
    path.write_text("".join(json.dumps(row) + "\n" for row in behind))
    growing = read_study(folder)
    assert growing.losses.index.tolist() == [0, 1, 2, 3]
    assert growing.losses.columns.tolist() == [name for name in whole.losses if name != "WSD"]
    assert "Not compared yet: WSD." in notes(growing)
    newest = [row for row in rows if row["schedule"] != "WSD" or "role" in row or row["seed"] != 3]
    path.write_text("".join(json.dumps(row) + "\n" for row in newest))
    assert read_study(folder).losses.index.tolist() == [0, 1, 2]


def test_a_row_of_fewer_seeds_says_so(study, tmp_path):
    whole = read_study(study)
    other = next(name for name in LINEAR_SCHEDULES if name not in ("linear", whole.reference))
    losses = whole.losses.assign(**{other: [2.5, math.nan]})
    names = comparison_table(replace(whole, losses=losses), {})["schedule"]
    assert f"{other} (1 of 2 seeds)" in set(names)
    assert "cosine" in set(names)


def selection(losses):
    """Selection cells, from losses by schedule and peak."""
    return results_table(
        Result(Cell("x", schedule, peak, 1000, 10, SELECTION), loss)
        for schedule, by_peak in losses.items()
        for peak, loss in by_peak.items()
    )


def test_the_reference_is_linear_decay_with_the_best_warm_up_at_its_own_peak():
    cells = selection(
        {
            "linear": {1: 3.0, 2: 2.0, 4: 5.0},
            "linear, 5 % warm-up": {1: 3.0, 2: 1.9, 4: 1.8, 8: 2.5},
            "linear, 20 % warm-up": {1: 3.0, 2: 1.95, 4: 2.5},
            "WSD": {1: 1.0, 2: math.inf, 4: math.inf},
        }
    )
    choices = choose(cells)
    assert choices.reference == "linear, 5 % warm-up"
    assert choices.tuned["linear, 5 % warm-up"].peak == 4
    assert choices.compared == ["linear", "linear, 5 % warm-up", "WSD"]


def test_linear_decay_that_always_diverges_is_refused():
    with refuses("Linear decay diverged at every peak", "lower --start_peak"):
        choose(selection({"linear": {1: math.inf}}))
    with refuses("no selection run of linear decay", "results/protocol.md"):
        choose(selection({"cosine": {1: 2.0}}))


@pytest.mark.parametrize(("seed", "number"), [(0, 0), (4, 1), (1001, 2), (2000, 0), (2002, 2)])
def test_the_baseline_of_a_seed(seed, number):
    assert baseline_file(Path("study"), seed) == Path(f"study/baseline_norms/baseline_{number}.jsonl")


def test_holm_is_its_published_procedure():
    """The smallest of three p-values times 3, the next times 2, the last times 1, never decreasing."""
    assert holm([0.04, 0.01, 0.03]) == [0.06, 0.03, 0.06]
    assert holm([0.9, math.nan]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "p_value", "expected"),
    [
        (-0.3, -0.1, 0.01, "better"),
        (-0.3, -0.1, 0.06, "no worse"),
        (-0.3, 0.003, 0.4, "no worse"),
        (-0.3, 0.1, 0.4, "undecided"),
        (0.1, 0.3, 0.01, "worse"),
        (0.1, 0.3, 0.06, "undecided"),
        (0.001, 0.003, 0.01, "worse, by less than 0.2 %"),
        (math.nan, math.nan, math.nan, "undecided"),
    ],
)
def test_the_verdicts_of_the_protocol(low, high, p_value, expected):
    assert verdict({"low": low, "high": high}, 2.0, p_value) == expected


def study_of(losses):
    names = list(losses)
    cells = selection({name: {1: 3.0, 2: 2.0, 4: 3.0} for name in names})
    return StudyResults("x", cells, choose(cells), pd.DataFrame(losses))


def test_the_pictures_of_a_study_show_both_references_and_what_the_readme_compares():
    study = read_study(REPOSITORY / "results" / "from_scratch_1200")
    shown = {"linear", study.reference, *SUMMARIZED}
    grids = {name: [0.0, 1.0, 0.0] for name in (*shown, "refined, warm-up")}
    for draw in (
        lambda figure: draw_loss_by_peak(figure, study),
        lambda figure: draw_schedules(figure, grids, study.reference),
    ):
        draw(figure := Figure())
        (axes,) = figure.axes
        assert {text.get_text() for text in axes.get_legend().get_texts()} == shown


def test_contrasts_are_paired_and_only_the_primary_ones_corrected():
    study = study_of(
        {
            "linear": [2.0, 3.0, 4.0, 5.0],
            "refined": [2.1, 3.1, 4.2, 5.2],
            "rising norms ignored": [1.9, 2.9, 3.8, 4.8],
            "cosine": [2.0, 3.1, 4.0, 5.1],
        }
    )
    rows = compare_with(study, "linear").set_index("schedule")
    assert rows["difference"].to_dict() == pytest.approx(
        {"refined": 0.15, "rising norms ignored": -0.15, "cosine": 0.05}
    )
    # t = 0.15 / (0.0577 / 2) = 5.196 with 3 degrees of freedom: p = 0.0138, of two equal ones twice that.
    assert rows.loc["refined", "p_value"] == pytest.approx(0.0138, abs=1e-4)
    assert rows.loc["refined", "corrected"] == pytest.approx(2 * rows.loc["refined", "p_value"])
    assert math.isnan(rows.loc["cosine", "corrected"])
    assert rows["verdict"].to_dict() == {"refined": "worse", "rising norms ignored": "better", "cosine": "undecided"}


def test_a_reference_on_the_edge_gives_no_verdict():
    cells = selection({"linear": {1: 3.0, 2: 2.0}, "cosine": {1: 3.0, 2: 2.0, 4: 3.0}})
    losses = pd.DataFrame({"linear": [2.0, 2.1, 2.2], "cosine": [1.0, 1.1, 1.2]})
    study = StudyResults("x", cells, choose(cells), losses)
    assert compare_with(study, "linear")["verdict"].tolist() == ["best peak on the edge"]


def test_a_run_that_diverged_is_the_worst_of_its_seed():
    losses = pd.DataFrame({"linear": [2.0, 3.0], "WSD": [math.inf, 1.0], "cosine": [4.0, 5.0]})
    assert with_divergence_as_worst(losses)["WSD"].tolist() == [4.0, 1.0]


def test_a_schedule_that_diverged_is_never_called_better():
    study = study_of(
        {"linear": [2.0, 2.1, 2.2], "WSD": [1.9, 2.0, 2.0], "cosine": [math.inf] * 3, "refined": [1.8, math.inf, 1.8]}
    )
    verdicts = compare_with(study, "linear").set_index("schedule")["verdict"]
    assert verdicts["cosine"] == "diverged in 3 of 3"
    assert verdicts["refined"] in ("diverged in 1 of 3", "undecided")


def test_a_schedule_that_is_better_where_it_did_not_diverge_is_not_scored_as_better():
    losses = {"linear": [2.0, 2.1, 2.2, 2.0, 2.1], "WSD": [1.0, 1.1, 1.2, 1.0, math.inf], "cosine": [5.0] * 5}
    study = study_of({**losses, "cosine": [2.2, 2.2, 2.4, 2.1, 2.2]})
    assert descriptive_verdict(study, "cosine", "linear") == "worse"
    assert descriptive_verdict(study, "WSD", "linear") == "undecided"
    study = study_of({**losses, "WSD": [1.0, 1.1, 1.2, 1.0, 1.1]})
    assert descriptive_verdict(study, "WSD", "linear") == "better"


def test_contrasts_that_vanish_over_the_means_of_the_baselines_are_named():
    """Seeds 0 and 3, 1 and 4, 2 and 5 share a baseline."""
    linear = [2.0, 2.1, 2.2, 2.0, 2.1, 2.2]
    by_baseline = [loss - gain for loss, gain in zip(linear, [0.3, 0.15, 0.1] * 2, strict=True)]
    study = study_of(
        {
            "linear": linear,
            "refined": by_baseline,
            "rising norms ignored": [loss - 0.1 for loss in linear],
            "WSD": by_baseline,
        }
    )
    assert set(compare_with(study, "linear")["verdict"]) == {"better"}
    assert unclear_over_baselines(study) == ["*refined* against *linear*"]


def test_schedules_that_diverged_at_every_peak_are_named():
    cells = selection(
        {"linear": {1: 3.0, 2: 2.0, 4: 3.0}, "refined": {1: math.inf, 2: math.inf}, "WSD": {1: 3.0, 2: 2.0, 4: 3.0}}
    )
    study = StudyResults("x", cells, choose(cells), pd.DataFrame({"linear": [2.0]}))
    assert "Diverged at every peak: refined. Not compared yet: WSD." in notes(study)
    assert without_test(study, "refined") == "diverged at every peak"
    assert without_test(study, "WSD") == "not run"


@pytest.mark.parametrize(("label", "steps"), [("y", 100), ("x", 50)])
def test_a_folder_of_another_study_is_refused(tmp_path, label, steps):
    ResultsFile(tmp_path).append(Result(Cell("x", "linear", 1.0, 1000, 100, SELECTION), 2.0))
    with refuses("has runs of 'x' over 100 updates", "another folder"):
        Study(tmp_path, label, StudyOptions(steps, 1.0), loss_at, lambda cell: tmp_path)


def test_baselines_at_another_peak_than_the_chosen_one_are_refused(tmp_path):
    for peak, loss in ((0.5, 3.0), (1.0, 2.0), (2.0, 3.0)):
        ResultsFile(tmp_path).append(Result(Cell("x", "linear", peak, 1000, 100, SELECTION), loss))
    ResultsFile(tmp_path).append(Result(Cell("x", "linear", 2.0, 2000, 100, "baseline"), 2.0))
    study = Study(tmp_path, "x", StudyOptions(100, 1.0, 1), loss_at, lambda cell: tmp_path)
    with refuses("were trained at the peak 2, but the selection seeds now choose 1"):
        study.run()


def test_another_setting_is_refused_and_kept(tmp_path):
    keep_setting(tmp_path, {"model": "gpt2", "protocol": "reduced"})
    keep_setting(tmp_path, {"model": "gpt2", "protocol": "reduced"})
    with refuses("setting.json is of another study", "protocol is 'reduced' there and None here"):
        keep_setting(tmp_path, {"model": "gpt2"})
    assert json.loads((tmp_path / "setting.json").read_text())["protocol"] == "reduced"


OPTIONS = (
    *("--max_steps", 12, "--num_test_seeds", 2, "--num_workers", 1, "--start_peak", 1e-2, "--vocab_size", 300),
    *("--regime", "scratch", "--builtin_text", "english", "--block_size", 16),
    *("--max_train_samples", 64, "--max_eval_samples", 8),
    *("--config_overrides", "n_embd=8,n_layer=1,n_head=1,n_positions=16"),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    done = run_command(BIN / "python", SCRIPT, "--output_dir", folder, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_study_has_selection_baselines_and_test_seeds(study):
    rows = [json.loads(line) for line in (study / "results.jsonl").read_text().splitlines()]
    seeds = {
        role: sorted({row["seed"] for row in rows if row.get("role") == role}) for role in (SELECTION, "baseline", None)
    }
    assert seeds == {SELECTION: [1000], "baseline": [2000, 2001, 2002], None: [0, 1]}
    assert {row["schedule"] for row in rows if row.get("role") == SELECTION} == {*LINEAR_SCHEDULES, *OTHER_SCHEDULES}
    assert len(list((study / "baseline_norms").iterdir())) == 3
    forecasts = json.loads((study / "forecasts.json").read_text())["forecasts"]
    assert [row["baseline"] for row in forecasts] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--vocab_size", 400, "--vocab_size 300, not 400"),
        ("--block_size", 8, "--block_size 16, not 8"),
        ("--start_peak", 2e-2, "starting peak is 0.01 there and 0.02 here"),
        ("--num_selection_seeds", 2, "selection seeds is 1 there and 2 here"),
        ("--regime", "finetune", "--regime finetune with a text of your own needs a trained model"),
        ("--start_peak", "nan", "--start_peak is nan, but must be a positive learning rate"),
        ("--num_test_sedes", 2, "There is no option --num_test_sedes; see --help"),
    ],
)
def test_another_study_is_refused_and_noted_nowhere(study, monkeypatch, capsys, option, value, words):
    before = {name: (study / name).read_text() for name in ("grid.json", "setting.json", "results.jsonl")}
    monkeypatch.setattr(finetuning_study, "print_errors_only", lambda: None)  # it would change the loggers of all tests
    words_given = ("--output_dir", study, *OPTIONS, option, value)
    assert words in refusal(finetuning_study.main, words_given, monkeypatch, capsys)
    assert {name: (study / name).read_text() for name in before} == before


def test_another_model_is_refused_before_it_is_made(study, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "clone"
    shutil.copytree(study, folder, ignore=shutil.ignore_patterns("start"))
    monkeypatch.setattr(finetuning_study, "print_errors_only", lambda: None)
    words = ("--output_dir", folder, *OPTIONS[:-1], "n_embd=16,n_layer=1,n_head=1,n_positions=16")
    message = refusal(finetuning_study.main, words, monkeypatch, capsys)
    assert "start is 'new gpt2, n_embd=8,n_layer=1,n_head=1,n_positions=16' there" in message
    assert not (folder / "start").exists()


def test_a_killed_study_runs_only_what_is_missing(study):
    path = study / "results.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-2]))
    done = run_command(BIN / "python", SCRIPT, "--output_dir", study, *OPTIONS)
    assert done.returncode == 0, done.stderr
    again = path.read_text().splitlines(keepends=True)
    without_time = [{**json.loads(row), "seconds": 0} for row in rows]
    assert [{**json.loads(row), "seconds": 0} for row in again] == without_time


def test_the_report_states_both_references(study):
    done = run_command(BIN / "python", REPORT, study)
    assert done.returncode == 0, done.stderr
    report = study.with_suffix(".md").read_text()
    assert "vs reference 1 [95 % interval]" in report
    assert "vs reference 2 [95 % interval]" in report
    assert "- tokens per update: 128" in report
    link = re.search(r"By \[the protocol\]\((.*?)\)", report)
    assert (study.parent / link[1]).resolve() == REPOSITORY / "results" / "protocol.md"
    assert {path.name for path in study.glob("*.png")} == {"differences.png", "loss_by_peak.png", "schedules.png"}
    table = pd.read_csv(study / "tables.csv")
    rows = [json.loads(line) for line in (study / "results.jsonl").read_text().splitlines()]
    losses = {(row["schedule"], row["seed"]): row["eval_loss"] for row in rows if "role" not in row}
    wsd = np.mean([losses["WSD", seed] - losses["linear", seed] for seed in (0, 1)])
    row = table[(table["compared with"] == "linear") & (table["schedule"] == "WSD")]
    assert row["difference"].item() == pytest.approx(wsd)


def test_a_study_that_is_under_way_is_left_out(study, tmp_path):
    under_way = tmp_path / "under_way"
    shutil.copytree(study, under_way)
    rows = (under_way / "results.jsonl").read_text().splitlines(keepends=True)
    (under_way / "results.jsonl").write_text("".join(row for row in rows if '"role"' in row))
    unfinished = tmp_path / "unfinished"  # each schedule has a test seed, but not all
    shutil.copytree(study, unfinished)
    (unfinished / "schedules.json").unlink()
    young = tmp_path / "young"
    young.mkdir()
    ResultsFile(young).append(Result(Cell("x", "linear", 1.0, 1000, 10, SELECTION), math.inf))
    assert read_studies([unfinished, young]) == {}
    done = run_command(BIN / "python", REPORT, under_way, study, "--summary", tmp_path / "summary.md")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"{under_way} has too few test runs yet; run the study again to continue it."
    )
    summary = (tmp_path / "summary.md").read_text()
    assert [line.split("|")[1].strip() for line in summary.splitlines() if line.startswith("| scratch")] == [
        "scratch, 12 updates (2 seeds)"
    ]
    assert not under_way.with_suffix(".md").exists()


@pytest.fixture
def sizes(tmp_path):
    """Studies of 1,000, 10,000 and 100,000 parameters, in which WSD is worse by 1, 2 and 3 % and cosine by 1 % always."""
    studies = {}
    for power in (3, 4, 5):
        folder = tmp_path / f"size_{power}"
        folder.mkdir()
        (folder / "setting.json").write_text(json.dumps({"model": f"gpt2, {10**power:,} parameters, 10 trainable"}))
        losses = {
            "linear": [4.0, 6.0],
            "WSD": [4.0 + 0.05 * (power - 2), 6.0 + 0.05 * (power - 2)],
            "cosine": [4.04, 6.06],
        }
        studies[folder] = study_of(losses)
    return studies


def test_the_change_of_a_difference_with_size_is_a_slope(sizes, tmp_path):
    write_size_report(sizes, tmp_path / "sizes.md")
    assert (tmp_path / "sizes.png").exists()
    both = "*WSD* against linear decay (+1.00 [+1.00, +1.00]); *WSD* against the best warm-up (+1.00 [+1.00, +1.00])"
    assert (
        f"Significant changes with size, of 5 tested and not corrected: {both}." in (tmp_path / "sizes.md").read_text()
    )
    lines = [line for line in (tmp_path / "sizes.md").read_text().splitlines() if line.startswith("|")]
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert rows["schedule"] == [
        "1,000 parameters",
        "10,000 parameters",
        "100,000 parameters",
        "change for a tenfold size",
    ]
    assert rows["WSD"] == [*(f"+{n}.00 [+{n}.00, +{n}.00]" for n in (1, 2, 3)), "+1.00 [+1.00, +1.00]"]
    assert rows["cosine"][-1].startswith("+0.00")
    assert rows["linear"][:3] == ["+0.00 [+0.00, +0.00]"] * 3
    assert change_with_size(pd.Series({1000: 1.0, 10_000: 2.0}))[0] == pytest.approx(1)
    assert math.isnan(change_with_size(pd.Series({1000: 1.0}))[0])


def test_one_size_is_refused(sizes, tmp_path):
    folder = next(iter(sizes))
    with refuses("The model has 1 sizes in 1 studies", "at least two sizes"):
        write_size_report({folder: sizes[folder]}, tmp_path / "sizes.md")
    (folder / "setting.json").write_text("{}")
    with refuses("does not state the number of parameters", "run the study again"):
        write_size_report(sizes, tmp_path / "sizes.md")


def test_sizes_are_reported_by_the_script(tmp_path):
    folders = [REPOSITORY / "results" / "size_0.1M", REPOSITORY / "results" / "size_1M"]
    done = run_command(BIN / "python", SIZES, *folders, "--output", tmp_path / "sizes.md")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "sizes.md").read_text()
    assert all(f" {num_parameters(folder):,} parameters " in report for folder in folders)
    done = run_command(BIN / "python", SIZES, tmp_path / "missing", "--output", tmp_path / "sizes.md")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("report_sizes.py: error: ")


def test_a_folder_without_a_study_is_refused(tmp_path):
    done = run_command(BIN / "python", REPORT, tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("results.jsonl is missing; give the folder that a study has written.")


def test_bad_options_are_refused(tmp_path):
    done = run_command(BIN / "python", SCRIPT, "--output_dir", tmp_path, "--start_peak", 0)
    assert done.returncode == 2
    assert "--start_peak is 0.0, but must be a positive learning rate." in done.stderr


def test_a_launch_of_several_processes_is_refused(tmp_path):
    done = accelerate_launch(SCRIPT, "--output_dir", tmp_path / "out")
    assert "finetuning_study.py: error: 2 processes were launched, but each run trains in one" in done.stderr
    assert not (tmp_path / "out").exists()


def prepare_saved_model(tmp_path, monkeypatch, regime):
    """The setting of a study of a saved bfloat16 model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    tiny_model(vocab_size=300).to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    PreTrainedTokenizerFast(
        tokenizer_object=train_byte_level_bpe([(tmp_path / "text.txt").read_text()], 300)
    ).save_pretrained(tmp_path / "saved")
    options = TrainingOptions(str(tmp_path / "out"), regime=regime, num_workers=1)
    data = DataArguments(train_file=str(tmp_path / "text.txt"), validation_split_percentage=50, block_size=16)
    return prepare_setting(ModelArguments(str(tmp_path / "saved")), data, options)


@pytest.mark.parametrize(("regime", "dtype"), [("finetune", torch.float32), ("lora", torch.bfloat16)])
def test_weights_that_are_trained_are_float32(tmp_path, monkeypatch, regime, dtype):
    setting = prepare_saved_model(tmp_path, monkeypatch, regime)
    start = AutoModelForCausalLM.from_pretrained(setting.start)
    assert start.dtype == dtype
    described = describe_setting(replace(setting, regime="finetune"), 10)
    assert described.get("weights", "float32") == str(dtype).removeprefix("torch.")


def test_a_start_that_was_made_again_is_known_by_its_weights_and_text(tmp_path, monkeypatch):
    setting = prepare_saved_model(tmp_path, monkeypatch, "finetune")
    keep_setting(tmp_path / "out", refuse_another_start(setting))
    assert refuse_another_start(setting) == json.loads((tmp_path / "out" / "setting.json").read_text())
    weights = tmp_path / "out" / "start" / "model" / "model" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + (name == min(tensors)) * 1e-6 for name, tensor in tensors.items()}, weights)
    with refuses("was made again and is not the model", "copy the folder start of the study"):
        refuse_another_start(setting)


def test_new_weights_depend_on_the_seed_and_the_text_is_known(study, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "clone"
    shutil.copytree(study, folder, ignore=shutil.ignore_patterns("start"))
    setting = json.loads((folder / "setting.json").read_text())
    (folder / "setting.json").write_text(json.dumps({**setting, START_FINGERPRINT: "0"}))
    monkeypatch.setattr(finetuning_study, "print_errors_only", lambda: None)
    before = (folder / "results.jsonl").read_text()
    message = refusal(finetuning_study.main, ("--output_dir", folder, *OPTIONS), monkeypatch, capsys)
    assert "or its text not the text, of the results in" in message
    (folder / "setting.json").write_text(json.dumps(setting))
    monkeypatch.setattr("sys.argv", ["finetuning_study.py", "--output_dir", str(folder), *map(str, OPTIONS)])
    finetuning_study.main()
    assert (folder / "results.jsonl").read_text() == before
