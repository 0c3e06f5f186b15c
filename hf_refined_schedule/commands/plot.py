"""`hf-refined-schedule plot`: draw a run's norms and the schedule they ask for."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..norms.message_text import shown
from ..schedules.advice import advise
from ..schedules.refinement_options import RefinementOptions
from ..schedules.refining import Refinement, refine_or_pilot, refine_sources
from ..theory.refinement import smooth_norms
from .source_options import refinement_options, schedule_options

if TYPE_CHECKING:
    from ..plots import DrawnRun


LONGEST_NAME = 32
"""Characters of a source in a picture's legend."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "plot",
        parents=[schedule_options()],
        help="draw a run's norms and the schedule they ask for",
        description="Draw a run's norms, raw and smoothed, and the refined schedule beside linear decay and cosine; several "
        "runs over each other, with the schedule of their average. Of one run, the schedule that check advises is drawn, too. SOURCE can be a schedule file, too.",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the picture; its ending names the format (default: text)"
    )
    parser.add_argument("--text", action="store_true", help="draw the schedule in the terminal, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`."""
    from ..plots import norms_and_schedule_figure, schedule_as_text

    refined = [refine_or_pilot([source], options.optimizer, refinement_options(options)) for source in options.sources]
    refinements = [refinement for refinement, _ in refined]
    titles = [_title(refinement, shown(refinement.schedule.source)) for refinement in refinements]
    grids = [refinement.schedule.grid for refinement in refinements]
    several = len(refinements) > 1
    headline, average = _headline(refinements[0]), None
    if several and all(refinement.runs for refinement in refinements):
        runs = [run for refinement in refinements for run in refinement.runs]
        together = refine_sources(runs, options.optimizer, replace(refinement_options(options), pilot=True))
        titles.append(_title(together, f"{len(runs)} runs", "their average: "))
        headline = f"{len(runs)} runs, {_headline(together)}"
        average = together.schedule.grid
        grids.append(average)
    elif several:
        headline = f"{len(refinements)} schedules"
    if options.text or not options.output:
        print("\n\n".join(f"{title}\n{schedule_as_text(grid)}" for title, grid in zip(titles, grids, strict=True)))
    if options.output:
        kinds = sorted({one.schedule.norm.upper() for one in refinements if one.schedule.weights is not None})
        written = norms_and_schedule_figure(
            options.output,
            [
                _drawn(refinement, name if several else None)
                for refinement, name in zip(refinements, _run_names(options.sources), strict=True)
            ],
            average,
            advised=None if several else _advised(*refined[0], options.sources),
            label=f"gradient {' or '.join(kinds)} norm, before clipping",
            title=headline,
        )
        print(f"wrote {written}")


def _title(refinement: Refinement, name: str, verdict_of: str = "") -> str:
    schedule, _, health = refinement
    if schedule.weights is None:
        return name
    title = f"{name}: weights {schedule.norm.upper()} ** {schedule.power:g}"
    return title if health is None else f"{title}\n{verdict_of}{health.verdict}"


def _headline(refinement: Refinement) -> str | None:
    """The headline of a picture: what a reader wants to know, not a path."""
    return None if refinement.health is None else f"verdict: {refinement.health.verdict}"


def _run_names(sources: Sequence[str]) -> list[str]:
    """Names for a legend: the last parts of the paths, as many as tell them apart."""
    paths = [Path(source).parts for source in sources]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return list(sources)


def _advised(
    refinement: Refinement, refined_with: RefinementOptions, sources: Sequence[str]
) -> NDArray[np.float64] | None:
    """The schedule that `check` advises, where it is another one."""
    if not refinement.runs or refined_with.bounded_warmup:
        return None
    advice = advise(refinement, sources, refined_with)
    return advice.schedule.grid if advice.bounded_warmup else None


def _drawn(refinement: Refinement, run_name: str | None) -> "DrawnRun":
    """A source as a picture shows it, with its name where there are several."""
    from ..plots import DrawnRun

    schedule, runs, health = refinement
    raw = runs[0].at_every_step(schedule.norm) if runs else None
    smoothed = None if raw is None else smooth_norms(raw, schedule.smoothing)
    name = "refined"
    if run_name is not None:
        name = f"{shown(run_name, LONGEST_NAME)}: {health.verdict if health else 'a schedule file'}"
    return DrawnRun(name, schedule.grid, raw, smoothed)
