"""`hf-refined-schedule rank`: rank schedules by what theory promises for a run's norms."""

import argparse

import numpy as np

from ..norms.message_text import shown
from ..norms.sources import find_source
from ..schedules.schedule_file import read_schedule
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
        "best peak learning rate, with the run's norms and, beside it, with constant norms.",
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
