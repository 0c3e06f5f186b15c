"""`hf-refined-schedule refine`: make a schedule file from a run."""

import argparse

from ..schedules.refined_schedule import RefinedSchedule, minimize_bound
from ..theory.classical import POWERS, closest_polynomial, closest_wsd
from ..theory.refinement import peak_position
from .schedule_output import write_output
from .source_options import refine_runs, schedule_options


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "refine",
        parents=[schedule_options()],
        help="make a schedule file from a run",
        description="Make a schedule file from a recorded run, for --lr_scheduler_kwargs '{\"refined_from\": FILE}'.",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the schedule file (JSON); without it, nothing is written"
    )
    parser.add_argument(
        "--method",
        choices=("closed-form", "numerical"),
        default="closed-form",
        help="numerical: minimise the last-iterate bound, starting from the closed form",
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="print the closest polynomial and the closest warmup-stable-decay, for frameworks that know only those",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`."""
    schedule, runs, _ = refine_runs(options, " already; pass the run that it should be made from.")
    if options.method == "numerical":
        schedule = minimize_bound(schedule)
    if options.output is not None:
        write_output(schedule, options.output)
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
    if options.output is None:
        print("nothing is written; pass --output FILE for a schedule file")
    else:
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
