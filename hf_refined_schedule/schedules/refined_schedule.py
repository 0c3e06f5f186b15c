"""A refined schedule as a value, and how it is made from gradient norms."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..norms.gradient_norms import GradientNorms, OptimizerFamily
from ..norms.message_text import listed, shown
from ..theory.bounded_warmup import bound_warmup
from ..theory.bounds import LastIterateBound, bound_from_squared_norms, optimize_for_squared_norms, squared_norms
from ..theory.refinement import (
    DEFAULT_POWER,
    DEFAULT_SMOOTHING,
    NormKind,
    RisingNorms,
    average_norms,
    clip_factors,
    linear_decay,
    refine_schedule,
    undo_clipping,
    weight_power,
)
from .refinement_options import RefinementOptions
from .source_notes import CLIPPING_NOTE, refinement_notes, smallest_smoothing

FAMILY_POWER: dict[str, float] = {"adam": DEFAULT_POWER["l1"], "sgd": DEFAULT_POWER["l2"]}
"""The exponent follows the optimizer: Adam already divides by sqrt(v), which grows with the gradients."""

MAX_OPTIMIZED_STEPS = 2_000
"""Minimising the bound for this many steps takes half a second, and ten times longer for three times as many."""


class Weights(NamedTuple):
    """How a schedule was made from norms, and what follows from them."""

    optimizer: OptimizerFamily
    """The family of optimizers that the weights suit."""
    norm: NormKind
    """The norm that the weights are computed from."""
    power: float
    """The exponent of the weights."""
    smoothing: float
    """tau, the median filter's window as a fraction of the run."""
    best_peak_ratio: float
    """The best peak learning rate of the schedule over that of linear decay, by the last-iterate bound."""
    rising_norms: RisingNorms = "keep"
    """Whether rising norms were kept or ignored, as in `refine_schedule`."""
    max_grad_norm: float | None = None
    """The L2 norm to which SGD's gradients are clipped, where the rates are divided by the clip factors; None where they are not."""
    bounded_warmup: bool = False
    """Whether the warm-up is kept between two lengths, as `bound_warmup` does it."""


class Extension(NamedTuple):
    """The run that a schedule extends. Its grid holds the run's own multipliers up to the checkpoint."""

    start_step: int
    """Updates that the checkpoint has made."""
    num_training_steps: int
    """T, the updates of the extended run."""
    learning_rate: float
    """The peak learning rate of the run, whose multiples the grid holds; they may exceed 1."""


