"""The command line: `hf-refined-schedule refine | check | rank | plot | launch`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

import numpy as np

from . import __version__
from .norms.gradient_norms import GradientNorms, UnfinishedRunError
from .norms.message_text import shown
from .norms.sources import find_source
from .schedules.advice import advise
from .schedules.health import Health
from .schedules.refined_schedule import RefinedSchedule, minimize_bound
from .schedules.refinement_options import RefinementOptions
from .schedules.refining import Refinement, refine_sources
from .schedules.schedule_file import read_schedule, write_schedule
from .theory.bounds import rank_by_squared_norms
from .theory.classical import POWERS, classical_schedules, closest_polynomial, closest_wsd, warmup_ramp
from .theory.refinement import peak_position, smooth_norms

if TYPE_CHECKING:
    from .plots import DrawnRun

SOURCE_HELP = (
    "the run: its output_dir or gradient_norms.jsonl, a trainer_state.json or the checkpoint that holds one, TensorBoard "
    "events, a W&B export or another CSV table, JSON Lines, or console output; of several runs the smoothed norms are averaged"
)


LONGEST_NAME = 32
"""Characters of a source in a picture's legend."""

MAX_RANKED_POINTS = 100_000
"""A longer run is ranked on this many evenly spaced points: `rank` holds half a hundred schedules at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name, by default those of this process.

    Returns:
        The exit status: 0, or 2 for bad usage or input.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"hf-refined-schedule {options.command}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-refined-schedule",
        description="Learning-rate schedules refined from the gradient norms of your own run (arXiv 2310.07831).",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    schedule_options = argparse.ArgumentParser(add_help=False)
    schedule_options.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    schedule_options.add_argument(
        "--optimizer",
        choices=("adam", "sgd"),
        help="the optimizer to schedule: sgd, or adam for every optimizer with coordinate-wise steps (default: as the source says)",
    )
    _add_refinement_options(schedule_options, training=False)

    refine = commands.add_parser(
        "refine",
        parents=[schedule_options],
        help="make a schedule file from a run",
        description="Make a schedule file from a recorded run, for --lr_scheduler_kwargs '{\"refined_from\": FILE}'.",
    )
    refine.add_argument("-o", "--output", required=True, metavar="FILE", help="the schedule file (JSON)")
    refine.add_argument(
        "--method",
        choices=("closed-form", "numerical"),
        default="closed-form",
        help="numerical: minimise the last-iterate bound, starting from the closed form",
    )
    refine.add_argument(
        "--fit",
        action="store_true",
        help="print the closest polynomial and the closest warmup-stable-decay, for frameworks that know only those",
    )
    refine.set_defaults(run=_refine)

    check = commands.add_parser(
        "check",
        parents=[schedule_options],
        help="say whether a refined schedule can be trusted",
        description="Say whether the schedule that a run's norms ask for can be trusted: worth a refined run, linear will do, "
        "doubtful, or degenerate; and why, each reason with its figure.",
    )
    check.add_argument("--json", action="store_true", help="print the verdict and its figures as JSON")
    check.set_defaults(run=_check)

    rank = commands.add_parser(
        "rank",
        parents=[schedule_options],
        help="rank schedules by what theory promises for a run's norms",
        description="Rank the refined schedule, linear decay, cosine and others by the last-iterate bound, each at its own "
        "best peak learning rate, with the run's norms and, beside it, with constant norms.",
    )
    rank.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="FILE",
        help="rank a schedule file, too (may be repeated)",
    )
    rank.set_defaults(run=_rank)

    plot = commands.add_parser(
        "plot",
        parents=[schedule_options],
        help="draw a run's norms and the schedule they ask for",
        description="Draw a run's norms, raw and smoothed, and the refined schedule beside linear decay and cosine; several "
        "runs over each other, with the schedule of their average. SOURCE can be a schedule file, too.",
    )
    plot.add_argument("-o", "--output", metavar="FILE", help="the picture; its ending names the format")
    plot.add_argument("--text", action="store_true", help="draw the schedule in the terminal, too, or instead")
    plot.set_defaults(run=_plot)

    launch = commands.add_parser(
        "launch",
        help="run an unmodified training script",
        description="Run a training script that has never heard of this package: --lr_scheduler_type refined works in it, "
        "and its Trainer leaves gradient_norms.jsonl in its output_dir. For several processes: "
        "accelerate launch [...] -m hf_refined_schedule launch SCRIPT [...].",
        usage="%(prog)s [-h] [--refined-from SOURCE] [--gradient-norms-file FILE] [OPTION ...] SCRIPT ...",
    )
    launch.add_argument(
        *_flags("refined_from", training=True),
        metavar="SOURCE",
        help="the run to refine from, for scripts without an option for it",
    )
    launch.add_argument(
        *_flags("gradient_norms_file", training=True),
        metavar="FILE",
        help="where norms go, a file or a folder; needed to record a raw Accelerate loop",
    )
    launch.add_argument("-m", "--module", action="store_true", help="SCRIPT is the name of a module, as for python -m")
    _add_refinement_options(launch, training=True)
    launch.add_argument(
        "script",
        metavar="SCRIPT",
        help="the training script, or the name of a console script; these options come before it",
    )
    launch.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")
    launch.set_defaults(run=_launch)
    return parser


def _flags(name: str, *, training: bool) -> list[str]:
    """The names of an option. Training scripts spell theirs with underscores, so the launcher accepts both spellings."""
    dashed, underscored = f"--{name.replace('_', '-')}", f"--{name}"
    return [dashed, underscored] if training and underscored != dashed else [dashed]


def _add_refinement_options(parser: argparse.ArgumentParser, *, training: bool) -> None:
    """An option for each field of `RefinementOptions`, but those for training where nothing is trained."""
    types = get_type_hints(RefinementOptions)
    for option in fields(RefinementOptions):
        if option.metadata.get("training_only") and not training:
            continue
        flags, help_text = _flags(option.name, training=training), option.metadata["help"]
        if types[option.name] is bool:
            parser.add_argument(*flags, action="store_true", help=help_text)
            continue
        (kind,) = set(get_args(types[option.name])) - {type(None)}
        if get_origin(kind) is Literal:
            parser.add_argument(*flags, choices=get_args(kind), help=help_text)
        else:
            metavar = {str: "NAME", int: "T"}.get(kind)
            parser.add_argument(*flags, type=kind, metavar=metavar, help=help_text)


def _refinement_options(options: argparse.Namespace) -> RefinementOptions:
    given = {option.name: getattr(options, option.name, None) for option in fields(RefinementOptions)}
    return RefinementOptions(**{name: value for name, value in given.items() if value is not None})


def _refined_runs(options: argparse.Namespace, remedy: str) -> tuple[RefinedSchedule, Sequence[GradientNorms], Health]:
    """The schedule of the sources, their norms and the verdict; refuses a schedule file, whose norms are not known."""
    schedule, runs, health = refine_sources(options.sources, options.optimizer, _refinement_options(options))
    if health is None:
        raise ValueError(f"{options.sources[0]} is a schedule file{remedy}")
    return schedule, runs, health


def _answer(sources: Sequence[str], options: argparse.Namespace) -> tuple[Refinement, RefinementOptions]:
    """The refinement of a run, and its options: an unfinished run is taken as a pilot."""
    refinement_options = _refinement_options(options)
    try:
        return refine_sources(sources, options.optimizer, refinement_options), refinement_options
    except UnfinishedRunError:
        pilot = replace(refinement_options, pilot=True)
        return refine_sources(sources, options.optimizer, pilot), pilot


def _refine(options: argparse.Namespace) -> None:
    schedule, runs, _ = _refined_runs(options, " already; pass the run that it should be made from.")
    if options.method == "numerical":
        schedule = minimize_bound(schedule)
    if os.path.exists(options.output) and any(os.path.samefile(options.output, run.source) for run in runs):
        raise ValueError(
            f"{options.output} holds the norms, and the schedule would replace them; pass another --output."
        )
    write_schedule(schedule, options.output)
    for run in runs:
        print(run.description)
    print(
        f"weights: {schedule.norm.upper()} ** {schedule.power:g} ({schedule.optimizer}), smoothing {schedule.smoothing:g}"
    )
    print(
        f"peak at {peak_position(schedule.grid):.0%} of the run, mean multiplier {schedule.grid[:-1].mean():.2f} (linear decay: 0.50)"
    )
    print(f"best peak learning rate: {schedule.best_peak_ratio:.2f} times linear decay's, by the last-iterate bound")
    for note in schedule.notes:
        print(f"note: {note}")
    if options.fit:
        _print_fits(schedule)
    print(f"wrote {options.output} ({schedule.fingerprint})")


def _print_fits(schedule: RefinedSchedule) -> None:
    """The closest schedules of transformers, as its flags."""
    steps = len(schedule.grid) - 1
    polynomial, wsd = closest_polynomial(schedule.grid), closest_wsd(schedule.grid)
    print(
        f"closest polynomial: warm-up {polynomial.warmup:.0%}, then (1 - u) ** {polynomial.parameter:.2f}; "
        f"RMSE {polynomial.error:.3f}\n"
        f"  --lr_scheduler_type polynomial --warmup_steps {round(polynomial.warmup * steps)} "
        f"""--lr_scheduler_kwargs '{{"power": {polynomial.parameter:.3f}, "lr_end": 0}}'\n"""
        f"closest warmup-stable-decay: warm-up {wsd.warmup:.0%}, decay over the last {wsd.parameter:.0%}; RMSE {wsd.error:.3f}\n"
        f"  --lr_scheduler_type warmup_stable_decay --warmup_steps {round(wsd.warmup * steps)} "
        f"""--lr_scheduler_kwargs '{{"num_decay_steps": {round(wsd.parameter * steps)}, "decay_type": "linear"}}'\n"""
        f"  (for {steps} updates)"
    )
    if min(abs(polynomial.parameter / limit - 1) for limit in POWERS) < 0.01:
        print(f"  no power from {POWERS[0]:g} to {POWERS[1]:g} comes close: use the schedule itself")


def _check(options: argparse.Namespace) -> None:
    refinement, refinement_options = _answer(options.sources, options)
    schedule, runs, health = refinement
    if health is None:
        raise ValueError(f"{options.sources[0]} is a schedule file; pass the run that it was made from.")
    advice = advise(refinement, options.sources, refinement_options)
    if options.json:
        findings = [finding._asdict() for finding in health.findings]
        report = {"source": schedule.source, "verdict": health.verdict, "next_run": advice}
        print(json.dumps({**report, "notes": schedule.notes, "findings": findings}, indent=1))
        return
    for run in runs:
        print(run.description)
    print(f"verdict: {health.verdict}")
    for finding in health.findings:
        print(f"{'   ' if finding.ok else ' ! '}{finding.name}: {finding.value:.3g} ({finding.limit})")
    for note in schedule.notes:
        print(f"note: {note}")
    print(f"next run: {advice}")


def _rank(options: argparse.Namespace) -> None:
    schedule, _, _ = _refined_runs(options, "; pass the run whose norms are to rank by.")
    total = len(schedule.grid) - 1
    num_steps = min(total, MAX_RANKED_POINTS)
    progress = np.arange(num_steps) / num_steps
    multipliers = np.interp(progress, np.arange(total + 1) / total, schedule.grid)
    squared_norms = np.interp(progress, np.arange(total) / total, schedule.squared_norms)
    schedules = {"refined": multipliers, **classical_schedules(num_steps)}
    schedules["refined, warm-up"] = np.minimum(multipliers, warmup_ramp(num_steps))
    for other in options.others:
        grid = read_schedule(find_source(other).path).grid
        name = shown(other)
        while name in schedules:  # a file may be called linear
            name = f"{name} (file)"
        schedules[name] = np.interp(progress, np.linspace(0, 1, len(grid)), grid)
    constant = {row.name: row.relative_bound for row in rank_by_squared_norms(schedules, np.ones(num_steps))}
    width = max(map(len, schedules))
    print(
        f"The last-iterate bound over linear decay's, and the best peak learning rate over linear decay's; {shown(schedule.source)}"
    )
    print(f"{'':{width}}  with these norms  with constant norms  best peak")
    for name, relative_bound, best_peak_ratio in rank_by_squared_norms(schedules, squared_norms):
        print(f"{name:{width}}  {relative_bound:16.3f}  {constant[name]:19.3f}  {best_peak_ratio:9.2f}")


def _plot(options: argparse.Namespace) -> None:
    from .plots import norms_and_schedule_figure, schedule_as_text

    if not (options.output or options.text):
        raise ValueError("Where should the picture go? Pass --output FILE, or --text to draw it here.")
    refinements = [_answer([source], options)[0] for source in options.sources]
    titles = [_title(refinement, shown(refinement.schedule.source)) for refinement in refinements]
    grids = [refinement.schedule.grid for refinement in refinements]
    several = len(refinements) > 1
    headline, average = titles[0], None
    if several and all(refinement.runs for refinement in refinements):
        runs = [run for refinement in refinements for run in refinement.runs]
        together = refine_sources(runs, options.optimizer, replace(_refinement_options(options), pilot=True))
        headline = _title(together, f"{len(runs)} runs", "their average: ")
        average = together.schedule.grid
        titles.append(headline)
        grids.append(average)
    elif several:
        headline = f"{len(refinements)} schedules"
    if options.text:
        print("\n\n".join(f"{title}\n{schedule_as_text(grid)}" for title, grid in zip(titles, grids, strict=True)))
    if options.output:
        kinds = sorted({refinement.schedule.norm.upper() for refinement in refinements})
        written = norms_and_schedule_figure(
            options.output,
            [
                _drawn(refinement, source if several else None)
                for refinement, source in zip(refinements, options.sources, strict=True)
            ],
            average,
            label=f"gradient {' or '.join(kinds)} norm, before clipping",
            title=headline,
        )
        print(f"wrote {written}")


def _title(refinement: Refinement, name: str, verdict_of: str = "") -> str:
    schedule, _, health = refinement
    title = f"{name}: weights {schedule.norm.upper()} ** {schedule.power:g}"
    return title if health is None else f"{title}\n{verdict_of}{health.verdict}"


def _drawn(refinement: Refinement, source: str | None) -> "DrawnRun":
    """A source as a picture shows it; `source` is its path where there are several."""
    from .plots import DrawnRun

    schedule, runs, health = refinement
    raw = runs[0].at_every_step(schedule.norm) if runs else None
    smoothed = None if raw is None else smooth_norms(raw, schedule.smoothing)
    name = "refined"
    if source is not None:
        name = f"{shown(source, LONGEST_NAME)}: {health.verdict if health else 'a schedule file'}"
    return DrawnRun(name, schedule.grid, raw, smoothed)


def _launch(options: argparse.Namespace) -> None:
    from .training.launch import launch

    launch(
        options.script,
        options.arguments,
        as_module=options.module,
        refined_from=options.refined_from,
        gradient_norms_file=options.gradient_norms_file,
        options=_refinement_options(options),
    )
