"""The command line: `hf-refined-schedule refine | check | rank | plot | launch`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import __version__
from .norms.gradient_norms import GradientNorms
from .norms.sources import find_source_file, is_schedule_file, load_norms
from .schedules.health import check_health
from .schedules.refined_schedule import RefinedSchedule, optimized, squared_norms
from .schedules.refining import load_schedule
from .schedules.schedule_file import read_schedule, write_schedule
from .theory.bounds import rank_schedules
from .theory.classical import POWERS, WARMUP, classical_schedules, closest_polynomial, closest_wsd
from .theory.refinement import peak_place, smooth_norms

SOURCE_HELP = (
    "the run: its output_dir or gradient_norms.jsonl, a trainer_state.json or the checkpoint that holds one, TensorBoard "
    "events, a W&B export or another CSV table, or JSON Lines; of several runs the smoothed norms are averaged"
)


LONGEST_NAME = 32
"""Characters of a source in a picture's legend; of a longer one the end."""


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
        help="what the schedule is for: adam, for every optimizer with coordinate-wise steps, or sgd (default: as the source says)",
    )
    schedule_options.add_argument(
        "--column", metavar="NAME", help="the norm's name in a log (default: the one that is named as a gradient norm)"
    )
    schedule_options.add_argument(
        "--norm",
        choices=("l1", "l2"),
        help="the norm to use instead of the optimizer's own; which norm a column is, if its name does not say",
    )
    schedule_options.add_argument(
        "--power", type=float, help="the exponent of the weights, negative (adam: -1, sgd: -2)"
    )
    schedule_options.add_argument(
        "--smoothing", type=float, help="the median filter's window as a fraction of the run (default: 0.1)"
    )
    schedule_options.add_argument(
        "--rising-norms",
        choices=("keep", "ignore"),
        help="ignore: weights of the running minimum, so that rising norms do not make the rate fall early (default: keep)",
    )
    schedule_options.add_argument(
        "--pilot", action="store_true", help="take an unfinished run; its last smoothed norm goes on to the end"
    )
    schedule_options.add_argument(
        "--num-training-steps",
        type=int,
        metavar="T",
        help="with --pilot: the updates of the full run, of which a shorter one counts as the first part",
    )

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
        usage="%(prog)s [-h] [--refined-from SOURCE] [--gradient-norms-file FILE] SCRIPT ...",
    )
    launch.add_argument(
        "--refined-from", metavar="SOURCE", help="the run to refine from, for scripts that cannot say it"
    )
    launch.add_argument(
        "--gradient-norms-file", metavar="FILE", help="where norms go; needed to record a raw Accelerate loop"
    )
    launch.add_argument("script", metavar="SCRIPT", help="the training script; these options come before it")
    launch.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")
    launch.set_defaults(run=_launch)
    return parser


def _refine(options: argparse.Namespace) -> None:
    schedule, runs = _schedule(options)
    if not runs:
        raise ValueError(f"{options.sources[0]} is a schedule file already; pass the run that it should be made from.")
    if options.method == "numerical":
        schedule = optimized(schedule)
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
        f"peak at {peak_place(schedule.multipliers):.0%} of the run, mean multiplier {schedule.multipliers[:-1].mean():.2f} (linear decay: 0.50)"
    )
    print(f"best peak learning rate: {schedule.best_peak_ratio:.2f} times linear decay's, by the last-iterate bound")
    for note in schedule.notes:
        print(f"note: {note}")
    if options.fit:
        _print_fits(schedule)
    print(f"wrote {options.output} ({schedule.fingerprint})")


def _print_fits(schedule: RefinedSchedule) -> None:
    """The closest schedules of transformers, as its flags."""
    steps = len(schedule.multipliers) - 1
    polynomial, wsd = closest_polynomial(schedule.multipliers), closest_wsd(schedule.multipliers)
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
    schedule, runs = _schedule(options)
    if not runs:
        raise ValueError(f"{options.sources[0]} is a schedule file; pass the run that it was made from.")
    health = check_health(runs, schedule)
    if options.json:
        findings = [finding._asdict() for finding in health.findings]
        print(json.dumps({"source": schedule.source, "verdict": health.verdict, "findings": findings}, indent=1))
        return
    for run in runs:
        print(run.description)
    print(f"verdict: {health.verdict}")
    for finding in health.findings:
        print(f"{'   ' if finding.ok else ' ! '}{finding.name}: {finding.value:.3g} ({finding.limit})")


