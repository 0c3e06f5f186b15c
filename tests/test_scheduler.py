"""The scheduler: hand-typed tables of learning rates, other horizons, and what a checkpoint holds."""

import io
import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import get_linear_schedule_with_warmup, get_scheduler

from hf_refined_schedule import GradientNorms, get_refined_schedule, register
from hf_refined_schedule.schedules.schedule_file import write_schedule

from .records import schedule_of, write_norms
from .tolerances import EXACT_ROUNDING

register()


def norms(l1, l2=None, planned=None, **fields):
    arrays = {"l1": l1, "l2": l2}
    count = len(l1 if l1 is not None else l2)
    return GradientNorms(steps=np.arange(1, count + 1), num_training_steps=planned or count, **arrays, **fields)


def optimizer_of(kind=torch.optim.AdamW, lr=1.0, groups=1):
    parameters = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr * 10**group} for group in range(groups)]
    return kind(parameters, lr=lr)


def rates_of(scheduler, steps):
    """The learning rates of the first group at steps 0 .. steps-1."""
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


# Norms 2, 2, 1, 1 without smoothing, extended by a repeat of the last: weights 1/2, 1/2, 1, 1, 1.
# Tail sums 3.5, 3, 2, 1, 0; products 1.75, 1.5, 2, 1, 0; over their maximum 2: 0.875, 0.75, 1, 0.5, 0.
FALLING = [2.0, 2.0, 1.0, 1.0]
# SGD squares: weights 1/4, 1/4, 1, 1, 1. Tail sums 3.25, 3, 2, 1, 0; products 0.8125, 0.75, 2, 1, 0.
TABLE = [
    ("as recorded", {}, torch.optim.AdamW, 0, 4, [0.875, 0.75, 1.0, 0.5, 0.0]),
    ("past the end it stays zero", {}, torch.optim.AdamW, 0, 4, [0.875, 0.75, 1.0, 0.5, 0.0, 0.0, 0.0]),
    ("half the steps: every second multiplier", {}, torch.optim.AdamW, 0, 2, [0.875, 1.0, 0.0]),
    ("twice the steps: halfway points between", {}, torch.optim.AdamW, 0, 8,
     [0.875, 0.8125, 0.75, 0.875, 1.0, 0.75, 0.5, 0.25, 0.0]),
    ("a warm-up caps it at t / 3, no more", {}, torch.optim.AdamW, 3, 4, [0.0, 1 / 3, 2 / 3, 0.5, 0.0]),
    ("a floor lifts m to 0.1 + 0.9 m", {"min_lr_ratio": 0.1}, torch.optim.AdamW, 0, 4, [0.8875, 0.775, 1.0, 0.55, 0.1]),
    ("the warm-up caps the floor, too", {"min_lr_ratio": 0.1}, torch.optim.AdamW, 1, 4, [0.0, 0.775, 1.0, 0.55, 0.1]),
    ("SGD takes L2 ** -2", {}, torch.optim.SGD, 0, 4, [0.40625, 0.375, 1.0, 0.5, 0.0]),
    ("Adam with the exponent given", {"power": -2}, torch.optim.AdamW, 0, 4, [0.40625, 0.375, 1.0, 0.5, 0.0]),
    ("the L2 stand-in keeps Adam's exponent", {"norm": "l2"}, torch.optim.Adagrad, 0, 4, [0.875, 0.75, 1.0, 0.5, 0.0]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "options", "kind", "warmup", "horizon", "expected"), TABLE, ids=[row[0] for row in TABLE]
)
def test_table(reason, options, kind, warmup, horizon, expected):
    source = norms(FALLING, FALLING)
    kwargs = {"refined_from": source, "smoothing": 0, **options}
    scheduler = get_refined_schedule(optimizer_of(kind), warmup, horizon, **kwargs)
    assert rates_of(scheduler, len(expected)) == pytest.approx(expected, abs=EXACT_ROUNDING)
    by_name = get_scheduler("refined", optimizer_of(kind), warmup, horizon, scheduler_specific_kwargs=kwargs)
    assert rates_of(by_name, len(expected)) == pytest.approx(expected, abs=EXACT_ROUNDING)


