"""A refined schedule as a value, and how it is made from gradient norms."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..norms.gradient_norms import GradientNorms, UnfinishedRunError
from ..theory.bounds import last_iterate_bound, optimize_schedule
from ..theory.refinement import (
    DEFAULT_POWER,
    NormKind,
    RisingNorms,
    averaged_norms,
    checked_power,
    grid_from,
    linear_decay,
)

OptimizerFamily = Literal["adam", "sgd"]

FAMILY_POWER: dict[str, float] = {"adam": DEFAULT_POWER["l1"], "sgd": DEFAULT_POWER["l2"]}
"""The exponent follows the optimizer: Adam divides by sqrt(v), which grows with the gradients, so one power is done."""

MIN_COVERAGE = 0.95
"""The share of the planned updates that a source must have made to count as a whole run."""

MAX_OPTIMIZED_STEPS = 2_000
"""A numerical schedule takes half a second for so many steps, and ten times that for three times as many."""

SMALLEST_SMOOTHED_RUN = 20
"""With fewer updates the default window is a single value: nothing is smoothed."""


@dataclass(frozen=True, eq=False)
class RefinedSchedule:
    """A schedule as a function of progress, and where it comes from.

    Args:
        multipliers: at progress t / T for t = 0 .. T, shape (T+1,), from 0 to 1.
        optimizer: the family of optimizers that its weights suit.
        norm: the norm that the weights were made of.
        power: the exponent of the weights.
        smoothing: tau, the median filter's window as a fraction of the run.
        source: the run whose norms it was made from, for messages.
        best_peak_ratio: the best peak learning rate of this schedule over linear decay's, by the bound of `bounds`.
        notes: what a user should know about how it was made, a sentence each.
        rising_norms: whether norms that rise were kept or ignored, as in `refine_schedule`.
        weighting: the norms that its weights were made of, shape (T,), for `rank_schedules` and pictures; a schedule file
            does not hold them.
    """

    multipliers: NDArray[np.float64]
    optimizer: OptimizerFamily
    norm: NormKind
    power: float
    smoothing: float
    source: str
    best_peak_ratio: float
    notes: tuple[str, ...] = ()
    rising_norms: RisingNorms = "keep"
    weighting: NDArray[np.float64] | None = None

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ wherever the multipliers do."""
        return hashlib.sha256(self.multipliers.tobytes()).hexdigest()[:12]

    @classmethod
    def from_norms(
        cls,
        norms: GradientNorms | Sequence[GradientNorms],
        optimizer: OptimizerFamily,
        *,
        norm: NormKind | None = None,
        power: float | None = None,
        smoothing: float | None = None,
        rising_norms: RisingNorms | None = None,
        pilot: bool = False,
    ) -> Self:
        """Refine the schedule that a run's norms ask for.

        Args:
            norms: the norms of the run; of several runs, the geometric mean of their smoothed norms is taken.
            optimizer: `"adam"`: L1 ** -1, or L2 ** -1 where L1 is not known. `"sgd"`: L2 ** -2.
            norm: the norm to use instead.
            power: the exponent to use instead, negative.
            smoothing: tau, by default 0.1.
            rising_norms: as in `refine_schedule`, by default `"keep"`.
            pilot: take an unfinished run; its last smoothed norm goes on to the end. `smoothing` is then a fraction of what was
                recorded.

        Returns:
            The schedule.

        Raises:
            ValueError: for arguments out of range, or norms that do not suit them.
            UnfinishedRunError: if the norms cover less than 95 % of the planned run and `pilot` is False.
        """
        if optimizer not in FAMILY_POWER:
            raise ValueError(f'optimizer is {optimizer!r}, but must be "adam" or "sgd".')
        runs = [norms] if isinstance(norms, GradientNorms) else list(norms)
        if not runs:
            raise ValueError("There is no run to refine from; pass at least one.")
        notes = []
        if norm is None:
            norm = "l2" if optimizer == "sgd" else "l1"
            for run in runs:
                if optimizer == "sgd" and run.l2 is None:
                    raise ValueError(
                        f'{run.source} has L1 norms only, but SGD\'s schedule is made of L2 norms; pass norm="l1" to use '
                        "them all the same, or record a run."
                    )
            if norm == "l1" and any(run.l1 is None for run in runs):
                norm = "l2"
                notes.append("There are no L1 norms in the source, so L2 ** -1 stands in for L1 ** -1.")
        power = checked_power(norm, FAMILY_POWER[optimizer] if power is None else power)
        for run in runs:
            if getattr(run, norm) is None:
                raise ValueError(f'{run.source} has no {norm.upper()} norms; leave out norm="{norm}" or record a run.')
        smoothing = 0.1 if smoothing is None else smoothing
        rising_norms = "keep" if rising_norms is None else rising_norms

        totals = [run.total_steps for run in runs]
        values = []
        for run, total in zip(runs, totals, strict=True):
            whose = f"{run.source}: " if len(runs) > 1 else ""
            notes += [f"{whose}{note}" for note in _notes(run, total, pilot)]
            values.append(run.at_every_step(norm)[:total])
        total = max(totals)
        source = runs[0].source if len(runs) == 1 else f"{len(runs)} runs ({', '.join(run.source for run in runs)})"
        if rising_norms == "ignore":
            notes.append("Rising norms are ignored: weights are made of the running minimum.")
        try:
            weighting = averaged_norms(
                values, smoothing=smoothing, rising_norms=rising_norms, num_training_steps=totals
            )
            grid = grid_from(weighting, power)
            squared = squared_norms(weighting, power)
            refined = last_iterate_bound(grid[:-1], squared)
            linear = last_iterate_bound(linear_decay(total), squared)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        return cls(
            multipliers=grid,
            optimizer=optimizer,
            norm=norm,
            power=power,
            smoothing=float(smoothing),
            source=source,
            best_peak_ratio=refined.best_peak / linear.best_peak,
            notes=tuple(notes),
            rising_norms=rising_norms,
            weighting=weighting,
        )


