"""What schedules will cost before they run: their losses, predicted from the logs of runs that exist."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..norms.gradient_norms import UnfinishedRunError
from ..norms.loss_columns import is_evaluation
from ..norms.loss_log import LossLog
from ..norms.loss_sources import load_losses
from ..norms.message_text import listed, quoted, shown
from ..norms.size_limits import is_step_number
from ..norms.sources import find_source
from ..theory.classical import classical_schedules
from ..theory.loss_law import LossLaw, fit_loss_law, minimize_predicted_loss
from .refined_schedule import RefinedSchedule
from .refinement_options import RefinementOptions
from .refining import refine_sources
from .schedule_file import read_whole_schedule

Array = NDArray[np.float64]
Path = str | os.PathLike[str]

PREDICTED = (
    "constant",
    "linear",
    "cosine",
    "wsd 10% linear",
    "wsd 20% linear",
    "wsd 40% linear",
    "wsd 10% 1-sqrt",
    "wsd 20% 1-sqrt",
    "wsd 40% 1-sqrt",
)
"""The schedules that are predicted where none is named."""

LONGEST = 3
"""The horizon that a law reaches, in lengths of the longest logged run."""

LOWEST_PEAK = 0.25
"""The least peak rate that a law reaches, as a fraction of the highest logged rate. Above that one it knows nothing: whether a
run at a higher rate is stable is not in the log."""

MAX_LAW_UPDATES = 2 * 10**6
"""Updates of a run to which a law is fitted in seconds."""

SAME_PEAK = 1e-6
"""The relative difference up to which a peak is the highest logged one, which a log may round."""


class PredictedLoss(NamedTuple):
    """The predicted final loss of a schedule."""

    schedule: str
    num_training_steps: int
    peak: float
    loss: float
    low: float
    """The lower end of the 95 % interval."""
    high: float


class FittedLaw(NamedTuple):
    """A law, and the logs that it was fitted to."""

    law: LossLaw
    logs: list[LossLog]

    @property
    def peak(self) -> float:
        """The highest logged learning rate."""
        return max(log.peak for log in self.logs)

    @property
    def num_training_steps(self) -> int:
        """T of the longest run."""
        return max(log.total_steps for log in self.logs)

    @property
    def warmup_steps(self) -> int:
        """The updates of the longest warm-up."""
        return max(log.warmup_steps for log in self.logs)

    @property
    def longest(self) -> int:
        """The longest horizon that the law reaches."""
        return LONGEST * max(log.last_step for log in self.logs)

    def check_reach(self, num_training_steps: int, peak: float) -> None:
        """Refuse what the logs say nothing about.

        Args:
            num_training_steps: T.
            peak: the peak learning rate.

        Raises:
            ValueError: for a horizon or a peak beyond the reach of the law.
        """
        shortest = self.warmup_steps + 2
        if not is_step_number(num_training_steps) or not shortest <= num_training_steps <= self.longest:
            raise ValueError(
                f"--num-training-steps (num_training_steps) is {quoted(num_training_steps)}, but the law reaches from {shortest}, after the warm-up, to "
                f"{self.longest}, {LONGEST} times the longest log; pass a number of updates between them."
            )
        if not LOWEST_PEAK * self.peak <= peak <= (1 + SAME_PEAK) * self.peak:
            raise ValueError(
                f"--learning-rate (learning_rate) is {peak:.4g}, but the law reaches from {LOWEST_PEAK * self.peak:.4g} to the highest logged rate, "
                f"{self.peak:.4g}; pass a peak between them, or the log of a run with a higher one."
            )

    def final_loss(self, name: str, multipliers: Array, peak: float) -> PredictedLoss:
        """Predict the final loss of a schedule.

        Args:
            name: of the schedule.
            multipliers: of every update, shape (T,).
            peak: the learning rate that they multiply.

        Returns:
            The loss after update T.
        """
        rates = peak * multipliers
        return PredictedLoss(
            name, len(multipliers), peak, float(self.law.predict(rates)[-1]), *self.law.interval(rates)
        )


class Prediction(NamedTuple):
    """Predicted losses of schedules, or why there are none."""

    fitted: FittedLaw
    rows: list[PredictedLoss]
    """At the first horizon and peak, best first; then at the others, in the same order."""
    schedules: dict[str, Array]
    """The multipliers at the first horizon, by name, best first; each of shape (T,)."""
    notes: list[str]

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why nothing is predicted; empty where something is."""
        return self.fitted.law.refusals