@dataclass(frozen=True, eq=False)
class RefinedSchedule:
    """A schedule as a function of progress, and how it was made.

    Args:
        grid: multipliers at progress t / T for t = 0 .. T, shape (T+1,), from 0 to 1.
        source: the run that it was made from, for messages.
        weights: how it was made from norms; None for a schedule that was made otherwise, which suits every optimizer.
        notes: what a user should know about the source or the method, a sentence each.
        effective_norms: the norms that the weights are computed from, shape (T,). A schedule file does not hold them.
        extension: the run that it extends, None for the schedule of a run from its beginning.
        clip_factors: what clipping multiplies the gradients of SGD by, shape (T,); None where that does not matter.
    """

    grid: NDArray[np.float64]
    source: str
    weights: Weights | None
    notes: tuple[str, ...] = ()
    effective_norms: NDArray[np.float64] | None = None
    extension: Extension | None = None
    clip_factors: NDArray[np.float64] | None = None

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the grid."""
        return hashlib.sha256(self.grid.tobytes()).hexdigest()[:12]

    @property
    def known_weights(self) -> Weights:
        """The weights.

        Raises:
            ValueError: if the schedule was not made from norms.
        """
        if self.weights is None:
            raise ValueError(
                f"The schedule from {shown(self.source)} was not made from gradient norms; pass the run itself."
            )
        return self.weights

    @property
    def optimizer(self) -> OptimizerFamily:
        """The family of optimizers that the weights suit."""
        return self.known_weights.optimizer

    @property
    def norm(self) -> NormKind:
        """The norm that the weights are computed from."""
        return self.known_weights.norm

    @property
    def power(self) -> float:
        """The exponent of the weights."""
        return self.known_weights.power

    @property
    def smoothing(self) -> float:
        """tau, the median filter's window as a fraction of the run."""
        return self.known_weights.smoothing

    @property
    def best_peak_ratio(self) -> float:
        """The best peak learning rate over that of linear decay, by the last-iterate bound."""
        return self.known_weights.best_peak_ratio

    @property
    def rising_norms(self) -> RisingNorms:
        """Whether rising norms were kept or ignored, as in `refine_schedule`."""
        return self.known_weights.rising_norms

    @property
    def squared_norms(self) -> NDArray[np.float64]:
        """G_t^2 for the last-iterate bound, up to a factor, shape (T,).

        Raises:
            ValueError: if the norms are not known, as of a schedule file.
        """
        if self.effective_norms is None:
            raise ValueError(
                f"The norms of {shown(self.source)} are not known; pass the run that the schedule was made from."
            )
        return squared_norms(self.effective_norms, self.power)

    def bound_of(self, multipliers: NDArray[np.float64]) -> LastIterateBound:
        """The last-iterate bound of a schedule for the norms of this one, up to a factor.

        Args:
            multipliers: shape (T,).

        Returns:
            The bound of the steps that the optimizer takes: with clipping, factor * rate.

        Raises:
            ValueError: as `squared_norms`.
        """
        steps = multipliers if self.clip_factors is None else multipliers * self.clip_factors
        return bound_from_squared_norms(steps, self.squared_norms)

    @classmethod
    def from_norms(
        cls,
        norms: GradientNorms | Sequence[GradientNorms],
        optimizer: OptimizerFamily,
        options: RefinementOptions,
    ) -> Self:
        """Refine the schedule that the norms of a run ask for.

        The formula of `refine_schedule` is applied to the smoothed norms and a repeat of the last one, because a run of T
        updates visits T + 1 iterates. With constant norms the result is linear decay, 1 - t / T.

        Args:
            norms: the norms of the run. Of several runs, the geometric mean of their smoothed norms is taken.
            optimizer: `"adam"`: L1 ** -1, or L2 ** -1 where L1 is not known. `"sgd"`: L2 ** -2.
            options: norm, power, smoothing and rising norms; with `pilot`, the norms may cover the first part of the run
                alone, their last smoothed value is repeated to the end, and `smoothing` is a fraction of the covered part.

        Returns:
            The schedule.

        Raises:
            ValueError: for norms that do not suit the optimizer or the options.
            UnfinishedRunError: if the norms cover less than 95 % of the planned run and `pilot` is False.
        """
        if optimizer not in FAMILY_POWER:
            raise ValueError(f'optimizer is {optimizer!r}, but must be "adam" or "sgd".')
        runs = [norms] if isinstance(norms, GradientNorms) else list(norms)
        if not runs:
            raise ValueError("There is no run to refine from; pass at least one.")
        norm = _choose_norm(runs, optimizer, options.norm)
        power = weight_power(norm, FAMILY_POWER[optimizer] if options.power is None else options.power)
        smoothing = max(DEFAULT_SMOOTHING, smallest_smoothing(runs)) if options.smoothing is None else options.smoothing
        rising_norms = "ignore" if options.bounded_warmup else options.rising_norms or "keep"
        notes = refinement_notes(runs, optimizer, norm, smoothing, options)
        names = [run.source for run in runs]
        source = names[0] if len(runs) == 1 else f"{len(runs)} runs ({', '.join(names)})"
        totals = [run.total_steps for run in runs]
        recorded = [run.at_every_step(norm)[:total] for run, total in zip(runs, totals, strict=True)]
        try:
            effective = average_norms(
                recorded, smoothing=smoothing, rising_norms=rising_norms, num_training_steps=totals
            )
            grid = refine_schedule(np.append(effective, effective[-1]), norm=norm, power=power, smoothing=0)
            limit, factors = _clipping_limit(runs, optimizer, norm, options), None
            if options.bounded_warmup:
                grid = bound_warmup(grid)
            elif limit:
                kept = average_norms(recorded, smoothing=smoothing, num_training_steps=totals)
                factors = clip_factors(kept, limit)
                grid = undo_clipping(grid, np.append(factors, factors[-1]))
                notes += [CLIPPING_NOTE.format(limit=limit)] if (factors < 1).any() else []
            weights = Weights(
                optimizer, norm, power, float(smoothing), 1.0, rising_norms, limit, options.bounded_warmup
            )
            schedule = cls(grid, source, weights, tuple(notes), effective, clip_factors=factors)
            return replace(schedule, weights=weights._replace(best_peak_ratio=_best_peak_ratio(schedule)))
        except ValueError as error:
            raise ValueError(f"{shown(source)}: {error}") from error


