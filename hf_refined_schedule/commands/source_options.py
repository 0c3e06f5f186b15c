"""What commands share: the options of a refinement, and the refinement that they ask for."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

from ..norms.gradient_norms import GradientNorms
from ..schedules.health import Health
from ..schedules.refined_schedule import RefinedSchedule
from ..schedules.refinement_options import RefinementOptions
from ..schedules.refining import refine_sources

SOURCE_HELP = (
    "the run: its output_dir or gradient_norms.jsonl, a trainer_state.json or the checkpoint that holds one, TensorBoard "
    "events, a W&B export or another CSV table, JSON Lines, or console output; of several runs the smoothed norms are averaged"
)


def schedule_options() -> argparse.ArgumentParser:
    """A parent parser with the sources, the optimizer and the options of a refinement."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument(
        "--optimizer",
        choices=("adam", "sgd"),
        help="the optimizer to schedule: sgd, or adam for every optimizer with coordinate-wise steps (default: as the source says)",
    )
    add_refinement_options(parser, training=False)
    return parser


def option_flags(name: str, *, training: bool) -> list[str]:
    """The names of an option. Training scripts spell theirs with underscores, so the launcher accepts both spellings."""
    dashed, underscored = f"--{name.replace('_', '-')}", f"--{name}"
    return [dashed, underscored] if training and underscored != dashed else [dashed]


def add_refinement_options(parser: argparse.ArgumentParser, *, training: bool) -> None:
    """An option for each field of `RefinementOptions`, but those for training where nothing is trained."""
    types = get_type_hints(RefinementOptions)
    for option in fields(RefinementOptions):
        if option.metadata.get("training_only") and not training:
            continue
        flags, help_text = option_flags(option.name, training=training), option.metadata["help"]
        if types[option.name] is bool:
            parser.add_argument(*flags, action="store_true", help=help_text)
            continue
        (kind,) = set(get_args(types[option.name])) - {type(None)}
        if get_origin(kind) is Literal:
            parser.add_argument(*flags, choices=get_args(kind), help=help_text)
        else:
            metavar = {str: "NAME", int: "T"}.get(kind)
            parser.add_argument(*flags, type=kind, metavar=metavar, help=help_text)


def refinement_options(options: argparse.Namespace) -> RefinementOptions:
    """The options of a refinement that the command line gave."""
    given = {option.name: getattr(options, option.name, None) for option in fields(RefinementOptions)}
    return RefinementOptions(**{name: value for name, value in given.items() if value is not None})


def refine_runs(options: argparse.Namespace, remedy: str) -> tuple[RefinedSchedule, Sequence[GradientNorms], Health]:
    """The schedule of the sources, their norms and the verdict; refuses a schedule file, whose norms are not known."""
    schedule, runs, health = refine_sources(options.sources, options.optimizer, refinement_options(options))
    if health is None:
        raise ValueError(f"{options.sources[0]} is a schedule file{remedy}")
    return schedule, runs, health