def fit_law(sources: Path | Sequence[Path], *, column: str | None = None, warmup_steps: int | None = None) -> FittedLaw:
    """Fit the loss law to the logs of runs.

    Args:
        sources: the runs, of one recipe, as `load_losses` takes them.
        column: as in `load_losses`.
        warmup_steps: as in `load_losses`.

    Returns:
        The law and the logs.

    Raises:
        ValueError: as `load_losses` and `fit_loss_law`.
    """
    logs = [load_losses(path, column=column, warmup_steps=warmup_steps) for path in _listed(sources)]
    for log in logs:
        if log.last_step > MAX_LAW_UPDATES:
            raise ValueError(
                f"{shown(log.source)} is of {log.last_step:,} updates, but a law is fitted to at most {MAX_LAW_UPDATES:,}; number "
                "the updates of the optimizer, not samples or tokens."
            )
    epochs = None if column is not None and is_evaluation(column) else _most_epochs(logs)
    try:
        law = fit_loss_law(
            [log.learning_rates for log in logs],
            [log.centres for log in logs],
            [log.losses for log in logs],
            epochs=epochs,
        )
    except ValueError as error:
        raise ValueError(f"{', '.join(shown(log.source) for log in logs)}: {error}") from None
    return FittedLaw(law, logs)


def _listed(paths: Path | Sequence[Path]) -> list[Path]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _most_epochs(logs: Sequence[LossLog]) -> float | None:
    return max((log.num_epochs for log in logs if log.num_epochs is not None), default=None)


def predict_losses(
    sources: Path | Sequence[Path],
    *,
    num_training_steps: int | None = None,
    learning_rate: float | None = None,
    schedules: Path | Sequence[Path] = (),
    column: str | None = None,
    warmup_steps: int | None = None,
) -> Prediction:
    """Predict the final losses of schedules from the logs of runs that exist.

    A law of the loss is fitted to the logged pairs of learning rate and loss. Every schedule has the warm-up of the run.

    Args:
        sources: the runs, of one recipe, as `load_losses` takes them.
        num_training_steps: T, at most three times that of the longest run; by default its own, and two and three times it.
        learning_rate: the peak, at most the highest logged rate, at least a quarter of it; by default that one, and half of it.
        schedules: names of `PREDICTED` or of `classical_schedules`, `"refined"` for that of the norms in the sources, or
            schedule files; by default all of `PREDICTED`, and refined where the sources have norms.
        column: the name of the loss in the logs, where it is not `loss` or similar.
        warmup_steps: the updates of the warm-up, where the logs begin after it.

    Returns:
        The predictions; none where the law refuses.

    Raises:
        ValueError: for logs that no law can be fitted to; for a horizon or a peak beyond the reach of the law, and an unknown
            schedule.

    Reference: arXiv 2408.11029; arXiv 2503.12811.
    """
    names = [str(one) for one in _listed(schedules)]
    files = _schedule_files(names)
    fitted = fit_law(sources, column=column, warmup_steps=warmup_steps)
    horizons, peaks = _horizons(fitted, num_training_steps), _peaks(fitted, learning_rate)
    if fitted.law.refusals:
        return Prediction(fitted, [], {}, [])
    grids: dict[str, Array | None] = {**dict.fromkeys(names or PREDICTED), **files}
    notes = []
    if not names or "refined" in grids:
        try:
            grids["refined"] = _refined(sources)
        except ValueError as error:
            if names:
                raise
            notes.append(f"no refined schedule: {error}")
    sampled = _sampled(grids, horizons[0], fitted.warmup_steps)
    rows = sorted(
        (fitted.final_loss(name, multipliers, peaks[0]) for name, multipliers in sampled.items()),
        key=lambda row: row.loss,
    )
    order = [row.schedule for row in rows]
    for steps, peak in [(steps, peaks[0]) for steps in horizons[1:]] + [(horizons[0], peak) for peak in peaks[1:]]:
        others = _sampled(grids, steps, fitted.warmup_steps)
        rows += [fitted.final_loss(name, others[name], peak) for name in order]
    return Prediction(fitted, rows, {name: sampled[name] for name in order}, notes)