def minimize_bound(schedule: RefinedSchedule) -> RefinedSchedule:
    """The schedule for the same norms that minimises the last-iterate bound numerically.

    Args:
        schedule: a schedule with its `effective_norms`, as `RefinedSchedule.from_norms` makes it. The bound of a run longer
            than `MAX_OPTIMIZED_STEPS` is minimised on that many evenly spaced points, and interpolated.

    Returns:
        The schedule, with the method in its notes.

    Raises:
        ValueError: if the norms of the schedule are not known, or its warm-up is bounded.
    """
    if schedule.known_weights.bounded_warmup:
        raise ValueError("bounded_warmup and a numerical minimum of the bound exclude each other; choose one.")
    total = len(schedule.grid) - 1
    points = min(total, MAX_OPTIMIZED_STEPS)
    squared = np.interp(np.arange(points) / points, np.arange(total) / total, schedule.squared_norms)
    steps = optimize_for_squared_norms(squared / squared.max())
    grid = np.interp(np.arange(total + 1) / total, np.arange(points + 1) / points, np.append(steps, 0.0))
    if schedule.clip_factors is not None:
        grid = undo_clipping(grid, np.append(schedule.clip_factors, schedule.clip_factors[-1]))
    minimized = replace(
        schedule,
        grid=grid / grid.max(),
        notes=(*schedule.notes, "The last-iterate bound was minimised numerically, starting from the closed form."),
    )
    weights = schedule.known_weights._replace(best_peak_ratio=_best_peak_ratio(minimized))
    return replace(minimized, weights=weights)


def _best_peak_ratio(schedule: RefinedSchedule) -> float:
    linear = schedule.bound_of(linear_decay(len(schedule.grid) - 1))
    return schedule.bound_of(schedule.grid[:-1]).best_peak / linear.best_peak


def _clipping_limit(
    runs: Sequence[GradientNorms], optimizer: OptimizerFamily, norm: NormKind, options: RefinementOptions
) -> float | None:
    """The norm to which SGD's gradients are clipped, None where that does not change the schedule.

    With Adam a factor that changes slowly cancels between the gradient and its second moment.
    """
    if optimizer != "sgd":
        if options.max_grad_norm:
            raise ValueError("max_grad_norm changes the schedule of SGD alone; leave it out for the adam family.")
        return None
    if norm != "l2" or options.bounded_warmup:
        return None
    limits = {run.max_grad_norm for run in runs} if options.max_grad_norm is None else {options.max_grad_norm}
    if len(limits) > 1:
        raise ValueError(f"The runs clip at {listed(map(str, limits))}; pass max_grad_norm, that of the run to come.")
    return limits.pop() or None


def _choose_norm(runs: Sequence[GradientNorms], optimizer: OptimizerFamily, norm: NormKind | None) -> NormKind:
    """The requested norm, or the one that suits the optimizer and that all runs have."""
    if norm is None and optimizer == "sgd":
        for run in runs:
            if run.l2 is None:
                raise ValueError(
                    f"{shown(run.source)} has L1 norms only, but SGD's schedule needs L2 norms; pass --norm l1 (norm) to use the L1 "
                    "norms, or record a run."
                )
        norm = "l2"
    elif norm is None:
        norm = "l2" if any(run.l1 is None for run in runs) else "l1"
    for run in runs:
        if getattr(run, norm) is None:
            raise ValueError(
                f"{shown(run.source)} has no {norm.upper()} norms; leave out --norm {norm} (norm) or record a run."
            )
    return norm
