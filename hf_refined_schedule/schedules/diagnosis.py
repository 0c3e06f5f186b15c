"""What a run's log shows that people ask about: the rates that were applied, clipping, and jumps of the norm."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..norms.rate_log import RateLog
from .applied_rates import FEWEST_RATES, AppliedSchedule, Shift, applied_schedule

Array = NDArray[np.float64]

TRAINERS_MAX_GRAD_NORM = 1.0
"""The default of `TrainingArguments`, assumed where a log does not say."""

AT_THE_LARGEST = 0.2
"""Norms before clipping are never this often the same; a larger fraction at the largest norm was logged after clipping."""

PROCESSES = (2, 4, 8, 16, 32, 64)
"""Numbers of processes. The norm of one shard of n is about 1 / sqrt(n) of the whole."""

NEAR_ROOT = 0.05
"""How near, as a fraction, a jump of the norm comes to the square root of such a number."""

LEVEL = 12
"""Norms on either side of a jump whose levels are compared; with fewer the noise of single batches decides."""


class Observation(NamedTuple):
    """One line about a run."""

    text: str
    ok: bool = True
    """False for what deserves a look."""


def rate_observations(log: RateLog, *, applied_as_asked: bool = False) -> Iterator[Observation]:
    """Which schedule the rates follow, whether its horizon is that of the run, and where a resume changed it.

    Args:
        log: the run.
        applied_as_asked: whether the rates are those that the script asked for. A usual schedule that fits them only up to
            some update, or over another number of updates, is then not theirs.

    Yields:
        A line for each observation.
    """
    known = np.isfinite(log.rates)
    steps, rates = log.steps[known], log.rates[known]
    if len(rates) < FEWEST_RATES:
        yield Observation(f"rates: {len(rates)} are logged, too few to recognise a schedule (at least {FEWEST_RATES})")
        return
    if rates.max() <= 0:
        yield Observation(f"rates: all {len(rates)} are 0; nothing was trained", ok=False)
        return
    found = applied_schedule(steps, rates, log.num_training_steps)
    if found is None:
        peak = int(rates.argmax())
        yield Observation(
            f"rates: {rates[0]:.3g} at update {steps[0]}, {rates[peak]:.3g} at {steps[peak]}, {rates[-1]:.3g} at {steps[-1]}; no "
            "constant, linear or cosine schedule; pass what was asked for after --, to compare"
        )
        return
    schedule, shifts = found
    planned = log.num_training_steps
    is_another = planned is not None and math.isfinite(schedule.horizon) and round(schedule.horizon) != planned
    if applied_as_asked and (shifts or is_another):
        yield from shift_observations([], steps, log.checkpoints)
        return
    yield _horizon(schedule, log.num_training_steps, int(steps[-1]))
    if schedule.lead:
        yield Observation(
            "off by one: at each update the log has the rate of the next one, as a Trainer logged it until early 2025"
        )
    yield from shift_observations(shifts, steps, log.checkpoints)


def shift_observations(
    shifts: list[Shift], steps: NDArray[np.int64], checkpoints: tuple[int, ...]
) -> Iterator[Observation]:
    """Where the rates leave their schedule.

    Args:
        shifts: as `applied_rates.shifts` found them.
        steps: the updates of the log, increasing, shape (n,).
        checkpoints: the updates after which a checkpoint was saved.

    Yields:
        A line for each shift, or one that says that there is none.
    """
    if not shifts:
        yield Observation(
            f"resume: the rates follow this schedule from update {steps[0]} to {steps[-1]}; none changed it"
        )
    before = 0
    for step, behind in shifts:
        previous = int(steps[np.searchsorted(steps, step) - 1]) if step > steps[0] else 0
        near = [checkpoint for checkpoint in checkpoints if previous <= checkpoint < step]
        saved = f" (checkpoint-{near[-1]} lies there)" if near else ""
        if behind is None:
            text = f"from update {step} on the rates are others than the schedule's; was it resumed with other arguments?{saved}"
        elif previous <= behind <= step:
            text = (
                f"after update {behind} the schedule began again{saved}; the resume did not load the scheduler's state"
            )
        else:
            change = behind - before
            text = (
                f"from update {step} on the schedule is {abs(change)} update{'s' if abs(change) > 1 else ''} "
                f"{'behind' if change > 0 else 'ahead'}{saved}; "
                + ("an update that an overflow skips does not step it, nor does a resume that loses its last step" if change > 0 else "it was stepped more often than the optimizer")
            )  # fmt: skip
        before = behind or before
        yield Observation(f"resume: {text}", ok=False)


def _horizon(schedule: AppliedSchedule, planned: int | None, last: int) -> Observation:
    """Whether the schedule ends where the run does."""
    words = [f"rates: {schedule.name}, peak {schedule.peak:.4g}"]
    words += [f"warm-up of {schedule.warmup:.0f} updates"] if schedule.warmup else []
    words += [f"floor {schedule.floor:.2g} of the peak"] if schedule.name == "cosine" and schedule.floor > 1e-3 else []
    if math.isinf(schedule.horizon):
        return Observation(", ".join(words))
    horizon = round(schedule.horizon)
    words.append(f"over {horizon} updates")
    if planned is None or horizon == planned:
        return Observation(", ".join(words) + ("" if planned is None else ", as planned"))
    text = f"{', '.join(words)}, but the run has {planned}"
    ratio = planned / horizon
    times = round(ratio)
    if times > 1 and abs(ratio - times) < 0.02 * times:
        return Observation(
            f"{text}: {times} times too fast, as a scheduler that is stepped once for each process; multiply its "
            f"num_training_steps by {times}",
            ok=False,
        )
    if ratio > 1:
        return Observation(f"{text}; pass the number of optimizer updates as num_training_steps", ok=False)
    at_end = float(schedule.rates(np.array([planned - 1.0]))[0]) / schedule.peak
    return Observation(
        f"{text}; at update {planned} the rate is still {at_end:.0%} of its peak; pass the number of optimizer "
        "updates as num_training_steps",
        ok=False,
    )


def clipping_observations(log: RateLog, max_grad_norm: float | None = None) -> Iterator[Observation]:
    """How many updates were clipped, and by how much.

    Args:
        log: the run.
        max_grad_norm: the threshold, if the user says it.

    Yields:
        A line for each observation.
    """
    threshold = max_grad_norm if max_grad_norm is not None else log.max_grad_norm
    assumed = "" if threshold is not None else "Trainer's default "
    threshold = TRAINERS_MAX_GRAD_NORM if threshold is None else threshold
    norms = log.norms[np.isfinite(log.norms)]
    if len(norms) == 0:
        yield Observation("clipping: the log holds no gradient norms")
        return
    largest = float(norms.max())
    at_largest = int((norms > 0.999 * largest).sum())
    if at_largest >= 5 and at_largest > AT_THE_LARGEST * len(norms) and len(norms) > FEWEST_RATES:
        yield Observation(
            f"clipping: {at_largest} of {len(norms)} norms are {largest:.3g}, the largest of all: they were logged after clipping, "
            "and say little about the gradients",
            ok=False,
        )
        return
    known = np.isfinite(log.clip_factors)
    if known.any():
        factors = log.clip_factors[known]
    elif threshold > 0:
        factors = np.minimum(1.0, threshold / (norms + 1e-6))
    else:
        factors = np.ones_like(norms)
    yield Observation(_clipping_text(factors, f"{assumed}max_grad_norm {threshold:g}"))


def _clipping_text(factors: Array, threshold: str) -> str:
    clipped = factors[factors < 1]
    share = len(clipped) / len(factors)
    text = f"clipping: {len(clipped)} of {len(factors)} logged updates ({share:.0%}) at {threshold}"
    if len(clipped):
        text += f", to {np.median(clipped):.2g} of the gradient in the median and {clipped.min():.2g} at most"
    return f"{text}; the logged norm is before clipping"


def norm_observations(log: RateLog) -> Iterator[Observation]:
    """Updates without a norm, and jumps of the norm by the square root of a number of processes.

    Args:
        log: the run.

    Yields:
        A line for each observation.
    """
    without = log.steps[~np.isfinite(log.norms)]
    if log.recorded and len(without):
        yield Observation(
            f"not taken: {len(without)} of {len(log.steps)} updates, the first {without[0]}; their gradient was not finite",
            ok=False,
        )
    usable = np.isfinite(log.norms) & (log.norms > 0)
    steps, norms = log.steps[usable], log.norms[usable]
    if len(norms) < 2 * LEVEL:
        return
    jumps = [jump for jump in _jumps(np.log(norms)) if jump[1]]
    for position, processes, ratio in jumps:
        yield Observation(
            f"sharded: the norm jumps by {ratio:.2f}, about {'' if ratio > 1 else '1/'}sqrt({processes}), at update "
            f"{steps[position]}; one side may be the norm of one of {processes} shards, not of the whole gradient",
            ok=False,
        )
    if not jumps:
        yield Observation("sharded: no jump of the norm by the square root of a number of processes")


def _jumps(logarithms: Array) -> list[tuple[int, int, float]]:
    """Where the level of the norm changes at once: the position, the number of processes that explains it, the ratio."""
    found: list[tuple[int, int, float]] = []
    for position in range(LEVEL, len(logarithms) - LEVEL + 1):
        before, after = logarithms[position - LEVEL : position], logarithms[position : position + LEVEL]
        change = float(np.median(after) - np.median(before))
        low, high = (before, after) if change > 0 else (after, before)
        half = LEVEL // 2
        drifts = [abs(float(np.median(side[half:]) - np.median(side[:half]))) for side in (before, after)]
        if low.max() >= high.min() or max(drifts) > 0.25 * abs(change):
            continue
        fitting = [n for n in PROCESSES if abs(math.exp(abs(change)) / math.sqrt(n) - 1) < NEAR_ROOT]
        if fitting:
            found.append((position, fitting[0], math.exp(change)))
    return found
