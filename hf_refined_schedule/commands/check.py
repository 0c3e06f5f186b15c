"""`hf-refined-schedule check`: say whether a refined schedule can be trusted."""

import argparse
import json

from ..schedules.advice import FROM_SCRATCH_FLAGS, LORA_FLAGS, advise, ask_for_another_rule
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
            "next_run_verdict": advice.verdict,
            **(
                {"next_run_with_lora": LORA_FLAGS, "next_run_from_scratch": FROM_SCRATCH_FLAGS}
                if advice.bounded_warmup
                else {}
            ),
            "best_peak_ratio": advice.schedule.best_peak_ratio,
            "notes": schedule.notes,
            "findings": [finding._asdict() for finding in health.findings],
        }
        print(json.dumps(report, indent=1))
        return
    for run in runs:
        print(run.description)
    of_paper = not refined_with.bounded_warmup and not ask_for_another_rule(refined_with)
    verdict = str(health.verdict)
    if advice.bounded_warmup and not refined_with.bounded_warmup:
        of = "the rule of the paper" if of_paper else "the schedule of these options"
        of_next_run = " and" if advice.verdict == health.verdict else f", {advice.verdict}"
        verdict += f" for {of}{of_next_run} for the schedule of the next run"
    print(f"verdict: {verdict}")
    for finding in health.findings:
        worth = f"; {record_of_promise()}" if finding is health.findings[-1] else ""
        meaning = "" if finding.ok else f": {finding.meaning}"
        print(f"{'   ' if finding.ok else ' ! '}{finding.name}: {finding.value:.3g} ({finding.limit}{worth}){meaning}")
    for note in schedule.notes:
        print(f"note: {note}")
    if of_paper:
        print(f"measured: {record_of_verdict(health.verdict)}")
    if advice.bounded_warmup:
        print(f"measured: {record_of_advice()}")
    if health.norms_rise:
        print(f"measured: {RECORD_OF_RISING_NORMS}")
    print(
        "peak learning rate: try half, once and twice the best for linear decay (the bound expects "
        f"{advice.schedule.best_peak_ratio:.2f} times)"
    )
    if advice.bounded_warmup:
        print(f"next run with LoRA: {LORA_FLAGS}")
        print(f"next run from scratch: {FROM_SCRATCH_FLAGS}")
    print(f"next run{', full fine-tuning' if advice.bounded_warmup else ''}: {advice.flags}")