def _notes(run: GradientNorms, total: int, pilot: bool) -> list[str]:
    """What a user should know about one run's norms; raises if they cover too little of it."""
    last = int(run.steps[-1])
    if last < MIN_COVERAGE * total and not pilot:
        raise UnfinishedRunError(
            f"{run.source} covers {last} of {total} planned updates ({last / total:.0%}); finish that run, or use it "
            "as a pilot: 'hf-refined-schedule refine SOURCE --pilot -o schedule.json'."
        )
    notes = []
    if last < total and pilot:
        notes.append(f"A pilot: norms cover {last / total:.0%} of the run, and the last smoothed one goes on.")
    if run.num_not_finite:
        notes.append(f"{run.num_not_finite} logged norms are not finite and were interpolated over.")
    if run.steps[0] > 1:
        notes.append(
            f"The norms of the first {run.steps[0] - 1} updates are missing, and the first norm shapes the start; "
            "log it with logging_first_step=True, or record gradient_norms.jsonl."
        )
    if min(last, total) < SMALLEST_SMOOTHED_RUN:
        notes.append(f"{min(last, total)} updates are too few to smooth; the schedule follows single noisy norms.")
    return notes


def optimized(schedule: RefinedSchedule) -> RefinedSchedule:
    """The schedule of the same norms that has the least last-iterate bound, found numerically.

    Args:
        schedule: a schedule with its `weighting`, as `RefinedSchedule.from_norms` makes it. Of a run longer than
            `MAX_OPTIMIZED_STEPS` so many even points are used, and interpolated.

    Returns:
        The schedule, with how it was made in its notes.
    """
    total = len(schedule.multipliers) - 1
    points = min(total, MAX_OPTIMIZED_STEPS)
    weighting = np.interp(np.arange(points) / points, np.arange(total) / total, schedule.weighting)
    squared = squared_norms(weighting, schedule.power)
    found = optimize_schedule(squared)
    linear = last_iterate_bound(linear_decay(points), squared)
    grid = np.interp(np.arange(total + 1) / total, np.arange(points + 1) / points, np.append(found, 0.0))
    return replace(
        schedule,
        multipliers=grid / grid.max(),
        best_peak_ratio=last_iterate_bound(found, squared).best_peak / linear.best_peak,
        notes=(*schedule.notes, "The last-iterate bound was minimised numerically, from the closed form."),
    )


def squared_norms(weighting: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """G_t^2 for the last-iterate bound, up to a factor: what a schedule's weight is one over.

    Args:
        weighting: the norms that the weights are made of, shape (T,).
        power: the exponent of the weights, negative.

    Returns:
        Squared norms for `bounds` with `norm="l1"`, shape (T,), at most 1.
    """
    return (weighting / weighting.max()) ** -power
