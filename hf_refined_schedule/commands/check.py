"""`hf-refined-schedule check`: say whether a refined schedule can be trusted."""

import argparse
import json

from ..schedules.advice import advise
from ..schedules.refining import refine_or_pilot
from ..schedules.track_record import RECORD_OF_RISING_NORMS, record_of_advice, record_of_promise, record_of_verdict
from .source_options import refinement_options, schedule_options


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "check",
        parents=[schedule_options()],
        help="say whether a refined schedule can be trusted",
        description="Say whether the schedule that a run's norms ask for can be trusted: sound, doubtful, or "
        "degenerate; and why, each reason with its figure.",
    )
    parser.add_argument("--json", action="store_true", help="print the verdict and its figures as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`."""
    refinement, refined_with = refine_or_pilot(options.sources, options.optimizer, refinement_options(options))
    schedule, runs, health = refinement
    if health is None:
        raise ValueError(f"{options.sources[0]} is a schedule file; pass the run that it was made from.")
    advice = advise(refinement, options.sources, refined_with)
    if options.json:
        report = {
            "source": schedule.source,
            "verdict": health.verdict,
            "next_run": advice.flags,
            "best_peak_ratio": advice.schedule.best_peak_ratio,
            "notes": schedule.notes,
            "findings": [finding._asdict() for finding in health.findings],
        }
        print(json.dumps(report, indent=1))
        return
    for run in runs:
        print(run.description)
    print(f"verdict: {health.verdict}")
    for finding in health.findings:
        worth = f"; {record_of_promise()}" if finding is health.findings[-1] else ""
        print(f"{'   ' if finding.ok else ' ! '}{finding.name}: {finding.value:.3g} ({finding.limit}{worth})")
    for note in schedule.notes:
        print(f"note: {note}")
    if not refined_with.bounded_warmup:
        print(f"measured: {record_of_verdict(health.verdict)}")
    if advice.bounded_warmup:
        print(f"measured: {record_of_advice()}")
    if health.norms_rise:
        print(f"measured: {RECORD_OF_RISING_NORMS}")
    print(
        f"peak learning rate: the bound expects {advice.schedule.best_peak_ratio:.2f} times the best for linear decay; try half and twice that, too"
    )
    print(f"next run: {advice.flags}")
