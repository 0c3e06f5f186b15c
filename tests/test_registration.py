"""`refined` wherever transformers knows its own schedules."""

import json
import pickle
from copy import deepcopy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import HfArgumentParser, TrainingArguments, get_linear_schedule_with_warmup, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from hf_refined_schedule import RefinedScheduleArguments, get_refined_schedule, register, register_scheduler

from .tiny import BIN, run_command, tiny_arguments, tiny_options

register()


def test_register_is_idempotent():
    members = list(SchedulerType)
    register()
    register()
    assert list(SchedulerType) == members
    assert [member.value for member in members].count("refined") == 1


def test_the_enum_knows_it():
    refined = SchedulerType("refined")
    assert refined is SchedulerType.REFINED is SchedulerType["REFINED"]
    assert (refined, refined.name, refined.value) == ("refined", "REFINED", "refined")
    assert refined in list(SchedulerType)
    assert pickle.loads(pickle.dumps(refined)) is refined
    assert deepcopy(refined) is refined
    assert SchedulerType("linear") is SchedulerType.LINEAR


def test_linear_stays_transformers_own():
    assert TYPE_TO_SCHEDULER_FUNCTION[SchedulerType.LINEAR] is get_linear_schedule_with_warmup


def test_unknown_names_are_still_refused():
    with pytest.raises(ValueError, match="refined"):  # the message lists what there is
        SchedulerType("defined")


def test_training_arguments_to_json_and_back(tmp_path):
    kwargs = {"refined_from": "runs/baseline", "smoothing": 0.2}
    arguments = tiny_arguments(tmp_path, lr_scheduler_type="refined", lr_scheduler_kwargs=json.dumps(kwargs))
    assert arguments.lr_scheduler_type is SchedulerType.REFINED
    assert arguments.lr_scheduler_kwargs == kwargs
    written = json.loads(arguments.to_json_string())
    assert (written["lr_scheduler_type"], written["lr_scheduler_kwargs"]) == ("refined", kwargs)
    again = TrainingArguments(
        **{name: written[name] for name in ("output_dir", "lr_scheduler_type", "lr_scheduler_kwargs")}
    )
    assert again.lr_scheduler_type is SchedulerType.REFINED
    torch.save(arguments, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).lr_scheduler_type is SchedulerType.REFINED


def test_parser_choices(tmp_path, capsys):
    parser = HfArgumentParser(TrainingArguments)
    words = ["--output_dir", str(tmp_path), "--lr_scheduler_type"]
    kwargs = ["--lr_scheduler_kwargs", '{"refined_from": "runs/baseline"}']
    (arguments,) = parser.parse_args_into_dataclasses([*words, "refined", *kwargs])
    assert arguments.lr_scheduler_type is SchedulerType.REFINED
    assert arguments.lr_scheduler_kwargs == {"refined_from": "runs/baseline"}
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses([*words, "defined"])
    assert "refined" in capsys.readouterr().err


def test_a_training_args_file_needs_register_first(tmp_path):
    """Documented: the error where it has not run names the schedule."""
    torch.save(tiny_arguments(tmp_path, lr_scheduler_type="refined"), tmp_path / "training_args.bin")
    load = f"import torch; torch.load({str(tmp_path / 'training_args.bin')!r}, weights_only=False)"
    without = run_command(BIN / "python", "-c", load)
    assert without.returncode == 1
    assert "refined is not a valid SchedulerType" in without.stderr
    done = run_command(BIN / "python", "-c", f"import hf_refined_schedule as h; h.register(); {load}")
    assert done.returncode == 0, done.stderr


def get_quarter_schedule(optimizer, num_warmup_steps, num_training_steps, factor=0.25, last_epoch=-1):
    return LambdaLR(optimizer, lambda step: factor, last_epoch)


def test_a_schedule_of_ones_own():
    member = register_scheduler("quarter", get_quarter_schedule)
    assert register_scheduler("quarter", get_quarter_schedule) is member
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert get_scheduler("quarter", optimizer, 0, 10).get_last_lr() == [0.25]
    assert get_scheduler(member, optimizer, 0, 10, {"factor": 0.5}).get_last_lr() == [0.5]


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("Quarter", get_quarter_schedule, "lower-case identifier"),
        ("a quarter", get_quarter_schedule, "lower-case identifier"),
        (None, get_quarter_schedule, "lower-case identifier"),
        ("sixth", lambda optimizer: None, "num_warmup_steps"),
        ("refined", get_quarter_schedule, "another name"),
        ("cosine", get_quarter_schedule, "another name"),
    ],
)
def test_register_scheduler_refuses(name, function, message):
    with pytest.raises(ValueError, match=message) as caught:
        register_scheduler(name, function)
    assert "\n" not in str(caught.value)


def test_get_scheduler_builds_it_with_our_function():
    assert TYPE_TO_SCHEDULER_FUNCTION[SchedulerType("refined")] is get_refined_schedule


def refined_arguments(tmp_path, **options):
    return RefinedScheduleArguments(**tiny_options(tmp_path, **options))


def test_options_reach_the_scheduler_kwargs(tmp_path):
    arguments = refined_arguments(
        tmp_path, lr_scheduler_type="refined", refined_from="a", refined_smoothing=0.2,
        lr_scheduler_kwargs='{"min_lr_ratio": 0.1}',
    )  # fmt: skip
    assert arguments.lr_scheduler_kwargs == {"min_lr_ratio": 0.1, "refined_from": "a", "smoothing": 0.2}
    again = RefinedScheduleArguments(
        **tiny_options(
            tmp_path, lr_scheduler_type="refined", refined_from="a", lr_scheduler_kwargs={"refined_from": "a"}
        )
    )
    assert again.lr_scheduler_kwargs == {"refined_from": "a"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "refined"}, "needs --refined_from"),
        ({"refined_from": "a"}, "pass --lr_scheduler_type refined"),
        ({"lr_scheduler_type": "cosine", "refined_smoothing": 0.2}, "pass --lr_scheduler_type refined"),
        (
            {"lr_scheduler_type": "refined", "refined_from": "a", "lr_scheduler_kwargs": {"refined_from": "b"}},
            "refined_from is 'a', but refined_from in lr_scheduler_kwargs is 'b'",
        ),
    ],
)
def test_contradictions_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        refined_arguments(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_without_the_schedule_nothing_changes(tmp_path):
    arguments = refined_arguments(tmp_path)
    assert (arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs) == (
        "linear",
        tiny_arguments(tmp_path).lr_scheduler_kwargs,
    )


def test_an_option_that_is_set_later_counts(tmp_path):
    """As a hyperparameter search sets it."""
    kwargs = {"min_lr_ratio": 0.1}
    arguments = refined_arguments(
        tmp_path, lr_scheduler_type="refined", refined_from=tmp_path / "a", lr_scheduler_kwargs=kwargs
    )
    assert arguments.lr_scheduler_kwargs == {"min_lr_ratio": 0.1, "refined_from": str(tmp_path / "a")}
    arguments.to_json_string()
    arguments.refined_smoothing = 0.3
    arguments.refined_from = "b"
    assert arguments.lr_scheduler_kwargs == {"min_lr_ratio": 0.1, "refined_from": "b", "smoothing": 0.3}
    arguments.refined_smoothing = None
    assert arguments.lr_scheduler_kwargs == {"min_lr_ratio": 0.1, "refined_from": "b"}
    assert kwargs == {"min_lr_ratio": 0.1}
    linear = refined_arguments(tmp_path)
    linear.refined_from = "b"
    assert linear.lr_scheduler_kwargs == tiny_arguments(tmp_path).lr_scheduler_kwargs