def test_several_runs_are_averaged():
    kwargs = {"refined_from": [norms([4.0, 1.0, 1.0, 2.0]), norms([1.0, 4.0, 1.0, 0.5])], "smoothing": 0}
    scheduler = get_refined_schedule(optimizer_of(), 0, 4, **kwargs)
    assert rates_of(scheduler, 5) == pytest.approx([0.875, 0.75, 1.0, 0.5, 0.0], abs=EXACT_ROUNDING)


def test_rising_norms_are_ignored_where_that_is_asked_for():
    source = norms([2.0, 2.0, 1.0, 5.0])
    kwargs = {"refined_from": source, "smoothing": 0, "rising_norms": "ignore"}
    scheduler = get_scheduler("refined", optimizer_of(), 0, 4, scheduler_specific_kwargs=kwargs)
    assert rates_of(scheduler, 5) == pytest.approx([0.875, 0.75, 1.0, 0.5, 0.0], abs=EXACT_ROUNDING)


@pytest.mark.parametrize("steps", [2, 7, 100, 997])
@pytest.mark.parametrize("recorded", [10, 997])
def test_constant_norms_give_transformers_linear(steps, recorded):
    refined = get_refined_schedule(optimizer_of(), 0, steps, refined_from=norms(np.full(recorded, 0.37)))
    linear = get_linear_schedule_with_warmup(optimizer_of(), 0, steps)
    assert rates_of(refined, steps + 3) == pytest.approx(rates_of(linear, steps + 3), abs=EXACT_ROUNDING)


def test_each_parameter_group_keeps_its_own_rate():
    optimizer = optimizer_of(groups=3)
    get_refined_schedule(optimizer, 0, 4, refined_from=norms(FALLING), smoothing=0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.875, 8.75, 87.5]


def test_stepped_by_every_process_over_a_longer_horizon():
    """A raw Accelerate loop steps the scheduler num_processes times an update, over that many times the steps."""
    source = norms(np.linspace(3, 1, 50))
    one = rates_of(get_refined_schedule(optimizer_of(), 0, 40, refined_from=source), 40)
    many = rates_of(get_refined_schedule(optimizer_of(), 0, 160, refined_from=source), 160)
    assert many[::4] == pytest.approx(one, abs=EXACT_ROUNDING)


def test_last_epoch_begins_there():
    optimizer = optimizer_of()
    optimizer.param_groups[0]["initial_lr"] = 1.0
    scheduler = get_refined_schedule(optimizer, 0, 4, refined_from=norms(FALLING), smoothing=0, last_epoch=1)
    assert scheduler.get_last_lr() == [1.0]  # the third row of the table


def test_weights_follow_the_optimizer_inside_accelerates_wrapper():
    source = norms([1.0] * 4, FALLING)
    wrapped = Accelerator(cpu=True).prepare(optimizer_of(torch.optim.SGD))
    scheduler = get_refined_schedule(wrapped, 0, 4, refined_from=source, smoothing=0)
    assert scheduler.get_last_lr() == [0.40625]


