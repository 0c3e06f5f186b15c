"""The study of the problem suite: its rules, its scores, and a suite of one tiny problem from start to report."""

import dataclasses
import math
import shutil
import sys

import numpy as np
import pandas as pd
import problem_suite
import pytest
from experiments import problems, rules, suite_report
from experiments.cells import BASELINE, Cell, Result
from experiments.problem_study import ProblemStudy
from experiments.protocol import LINEAR, REFINED, RISING_IGNORED, SELECTION, Choices, baseline_file
from experiments.results_table import results_table
from experiments.rule_scores import score_rules
from experiments.rules import ALL_RULES, Evidence
from experiments.statistics import TunedSchedule
from experiments.study import frozen_verdict
from experiments.study_report import has_shortest_warmup, note_on_shortest_warmup
from experiments.study_results import StudyResults
from experiments.thresholds import choose_threshold
from experiments.verdict_scores import LINEAR_DECAY, advice_of, is_right

from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.schedules.health import PROMISE, Finding, Health

from .records import write_norms
from .test_problem_suite import tiny_problem, write_diamonds
from .tiny import read_rows
from .tolerances import EXACT_ROUNDING

STEPS = 200


def norms_of(values):
    return GradientNorms(steps=np.arange(1, len(values) + 1), l1=values, l2=values, num_training_steps=len(values))


def evidence(values, optimizer="adam", max_grad_norm=1.0):
    return Evidence([norms_of(values)] * 3, norms_of(values), optimizer, max_grad_norm)


def with_warmup(warmup, steps=STEPS):
    progress = np.arange(steps + 1) / steps
    grid = (1 - progress) * np.minimum(1, progress / warmup)
    return grid / grid.max()


@pytest.mark.parametrize("name", ALL_RULES)
def test_constant_norms_give_linear_decay(name):
    grid = ALL_RULES[name](evidence(np.full(STEPS, 3.0), "sgd")).grid
    expected = with_warmup(0.05) if name == "between two warm-ups" else 1 - np.arange(STEPS + 1) / STEPS
    assert grid == pytest.approx(expected, abs=EXACT_ROUNDING)


def test_the_warm_up_is_kept_between_two():
    slow = ALL_RULES["between two warm-ups"](evidence(np.linspace(9, 1, STEPS)))
    assert slow.grid == pytest.approx(with_warmup(0.2), abs=0.15)
    assert slow.grid[2] == pytest.approx(with_warmup(0.2)[2], abs=EXACT_ROUNDING) or slow.grid[2] > with_warmup(0.2)[2]
    sudden = ALL_RULES["between two warm-ups"](evidence(np.r_[100.0, np.ones(STEPS - 1)]))
    assert sudden.grid == pytest.approx(with_warmup(0.05), abs=EXACT_ROUNDING)