def _rank(options: argparse.Namespace) -> None:
    schedule, runs = _schedule(options)
    if not runs:
        raise ValueError(f"{options.sources[0]} is a schedule file; pass the run whose norms are to rank by.")
    num_steps = len(schedule.multipliers) - 1
    progress = np.arange(num_steps) / num_steps
    schedules = {"refined": schedule.multipliers[:-1], **classical_schedules(num_steps)}
    schedules["refined, warm-up"] = np.minimum(schedules["refined"], progress / WARMUP)
    for other in options.others:
        grid = read_schedule(find_source_file(other)).multipliers
        schedules[other] = np.interp(progress, np.linspace(0, 1, len(grid)), grid)
    flat = {row.name: row.relative_bound for row in rank_schedules(schedules, np.ones(num_steps))}
    width = max(map(len, schedules))
    print(
        f"The last-iterate bound over linear decay's, and the best peak learning rate over linear decay's; {schedule.source}"
    )
    print(f"{'':{width}}  with these norms  with constant norms  best peak")
    for name, relative_bound, best_peak_ratio in rank_schedules(
        schedules, squared_norms(schedule.weighting, schedule.power)
    ):
        print(f"{name:{width}}  {relative_bound:16.3f}  {flat[name]:19.3f}  {best_peak_ratio:9.2f}")


def _plot(options: argparse.Namespace) -> None:
    from .plots import DrawnRun, norms_and_schedule_figure, schedule_as_text

    if not (options.output or options.text):
        raise ValueError("Where should the picture go? Pass --output FILE, or --text to draw it here.")
    several = len(options.sources) > 1
    drawn, texts, kinds, all_runs = [], [], set(), True
    for source in options.sources:
        schedule, runs = _schedule(options, [source])
        verdict = check_health(runs, schedule).verdict if runs else "a schedule file"
        all_runs = all_runs and bool(runs)
        kinds.add(schedule.norm.upper())
        raw = runs[0].at_every_step(schedule.norm) if runs else None
        smoothed = None if raw is None else smooth_norms(raw, schedule.smoothing)
        name = source if len(source) <= LONGEST_NAME else f"…{source[1 - LONGEST_NAME :]}"
        drawn.append(DrawnRun(f"{name}: {verdict}" if several else "refined", schedule.multipliers, raw, smoothed))
        title = f"{schedule.source}: weights {schedule.norm.upper()} ** {schedule.power:g}"
        title += f"\n{verdict}" if runs else ""
        texts.append(f"{title}\n{schedule_as_text(schedule.multipliers)}")
    average = None
    if several and all_runs:
        schedule, runs = _schedule(options)
        average = schedule.multipliers
        title = f"{len(runs)} runs: weights {schedule.norm.upper()} ** {schedule.power:g}"
        title += f"\ntheir average: {check_health(runs, schedule).verdict}"
        texts.append(f"{title}\n{schedule_as_text(average)}")
    elif several:
        title = f"{len(drawn)} schedules"
    if options.text:
        print("\n\n".join(texts))
    if options.output:
        label = f"gradient {' or '.join(sorted(kinds))} norm, before clipping"
        written = norms_and_schedule_figure(options.output, drawn, average, label=label, title=title)
        print(f"wrote {written}")


def _schedule(
    options: argparse.Namespace, sources: Sequence[str] | None = None
) -> tuple[RefinedSchedule, list[GradientNorms]]:
    """The schedule that the options ask for, and the norms it was made of: none if the source is a schedule file."""
    weights = {name: getattr(options, name) for name in ("norm", "power", "smoothing", "rising_norms")}
    paths = [find_source_file(source) for source in (options.sources if sources is None else sources)]
    if len(paths) == 1 and is_schedule_file(paths[0]):
        optimizer = options.optimizer or read_schedule(paths[0]).optimizer
        return load_schedule(paths[0], optimizer, **weights), []
    runs = [load_norms(path, column=options.column, norm=options.norm) for path in paths]
    if options.num_training_steps is not None:
        runs = [_as_first_part(run, options) for run in runs]
    families = {run.optimizer for run in runs} - {None}
    if options.optimizer is None and len(families) != 1:
        raise ValueError(
            f"{runs[0].source} does not say which optimizer it used; pass --optimizer adam or --optimizer sgd."
            if not families
            else "The runs used optimizers of different families; pass --optimizer adam or --optimizer sgd."
        )
    optimizer = options.optimizer or families.pop()
    return RefinedSchedule.from_norms(runs, optimizer, **weights, pilot=options.pilot), runs


def _as_first_part(run: GradientNorms, options: argparse.Namespace) -> GradientNorms:
    """A shorter run as the first updates of the full one."""
    if not options.pilot or options.num_training_steps < run.steps[-1]:
        raise ValueError(
            f"--num-training-steps is {options.num_training_steps}, of the full run whose first {run.steps[-1]} updates "
            f"{run.source} stands for; pass --pilot with it, and at least so many."
        )
    return replace(run, num_training_steps=options.num_training_steps)


def _launch(options: argparse.Namespace) -> None:
    from .training.launch import launch

    launch(
        options.script,
        options.arguments,
        refined_from=options.refined_from,
        gradient_norms_file=options.gradient_norms_file,
    )
