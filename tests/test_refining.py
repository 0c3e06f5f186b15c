"""The one route from sources to a schedule: its options everywhere, and each file read and judged once."""

import argparse
import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from hf_refined_schedule import RefinedScheduleArguments, get_refined_schedule
from hf_refined_schedule.cli import _parser
from hf_refined_schedule.schedules import refining
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.schedule_file import write_schedule

from .records import load_schedule, norms_of, schedule_of, write_norms
from .refusals import refuses

FALLING = list(np.linspace(3, 1, 40))

SCATTERED = np.exp(0.1 * np.random.default_rng(0).standard_normal(1000))

VALUES = {
    "column": "grad_norm",
    "norm": "l2",
    "power": -1.5,
    "smoothing": 0.2,
    "rising_norms": "ignore",
    "bounded_warmup": True,
    "max_grad_norm": 0.0,
    "pilot": True,
    "num_training_steps": 200,
    "allow_degenerate": True,
}
"""A value of every option that is not its default."""

KEYWORDS = {name: name for name in VALUES} | {"num_training_steps": "pilot_num_training_steps"}


def optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)


def test_there_is_a_value_for_every_option():
    assert {option.name for option in fields(RefinementOptions)} == set(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_an_option_is_a_keyword_of_the_scheduler_and_an_argument(tmp_path, name):
    path = str(write_norms(tmp_path / "gradient_norms.jsonl", FALLING))
    given = {name: VALUES[name], **({"pilot": True} if name == "num_training_steps" else {})}
    keywords = {KEYWORDS[key]: value for key, value in given.items()}
    schedule = get_refined_schedule(optimizer(), 0, 40, refined_from=path, **keywords)
    assert schedule.fingerprint == load_schedule(path, **given).fingerprint
    arguments = RefinedScheduleArguments(
        "out",
        lr_scheduler_type="refined",
        refined_from=path,
        report_to="none",
        use_cpu=True,
        **{f"refined_{keyword}": value for keyword, value in keywords.items()},
    )
    assert arguments.lr_scheduler_kwargs == {"refined_from": path, **keywords}


@pytest.mark.parametrize("command", ["refine", "check", "rank", "plot", "launch"])
def test_every_command_has_every_option(command):
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    flags = {flag for action in commands.choices[command]._actions for flag in action.option_strings}
    expected = {f"--{name.replace('_', '-')}" for name in VALUES}
    if command != "launch":  # degenerate schedules are shown; only training refuses them
        expected -= {"--allow-degenerate"}
    assert expected <= flags


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({"norm": "L1"}, ["norm is 'L1'", '"l1"'], id="norm"),
        pytest.param({"norm": ["l1"]}, ["norm is ['l1']"], id="a list for the norm"),
        pytest.param({"power": 0.0}, ["power is 0.0", "negative"], id="power"),
        pytest.param({"power": -(10**400)}, ["power is -1000"], id="power beyond float64"),
        pytest.param({"norm": "l" * 1000}, ["norm is 'lll"], id="a long norm"),
        pytest.param({"smoothing": 10}, ["smoothing is 10", "not steps"], id="smoothing in steps"),
        pytest.param({"smoothing": "0.1"}, ["smoothing is '0.1'"], id="text for the smoothing"),
        pytest.param({"rising_norms": "skip"}, ["rising_norms is 'skip'", '"ignore"'], id="rising norms"),
        pytest.param({"column": 3}, ["column is 3"], id="column"),
        pytest.param({"pilot": "yes"}, ["pilot is 'yes'", "true or false"], id="pilot"),
        pytest.param({"allow_degenerate": 1}, ["allow_degenerate is 1"], id="allow_degenerate"),
        pytest.param(
            {"num_training_steps": 10**12}, ["num_training_steps is 1000000000000", "50,000,000"], id="10^12 steps"
        ),
        pytest.param({"num_training_steps": True}, ["num_training_steps is True"], id="true steps"),
        pytest.param({"num_training_steps": 0, "pilot": True}, ["num_training_steps is 0"], id="no steps"),
        pytest.param(
            {"num_training_steps": 10.0, "pilot": True}, ["num_training_steps is 10.0"], id="fractional steps"
        ),
    ],
)
def test_a_value_out_of_range_is_refused(given, words):
    with refuses(*words):
        RefinementOptions(**given)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("smothing", ["'smothing'", "did you mean 'smoothing'?"]),
        ("rising_norm", ["did you mean 'rising_norms'?"]),
        ("refined_form", ["did you mean 'refined_from'?"]),
        ("min_lr_rate", ["did you mean 'min_lr_ratio'?"]),
        ("xyz", ["'xyz'", "pass one of refined_from, min_lr_ratio, column"]),
    ],
)
def test_an_unknown_keyword_names_the_nearest(keyword, words):
    with refuses(*words):
        get_refined_schedule(optimizer(), 0, 40, refined_from="runs", **{keyword: 0.1})
    with refuses(*words):
        RefinedScheduleArguments(
            "out", lr_scheduler_type="refined", report_to="none", lr_scheduler_kwargs={"refined_from": "a", keyword: 1}
        )


