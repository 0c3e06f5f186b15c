"""What a user should know about the norms that a schedule is made from, a sentence each."""

from collections.abc import Sequence

from ..norms.gradient_norms import GradientNorms, OptimizerFamily, UnfinishedRunError
from ..norms.message_text import shown
from ..theory.bounded_warmup import LONGEST_WARMUP, SHORTEST_WARMUP
from ..theory.refinement import DEFAULT_SMOOTHING, NormKind
from .refinement_options import RefinementOptions

MIN_COVERAGE = 0.95
"""The fraction of the planned updates that a source must cover to count as a finished run."""

SMALLEST_WINDOW = 5
"""Norms in a smoothing window; a median of three still follows single noisy norms."""

CLIPPING_NOTE = (
    "Gradients are clipped to a norm of {limit:g}, so the rates are divided by the smoothed clip factors. Set max_grad_norm if the run "
    "to come clips otherwise; 0 for no clipping."
)

BOUNDED_NOTE = f"Linear decay after the warm-up that the norms ask for, kept between {SHORTEST_WARMUP:.0%} and {LONGEST_WARMUP:.0%} of the run."

COVERED_BY_WARMUP = 0.02
"""If the first norms are missing for less than this fraction of the run, an explicit warm-up of 5 % covers that part."""


def refinement_notes(
    runs: Sequence[GradientNorms],
    optimizer: OptimizerFamily,
    norm: NormKind,
    smoothing: float,
    options: RefinementOptions,
) -> list[str]:
    """The notes of a schedule.

    Args:
        runs: the norms of each run.
        optimizer: the optimizer's family.
        norm: the norm that the weights are computed from.
        smoothing: tau.
        options: how the schedule is made.

    Returns:
        Sentences.

    Raises:
        UnfinishedRunError: if a run covers too little of its planned updates and `pilot` is False.
    """
    notes = []
    if norm == "l2" and optimizer == "adam" and options.norm is None:
        notes.append("There are no L1 norms in the source, so L2 ** -1 stands in for L1 ** -1.")
    if options.smoothing is None and smoothing > DEFAULT_SMOOTHING:
        notes.append(
            f"The smoothing is widened from {DEFAULT_SMOOTHING} to {smoothing:.3g}, because {min(len(run.steps) for run in runs)} "
            f"norms are few: a window holds {SMALLEST_WINDOW} of them."
        )
    for run in runs:
        prefix = f"{shown(run.source)}: " if len(runs) > 1 else ""
        if not options.pilot:
            _require_coverage(run)
        notes += [f"{prefix}{note}" for note in (*_coverage_notes(run), *_quality_notes(run))]
        if window_in_norms(run, smoothing) == 1:
            notes.append(f"{prefix}A window of the smoothing holds one norm; the schedule follows single noisy norms.")
    if options.bounded_warmup:
        notes.append(BOUNDED_NOTE)
    elif options.rising_norms == "ignore":
        notes.append("Rising norms are ignored: weights come from the running minimum.")
    return notes


def window_in_norms(run: GradientNorms, smoothing: float) -> int:
    """The number of recorded norms in a smoothing window.

    Args:
        run: the norms of a run, of every update or fewer.
        smoothing: tau.

    Returns:
        An odd number.
    """
    return 2 * (int(smoothing * len(run.steps)) // 2) + 1


def smallest_smoothing(runs: Sequence[GradientNorms]) -> float:
    """The smallest smoothing with which a window holds `SMALLEST_WINDOW` recorded norms of every run.

    Args:
        runs: the norms of each run.

    Returns:
        tau, at most 1.
    """
    return min(1.0, (SMALLEST_WINDOW - 1) / min(len(run.steps) for run in runs))


def _require_coverage(run: GradientNorms) -> None:
    """Refuse a run that covers too little of its planned updates to be a finished run."""
    last, total = run.last_step, run.total_steps
    if run.length_is_unknown:
        raise UnfinishedRunError(
            f"{shown(run.source)} is of a run that stopped at update {last} and does not say how many were planned; pass "
            "--num-training-steps (pilot_num_training_steps in lr_scheduler_kwargs), or --pilot (pilot) if that was all."
        )
    if last < MIN_COVERAGE * total:
        raise UnfinishedRunError(
            f"{shown(run.source)} covers {last} of {total} planned updates ({last / total:.0%}); finish that run, or pass "
            f"--num-training-steps {last} (pilot_num_training_steps in lr_scheduler_kwargs) if it ended there, or --pilot "
            "(pilot) to repeat its last norm."
        )


def _coverage_notes(run: GradientNorms) -> list[str]:
    """What a user should know about the part of the run that the norms cover."""
    last, total, planned = run.last_step, run.total_steps, run.num_training_steps
    notes = []
    if run.length_is_unknown:
        notes.append(
            f"A pilot: the planned updates are not known, so the {last} that were made count as the whole run."
        )
    elif planned is not None and planned < last:
        notes.append(f"Norms go up to update {last}, beyond the {planned} planned; all of them count.")
    elif last < MIN_COVERAGE * total:
        notes.append(
            f"A pilot: norms cover {last / total:.0%} of the {total} planned updates, and the last smoothed norm is repeated. If the run "
            f"ended there, pass --num-training-steps {last} (pilot_num_training_steps in lr_scheduler_kwargs)."
        )
    missing = int(run.steps[0]) - 1
    unknown = "missing or 0" if run.num_zero and run.zero_steps[0] < run.steps[0] else "missing"
    if missing and missing < COVERED_BY_WARMUP * total:
        notes.append(
            f"The norms of the first {missing} updates are {unknown}; that is {missing / total:.1%} of the run, which a "
            "warm-up of 5 %, as bounded_warmup has, covers (logging_first_step=True logs the first)."
        )
    elif missing:
        notes.append(
            f"The norms of the first {missing} updates are {unknown}, and the first norm shapes the start; "
            "log it with logging_first_step=True, or record gradient_norms.jsonl."
        )
    return notes


def _quality_notes(run: GradientNorms) -> list[str]:
    """What a user should know about the norms that were left out or adjusted."""
    notes = [f"Of the log: {remark}." for remark in run.remarks]
    if run.num_zero:
        notes.append(
            f"{run.num_zero} logged norms are 0, the first at update {run.zero_steps[0]}: no gradient, or an update that a "
            "loss scaler skipped. They carry no information and were interpolated over."
        )
    if run.num_not_finite:
        notes.append(f"{run.num_not_finite} logged norms are not finite and were interpolated over.")
    return notes
