"""Norms and schedules from what earlier runs left behind: found, recognised, refined, written and read again."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hf_refined_schedule.norms.gradient_norms import GradientNorms, UnfinishedRunError
from hf_refined_schedule.norms.sources import MissingSourceError, find_source, load_norms
from hf_refined_schedule.schedules.schedule_file import read_schedule, write_schedule

from . import reference
from .records import entries, entry, load_schedule, norms_of, schedule_of, write_norms, write_state
from .refusals import refuses
from .tolerances import EXACT_ROUNDING, SPARSE_LOG_RMSE

NAN, INF = float("nan"), float("inf")


def assert_equal_up_to_rounding(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT_ROUNDING)


# --- trainer_state.json ---


def test_the_log_of_a_trainer_is_read(tmp_path):
    history = entries(25, grad_norm=2.0)
    history[3]["grad_norm"] = 7.5
    history.insert(10, {"step": 10, "epoch": 0.1, "eval_loss": 2.0})
    history.append({"step": 25, "train_runtime": 1.0, "train_loss": 2.0, "total_flos": 10})
    norms = load_norms(write_state(tmp_path / "trainer_state.json", history, max_steps=30))
    assert norms.steps.tolist() == list(range(1, 26))
    assert norms.l2.tolist() == [2.0, 2.0, 2.0, 7.5] + [2.0] * 21
    assert norms.l1 is None
    assert norms.num_training_steps == 30
    assert norms.optimizer is None
    assert norms.source == str(tmp_path / "trainer_state.json")


def test_l1_norms_are_read_where_every_entry_has_one(tmp_path):
    history = [entry(step, 2.0, grad_norm_l1=10.0 + step) for step in range(1, 31)]
    norms = load_norms(write_state(tmp_path / "trainer_state.json", history))
    assert norms.l1.tolist() == [10.0 + step for step in range(1, 31)]
    assert norms.l2.tolist() == [2.0] * 30
    del history[5]["grad_norm_l1"]
    assert load_norms(write_state(tmp_path / "trainer_state.json", history)).l1 is None


def test_the_last_entry_of_a_step_counts(tmp_path):
    history = [*entries(30, grad_norm=1.0), entry(29, 5.0), entry(30, 6.0)]
    norms = load_norms(write_state(tmp_path / "trainer_state.json", history))
    assert norms.steps.tolist() == list(range(1, 31))
    assert norms.l2.tolist() == [1.0] * 28 + [5.0, 6.0]


def test_a_log_out_of_order_is_sorted(tmp_path):
    history = [entry(step, float(step)) for step in range(30, 0, -1)]
    norms = load_norms(write_state(tmp_path / "trainer_state.json", history))
    assert norms.l2.tolist() == [float(step) for step in range(1, 31)]


@pytest.mark.parametrize("max_steps", [None, 0, -1, "100", 2.5, True])
def test_a_trainer_state_that_does_not_say_its_length_is_of_the_length_it_has(tmp_path, max_steps):
    path = write_state(tmp_path / "trainer_state.json", entries(40), max_steps)
    assert load_norms(path).num_training_steps is None
    assert len(load_schedule(path, "adam").grid) == 41


@pytest.mark.parametrize("bad", [NAN, INF, -INF, "NaN", "Infinity", None, -1.0, "text", [1.0, 2.0], True])
def test_a_logged_norm_that_is_none_is_interpolated(tmp_path, bad):
    history = [entry(step, float(step)) for step in range(1, 41)]
    history[9]["grad_norm"] = bad
    norms = load_norms(write_state(tmp_path / "trainer_state.json", history))
    assert_equal_up_to_rounding(norms.at_every_step("l2"), range(1, 41))


def test_the_user_is_told_how_many_logged_norms_were_not_finite(tmp_path):
    history = entries(100)
    for position in (4, 50, 51):
        history[position]["grad_norm"] = NAN
    schedule = load_schedule(write_state(tmp_path / "trainer_state.json", history), "adam")
    assert any("3" in note and "finite" in note for note in schedule.notes)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_log_with_more_than_a_tenth_of_its_norms_not_finite_is_refused(tmp_path, bad):
    history = entries(100)
    for position in range(10, 10 + 11):
        history[position]["grad_norm"] = bad
    path = write_state(tmp_path / "trainer_state.json", history)
    with refuses(str(path), "11", "finite"):
        load_norms(path)


@pytest.mark.parametrize(
    "stray",
    [
        pytest.param({"step": 5, "loss": 1.0}, id="no norm"),
        pytest.param({"grad_norm": 1.0}, id="no step"),
        pytest.param(entry(0, 9.0), id="step 0"),
        pytest.param(entry(-1, 9.0), id="a negative step"),
        pytest.param({"step": "5", "grad_norm": 9.0}, id="a step in quotes"),
        pytest.param({"step": 5.5, "grad_norm": 9.0}, id="a step with a fraction"),
        pytest.param({"step": True, "grad_norm": 9.0}, id="a step true"),
        pytest.param([5, 9.0], id="a list"),
        pytest.param("grad_norm", id="a string"),
        pytest.param(None, id="null"),
    ],
)
def test_a_stray_entry_is_passed_over(tmp_path, stray):
    norms = load_norms(write_state(tmp_path / "trainer_state.json", [*entries(30), stray]))
    assert norms.steps.tolist() == list(range(1, 31))
    assert norms.l2.tolist() == [1.0] * 30


@pytest.mark.parametrize("count", [1, 19])
def test_too_few_logged_norms_are_refused(tmp_path, count):
    path = write_state(tmp_path / "trainer_state.json", [*entries(count), {"step": 100, "eval_loss": 2.0}])
    with refuses(str(path), f"{count} gradient norms", "20", "logging_steps", "logging_first_step"):
        load_norms(path)


def test_twenty_logged_norms_are_enough(tmp_path):
    assert len(load_norms(write_state(tmp_path / "trainer_state.json", entries(20))).steps) == 20


@pytest.mark.parametrize(
    ("history", "max_steps"),
    [
        pytest.param([*entries(100), entry(10**30)], 100, id="a step of 31 digits"),
        pytest.param([*entries(100), entry(2**52)], 100, id="a step that no machine has memory for"),
        pytest.param(entries(100), 10**30, id="planned updates of 31 digits"),
        pytest.param(entries(100), 10**400, id="planned updates beyond float64"),
    ],
)
def test_a_number_of_steps_beyond_reason_is_refused_or_passed_over(tmp_path, history, max_steps):
    path = write_state(tmp_path / "trainer_state.json", history, max_steps)
    try:
        multipliers = load_schedule(path, "adam").grid
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert len(multipliers) == 101


# --- where the norms are looked for ---


def test_a_folder_prefers_its_own_norms_file_then_its_own_trainer_state_then_checkpoints(tmp_path):
    newest = write_state(tmp_path / "checkpoint-100" / "trainer_state.json", entries(30, 3.0))
    assert load_norms(tmp_path).source == str(newest)
    own_state = write_state(tmp_path / "trainer_state.json", entries(30, 2.0))
    assert load_norms(tmp_path).source == str(own_state)
    own_file = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 30)
    assert load_norms(tmp_path).source == str(own_file)
    assert load_norms(tmp_path).l1.tolist() == [1.0] * 30


def test_the_newest_checkpoint_is_so_by_number_and_not_by_text(tmp_path):
    for number in (9, 100, 20, 99):
        write_state(tmp_path / f"checkpoint-{number}" / "trainer_state.json", entries(30, float(number)))
    assert load_norms(tmp_path).l2.tolist() == [100.0] * 30


@pytest.mark.parametrize(
    "incomplete", ["checkpoint-200", "checkpoint-final", "checkpoint-300-old", "old-checkpoint-400"]
)
def test_what_is_no_complete_checkpoint_is_passed_over(tmp_path, incomplete):
    write_state(tmp_path / "checkpoint-100" / "trainer_state.json", entries(30, 100.0))
    if incomplete == "checkpoint-200":  # saved in part: the state is written last
        (tmp_path / incomplete).mkdir()
    else:
        write_state(tmp_path / incomplete / "trainer_state.json", entries(30, 9.0))
    assert load_norms(tmp_path).l2.tolist() == [100.0] * 30


def test_a_checkpoint_or_a_file_may_be_named_itself(tmp_path):
    write_state(tmp_path / "checkpoint-100" / "trainer_state.json", entries(30, 100.0))
    write_state(tmp_path / "checkpoint-50" / "trainer_state.json", entries(30, 50.0))
    assert load_norms(tmp_path / "checkpoint-50").l2[0] == 50.0
    assert load_norms(str(tmp_path / "checkpoint-50")).l2[0] == 50.0
    assert load_norms(tmp_path / "checkpoint-50" / "trainer_state.json").l2[0] == 50.0
    assert load_norms(str(tmp_path / "checkpoint-50" / "trainer_state.json")).l2[0] == 50.0


def test_a_file_is_recognised_by_its_content_and_not_by_its_name(tmp_path):
    assert load_norms(write_norms(tmp_path / "trainer_state.json", [3.0] * 5)).l1.tolist() == [3.0] * 5
    assert load_norms(write_state(tmp_path / "gradient_norms.jsonl", entries(30, 2.0))).l2.tolist() == [2.0] * 30
    path = tmp_path / "one_line.txt"
    path.write_text(json.dumps({"log_history": entries(30, 4.0), "max_steps": 30}))
    assert load_norms(path).l2.tolist() == [4.0] * 30


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_norms(tmp_path / "runs" / "gradient_norms.jsonl", [3.0] * 5)
    assert load_norms("~/runs").l1.tolist() == [3.0] * 5


def test_the_home_folder_of_an_unknown_user_is_a_missing_source():
    with refuses("'~nosuchuser/runs'", "gradient_norms.jsonl", error=MissingSourceError):
        load_norms("~nosuchuser/runs")


def test_a_missing_source_is_both_a_missing_file_and_a_bad_value(tmp_path):
    assert issubclass(MissingSourceError, FileNotFoundError)
    assert issubclass(MissingSourceError, ValueError)
    missing = str(tmp_path / "runs" / "basline")
    for load in (load_norms, lambda source: load_schedule(source, "adam")):
        with refuses(missing, "gradient_norms.jsonl", "trainer_state.json", error=MissingSourceError):
            load(missing)


def test_a_folder_without_norms_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "checkpoint-10").mkdir()
    with refuses(str(tmp_path), "gradient_norms.jsonl", "trainer_state.json"):
        load_norms(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"model_type": "bert", "hidden_size": 768}\n', id="config.json"),
        pytest.param(b'{\n  "model_type": "bert"\n}\n', id="config.json, indented"),
        pytest.param(b"step,loss\n1,2.5\n", id="CSV"),
        pytest.param(b"Everything is fine.\n", id="text"),
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="a brace"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"3", id="a number"),
        pytest.param(b"null", id="null"),
        pytest.param(bytes(range(256)) * 50, id="binary"),
        pytest.param(b'{"\xff\xfe": 1}', id="JSON without UTF-8"),
        pytest.param(b"[" * 100_000, id="deep nesting"),
        pytest.param(b'{"a":' * 100_000, id="deep nesting of objects"),
        pytest.param(b'{"log_history": 3}', id="a log that is a number"),
        pytest.param(b'{"log_history": {}}', id="a log that is an object"),
        pytest.param(json.dumps({"log_history": entries(30)}).encode()[:-20], id="a torn trainer_state.json"),
        pytest.param(b'{"log_history": [' + b"9" * 5000 + b"]}", id="a number of 5000 digits"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    for load in (load_norms, lambda source: load_schedule(source, "adam")):
        with refuses(str(path), "gradient_norms.jsonl", "trainer_state.json"):
            load(path)


def test_a_schedule_file_holds_no_norms(tmp_path):
    path = tmp_path / "schedule.json"
    write_schedule(schedule_of(GradientNorms(np.arange(1, 101), l1=np.ones(100)), "adam"), path)
    with refuses(str(path), "is a schedule file", "the run that it was made from"):
        load_norms(path)


# --- the schedule that a run's norms ask for ---

# norms 4 2 1 2 2: one over the norm makes products 5/8 1 1 1/4 0, one over its square 7/64 3/8 1/2 1/16 0
ONE_OVER = [0.625, 1, 1, 0.25, 0]
ONE_OVER_SQUARE = [0.21875, 0.75, 1, 0.125, 0]
SHAPE, OTHER = [4.0, 2.0, 1.0, 2.0], [8.0, 8.0, 8.0, 8.0]


@pytest.mark.parametrize(
    ("norms", "optimizer", "options", "expected", "norm", "power"),
    [
        pytest.param(norms_of(SHAPE, OTHER), "adam", {}, ONE_OVER, "l1", -1, id="Adam: L1 ** -1"),
        pytest.param(norms_of(OTHER, SHAPE), "sgd", {}, ONE_OVER_SQUARE, "l2", -2, id="SGD: L2 ** -2"),
        pytest.param(norms_of(SHAPE), "adam", {}, ONE_OVER, "l1", -1, id="Adam, only L1"),
        pytest.param(norms_of(l2=SHAPE), "adam", {}, ONE_OVER, "l2", -1, id="Adam, only L2: it stands in"),
        pytest.param(norms_of(l2=SHAPE), "sgd", {}, ONE_OVER_SQUARE, "l2", -2, id="SGD, only L2"),
        pytest.param(norms_of(OTHER, SHAPE), "adam", {"norm": "l2"}, ONE_OVER, "l2", -1, id="Adam, L2 asked for"),
        pytest.param(norms_of(SHAPE, OTHER), "adam", {"power": -2}, ONE_OVER_SQUARE, "l1", -2, id="Adam, power -2"),
        pytest.param(norms_of(OTHER, SHAPE), "sgd", {"power": -1}, ONE_OVER, "l2", -1, id="SGD, power -1"),
        pytest.param(norms_of(SHAPE), "sgd", {"norm": "l1", "power": -1}, ONE_OVER, "l1", -1, id="SGD, L1 asked for"),
    ],
)
def test_the_weights_follow_the_optimizer(norms, optimizer, options, expected, norm, power):
    schedule = schedule_of(norms, optimizer, smoothing=0, **options)
    assert_equal_up_to_rounding(schedule.grid, expected)
    assert (schedule.optimizer, schedule.norm, schedule.power) == (optimizer, norm, power)
    assert (schedule.smoothing, schedule.source) == (0.0, "the run")


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.1}], ids=["unless said", "said"])
def test_a_tenth_of_the_run_is_smoothed(options):
    norms = np.random.default_rng(0).lognormal(size=60)
    schedule = schedule_of(norms_of(norms), "adam", **options)
    assert_equal_up_to_rounding(schedule.grid, reference.refined_grid(norms, -1, 0.1))
    assert schedule.smoothing == 0.1


def test_load_schedule_passes_its_arguments_on(tmp_path):
    path = write_norms(tmp_path / "gradient_norms.jsonl", OTHER, SHAPE)
    for source in (path, str(path), tmp_path, load_norms(path)):
        schedule = load_schedule(source, "adam", norm="l2", power=-2, smoothing=0)
        assert_equal_up_to_rounding(schedule.grid, ONE_OVER_SQUARE)
        assert schedule.source == str(path)


def test_rising_norms_are_ignored_where_that_is_asked_for(tmp_path):
    falling_then_rising = [4.0, 2.0, 1.0, 3.0]
    path = write_norms(tmp_path / "gradient_norms.jsonl", falling_then_rising)
    schedule = load_schedule(path, "adam", smoothing=0, rising_norms="ignore")
    # minimum 4 2 1 1, extended by 1: w = 1/4 1/2 1 1 1, tails 7/2 3 2 1 0, products 7/8 3/2 2 1 0
    assert_equal_up_to_rounding(schedule.grid, [7 / 16, 3 / 4, 1, 1 / 2, 0])
    assert schedule.effective_norms.tolist() == [4, 2, 1, 1]
    assert schedule.rising_norms == "ignore"
    assert any("Rising norms are ignored" in note for note in schedule.notes)
    assert load_schedule(path, "adam", smoothing=0).effective_norms.tolist() == falling_then_rising


def test_several_runs_are_averaged(tmp_path):
    paths = [
        write_norms(tmp_path / name / "gradient_norms.jsonl", l1)
        for name, l1 in (("a", [8, 1, 1, 4]), ("b", [2, 4, 1, 1]))
    ]
    for source in (paths, [paths[0].parent, str(paths[1])], [load_norms(paths[0]), paths[1]]):
        schedule = load_schedule(source, "adam", smoothing=0)
        assert_equal_up_to_rounding(schedule.effective_norms, [4, 2, 1, 2])
        assert_equal_up_to_rounding(schedule.grid, ONE_OVER)
        assert schedule.source == f"2 runs ({paths[0]}, {paths[1]})"
    assert load_schedule(paths[:1], "adam").source == str(paths[0])


def test_several_runs_are_as_good_as_the_worst_of_them(tmp_path):
    whole, torn = (tmp_path / name / "gradient_norms.jsonl" for name in ("whole", "torn"))
    write_norms(whole, [1.0] * 60)
    write_norms(torn, [1.0] * 40, planned=60)
    with refuses(str(torn), "covers 40 of 60", error=UnfinishedRunError):
        load_schedule([whole, torn], "adam")
    write_schedule(load_schedule(whole, "adam"), tmp_path / "schedule.json")
    with refuses("schedule.json", "stands alone"):
        load_schedule([whole, tmp_path / "schedule.json"], "adam")
    with refuses("no run"):
        load_schedule([], "adam")
    l2_alone = write_state(tmp_path / "trainer_state.json", entries(60), max_steps=60)
    schedule = load_schedule([whole, l2_alone], "adam")
    assert schedule.norm == "l2"
    assert any("stands in" in note for note in schedule.notes)


def test_updates_without_a_norm_are_interpolated():
    schedule = schedule_of(norms_of([4.0, 2.0, 2.0], steps=[1, 2, 4]), "adam", smoothing=0)
    assert_equal_up_to_rounding(schedule.grid, reference.refined_grid([4, 2, 2, 2], -1, 0))
    schedule = schedule_of(norms_of([4.0, 2.0], steps=[1, 3]), "adam", smoothing=0)
    assert_equal_up_to_rounding(schedule.grid, reference.refined_grid([4, 3, 2], -1, 0))


@pytest.mark.parametrize("options", [{}, {"power": -2}])
def test_sgd_with_l1_norms_alone_is_refused(options):
    with refuses("the run", "L1", "L2", "norm"):
        schedule_of(norms_of([1.0] * 30), "sgd", **options)


@pytest.mark.parametrize(
    ("norms", "norm", "words"),
    [
        pytest.param(norms_of(l1=[1.0] * 30), "l2", ["no L2 norms", "--norm l2"], id="L2 asked for, only L1"),
        pytest.param(norms_of(l2=[1.0] * 30), "l1", ["no L1 norms", "--norm l1"], id="L1 asked for, only L2"),
    ],
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_norm_that_is_not_there_is_refused(norms, norm, words, optimizer):
    with refuses("the run", *words):
        schedule_of(norms, optimizer, norm=norm)


@pytest.mark.parametrize(
    ("optimizer", "options", "words"),
    [
        pytest.param("lion", {}, ["optimizer", "'lion'", '"adam"', '"sgd"'], id="optimizer"),
        pytest.param("adam", {"norm": "linf"}, ["norm", "'linf'"], id="norm"),
        pytest.param("adam", {"power": 1}, ["power", "1"], id="power"),
        pytest.param("adam", {"smoothing": 2}, ["the run", "smoothing", "2"], id="smoothing"),
        pytest.param("adam", {"smoothing": -0.5}, ["the run", "smoothing", "-0.5"], id="negative smoothing"),
    ],
)
def test_arguments_out_of_range_are_refused(optimizer, options, words):
    with refuses(*words):
        schedule_of(norms_of([1.0] * 30, [1.0] * 30), optimizer, **options)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param([1.0] * 10 + [0.0] * 20, ["20 of 30", "are 0", "at update 11"], id="norms vanish"),
        pytest.param([1.0] * 29 + [NAN], ["nan"], id="nan"),
        pytest.param([1.0] * 29 + [-1.0], ["negative"], id="negative"),
        pytest.param([1.0], ["at least 2"], id="one norm"),
    ],
)
def test_norms_that_make_no_schedule_are_refused_with_their_source(values, words):
    with refuses("the run", *words):
        schedule_of(norms_of(values), "adam")


@pytest.mark.parametrize(
    ("values", "without"),
    [
        pytest.param([4.0, 0.0, 2.0, 2.0], norms_of([4.0, 2.0, 2.0], steps=[1, 3, 4]), id="among others"),
        pytest.param([0.0, 4.0, 2.0, 2.0], norms_of([4.0, 2.0, 2.0], steps=[2, 3, 4]), id="the first"),
        pytest.param([4.0, 2.0, 2.0, 0.0], norms_of([4.0, 2.0, 2.0, 2.0]), id="the last"),
        pytest.param([0.0, 4.0, 2.0, 0.0], norms_of([4.0, 4.0, 2.0, 2.0]), id="half of them"),
    ],
)
def test_a_norm_of_0_is_no_information(tmp_path, values, without):
    """From norms in memory and from each kind of file alike."""
    expected = schedule_of(without, smoothing=0).grid
    path = write_norms(tmp_path / "gradient_norms.jsonl", values)
    history = [entry(step, value) for step, value in enumerate(np.repeat(values, 10).tolist(), start=1)]
    state = load_norms(write_state(tmp_path / "trainer_state.json", history, max_steps=40))
    for norms in (norms_of(values, planned=4), load_norms(path)):
        assert_equal_up_to_rounding(schedule_of(norms, smoothing=0).grid, expected)
        assert norms.num_zero == values.count(0.0)
    assert state.num_zero == 10 * values.count(0.0)
    assert state.last_step == 40
    assert f"{state.num_zero} of norm 0 left out, the first at update {10 * values.index(0.0) + 1}" in state.description


def test_norms_of_0_are_named_in_the_notes():
    norms = norms_of([0.0, 0.0, *[1.0] * 48], planned=50)
    notes = schedule_of(norms).notes
    assert len(notes) == 2
    assert "first 2 updates are missing or 0" in notes[0]
    assert "2 logged norms are 0, the first at update 1" in notes[1]


# --- how much of the run is covered ---


@pytest.mark.parametrize(
    ("made", "planned", "whole"),
    [
        pytest.param(100, 100, True, id="all"),
        pytest.param(95, 100, True, id="95 %"),
        pytest.param(94, 100, False, id="94 %"),
        pytest.param(19, 20, True, id="95 % of 20"),
        pytest.param(18, 20, False, id="90 %"),
        pytest.param(30, 1000, False, id="3 %"),
    ],
)
def test_an_unfinished_run_is_not_silently_a_whole_one(tmp_path, made, planned, whole):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [2.0] * made, planned=planned)
    if whole:
        schedule = load_schedule(path, "adam")
        assert_equal_up_to_rounding(schedule.grid, [1 - t / planned for t in range(planned + 1)])
    else:
        with refuses(str(path), f"{made} of {planned}", "--pilot", error=UnfinishedRunError):
            load_schedule(path, "adam")
    assert issubclass(UnfinishedRunError, ValueError)


@pytest.mark.parametrize(
    ("values", "planned", "smoothing", "expected"),
    [
        # norms 2 1 1 1 1: w = 1/2 1 1 1 1, products 2 3 2 1 0
        pytest.param([2.0, 1.0], 4, 0, [2 / 3, 1, 2 / 3, 1 / 3, 0], id="the last norm goes on"),
        # smoothed 1 1 1 1
        pytest.param([1.0, 1.0, 1.0, 5.0], 5, 0.75, [1, 0.8, 0.6, 0.4, 0.2, 0], id="the last smoothed norm goes on"),
    ],
)
def test_a_pilot_goes_on_with_its_last_smoothed_norm(values, planned, smoothing, expected):
    norms = norms_of(values, planned=planned)
    schedule = schedule_of(norms, "adam", smoothing=smoothing, pilot=True)
    assert_equal_up_to_rounding(schedule.grid, expected)
    assert any("pilot" in note for note in schedule.notes)


def test_a_finished_run_may_be_called_a_pilot():
    schedule = schedule_of(norms_of([1.0] * 40, planned=40), "adam", pilot=True)
    assert schedule.notes == ()
    assert len(schedule.grid) == 41


def test_a_run_of_unknown_length_is_as_long_as_its_norms():
    assert len(schedule_of(norms_of([1.0] * 30), "adam").grid) == 31


def test_a_run_that_died_without_a_length_needs_an_option(tmp_path):
    """Norms 2 1 of a run of 4: w = 1/2 1 1 1 1, products 2 3 2 1 0; of a run of 2: w = 1/2 1 1, products 1 1 0."""
    path = write_norms(tmp_path / "gradient_norms.jsonl", [2.0, 1.0], planned=4)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(header), "num_training_steps": None}), *rows]) + "\n")
    assert (load_norms(path).num_training_steps, load_norms(path).finished) == (None, False)
    with refuses(str(path), "update 2", "--num-training-steps", "--pilot", error=UnfinishedRunError):
        load_schedule(path)
    as_it_is = load_schedule(path, pilot=True, smoothing=0, allow_degenerate=True)
    assert_equal_up_to_rounding(as_it_is.grid, [1, 1, 0])
    assert any("the 2 that were made count as the whole run" in note for note in as_it_is.notes)
    whole = load_schedule(path, num_training_steps=2, smoothing=0, allow_degenerate=True)
    assert_equal_up_to_rounding(whole.grid, [1, 1, 0])
    part = load_schedule(path, num_training_steps=4, pilot=True, smoothing=0)
    assert_equal_up_to_rounding(part.grid, [2 / 3, 1, 2 / 3, 1 / 3, 0])
    with refuses("covers 2 of 4", error=UnfinishedRunError):
        load_schedule(path, num_training_steps=4)


def test_the_length_of_a_run_that_ended_early_may_be_given(tmp_path):
    """120 of 200 planned updates: finished with --num-training-steps 120, as the error says."""
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 120, planned=200)
    with refuses("covers 120 of 200", "--num-training-steps 120", error=UnfinishedRunError):
        load_schedule(path)
    assert_equal_up_to_rounding(load_schedule(path, num_training_steps=120).grid, [1 - t / 120 for t in range(121)])
    with refuses("--num-training-steps (num_training_steps) is 119", "up to update 120"):
        load_schedule(path, num_training_steps=119)


def test_a_planned_length_below_the_logged_steps_drops_no_row(tmp_path):
    norms = load_norms(write_state(tmp_path / "trainer_state.json", entries(60), max_steps=40))
    assert len(norms.steps) == 60
    assert norms.description.endswith("60 L2 norms, of every update, to update 60 of 60, though 40 were planned")
    schedule = schedule_of(norms)
    assert len(schedule.grid) == 61
    assert any("up to update 60, beyond the 40 planned" in note for note in schedule.notes)


# --- what the user is told ---


@pytest.mark.parametrize(
    ("norms", "optimizer", "words"),
    [
        pytest.param(norms_of([1.0] * 40), "adam", None, id="nothing to say at 40 updates"),
        pytest.param(
            norms_of([1.0] * 19), "adam", ["19 norms are few", "0.1 to 0.211"], id="19 updates widen the window"
        ),
        pytest.param(norms_of(l2=[1.0] * 40), "adam", ["no L1 norms", "L2 ** -1"], id="L2 stands in for L1"),
        pytest.param(norms_of(l2=[1.0] * 40), "sgd", None, id="L2 is SGD's own"),
        pytest.param(
            norms_of([1.0] * 40, steps=range(10, 50)),
            "adam",
            ["first 9 updates", "missing", "logging_first_step"],
            id="the first norms are missing",
        ),
        pytest.param(norms_of([1.0] * 40, steps=[1, *range(5, 44)]), "adam", None, id="the first norm is what matters"),
        pytest.param(norms_of([1.0] * 48, planned=50), "adam", None, id="96 % of the run"),
    ],
)
def test_notes(norms, optimizer, words):
    notes = schedule_of(norms, optimizer).notes
    if words is None:
        assert notes == ()
        return
    assert len(notes) == 1
    assert "\n" not in notes[0]
    for word in words:
        assert word in notes[0]


@pytest.mark.parametrize(
    ("norms", "optimizer", "expected"),
    [
        pytest.param(norms_of([3.0] * 40), "adam", 1.0, id="constant L1 norms: it is linear decay"),
        pytest.param(norms_of(l2=[3.0] * 40), "sgd", 1.0, id="constant L2 norms"),
        pytest.param(norms_of(l2=[3.0] * 40), "adam", 1.0, id="constant L2 norms for Adam"),
        pytest.param(norms_of([3.0] * 39, planned=40), "adam", 1.0, id="constant norms of 97 % of a run"),
        # Refined: multipliers 1 1, G^2 = 2 1, so t1 = 1/4, t2 = 3/4, t3 = 3/4: best peak sqrt(1/6).
        # Linear: multipliers 1 1/2, so t1 = 1/3, t2 = 3/4, t3 = 3/2: best peak sqrt(4/27).
        pytest.param(norms_of([2.0, 1.0]), "adam", math.sqrt(27 / 24), id="L1 norms 2 1"),
        pytest.param(norms_of(l2=[2.0, 1.0]), "adam", math.sqrt(27 / 24), id="L2 norms 2 1 in their place"),
        # Refined: multipliers 1/2 1, G^2 = 4 1, so t1 = 1/3, t2 = 2/3, t3 = 1/3: best peak sqrt(1/3).
        # Linear: t1 = 1/3, t2 = 17/12, t3 = 17/6: best peak sqrt(4/51).
        pytest.param(norms_of(l2=[2.0, 1.0]), "sgd", math.sqrt(51 / 12), id="L2 norms 2 1 for SGD"),
        pytest.param(norms_of([2e9, 1e9]), "adam", math.sqrt(27 / 24), id="their scale does not matter"),
        pytest.param(norms_of([2e-9, 1e-9]), "adam", math.sqrt(27 / 24), id="however small"),
    ],
)
def test_best_peak_ratio_worked_out_by_hand(norms, optimizer, expected):
    schedule = schedule_of(norms, optimizer, smoothing=0)
    assert schedule.best_peak_ratio == pytest.approx(expected, rel=EXACT_ROUNDING)


@pytest.mark.parametrize(("optimizer", "power"), [("adam", -1), ("sgd", -2)])
def test_best_peak_ratio_equals_its_twin(optimizer, power):
    values = np.random.default_rng(1).lognormal(size=50)
    squares = [value**-power for value in reference.median_smoothing(values, 0.1)]
    peaks = []
    for multipliers in (reference.refined_grid(values, power, 0.1)[:-1], [1 - t / 50 for t in range(50)]):
        first, second, third = reference.bound_terms(multipliers, squares)
        peaks.append(math.sqrt(first / (second + third)))
    schedule = schedule_of(norms_of(values, values), optimizer)
    assert schedule.best_peak_ratio == pytest.approx(peaks[0] / peaks[1], rel=EXACT_ROUNDING)


# --- a log every few steps ---


def smooth_curve(steps):
    """A norm that falls fast and then rises slowly, as in language models."""
    progress = np.arange(steps) / steps
    return 1 + 3 * np.exp(-10 * progress) + progress


@pytest.mark.parametrize(("optimizer", "power"), [("adam", -1), ("sgd", -2)])
@pytest.mark.parametrize("every", [2, 10, 20])
def test_a_log_every_few_steps_rebuilds_the_schedule(tmp_path, every, optimizer, power):
    steps = 1000
    norms = smooth_curve(steps)
    logged = sorted({1, *range(every, steps + 1, every)})
    history = [entry(step, norms[step - 1]) for step in logged]
    schedule = load_schedule(write_state(tmp_path / "trainer_state.json", history, steps), optimizer)
    expected = np.array(reference.refined_grid(norms, power, 0.1))
    assert len(schedule.grid) == steps + 1
    assert np.sqrt(np.mean((schedule.grid - expected) ** 2)) < SPARSE_LOG_RMSE
    assert not any("missing" in note for note in schedule.notes)


def test_a_log_without_the_first_norm_says_so(tmp_path):
    norms = smooth_curve(1000)
    history = [entry(step, norms[step - 1]) for step in range(10, 1001, 10)]
    schedule = load_schedule(write_state(tmp_path / "trainer_state.json", history, 1000), "sgd")
    assert any("first 9 updates" in note and "logging_first_step" in note for note in schedule.notes)


# --- the schedule file ---


@pytest.fixture
def schedule():
    values = np.random.default_rng(7).lognormal(size=60)
    norms = norms_of(values, values**2, steps=range(3, 63), planned=64)
    return schedule_of(norms, "adam", smoothing=0.2, rising_norms="ignore")


@pytest.fixture
def schedule_path(schedule, tmp_path):
    path = tmp_path / "schedules" / "refined.json"
    write_schedule(schedule, path)
    return path


def test_a_schedule_survives_its_file(schedule, schedule_path):
    for again in (read_schedule(schedule_path), load_schedule(schedule_path, "adam")):
        np.testing.assert_array_equal(again.grid, schedule.grid)
        assert again.grid.dtype == np.float64
        assert again.fingerprint == schedule.fingerprint
        for field in ("optimizer", "norm", "power", "smoothing", "source", "best_peak_ratio", "notes", "rising_norms"):
            assert getattr(again, field) == getattr(schedule, field), field
    assert schedule.notes, "the notes are to be among what survives"


def test_the_file_says_what_it_holds(schedule, schedule_path):
    content = json.loads(schedule_path.read_text())
    assert (content["format"], content["version"]) == ("refined_schedule", 1)
    assert (content["optimizer"], content["norm"], content["power"], content["smoothing"]) == ("adam", "l1", -1.0, 0.2)
    assert content["source"] == "the run"
    assert content["fingerprint"] == schedule.fingerprint
    assert len(content["multipliers"]) == 65
    assert content["multipliers"][-1] == 0
    assert find_source(schedule_path).kind == "schedule file"


def test_a_file_that_does_not_say_kept_rising_norms(schedule_path):
    rewritten(schedule_path, rising_norms=...)
    assert read_schedule(schedule_path).rising_norms == "keep"


def test_text_from_a_schedule_file_is_escaped(schedule_path):
    rewritten(schedule_path, source="a\x1b[31mrun", notes=["one\ntwo", "x" * 1000])
    schedule = read_schedule(schedule_path)
    assert schedule.source == r"a\x1b[31mrun"
    assert schedule.notes[0] == r"one\ntwo"
    assert len(schedule.notes[1]) == 300


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"multipliers": [0.5, 0.25, 0.0]}, id="half of the multipliers"),
        pytest.param({"multipliers": [0.0, 0.0]}, id="all zero"),
        pytest.param({"power": INF}, id="infinite power"),
        pytest.param({"power": 1.0}, id="positive power"),
        pytest.param({"smoothing": 1.5}, id="smoothing above 1"),
        pytest.param({"best_peak_ratio": NAN}, id="no ratio"),
    ],
)
def test_a_file_that_write_schedule_cannot_have_written_is_refused(schedule_path, changes):
    grid = changes.get("multipliers")
    if grid is not None:  # the fingerprint is right, so it is the values that are refused
        changes = {**changes, "fingerprint": hashlib.sha256(np.array(grid).tobytes()).hexdigest()[:12]}
    rewritten(schedule_path, **changes)
    with refuses(str(schedule_path), "damaged"):
        read_schedule(schedule_path)


def test_a_full_disk_leaves_a_schedule_file_as_it_was(schedule, schedule_path, monkeypatch):
    before = schedule_path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_schedule(replace(schedule, source="another"), schedule_path)
    assert schedule_path.read_bytes() == before
    assert [path.name for path in schedule_path.parent.iterdir()] == [schedule_path.name]


def test_equal_schedules_make_equal_files(schedule, schedule_path, tmp_path):
    write_schedule(read_schedule(schedule_path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == schedule_path.read_bytes()


def test_a_file_that_is_there_is_replaced(schedule, tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text("x" * 100_000)
    write_schedule(schedule, str(path))
    assert read_schedule(str(path)).fingerprint == schedule.fingerprint


def test_the_fingerprint_differs_wherever_the_multipliers_do(schedule):
    assert len(schedule.fingerprint) == 12
    assert set(schedule.fingerprint) <= set("0123456789abcdef")
    assert replace(schedule, source="another run").fingerprint == schedule.fingerprint
    for position in (0, 30, 63):
        changed = schedule.grid.copy()
        changed[position] = np.nextafter(changed[position], 0.5)
        assert replace(schedule, grid=changed).fingerprint != schedule.fingerprint


@pytest.mark.parametrize("other", [b'{"model_type": "bert"}', b"", b"\xff" * 300], ids=["config", "empty", "binary"])
def test_other_files_are_no_schedules(tmp_path, other):
    path = tmp_path / "file"
    path.write_bytes(other)
    assert find_source(path).kind != "schedule file"


def test_a_schedule_in_another_hand_is_one(schedule, schedule_path):
    schedule_path.write_text(json.dumps(json.loads(schedule_path.read_text()), separators=(",", ":")))
    assert find_source(schedule_path).kind == "schedule file"
    assert read_schedule(schedule_path).fingerprint == schedule.fingerprint


def test_a_schedule_for_other_optimizers_is_refused(schedule_path):
    with refuses(str(schedule_path), "adam", "sgd", "--optimizer sgd"):
        load_schedule(schedule_path, "sgd")


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        pytest.param({"norm": "l1"}, ["norm"], id="norm, though the same"),
        pytest.param({"power": -1.0}, ["power"], id="power, though the same"),
        pytest.param({"smoothing": 0.2}, ["smoothing"], id="smoothing, though the same"),
        pytest.param({"smoothing": 0}, ["smoothing"], id="smoothing 0 is given too"),
        pytest.param({"rising_norms": "keep"}, ["rising_norms"], id="rising norms"),
        pytest.param({"norm": "l2", "power": -2, "smoothing": 0.3}, ["norm", "power", "smoothing"], id="all"),
    ],
)
def test_settings_beside_a_schedule_file_are_refused(schedule_path, beside, words):
    with refuses(str(schedule_path), "baked in", *words):
        load_schedule(schedule_path, "adam", **beside)


def rewritten(path, **changes):
    content = json.loads(path.read_text())
    for name, value in changes.items():
        if value is ...:
            del content[name]
        else:
            content[name] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        *[
            pytest.param({name: ...}, id=f"without {name}")
            for name in ("version", "optimizer", "norm", "power", "smoothing", "source", "notes", "multipliers")
        ],
        pytest.param({"multipliers": []}, id="no multipliers"),
        pytest.param({"multipliers": [1.0]}, id="one multiplier"),
        pytest.param({"multipliers": 1.0}, id="a number for multipliers"),
        pytest.param({"multipliers": None}, id="multipliers null"),
        pytest.param({"multipliers": "linear"}, id="text for multipliers"),
        pytest.param({"multipliers": {"0": 1.0}}, id="an object for multipliers"),
        pytest.param({"multipliers": [[1.0, 0.0]]}, id="multipliers in a list"),
        pytest.param({"multipliers": [1.0, [0.5], 0.0]}, id="ragged multipliers"),
        pytest.param({"multipliers": [1.0, "a", 0.0]}, id="text among the multipliers"),
        pytest.param({"multipliers": [1.0, None, 0.0]}, id="null among the multipliers"),
        pytest.param({"multipliers": [1.0, NAN, 0.0]}, id="nan among the multipliers"),
        pytest.param({"multipliers": [1.0, -0.5, 0.0]}, id="a negative multiplier"),
        pytest.param({"multipliers": [1.0, 1.5, 0.0]}, id="a multiplier above 1"),
        pytest.param({"multipliers": [1.0, INF, 0.0]}, id="a multiplier inf"),
        pytest.param({"multipliers": [1.0, 10**400, 0.0]}, id="a multiplier beyond float64"),
        pytest.param({"optimizer": "lion"}, id="unknown optimizer"),
        pytest.param({"optimizer": None}, id="optimizer null"),
        pytest.param({"optimizer": ["adam"]}, id="a list of optimizers"),
        pytest.param({"optimizer": {}}, id="an object for the optimizer"),
        pytest.param({"power": "steep"}, id="text for the power"),
        pytest.param({"smoothing": None}, id="smoothing null"),
        pytest.param({"smoothing": 10**400}, id="smoothing beyond float64"),
        pytest.param({"notes": None}, id="notes null"),
        pytest.param({"rising_norms": None}, id="rising norms null"),
        pytest.param({"notes": 3}, id="notes a number"),
    ],
)
def test_a_damaged_schedule_file_is_refused(schedule_path, changes):
    rewritten(schedule_path, **changes)
    for read in (read_schedule, lambda path: load_schedule(path, "adam")):
        with refuses(str(schedule_path), "hf-refined-schedule"):
            read(schedule_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"format": "refined_schedule", "version": 1, "multip', id="torn"),
        pytest.param(b'["format", "refined_schedule"]', id="a list"),
        pytest.param(b'{"format": "refined_schedule", "version": 1}', id="nothing but a version"),
        pytest.param(b'{"format": "refined_schedule", "\xff": 1}', id="no UTF-8"),
        pytest.param(b'{"format": "refined_schedule", "a": ' + b"[" * 100_000, id="deep nesting"),
        pytest.param(b'{"format": "refined_schedule", "version": ' + b"9" * 5000 + b"}", id="5000 digits"),
    ],
)
def test_a_file_that_is_no_whole_schedule_is_refused(tmp_path, content):
    path = tmp_path / "schedule.json"
    path.write_bytes(content)
    with refuses(str(path), "damaged", "hf-refined-schedule refine"):
        read_schedule(path)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"version": 2}, id="the version alone"),
        pytest.param({"version": 2, "multipliers": ..., "knots": [[0, 1], [1, 0]]}, id="other fields too"),
    ],
)
def test_a_schedule_file_of_a_later_version_is_refused(schedule_path, changes):
    rewritten(schedule_path, **changes)
    for read in (read_schedule, lambda path: load_schedule(path, "adam")):
        with refuses(str(schedule_path), "version 2", "version 1", "upgrade"):
            read(schedule_path)