def test_a_keyword_of_none_is_not_given(tmp_path):
    write_schedule(schedule_of(norms_of(FALLING)), tmp_path / "schedule.json")
    get_refined_schedule(optimizer(), 0, 40, refined_from=tmp_path / "schedule.json", smoothing=None, norm=None)


def test_keywords_go_round():
    options = RefinementOptions(**VALUES)
    assert options.as_keywords() == {KEYWORDS[name]: value for name, value in VALUES.items()}
    assert RefinementOptions.from_keywords(json.loads(json.dumps(options.as_keywords()))) == options
    assert RefinementOptions().as_keywords() == {}


def test_a_path_is_resolved_once_and_judged_once(tmp_path, monkeypatch):
    path = write_norms(tmp_path / "gradient_norms.jsonl", FALLING)
    calls = []

    def counted(name):
        function = getattr(refining, name)
        monkeypatch.setattr(refining, name, lambda *args, **kwargs: calls.append(name) or function(*args, **kwargs))

    for name in ("find_source", "read_norms", "check_health"):
        counted(name)
    get_refined_schedule(optimizer(), 0, 40, refined_from=path)
    assert sorted(calls) == ["check_health", "find_source", "read_norms"]


def test_a_pilot_serves_in_training(tmp_path):
    """Norms 2 1 of a run of 4: w = 1/2 1 1 1 1, products 2 3 2 1 0."""
    path = write_norms(tmp_path / "gradient_norms.jsonl", [2.0, 1.0], planned=4)
    for keywords in ({"pilot": True}, {"pilot": True, "pilot_num_training_steps": 4}):
        schedule = get_refined_schedule(optimizer(), 0, 4, refined_from=path, smoothing=0, **keywords)
        assert schedule.get_last_lr() == pytest.approx([2 / 3])
    with refuses("covers 2 of 4"):
        get_refined_schedule(optimizer(), 0, 4, refined_from=path, smoothing=0).step()


def test_options_from_the_environment_belong_to_its_source(tmp_path, monkeypatch):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [4.0, 2.0, 1.0, 2.0])
    monkeypatch.setenv("HF_REFINED_SCHEDULE_FROM", str(path))
    monkeypatch.setenv("HF_REFINED_SCHEDULE_OPTIONS", '{"smoothing": 0, "power": -2}')

    def multipliers(**keywords):
        scheduler = get_refined_schedule(optimizer(), 0, 4, **keywords)
        return scheduler.refined_schedule["grid"][:4].tolist()

    # norms 4 2 1 2 2: one over the square makes products 7/64 3/8 1/2 1/16 0, one over the norm 5/8 1 1 1/4 0
    assert multipliers() == pytest.approx([0.21875, 0.75, 1, 0.125])
    assert multipliers(power=-1) == pytest.approx([0.625, 1, 1, 0.25])
    assert multipliers(refined_from=path, smoothing=0) == pytest.approx([0.625, 1, 1, 0.25])


@pytest.mark.parametrize(
    ("norms", "sentence"),
    [
        pytest.param(SCATTERED, None, id="flat"),
        pytest.param(0.5 + np.arange(100) / 100, "It is doubtful: late norm over the smallest norm", id="rising"),
        pytest.param(np.linspace(3, 1, 100), None, id="falling"),
    ],
)
def test_a_schedule_for_training_carries_the_verdict_in_its_notes(tmp_path, norms, sentence):
    notes = load_schedule(write_norms(tmp_path / "gradient_norms.jsonl", list(norms))).notes
    assert [note.startswith(sentence or "") for note in notes] == ([True] if sentence else [])