def best_predicted_schedule(
    fitted: FittedLaw, *, num_training_steps: int | None = None, learning_rate: float | None = None
) -> RefinedSchedule:
    """The schedule with the least predicted loss for a peak and a horizon, which does not rise after its warm-up.

    Args:
        fitted: a law that does not refuse.
        num_training_steps: as in `predict_losses`.
        learning_rate: as in `predict_losses`.

    Returns:
        The schedule, to be written as a schedule file; its notes name the peak.

    Raises:
        ValueError: if the law refuses to predict, or the horizon or the peak is beyond its reach.
    """
    if fitted.law.refusals:
        raise ValueError(f"There is no schedule with the least predicted loss: {' '.join(fitted.law.refusals)}")
    steps, peak = _horizons(fitted, num_training_steps)[0], _peaks(fitted, learning_rate)[0]
    multipliers = minimize_predicted_loss(fitted.law, peak, steps, fitted.warmup_steps)
    source = fitted.logs[0].source if len(fitted.logs) == 1 else f"{len(fitted.logs)} logs"
    note = f"The schedule with the least predicted loss for {steps} updates and a peak learning rate of {peak:.3g}."
    grid = np.append(multipliers, multipliers[-1]) / multipliers.max()
    return RefinedSchedule(grid=grid, source=source, weights=None, notes=(note,))


def predict_extension(schedule: RefinedSchedule) -> tuple[PredictedLoss, float]:
    """Predict what the extension of a run will bring, from the log in its checkpoint.

    Args:
        schedule: one that extends a run.

    Returns:
        The final loss of the extended run, and that of the law at the checkpoint.

    Raises:
        ValueError: where nothing can be predicted, saying why: the log, the gate of the law, or its reach.
    """
    extension = schedule.extension
    if extension is None:
        raise ValueError(f"The schedule from {shown(schedule.source)} extends no run; pass one of extend_run.")
    start, total, peak = extension
    multipliers = schedule.grid[:-1]
    if np.diff(multipliers[start - 1 :]).max(initial=0) > SAME_PEAK:
        raise ValueError("The rate rises again, and the law is of runs whose rate does not.")
    fitted = fit_law(schedule.source)
    if fitted.law.refusals:
        raise ValueError(" ".join(fitted.law.refusals))
    fitted.check_reach(total, fitted.peak)
    before = float(fitted.law.predict(peak * multipliers[:start])[-1])
    return fitted.final_loss("extended", multipliers, peak), before


def _schedule_files(schedules: Sequence[str]) -> dict[str, Array]:
    """The grids of those that are files, by path; refuses what is neither a file nor a name."""
    names = [name for name in classical_schedules(2) if "warm-up" not in name]
    grids = {}
    for one in schedules:
        if one in names or one == "refined":
            continue
        try:
            find_source(one)
        except ValueError:
            raise ValueError(
                f"schedule is {quoted(one)}, which is neither a schedule file nor a known schedule; pass refined or one of "
                f"{listed(names, 200)}."
            ) from None
        grids[one] = read_whole_schedule(one).grid
    return grids


def _refined(sources: Path | Sequence[Path]) -> Array:
    """The grid of the schedule that the norms in the sources ask for; those of an unfinished run are a pilot."""
    try:
        return refine_sources(_listed(sources)).schedule.grid
    except UnfinishedRunError:
        return refine_sources(_listed(sources), options=RefinementOptions(pilot=True)).schedule.grid


def _horizons(fitted: FittedLaw, num_training_steps: int | None) -> list[int]:
    """The given one, or those of the run and two and three times it, as far as the law reaches."""
    if num_training_steps is not None:
        fitted.check_reach(num_training_steps, fitted.peak)
        return [num_training_steps]
    longest = fitted.longest
    first = min(fitted.num_training_steps, longest)  # a pilot may be planned for longer
    return [factor * first for factor in range(1, LONGEST + 1) if factor * first <= longest]


def _peaks(fitted: FittedLaw, learning_rate: float | None) -> list[float]:
    """The given one, or the highest logged rate and half of it."""
    if learning_rate is None:
        return [fitted.peak, fitted.peak / 2]
    fitted.check_reach(fitted.longest, learning_rate)
    return [learning_rate]


def _sampled(grids: Mapping[str, Array | None], num_training_steps: int, warmup_steps: int) -> dict[str, Array]:
    """The multipliers of every update, after the warm-up of the run, which caps a grid."""
    shapes = classical_schedules(num_training_steps - warmup_steps)
    updates = np.arange(num_training_steps)
    ramp = np.minimum(updates / max(warmup_steps, 1), 1.0) if warmup_steps else np.ones(num_training_steps)
    sampled = {}
    for name, grid in grids.items():
        if grid is None:
            sampled[name] = np.concatenate([ramp[:warmup_steps], shapes[name]])
        else:
            progress = np.linspace(0, 1, len(grid))
            sampled[name] = np.minimum(np.interp(updates / num_training_steps, progress, grid), ramp)
    return sampled
