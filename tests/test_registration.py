"""`refined` wherever transformers knows its own schedules."""

import json
import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import HfArgumentParser, Trainer, TrainingArguments, get_linear_schedule_with_warmup, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from hf_refined_schedule import (
    GradientNormCallback,
    GradientNorms,
    RefinedScheduleArguments,
    get_refined_schedule,
    register,
    register_scheduler,
)

from .tiny import BIN, run_command, tiny_arguments, tiny_model, tiny_options

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


def test_report_to_records(tmp_path):
    words = ["--output_dir", str(tmp_path), "--report_to", "gradient_norms", "--use_cpu"]
    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words)
    added = [type(one) for one in Trainer(tiny_model(), arguments).callback_handler.callbacks]
    assert added.count(GradientNormCallback) == 1


def test_a_training_args_file_loads_in_a_process_that_has_not_registered(tmp_path):
    arguments = tiny_arguments(tmp_path, lr_scheduler_type="refined", lr_scheduler_kwargs={"refined_from": "a"})
    torch.save(arguments, tmp_path / "training_args.bin")
    load = (
        f"import torch; arguments = torch.load({str(tmp_path / 'training_args.bin')!r}, weights_only=False)\n"
        "print(repr(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs)"
    )
    done = run_command(BIN / "python", "-c", load)
    assert (done.stdout, done.returncode) == ("<SchedulerType.REFINED: 'refined'> {'refined_from': 'a'}\n", 0), (
        done.stderr
    )


SPAWN = """
import multiprocessing, sys
from transformers import TrainingArguments
def name_of(arguments):
    return repr(arguments.lr_scheduler_type)
if __name__ == "__main__":
    import hf_refined_schedule
    hf_refined_schedule.register()
    arguments = TrainingArguments(sys.argv[1], lr_scheduler_type="refined", report_to="none", use_cpu=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(name_of, (arguments,)))
"""


def test_a_spawned_process_gets_the_arguments(tmp_path):
    """Its own main module does not register: the pickle does."""
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = run_command(BIN / "python", tmp_path / "spawn.py", tmp_path)
    assert (done.stdout, done.returncode) == ("<SchedulerType.REFINED: 'refined'>\n", 0), done.stderr


def test_pickles_of_other_members_do_not_need_this_package():
    assert b"hf_refined_schedule" in pickle.dumps(SchedulerType.REFINED)
    assert b"hf_refined_schedule" not in pickle.dumps(SchedulerType.COSINE)
    assert pickle.loads(pickle.dumps(SchedulerType.COSINE)) is SchedulerType.COSINE


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
        (
            {"lr_scheduler_type": "refined"},
            "needs the run to refine it from: refined_from in lr_scheduler_kwargs, --refined_from of .* or --refined-from of",
        ),
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


def load_norms_of_ones():
    ones = [1.0] * 20
    return GradientNorms(steps=range(1, 21), l1=ones, l2=ones, num_training_steps=20)


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


def test_another_schedule_that_is_set_later_is_without_the_options(tmp_path):
    """As a search over schedules sets it, in any order with the options."""
    kwargs = {"min_lr_ratio": 0.1}
    arguments = refined_arguments(tmp_path, lr_scheduler_type="refined", refined_from="a", lr_scheduler_kwargs=kwargs)
    for _ in range(2):
        arguments.lr_scheduler_type = SchedulerType("linear")
        assert arguments.lr_scheduler_kwargs == {}
    arguments.refined_smoothing = 0.3
    assert arguments.lr_scheduler_kwargs == {}
    arguments.lr_scheduler_type = SchedulerType("refined")
    assert arguments.lr_scheduler_kwargs == {"min_lr_ratio": 0.1, "refined_from": "a", "smoothing": 0.3}


@pytest.mark.parametrize("kwargs_first", [False, True])
@pytest.mark.parametrize(
    ("name", "kwargs"), [("cosine_with_restarts", {"num_cycles": 3}), ("polynomial", {"power": 2.0})]
)
def test_a_trial_with_kwargs_of_its_own(tmp_path, name, kwargs, kwargs_first):
    """A search sets what a trial chose in the order in which its space names it. Refined schedules have a power, too."""
    arguments = refined_arguments(tmp_path, lr_scheduler_type="refined", refined_from="a", refined_smoothing=0.3)
    trial = [("lr_scheduler_type", name), ("lr_scheduler_kwargs", kwargs)]
    for argument, value in reversed(trial) if kwargs_first else trial:
        setattr(arguments, argument, value)
    assert arguments.lr_scheduler_kwargs == kwargs
    arguments.lr_scheduler_type = name
    assert arguments.lr_scheduler_kwargs == kwargs
    arguments.lr_scheduler_type = "refined"
    assert arguments.lr_scheduler_kwargs == {"refined_from": "a", "smoothing": 0.3}


def test_arguments_of_another_schedule_keep_their_kwargs(tmp_path):
    arguments = refined_arguments(tmp_path, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2.0})
    arguments.lr_scheduler_type = "polynomial"
    assert arguments.lr_scheduler_kwargs == {"power": 2.0}


def test_a_trial_of_refined_where_the_arguments_are_of_another_schedule(tmp_path):
    for trial in ("lr_scheduler_type", "refined_from"), ("refined_from", "lr_scheduler_type"):
        arguments = refined_arguments(tmp_path, lr_scheduler_type="linear")
        for name in trial:
            setattr(arguments, name, {"lr_scheduler_type": "refined", "refined_from": "a"}[name])
        assert arguments.lr_scheduler_kwargs == {"refined_from": "a"}


@pytest.mark.parametrize("make", [tiny_arguments, refined_arguments])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"refined_from": [load_norms_of_ones()]}, "is GradientNorms, which arguments cannot hold as JSON; pass the path"),
        ("{'refined_from': 'a'}", r"""but must be a JSON object .* pass --lr_scheduler_kwargs '{"refined_from": "runs/baseline"}'"""),
        ("refined_from=a", r"""but must be a JSON object .* pass --lr_scheduler_kwargs '{"refined_from": "runs/baseline"}'"""),
        ('["a"]', "but must be a JSON object"),
        ("{" * 10_000, "but must be a JSON object"),
        ('{"refined_from": "a", "smooting": 0.2}', "no option 'smooting'; did you mean 'smoothing'?"),
        ({"refined_from": "a", "refined": "b"}, "no option 'refined'; did you mean 'refined_from'?"),
    ],
)  # fmt: skip
def test_malformed_scheduler_kwargs_are_explained_in_one_line(tmp_path, make, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(tmp_path, lr_scheduler_type="refined", lr_scheduler_kwargs=given)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_scheduler_kwargs_of_other_schedules_are_left_alone(tmp_path):
    assert tiny_arguments(tmp_path, lr_scheduler_kwargs="power=2").lr_scheduler_kwargs == "power=2"
    kwargs = {"num_cycles": 2}
    assert (
        tiny_arguments(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs=kwargs).lr_scheduler_kwargs is kwargs
    )


@pytest.mark.parametrize(
    ("given", "text"), [(Path("runs") / "a", "runs/a"), ([Path("a"), "b"], ["a", "b"]), ("a", "a")]
)
def test_a_path_becomes_text(tmp_path, given, text):
    arguments = tiny_arguments(tmp_path, lr_scheduler_type="refined", lr_scheduler_kwargs={"refined_from": given})
    assert json.loads(arguments.to_json_string())["lr_scheduler_kwargs"] == {"refined_from": text}