def saved_and_loaded(state):
    """Through a file, as Trainer does it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def interrupted_state(path, l1, horizon, at):
    write_norms(path, l1)
    scheduler = get_refined_schedule(optimizer_of(), 0, horizon, refined_from=path)
    rates_of(scheduler, at)
    return saved_and_loaded(scheduler.state_dict())


RECORDED = list(np.linspace(4.0, 1.0, 40))


@pytest.mark.parametrize("source", ["the same", "changed", "gone", "unfinished", "just begun", "of unknown length"])
def test_resume_goes_on_with_the_schedule_it_began_with(tmp_path, caplog, source):
    path = tmp_path / "gradient_norms.jsonl"
    state = interrupted_state(path, RECORDED, 30, at=10)
    whole = rates_of(get_refined_schedule(optimizer_of(), 0, 30, refined_from=path), 30)
    if source == "changed":
        write_norms(path, RECORDED[::-1])
    elif source == "gone":
        path.unlink()
    elif source == "unfinished":
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
    elif source == "just begun":
        path.write_text(path.read_text().splitlines(keepends=True)[0])
    elif source == "of unknown length":
        path.write_text(path.read_text().replace('"num_training_steps": 40', '"num_training_steps": null'))
    caplog.set_level(logging.WARNING)
    resumed = get_refined_schedule(optimizer_of(), 0, 30, refined_from=path)
    resumed.load_state_dict(state)
    resumed.optimizer.param_groups[0]["lr"] = resumed.get_last_lr()[0]  # as the optimizer's own state does
    assert rates_of(resumed, 20) == whole[10:]
    warnings = [record.message for record in caplog.records if "goes on with" in record.message]
    if source == "changed":
        assert len(warnings) == 1
        assert state["refined_schedule"]["fingerprint"] in warnings[0]
    else:
        assert warnings == []


def test_resume_with_a_longer_horizon_and_another_warmup_takes_them_from_the_new_call(tmp_path):
    path = tmp_path / "gradient_norms.jsonl"
    state = interrupted_state(path, [1.0] * 40, horizon=10, at=5)
    resumed = get_refined_schedule(optimizer_of(), 8, 20, refined_from=path)
    resumed.load_state_dict(state)
    resumed.optimizer.param_groups[0]["lr"] = resumed.get_last_lr()[0]
    # Step 5 was set under the old horizon: 1 - 5/10. Then linear over 20 steps, capped at t/8 for t = 6 and 7.
    assert rates_of(resumed, 5) == pytest.approx([0.5, 1 - 6 / 20, 1 - 7 / 20, 1 - 8 / 20, 1 - 9 / 20])


def test_a_checkpoint_holds_the_schedule_not_the_horizon(tmp_path):
    state = interrupted_state(tmp_path / "gradient_norms.jsonl", RECORDED, 30, at=10)
    assert set(state["refined_schedule"]) == {"grid", "min_lr_ratio", "fingerprint"}
    counters = {"base_lrs", "last_epoch", "_step_count", "_last_lr", "lr_lambdas"}
    assert set(state) == {*counters, "refined_schedule"}
    assert counters <= set(get_linear_schedule_with_warmup(optimizer_of(), 0, 30).state_dict())


def test_a_checkpoint_with_every_attribute_of_pytorch_still_loads(tmp_path):
    """As saved when a checkpoint held all of PyTorch's attributes; of the values here, some belong to another call."""
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 40)
    state = saved_and_loaded(
        {
            "base_lrs": [1.0],
            "last_epoch": 5,
            "_step_count": 6,
            "_is_initial": False,
            "_get_lr_called_within_step": True,
            "_last_lr": [0.75],
            "lr_lambdas": [{}],
            "refined_schedule": {
                "grid": torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64),
                "min_lr_ratio": 0.0,
                "fingerprint": "0123456789ab",
            },
        }
    )
    scheduler = get_refined_schedule(optimizer_of(), 0, 20, refined_from=path, min_lr_ratio=0.5)
    scheduler.load_state_dict(state)
    assert (scheduler.last_epoch, scheduler.fingerprint) == (5, "0123456789ab")
    assert scheduler.get_last_lr() == [0.75]
    rates_of(scheduler, 2)
    assert scheduler.get_last_lr() == pytest.approx([1 - 7 / 20])
    assert not scheduler._get_lr_called_within_step


def test_a_checkpoint_of_a_scheduler_without_functions_sets_the_step(tmp_path):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 40)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer_of(), 20)
    rates_of(cosine, 5)
    refined = get_refined_schedule(optimizer_of(), 0, 20, refined_from=path)
    refined.load_state_dict(saved_and_loaded(cosine.state_dict()))
    rates_of(refined, 1)
    assert refined.get_last_lr() == pytest.approx([1 - 6 / 20])
    assert not hasattr(refined, "T_max")


def test_checkpoints_of_other_schedules_load_both_ways(tmp_path):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 40)
    linear = get_linear_schedule_with_warmup(optimizer_of(), 0, 20)
    rates_of(linear, 5)
    refined = get_refined_schedule(optimizer_of(), 0, 20, refined_from=path)
    refined.load_state_dict(saved_and_loaded(linear.state_dict()))
    rates_of(refined, 1)
    assert refined.get_last_lr() == pytest.approx([1 - 6 / 20])
    back = get_linear_schedule_with_warmup(optimizer_of(), 0, 20)
    back.load_state_dict(saved_and_loaded(refined.state_dict()))
    rates_of(back, 1)
    assert back.get_last_lr() == pytest.approx([1 - 7 / 20])


@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_a_missing_source_raises_at_the_first_step_and_nothing_has_moved(tmp_path, min_lr_ratio):
    optimizer = optimizer_of()
    scheduler = get_refined_schedule(optimizer, 0, 10, refined_from=tmp_path / "nothing", min_lr_ratio=min_lr_ratio)
    assert optimizer.param_groups[0]["lr"] == 0.0
    optimizer.step()
    with pytest.raises(ValueError, match=r"no file or folder .*nothing.*; pass a gradient_norms\.jsonl"):
        scheduler.step()


