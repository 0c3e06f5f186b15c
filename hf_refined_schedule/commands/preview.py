"""`hf-refined-schedule preview`: the learning rates of a coming run, before anything is spent."""

import argparse
import json
import os
import sys
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..norms.message_text import listed, quoted, shown
from .source_options import option_flags

if TYPE_CHECKING:
    from ..training.training_args import RefinedScheduleArguments

LONGEST_NAME = 48
"""Characters of a schedule in a legend."""

OPTIONS: dict[str, dict[str, Any]] = {
    "max_steps": {"type": int, "metavar": "T", "help": "the number of optimizer updates"},
    "learning_rate": {"type": float, "metavar": "LR", "help": "the peak learning rate (default: Trainer's, 5e-5)"},
    "warmup_steps": {
        "type": float,
        "metavar": "W",
        "help": "the warm-up in updates, or below 1 as a fraction of the run (default: none)",
    },
}
"""Options that are spelled as a Trainer's arguments, for every schedule of the command line."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "preview",
        help="show the learning rates of a coming run",
        description="Show the learning rates that a run will use, computed by the functions that training uses. SCHEDULE is "
        "an lr_scheduler_type, with its lr_scheduler_kwargs behind it as in 'polynomial {\"power\": 2}', or a recorded run or "
        "a schedule file to refine from. Or pass the arguments of a training script after --; a second -- begins those of "
        "another run.",
        usage="%(prog)s [-h] [OPTION ...] [SCHEDULE ...] [-- ARGUMENTS OF A SCRIPT ...]",
    )
    parser.add_argument(
        "schedules", nargs="*", metavar="SCHEDULE", help="a schedule; several are drawn over each other"
    )
    for name, settings in OPTIONS.items():
        parser.add_argument(*option_flags(name, training=True), **settings)
    parser.add_argument("--optimizer", choices=("adam", "sgd"), help="the optimizer of the coming run (default: adam)")
    parser.add_argument("-o", "--output", metavar="FILE", help="a picture, too; its ending names the format")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`, and `script_arguments` what followed each `--`."""
    from ..plots import rates_as_text, rates_figure

    curves = preview(options)
    print("\n".join(_summary(name, rates) for name, rates in curves.items()))
    print(rates_as_text(curves))
    if options.output:
        print(f"wrote {rates_figure(options.output, curves, title='Learning rates of the coming run')}")


def preview(options: argparse.Namespace) -> dict[str, NDArray[np.float64]]:
    """The rates of every update, shape (T,), of each schedule and of each script's arguments, by a name for the legend."""
    from ..training.coming_run import learning_rates, parse_run_arguments, run_arguments

    if not (options.schedules or options.script_arguments):
        raise ValueError(
            "There is nothing to preview; pass schedules, such as linear, or the arguments of a script after --."
        )
    common = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    if options.optimizer == "sgd":
        common["optim"] = "sgd"
    runs = []
    for schedule in options.schedules:
        name, keywords = _named_schedule(schedule)
        runs.append(run_arguments(lr_scheduler_type=name, lr_scheduler_kwargs=keywords, **common))
    for words in options.script_arguments:
        arguments, ignored = parse_run_arguments(words, **common)
        if ignored:
            print(f"not arguments of a Trainer, ignored: {listed(ignored)}", file=sys.stderr)
        runs.append(arguments)
    curves: dict[str, NDArray[np.float64]] = {}
    for arguments in runs:
        curves[_free_name(_name_of(arguments), curves)] = learning_rates(arguments, _length(arguments))
    return curves


def _named_schedule(text: str) -> tuple[str, dict[str, Any]]:
    """The `lr_scheduler_type` and the `lr_scheduler_kwargs` of a word of the command line."""
    if os.path.exists(text):
        return "refined", {"refined_from": text}
    name, brace, rest = text.partition("{")
    if not brace:
        return name.strip(), {}
    try:
        keywords = json.loads(brace + rest)
    except ValueError as error:
        raise ValueError(
            f"The options of {quoted(text)} are no JSON object: {error}; write them as in 'polynomial {{\"power\": 2}}'."
        ) from None
    return name.strip(), keywords


def _name_of(arguments: "RefinedScheduleArguments") -> str:
    """What a legend says of a run: the schedule, its options, the warm-up."""
    from ..training.coming_run import scheduler_keywords

    name = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    keywords = scheduler_keywords(arguments)
    if (source := keywords.pop("refined_from", None)) is not None:
        name += f" from {shown(source, LONGEST_NAME)}"
    if keywords:
        name += f" {shown(json.dumps(keywords), LONGEST_NAME)}"
    if arguments.warmup_steps:
        name += f", warm-up {arguments.warmup_steps:g}"
    return name


def _length(arguments: "RefinedScheduleArguments") -> int:
    """T, the number of updates; that of epochs depends on the data."""
    if arguments.max_steps < 1:
        given = f"max_steps is {arguments.max_steps}" if arguments.max_steps != -1 else "max_steps is not given"
        raise ValueError(f"{given}, but the rates depend on the number of updates; pass --max-steps T before any --.")
    return arguments.max_steps


def _free_name(name: str, taken: Container[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free = f"{name} ({number})"
        number += 1
    return free


def _summary(name: str, rates: NDArray[np.float64]) -> str:
    peak = int(np.argmax(rates))
    if rates[peak] == 0:
        return f"{name}: the rate of all {len(rates)} updates is 0"
    at = {update: f"{rates[update]:.3g} at update {update + 1}" for update in sorted({0, peak, len(rates) - 1})}
    return f"{name}: {', '.join(at.values())}; the mean is {rates.mean() / rates[peak]:.2f} of the peak"