def test_a_floor_stops_vanishing_norms_from_raising_the_rate():
    vanishing = np.exp(np.linspace(0, -9, STEPS))
    ignoring, floored = (
        make(evidence(vanishing)).grid
        for make in (lambda seen: seen.ignoring(), ALL_RULES["floor at the upper quartile"])
    )
    assert ignoring.argmax() > 0.7 * STEPS
    assert floored.argmax() == pytest.approx(0.25 * STEPS, abs=2)
    tail = floored[STEPS // 2 :]
    assert np.diff(tail) == pytest.approx(np.full(len(tail) - 1, tail[1] - tail[0]), abs=EXACT_ROUNDING)


def test_schedules_with_the_shortest_warm_up_are_counted(tmp_path):
    paths = [tmp_path / "rising.jsonl", tmp_path / "falling.jsonl"]
    for path, norms in zip(paths, ([*range(1, 101)], [*range(100, 0, -1)]), strict=True):
        write_norms(path, norms)
    (tmp_path / "study").mkdir()
    rules.write_rules(tmp_path / "study", ["between two warm-ups"], paths, [], "adam", 1.0)
    assert has_shortest_warmup(tmp_path / "study") == [True, False]
    assert note_on_shortest_warmup(tmp_path / "study").startswith("From 1 of 2 baselines, *between two warm-ups* is")
    assert suite_report.shortest_warmups([tmp_path / "study", tmp_path / "other"]).startswith("\n- In 0 of 1, ")
    assert note_on_shortest_warmup(tmp_path / "other") == suite_report.shortest_warmups([tmp_path / "other"]) == ""


def test_norms_of_pure_noise_give_linear_decay():
    noise = np.exp(np.random.default_rng(1).normal(0, 0.3, 4 * STEPS))
    signal = np.exp(np.linspace(0, -2, 4 * STEPS)) * noise
    assert rules.split_half_reliability(signal, 0.1) > 0.95
    assert rules.split_half_reliability(noise, 0.1) < 0.7
    assert rules.split_half_reliability(np.tile([1.0, 2.0], STEPS), 0.1) == 0


def study_of(losses):
    """A study with these final losses: seeds by schedule."""
    rows = [
        Result(Cell("problem", name, 1.0, seed, 10), loss)
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    tuned = {name: TunedSchedule(name, 1.0, False, pd.Series(values)) for name, values in losses.items()}
    return StudyResults("problem", results_table(rows), Choices(tuned, "linear, 5 % warm-up"), pd.DataFrame(losses))


BASE = np.array([1.0, 1.1, 1.2, 1.3])
JITTER = np.array([0.0, 0.001, -0.001, 0.002])


@pytest.fixture
def measured():
    return study_of(
        {
            LINEAR: BASE,
            "linear, 5 % warm-up": BASE - 0.1 + JITTER,
            REFINED: BASE - 0.05 - JITTER,
            RISING_IGNORED: BASE - 0.2 - JITTER,
            "shrunk power": BASE - 0.1 + JITTER[::-1],
        }
    )


def test_rules_are_scored_against_the_best_warm_up(measured):
    scores = score_rules(
        {"one": measured, "two": measured}, ["shrunk power", REFINED, RISING_IGNORED, "second refinement"]
    )
    assert list(scores.index) == [RISING_IGNORED, "shrunk power", REFINED]
    assert scores[["better", "undecided", "worse"]].to_numpy().tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert scores.loc[RISING_IGNORED, "mean"] == pytest.approx(-0.101 / 1.0505, rel=0.01)


def test_a_control_that_is_the_reference_everywhere_has_no_score(measured):
    assert score_rules({"one": measured}, ["linear, 5 % warm-up", RISING_IGNORED]).index.tolist() == [RISING_IGNORED]


def test_a_rule_that_diverged_at_every_peak_is_worse(measured):
    diverged = TunedSchedule("shrunk power", math.nan, False, pd.Series(dtype=float), "diverged")
    choices = dataclasses.replace(measured.choices, tuned={**measured.choices.tuned, "shrunk power": diverged})
    study = dataclasses.replace(measured, choices=choices, losses=measured.losses.drop(columns="shrunk power"))
    scores = score_rules({"one": measured, "two": study}, ["shrunk power"])
    assert scores[["problems", "undecided", "worse"]].to_numpy().tolist() == [[2, 1, 1]]
    assert math.isfinite(scores.loc["shrunk power", "mean"])
    assert "worse in 1 (problem, diverged at every peak)" in suite_report.aim("shrunk power", {"one": study})


def test_a_best_peak_on_the_edge_is_no_outcome(measured):
    on_edge = dataclasses.replace(measured.choices.tuned[REFINED], on_edge=True)
    study = dataclasses.replace(
        measured, choices=dataclasses.replace(measured.choices, tuned={**measured.choices.tuned, REFINED: on_edge})
    )
    assert score_rules({"one": study}, [REFINED])["undecided"].tolist() == [1]


def test_the_aim_is_reached_by_a_rule_that_is_never_worse_and_better_in_a_third(measured):
    better = suite_report.aim(RISING_IGNORED, {"one": measured})
    assert "better than linear decay with the best warm-up in 1, undecided in 0, and worse in 0." in better
    assert better.endswith("is reached.")
    worse = suite_report.aim(REFINED, {"one": measured, "two": measured})
    assert f"worse in 2 ({measured.label}, by " in worse and worse.endswith("is missed.")
    assert suite_report.aim("shrunk power", {"one": measured}).endswith("is missed.")


@pytest.mark.parametrize(
    ("verdicts", "advice"),
    [
        (("worth a refined run", "doubtful"), REFINED),
        (("doubtful", "linear will do"), RISING_IGNORED),
        (("doubtful", "degenerate"), LINEAR_DECAY),
        (("degenerate", "linear will do"), LINEAR_DECAY),
        (("linear will do", "linear will do"), LINEAR_DECAY),
    ],
)
def test_the_advice_of_a_forecast_is_that_of_check(verdicts, advice):
    rows = [
        {"baseline": 0, "schedule": name, "verdict": verdict}
        for name, verdict in zip((REFINED, RISING_IGNORED), verdicts, strict=True)
    ]
    assert advice_of([*rows, {"baseline": 1, "schedule": REFINED, "verdict": "other"}], 0) == advice


@pytest.mark.parametrize(
    ("verdict", "promise", "frozen"),
    [
        ("sound", 0.01, "worth a refined run"),
        ("sound", 0.0099, "linear will do"),
        ("doubtful", 0.5, "doubtful"),
        ("degenerate", 0.5, "degenerate"),
    ],
)
def test_a_forecast_is_by_the_thresholds_of_the_protocol(verdict, promise, frozen):
    findings = [Finding("other figure", 1.0, "", ok=verdict == "sound"), Finding(PROMISE.name, promise, "", ok=True)]
    assert frozen_verdict(Health(verdict, findings)) == frozen


def test_advice_is_right_if_the_schedule_is_better_than_the_reference(measured):
    right = {
        (advice, reference): is_right(measured, advice, reference)
        for advice in (REFINED, RISING_IGNORED, LINEAR_DECAY)
        for reference in (LINEAR, measured.reference)
    }
    assert right == {
        (REFINED, LINEAR): True,
        (REFINED, measured.reference): False,
        (RISING_IGNORED, LINEAR): True,
        (RISING_IGNORED, measured.reference): True,
        (LINEAR_DECAY, LINEAR): False,
        (LINEAR_DECAY, measured.reference): False,
    }


def test_a_threshold_is_the_one_that_is_right_most_often():
    figures = pd.DataFrame({"noise": [1.0, 2.0, 1.5, 1.2], "rise": [1.0, 2.0, 3.0, 4.0]})
    threshold = choose_threshold(figures, pd.Series([True, True, False, False]))
    assert (threshold.figure, threshold.limit, threshold.at_most) == ("rise", 2.5, True)
    assert str(threshold) == "rise at most 2.5"
    assert threshold.refines(figures).tolist() == [True, True, False, False]
    never = choose_threshold(figures, pd.Series([False] * 4))
    assert not never.refines(figures).any()


def run_suite(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["problem_suite.py", *map(str, words)])
    problem_suite.main()


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """The words of a suite of one tiny problem."""
    problem = dataclasses.replace(tiny_problem("mlp_diamonds"), steps=20)
    monkeypatch.setitem(problems.PROBLEMS, "mlp_diamonds", problem)
    monkeypatch.setattr(suite_report, "PROBLEMS", {"mlp_diamonds": problem})
    write_diamonds(tmp_path / "data" / "packages")
    words = ("--problems", "mlp_diamonds", "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "suite")
    return (
        *words,
        "--rules",
        "second refinement",
        "--num_selection_seeds",
        1,
        "--num_test_seeds",
        2,
        "--num_workers",
        1,
    )


def test_cells_train_by_their_schedules(suite, tmp_path):
    study = ProblemStudy("mlp_diamonds", tmp_path / "data", tmp_path / "suite" / "mlp_diamonds", ())
    study.problem.prepare(tmp_path / "data")
    baseline = Cell("mlp_diamonds", LINEAR, 0.01, 2000, 20, BASELINE)
    first = study.train(baseline)
    _, rows = read_rows(study.norms_file(baseline))
    assert len(rows) == 20
    kept = baseline_file(study.folder, 2000)
    kept.parent.mkdir()
    shutil.copyfile(study.norms_file(baseline), kept)
    losses = [study.train(Cell("mlp_diamonds", name, 0.01, 2000, 20)).loss for name in (LINEAR, REFINED)]
    assert losses[0] == first.loss
    assert losses[1] != first.loss
    assert not study.norms_file(Cell("mlp_diamonds", REFINED, 0.01, 2000, 20)).exists()


def test_a_suite_from_start_to_report(suite, tmp_path, monkeypatch, capsys):
    trained = []

    def train(study, cell):
        """A cell whose best peak is inside the first grid; a baseline leaves norms."""
        trained.append(cell)
        if cell.role == BASELINE:
            study.norms_file(cell).parent.mkdir(parents=True)
            shutil.copyfile(tmp_path / "recorded.jsonl", study.norms_file(cell))
        loss = (
            1 + abs(math.log(cell.peak / study.problem.start_peak)) + 0.01 * cell.seed % 0.07 + len(cell.schedule) / 1e4
        )
        return Result(cell, loss)

    study = ProblemStudy("mlp_diamonds", tmp_path / "data", tmp_path / "real", ())
    study.problem.prepare(tmp_path / "data")
    baseline = Cell("mlp_diamonds", LINEAR, 0.01, 2000, 20, BASELINE)
    study.train(baseline)
    shutil.copyfile(study.norms_file(baseline), tmp_path / "recorded.jsonl")
    monkeypatch.setattr(ProblemStudy, "train", train)

    run_suite(monkeypatch, *suite)
    table = capsys.readouterr().out
    assert table.splitlines()[2].startswith("| mlp_diamonds (2 seeds)")
    folder = tmp_path / "suite" / "mlp_diamonds"
    norms = [f"{kind}_{index}.jsonl" for kind in ("baseline", "second") for index in range(3)]
    assert sorted(path.name for path in (folder / "baseline_norms").iterdir()) == norms
    assert not (folder / "cells").exists()
    tested = {cell.schedule for cell in trained if cell.role is None}
    assert {LINEAR, REFINED, RISING_IGNORED, "cosine", "WSD", "second refinement"} <= tested
    assert {cell.seed for cell in trained if cell.role == SELECTION} == {1000}
    report = (tmp_path / "suite.md").read_text()
    assert "| [mlp_diamonds](suite/mlp_diamonds.md) | regression | adamw" in report
    assert "| second refinement " in report
    assert "All 1 problems are finished." in report

    trained.clear()
    run_suite(monkeypatch, *suite)
    assert trained == []


def test_a_report_of_nothing_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run_suite(monkeypatch, "--report_only", "--output_dir", tmp_path)
    assert exit.value.code == 2
    assert "is finished yet; run the suite again to continue it." in capsys.readouterr().err