def test_a_state_without_a_schedule_loads_as_one_without(tmp_path):
    without = get_refined_schedule(optimizer_of(), 0, 10, refined_from=tmp_path / "nothing")
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 40)
    scheduler = get_refined_schedule(optimizer_of(), 0, 10, refined_from=path)
    scheduler.load_state_dict(saved_and_loaded(without.state_dict()))
    rates_of(scheduler, 1)
    assert scheduler.get_last_lr() == pytest.approx([0.9])
    without.load_state_dict(saved_and_loaded(without.state_dict()))
    without.optimizer.step()
    with pytest.raises(ValueError, match="no file or folder"):
        without.step()


def test_an_unfinished_source_names_the_way_to_use_it(tmp_path):
    path = write_norms(tmp_path / "gradient_norms.jsonl", RECORDED)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:21]))
    scheduler = get_refined_schedule(optimizer_of(), 0, 10, refined_from=path)
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match=r"covers 20 of 40 planned updates \(50%\).*--pilot"):
        scheduler.step()


VANISHING = list(np.exp(-12 * np.arange(100) / 100))


def test_a_degenerate_schedule_stops_with_the_remedy_but_never_a_resume(tmp_path, caplog):
    path = write_norms(tmp_path / "gradient_norms.jsonl", VANISHING)
    scheduler = get_refined_schedule(optimizer_of(), 0, 50, refined_from=path)
    scheduler.optimizer.step()
    with pytest.raises(
        ValueError, match=r"degenerate: peak position \(fraction of the run\) is .*allow_degenerate=True"
    ):
        scheduler.step()
    with pytest.raises(ValueError, match="degenerate"):
        get_refined_schedule(optimizer_of(), 0, 50, refined_from=norms(VANISHING))
    assert "doubtful" not in caplog.text
    allowed = get_refined_schedule(optimizer_of(), 0, 50, refined_from=path, allow_degenerate=True)
    assert "It is doubtful: peak position" in caplog.text
    rates_of(allowed, 10)
    scheduler.load_state_dict(saved_and_loaded(allowed.state_dict()))
    scheduler.step()
    assert scheduler.last_epoch == 11


REFUSALS = [
    ("no source", {}, "needs the run to refine it from: refined_from in lr_scheduler_kwargs, .*gradient_norms.jsonl"),
    ("a number for a source", {"refined_from": 5}, "refined_from is 5, which is not a run to refine from; pass"),
    ("no steps", {"refined_from": "x", "num_training_steps": None}, "num_training_steps is None"),
    ("zero steps", {"refined_from": "x", "num_training_steps": 0}, "num_training_steps is 0"),
    ("negative warm-up", {"refined_from": "x", "num_warmup_steps": -1}, "num_warmup_steps is -1"),
    ("text for the floor", {"refined_from": "x", "min_lr_ratio": "0.1"}, "min_lr_ratio is '0.1'"),
    ("no source", {"refined_from": ""}, "refined_from is ''"),
    ("a list of norms", {"refined_from": "x", "norm": ["l1"]}, "norm is \\['l1'\\]"),
    ("a norm in capitals", {"refined_from": "x", "norm": "L1"}, "norm is 'L1'"),
    ("floor above the peak", {"refined_from": "x", "min_lr_ratio": 1.5}, "min_lr_ratio is 1.5"),
    ("positive exponent", {"refined_from": norms(FALLING), "power": 1}, "power is 1"),
    ("smoothing in steps", {"refined_from": norms(FALLING), "smoothing": 20}, "smoothing is 20"),
    ("a norm there is not", {"refined_from": norms(FALLING), "norm": "l2"}, "leave out --norm l2"),
    ("an unknown norm", {"refined_from": norms(FALLING), "norm": "l3"}, 'must be "l1"'),
]


