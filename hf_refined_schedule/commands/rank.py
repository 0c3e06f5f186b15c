"""`hf-refined-schedule rank`: rank schedules by what theory promises for a run's norms."""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..norms.message_text import shown
from ..schedules.predicting import fit_law
from ..schedules.schedule_file import read_whole_schedule
from ..theory.bounds import rank_by_squared_norms
from ..theory.classical import classical_schedules, warmup_ramp
from .source_options import refine_runs, schedule_options

MAX_RANKED_POINTS = 100_000
"""A longer run is ranked on this many evenly spaced points: `rank` holds half a hundred schedules at once."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "rank",
        parents=[schedule_options()],
        help="rank schedules by what theory promises for a run's norms",
        description="Rank the refined schedule, linear decay, cosine and others by the last-iterate bound, each at its own "
        "best peak learning rate, with the run's norms and, beside it, with constant norms. If the run logged losses that a law can be "
        "fitted to, also by the final losses that it predicts at the peak of the run.",
    )
    parser.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="FILE",
        help="rank a schedule file, too (may be repeated)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`."""
    schedule, _, _ = refine_runs(options, "; pass the run whose norms are to rank by.")
    total = len(schedule.grid) - 1
    num_steps = min(total, MAX_RANKED_POINTS)
    progress = np.arange(num_steps) / num_steps
    multipliers = np.interp(progress, np.arange(total + 1) / total, schedule.grid)
    squared_norms, factors = (
        np.interp(progress, np.arange(total) / total, values)
        for values in (
            schedule.squared_norms,
            np.ones(total) if schedule.clip_factors is None else schedule.clip_factors,
        )
    )
    schedules = {"refined": multipliers, **classical_schedules(num_steps)}
    schedules["refined, warm-up"] = np.minimum(multipliers, warmup_ramp(num_steps))
    for other in options.others:
        grid = read_whole_schedule(other).grid
        name = shown(other)
        while name in schedules:  # a file may be called linear
            name = f"{name} (file)"
        schedules[name] = np.interp(progress, np.linspace(0, 1, len(grid)), grid)
    losses, why_not = _predicted_losses(options.sources, schedules, total)
    constant = {row.name: row.relative_bound for row in rank_by_squared_norms(schedules, np.ones(num_steps))}
    width = max(map(len, schedules))
    print(
        f"The last-iterate bound over linear decay's, and the best peak learning rate over linear decay's; {shown(schedule.source)}"
    )
    print(f"{'':{width}}  with these norms  with constant norms  best peak" + ("  predicted loss" if losses else ""))
    for name, relative_bound, best_peak_ratio in rank_by_squared_norms(schedules, squared_norms, factors):
        print(
            f"{name:{width}}  {relative_bound:16.3f}  {constant[name]:19.3f}  {best_peak_ratio:9.2f}"
            + (f"  {losses[name]:14.4f}" if losses else "")
        )
    if not losses:
        print(f"no predicted losses: {why_not}")


def _predicted_losses(
    sources: Sequence[str], schedules: Mapping[str, NDArray[np.float64]], num_training_steps: int
) -> tuple[dict[str, float], str]:
    """The final losses of schedules at the highest logged rate, by name; or none, and why not."""
    try:
        fitted = fit_law(sources)
    except ValueError as error:
        return {}, str(error)
    if fitted.law.refusals:
        return {}, " ".join(fitted.law.refusals)
    try:
        fitted.check_reach(num_training_steps, fitted.peak)
    except ValueError as error:
        return {}, str(error)
    progress = np.arange(num_training_steps) / num_training_steps
    losses = {}
    for name, multipliers in schedules.items():
        every = np.interp(progress, np.arange(len(multipliers)) / len(multipliers), multipliers)
        losses[name] = float(fitted.law.predict(fitted.peak * every)[-1])
    return losses, ""
