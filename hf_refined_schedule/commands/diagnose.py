"""`hf-refined-schedule diagnose`: what a run's log shows was applied, against what was asked for."""

import argparse
import sys
from collections.abc import Iterator

import numpy as np

from ..norms.message_text import listed, shown
from ..norms.rate_log import RateLog, read_rate_log
from ..schedules.applied_rates import FEWEST_RATES, applied_schedule
from ..schedules.asked_rates import Comparison, compare_with_asked, first_difference
from ..schedules.diagnosis import (
    Observation,
    clipping_observations,
    norm_observations,
    rate_observations,
    shift_observations,
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "diagnose",
        help="say what a run's log shows was applied",
        description="Say which learning rates a run applied, and where its horizon, its number of processes or a resume made "
        "them others than intended; how many updates were clipped and by how much; and whether the norm looks sharded. With "
        "the arguments of the training script after --, the rates are compared with those that it asked for.",
        usage="%(prog)s [-h] [--max-steps T] [--max-grad-norm X] RUN [-- ARGUMENTS OF THE SCRIPT ...]",
    )
    parser.add_argument(
        "source", metavar="RUN", help="its output_dir, gradient_norms.jsonl, trainer_state.json, or another log"
    )
    parser.add_argument(
        "--max-steps", type=int, metavar="T", help="the planned number of updates, where the log does not say"
    )
    parser.add_argument(
        "--max-grad-norm", type=float, metavar="X", help="the threshold of clipping (default: as the log says, or 1)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`, and `script_arguments` what followed `--`."""
    if options.max_grad_norm is not None and not options.max_grad_norm >= 0:
        raise ValueError(f"--max-grad-norm is {options.max_grad_norm}, but must be at least 0; 0 clips nothing.")
    log = read_rate_log(options.source)
    if len(options.script_arguments) > 1:
        raise ValueError("There are several --, but a run has the arguments of one script; pass one.")
    for observation in dict.fromkeys(_observations(log, options)):  # a resume shows in both comparisons
        print(f"{'   ' if observation.ok else ' ! '}{observation.text}")


def _observations(log: RateLog, options: argparse.Namespace) -> Iterator[Observation]:
    print(f"{shown(log.source)}: updates {log.steps[0]} to {log.steps[-1]}, {len(log.steps)} of them logged")
    against_asked = []
    if options.script_arguments:
        against_asked = list(_against_asked(log, options.script_arguments[0], options.max_steps))
    yield from against_asked
    as_asked = bool(against_asked) and all(observation.ok for observation in against_asked)
    yield from rate_observations(log, applied_as_asked=as_asked)
    yield from clipping_observations(log, options.max_grad_norm)
    yield from norm_observations(log)


def _against_asked(log: RateLog, words: list[str], max_steps: int | None) -> Iterator[Observation]:
    """The rates of the log against those of a script's arguments."""
    from ..training.coming_run import learning_rates, parse_run_arguments

    arguments, ignored = parse_run_arguments(words)
    if ignored:
        print(f"not arguments of a Trainer, ignored: {listed(ignored)}", file=sys.stderr)
    planned = arguments.max_steps if arguments.max_steps > 0 else max_steps or log.num_training_steps
    if planned is None:
        raise ValueError(f"{shown(log.source)} does not say how many updates were planned; pass --max-steps T.")
    known = np.isfinite(log.rates)
    steps, rates = log.steps[known], log.rates[known]
    if len(rates) < FEWEST_RATES:
        raise ValueError(
            f"{shown(log.source)} holds {len(rates)} learning rates, too few to compare (at least {FEWEST_RATES}); pass a "
            "log with more."
        )
    found = applied_schedule(steps, rates, planned)
    horizon = round(found[0].horizon) if found and np.isfinite(found[0].horizon) else None
    comparison = compare_with_asked(
        steps, rates, planned, lambda length, count: learning_rates(arguments, length, count), horizon
    )
    if comparison is None:
        asked = learning_rates(arguments, planned, max(planned, int(steps[-1])))[steps - 1]
        step, applied, wanted = first_difference(steps, rates, asked)
        yield Observation(
            f"asked for: not applied: at update {step} the rate is {applied:.4g}, {wanted:.4g} was asked for, and no usual "
            "mistake explains it",
            ok=False,
        )
        return
    yield _explained(comparison, planned)
    if comparison.shifts:
        yield from shift_observations(list(comparison.shifts), steps, log.checkpoints)


def _explained(comparison: Comparison, planned: int) -> Observation:
    """What made the applied rates of those asked for."""
    mistakes = []
    if comparison.times > 1:
        mistakes.append(
            f"{comparison.times} times too fast, as a scheduler that is stepped once for each process or micro-batch; its "
            f"num_training_steps must count those steps, {comparison.times * planned}"
        )
    if comparison.horizon != planned:
        mistakes.append(
            f"over {comparison.horizon} updates instead of {planned}; pass the number of optimizer updates as num_training_steps"
        )
    if comparison.scale != 1.0:
        mistakes.append(
            f"times {comparison.scale:.4g}; was another peak passed, or a rate scaled by processes or batch size?"
        )
    if comparison.shifts:
        mistakes.append(f"until update {comparison.shifts[0].step}")
    late = "; the log has the rate of the next update" if comparison.lead else ""
    if not mistakes:
        return Observation(f"asked for: applied as asked{late}")
    return Observation(f"asked for: applied {', '.join(mistakes)}{late}", ok=False)