@pytest.mark.parametrize(("options", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_refusals(options, message):
    arguments = {"num_warmup_steps": 0, "num_training_steps": 10, **options}
    with pytest.raises(ValueError, match=message) as caught:
        get_refined_schedule(optimizer_of(), **arguments)
    assert "\n" not in str(caught.value)


def test_sgd_with_l1_norms_alone_names_the_option():
    with pytest.raises(ValueError, match="--norm l1"):
        get_refined_schedule(optimizer_of(torch.optim.SGD), 0, 10, refined_from=norms(FALLING))


def test_adam_without_l1_says_what_stands_in(caplog):
    scheduler = get_refined_schedule(optimizer_of(), 0, 4, refined_from=norms(None, FALLING), smoothing=0)
    assert rates_of(scheduler, 4) == pytest.approx([0.875, 0.75, 1.0, 0.5])
    assert "L2 ** -1 stands in for L1 ** -1" in caplog.text


@pytest.mark.parametrize(
    "content", ['{"model_type": "gpt2"}', "not JSON", "", "\x00\x01", '{"format": "gradient_norms"}']
)
def test_a_file_of_something_else_says_what_to_pass(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    scheduler = get_refined_schedule(optimizer_of(), 0, 10, refined_from=path)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        scheduler.step()
    assert "\n" not in str(caught.value)


def test_a_schedule_file_is_used_as_it_is(tmp_path):
    path = tmp_path / "schedule.json"
    write_schedule(schedule_of(norms(FALLING), "adam", smoothing=0), path)
    scheduler = get_refined_schedule(optimizer_of(), 0, 4, refined_from=path)
    assert rates_of(scheduler, 5) == [0.875, 0.75, 1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="--optimizer sgd"):
        get_refined_schedule(optimizer_of(torch.optim.SGD), 0, 4, refined_from=path).step()
    with pytest.raises(ValueError, match="smoothing cannot be set beside it"):
        get_refined_schedule(optimizer_of(), 0, 4, refined_from=path, smoothing=0.2).step()


def test_environment_variable_stands_in(tmp_path, monkeypatch):
    path = write_norms(tmp_path / "gradient_norms.jsonl", [1.0] * 10)
    monkeypatch.setenv("HF_REFINED_SCHEDULE_FROM", str(path))
    assert rates_of(get_refined_schedule(optimizer_of(), 0, 2), 2) == [1.0, 0.5]


DAMAGE = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_text(path.read_text()[:150]),
    "no text": lambda path: path.write_bytes(b"\x00" * 1000),
    "of another version": lambda path: path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1)),
    "too short": lambda path: write_norms(path, [2.0], planned=40),
    "a schedule for SGD": lambda path: write_schedule(schedule_of(norms(None, FALLING), "sgd"), path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_source_stops_a_new_run_and_never_a_resumed_one(tmp_path, caplog, damage):
    path = tmp_path / "gradient_norms.jsonl"
    state = interrupted_state(path, RECORDED, 20, at=5)
    whole = rates_of(get_refined_schedule(optimizer_of(), 0, 20, refined_from=path), 20)
    damage(path)
    with pytest.raises((ValueError, OSError)):
        get_refined_schedule(optimizer_of(), 0, 20, refined_from=path).step()
    caplog.clear()
    resumed = get_refined_schedule(optimizer_of(), 0, 20, refined_from=path)
    resumed.load_state_dict(state)
    assert resumed.get_last_lr() == pytest.approx([whole[5]], abs=EXACT_ROUNDING)
    assert rates_of(resumed, 15)[1:] == pytest.approx(
        whole[6:], abs=EXACT_ROUNDING
    )  # the optimizer's state has the first
    assert [record.message.count("continues the refined schedule it began with") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AdamW", None),
        ("Lion", None),
        ("PagedAdamW8bit", None),
        ("Muon", "Muon takes orthogonalised steps, whose weights are the inverse nuclear norm"),
        ("Landing", "The steps of Landing are not known; the weights for Adam stand in."),
    ],
)
def test_an_optimizer_with_other_steps_has_a_stand_in_and_is_told_so(caplog, name, words):
    optimizer = optimizer_of(type(name, (torch.optim.Adam,), {}))
    scheduler = get_refined_schedule(optimizer, 0, 4, refined_from=norms(FALLING), smoothing=0)
    assert scheduler.get_last_lr() == [0.875]
    stand_ins = [record.message for record in caplog.records if name in record.message]
    assert [words in message for message in stand_ins] == ([] if words is None else [True])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_torchs_own_muon_has_a_stand_in(caplog):
    optimizer = torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2))], lr=1.0)
    get_refined_schedule(optimizer, 0, 4, refined_from=norms(FALLING), smoothing=0)
    assert "nuclear norm" in caplog.text
