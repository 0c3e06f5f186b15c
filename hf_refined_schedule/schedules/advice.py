"""What to do with a run: the flags of the next one."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..theory.classical import WARMUP
from .health import Verdict, check_health
from .refined_schedule import RefinedSchedule
from .refinement_options import RefinementOptions
from .refining import Refinement

LORA_FLAGS = "--lr_scheduler_type linear"
"""Where LoRA was measured, no warm-up and no refined schedule was better (docs/which-schedule.md)."""

FROM_SCRATCH_FLAGS = "--lr_scheduler_type linear --warmup_steps 0.2"
"""From scratch, the longest warm-up that was tried was best, or close to it (docs/which-schedule.md)."""


class Advice(NamedTuple):
    """What `check` advises."""

    flags: str
    """The flags for the next run, in one line."""
    schedule: RefinedSchedule
    """The advised schedule."""
    bounded_warmup: bool
    """Whether the advised schedule has a bounded warm-up, as it has unless the options ask for another one."""
    verdict: Verdict | None
    """The verdict on the advised schedule; None of a schedule file."""


def ask_for_another_rule(options: RefinementOptions) -> bool:
    """Whether options ask for another rule than that of the paper and that of the bounded warm-up."""
    return options.rising_norms is not None or options.power is not None or bool(options.max_grad_norm)


def advise(refinement: Refinement, sources: Sequence[str], options: RefinementOptions) -> Advice:
    """The flags for the next run.

    Linear decay after the warm-up that the norms ask for, in bounds, is advised for every run: it needs nothing tuned, and no
    doubt about the norms can make it degenerate. Where the options ask for another schedule and its verdict has no doubt, that
    one is advised.

    Args:
        refinement: the schedule of a run, with its verdict.
        sources: the paths that it was refined from, as the user gave them.
        options: how it was refined.

    Returns:
        The advice.
    """
    doubtful = refinement.health is not None and refinement.health.verdict in ("doubtful", "degenerate")
    if ask_for_another_rule(options) and not doubtful:
        # A bounded warm-up covers the norms that are missing at the start; another schedule needs a cap there.
        missing = any(run.steps[0] > 1 for run in refinement.runs)
        flags = _flags(sources, options, WARMUP if missing else 0)
        verdict = None if refinement.health is None else refinement.health.verdict
        return Advice(flags, refinement.schedule, False, verdict)
    bounded = replace(options, rising_norms=None, power=None, max_grad_norm=None, bounded_warmup=True)
    schedule = RefinedSchedule.from_norms(refinement.runs, refinement.schedule.optimizer, bounded)
    return Advice(_flags(sources, bounded), schedule, True, check_health(refinement.runs, schedule).verdict)


def _flags(sources: Sequence[str], options: RefinementOptions, warmup: float = 0) -> str:
    keywords = {"refined_from": sources[0] if len(sources) == 1 else list(sources), **options.as_keywords()}
    flags = f"--lr_scheduler_type refined --lr_scheduler_kwargs {shlex.quote(json.dumps(keywords))}"
    cap = f" --warmup_steps {warmup:g}" if warmup else ""
    return flags + cap
