"""Whether a refined schedule can be trusted: what is doubtful about a run's norms, each with its figure, and a verdict."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..norms.gradient_norms import GradientNorms
from ..theory.bounds import last_iterate_bound
from ..theory.classical import classical_schedules, rmse
from ..theory.refinement import averaged_norms, grid_from, peak_place
from .refined_schedule import RefinedSchedule, squared_norms

Verdict = Literal["worth a refined run", "linear will do", "doubtful", "degenerate"]

MAX_POINTS = 20_000
"""Norms that are looked at; of a longer run every k-th. The figures need no more."""

FIRST_NORM_NEIGHBOURS = 20
"""The first norm is replaced by each of so many that follow it."""

MIN_GAIN = 0.01
"""Promised by the bound over linear decay with the same warm-up. The norms of our fine-tuning grid (results/finetune.md) promise less,
and there refined with warm-up is no better than linear with warm-up."""

MAX_FIRST_NORM_SENSITIVITY = 0.25
"""RMSE between two schedules. Published RoBERTa norms give 0.08, flat norms with 20 % scatter 0.23 (the start alone moves, and
the rest is rescaled by it), published ImageNet norms 0.39."""

MAX_WINDOW_SENSITIVITY = 0.15
"""RMSE between two schedules. Published RoBERTa norms give 0.08, ImageNet 0.05, our fine-tuning runs 0.03, ViT more than 0.2."""

MAX_RISE = 1.5
"""Late over least norms. Our fine-tuning grid (results/finetune.md), where refined gains a little, shows 1.09; the grids where it clearly
loses to linear decay 2.2 (results/scratch.md) and 4.9 (results/lora.md); published ImageNet norms 2.18."""

MAX_PEAK_PLACE = 0.6
"""Of the three schedules of results/logistic_regression.md that peak at 69 % to 73 % of the run two clearly lost to linear decay, one of
them with no other doubt (digits, Adam); published RoBERTa norms peak at 45 %."""

MIN_LATE_NORM = 0.3
"""Late over median norms. Norms that fall exponentially to less than this make a schedule that peaks after 70 % of the run (Adam's weights)
or is degenerate (SGD's); published RoBERTa norms give 0.85, all our own language models more than 1."""

MIN_COVERED = 0.25
"""Share of the run that its norms cover. What rises later is not seen: of runs from scratch (results/pilot.md) the first 10 % is called
"linear will do", the first 25 % "doubtful" as the whole is."""

MIN_WINDOW = 5
"""Norms in a window; a median of three still follows single noisy norms."""

MAX_NOT_FINITE = 0.01
"""Share of bad norms that is no more than an accident."""

MAX_SAME_NORM = 0.5
"""Share of L2 norms equal to three digits: gradients that were clipped before they were measured."""

LATEST_PEAK, LEAST_MEAN, MOST_LAST_MASS = 0.85, 0.15, 0.1
"""Beyond them a schedule hardly trains but for a moment. Linear decay has 0, 0.5, 0.0025; cosine 0, 0.5, 0.0001."""


class Finding(NamedTuple):
    """One figure, and whether it speaks against the schedule."""

    name: str
    value: float
    limit: str
    """What is unsuspicious, in words."""
    ok: bool


class DegenerateScheduleError(ValueError):
    """The schedule hardly trains but for a moment."""


class Health(NamedTuple):
    """The verdict, with every figure it rests on."""

    verdict: Verdict
    findings: list[Finding]

    @property
    def doubts(self) -> list[str]:
        """The reasons of the verdict "doubtful", without those of the others."""
        return self.reasons if self.verdict == "doubtful" else []

    @property
    def reasons(self) -> list[str]:
        """A sentence for each figure that is not as it should be."""
        return [
            f"{finding.name} is {finding.value:.3g}, {finding.limit}" for finding in self.findings if not finding.ok
        ]


def check_health(norms: GradientNorms | Sequence[GradientNorms], schedule: RefinedSchedule) -> Health:
    """What is doubtful about the schedule that a run's norms ask for.

    Degenerate: it hardly trains but for a moment. Doubtful: it hangs on one norm, on the window, on norms that rise, or on too
    few or bad ones. Linear will do: the bound promises less than 1 % over linear decay with the same
    warm-up.

    Args:
        norms: the norms of the run, or of each of several.
        schedule: the schedule that `RefinedSchedule.from_norms` made of them.

    Returns:
        The verdict and its figures.
    """
    runs = [norms] if isinstance(norms, GradientNorms) else list(norms)
    totals = [run.total_steps for run in runs]
    # A short part of a long run is still looked at in so many points that another norm can stand first.
    shortest = min(int(run.steps[-1]) for run in runs)
    stride = max(1, min(-(-max(totals) // MAX_POINTS), shortest // (FIRST_NORM_NEIGHBOURS + 1)))
    sampled = [run.at_every_step(schedule.norm)[:total:stride] for run, total in zip(runs, totals, strict=True)]
    points = [-(-total // stride) for total in totals]

    def weighting(of: list[NDArray[np.float64]], tau: float) -> NDArray[np.float64]:
        return averaged_norms(of, smoothing=tau, rising_norms=schedule.rising_norms, num_training_steps=points)

    def grid(of: list[NDArray[np.float64]], tau: float) -> NDArray[np.float64]:
        return grid_from(weighting(of, tau), schedule.power)

    believed = weighting(sampled, schedule.smoothing)
    own = grid_from(believed, schedule.power)
    measured = round(len(believed) * max(len(of) / count for of, count in zip(sampled, points, strict=True)))
    neighbours = min(FIRST_NORM_NEIGHBOURS + 1, *(len(of) for of in sampled))
    degenerate = _shape_findings(schedule.multipliers)
    doubtful = [
        _at_most(
            "the change when another norm stands first (RMSE)",
            max(
                rmse(grid([_with_first(of, of[place]) for of in sampled], schedule.smoothing), own)
                for place in range(1, neighbours)
            ),
            MAX_FIRST_NORM_SENSITIVITY,
        ),
        _at_most(
            "the change with half or double the smoothing (RMSE)",
            max(rmse(grid(sampled, min(1.0, schedule.smoothing * factor)), own) for factor in (0.5, 2.0)),
            MAX_WINDOW_SENSITIVITY,
        ),
        _at_most("the late over the least smoothed norm", _rise(believed[:measured]), MAX_RISE),
        _at_least("the late over the median smoothed norm", _fall(believed[:measured]), MIN_LATE_NORM),
        _at_most(
            "how late the peak comes (share of the run)",
            peak_place(schedule.multipliers),
            MAX_PEAK_PLACE,
        ),
        _at_least("the share of the run that was recorded", measured / len(believed), MIN_COVERED),
        _at_least(
            "the number of norms in a window",
            min(2 * (int(schedule.smoothing * len(run.steps)) // 2) + 1 for run in runs),
            MIN_WINDOW,
        ),
        _at_most(
            "the share of norms that are not finite",
            sum(run.num_not_finite for run in runs) / sum(len(run.steps) + run.num_not_finite for run in runs),
            MAX_NOT_FINITE,
        ),
        _at_most("the first recorded update", max(int(run.steps[0]) for run in runs), 1),
    ]
    l2_norms = [run.l2 for run in runs if run.l2 is not None]
    if l2_norms:
        doubtful.append(
            _at_most(
                "the share of equal L2 norms (clipped before measured?)",
                max(map(_share_of_equals, l2_norms)),
                MAX_SAME_NORM,
            )
        )
    clipped_shares = [run.clipped_share for run in runs if run.clipped_share is not None]
    if clipped_shares:
        share = max(clipped_shares)
        doubtful.append(Finding("the share of updates that were clipped", share, "measured before the clip", True))
    squared = squared_norms(believed, schedule.power)
    classical = classical_schedules(len(squared))
    linear = last_iterate_bound(classical["linear, warm-up"], squared)
    refined = last_iterate_bound(np.minimum(own[:-1], classical["constant, warm-up"]), squared)
    gain = 1 - refined.value / linear.value
    promise = _at_least("the bound's promise over linear decay, both with 5 % warm-up", gain, MIN_GAIN)

    if not all(finding.ok for finding in degenerate):
        verdict: Verdict = "degenerate"
    elif not all(finding.ok for finding in doubtful):
        verdict = "doubtful"
    elif not promise.ok:
        verdict = "linear will do"
    else:
        verdict = "worth a refined run"
    return Health(verdict, [*degenerate, *doubtful, promise])


def check_shape(multipliers: NDArray[np.float64]) -> list[str]:
    """Why a schedule is degenerate: it hardly trains but for a moment.

    Args:
        multipliers: on an even grid of progress from 0 to 1.

    Returns:
        A sentence for each figure beyond its limit; none for a sound schedule.
    """
    return Health("degenerate", _shape_findings(multipliers)).reasons


def _shape_findings(multipliers: NDArray[np.float64]) -> list[Finding]:
    last = multipliers[int(0.95 * len(multipliers)) :]
    return [
        _at_most("the peak's place in the run", peak_place(multipliers), LATEST_PEAK),
        _at_least("the mean multiplier (linear decay: 0.5)", multipliers.mean(), LEAST_MEAN),
        _at_most("the share of all learning in the last 5 %", last.sum() / multipliers.sum(), MOST_LAST_MASS),
    ]


def _at_most(name: str, value: float, limit: float) -> Finding:
    return Finding(
        name, float(value), f"more than {limit:g}" if value > limit else f"at most {limit:g}", bool(value <= limit)
    )


def _at_least(name: str, value: float, limit: float) -> Finding:
    return Finding(
        name, float(value), f"less than {limit:g}" if value < limit else f"at least {limit:g}", bool(value >= limit)
    )


def _with_first(norms: NDArray[np.float64], first: float) -> NDArray[np.float64]:
    return np.concatenate(([first], norms[1:]))


def _rise(smoothed: NDArray[np.float64]) -> float:
    """The late norm over the least norm of the first half."""
    return _late(smoothed) / float(smoothed[: max(1, len(smoothed) // 2)].min())


def _fall(smoothed: NDArray[np.float64]) -> float:
    """The late norm over the median."""
    return _late(smoothed) / float(np.median(smoothed))


def _late(smoothed: NDArray[np.float64]) -> float:
    """The median of the last tenth."""
    return float(np.median(smoothed[-max(1, len(smoothed) // 10) :]))


def _share_of_equals(norms: NDArray[np.float64]) -> float:
    """The largest share of norms that agree in three digits."""
    positive = norms[norms > 0]
    if len(positive) == 0:
        return 0.0
    digits = np.floor(np.log10(positive))
    _, counts = np.unique(np.round(positive / 10.0 ** (digits - 2)) * 10.0 ** (digits - 2), return_counts=True)
    return float(counts.max() / len(norms))
