"""What a run logged of its loss and its learning rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .message_text import shown
from .step_order import describe_steps


@dataclass(frozen=True, eq=False)
class LossLog:
    """The logged losses of one run, and the learning rate of every update up to the last of them.

    Args:
        steps: optimizer updates that have a loss, 1-based, increasing, shape (n,).
        losses: the loss logged at each of them, positive, shape (n,).
        learning_rates: the learning rate of updates 1, 2, .. T', shape (T',), T' at least the last of `steps`.
        num_training_steps: T, the number of updates planned for the run; None if the source does not say.
        source: where the losses come from, for messages.
        origin: the kind of record that they come from, for messages.
        num_epochs: passes over the training data up to the last loss; None if the source does not say.
        remarks: what a reader noticed about the log, a clause each.
        means_since_last: whether each loss is the mean over the updates since the last entry, as a Trainer logs it.

    Raises:
        ValueError: if the arrays do not fit together, or a value is out of range.
    """

    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    learning_rates: NDArray[np.float64]
    num_training_steps: int | None = None
    source: str = "losses in memory"
    origin: str = "losses in memory"
    num_epochs: float | None = None
    remarks: tuple[str, ...] = ()
    means_since_last: bool = False

    def __post_init__(self) -> None:
        name = shown(self.source)
        for field, dtype in (("steps", np.int64), ("losses", np.float64), ("learning_rates", np.float64)):
            object.__setattr__(self, field, np.asarray(getattr(self, field), dtype=dtype))
        if self.steps.ndim != 1 or self.steps.shape != self.losses.shape or len(self.steps) == 0:
            raise ValueError(
                f"{name}: steps have shape {self.steps.shape}, losses {self.losses.shape}; pass one loss for each step."
            )
        if self.steps[0] < 1 or np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"{name}: steps must be 1-based and increasing; sort them and leave out repeats.")
        if not (np.isfinite(self.losses).all() and (self.losses > 0).all()):
            raise ValueError(f"{name}: losses must be positive and finite; leave out the others.")
        if self.learning_rates.ndim != 1 or len(self.learning_rates) < self.steps[-1]:
            raise ValueError(
                f"{name}: learning_rates have shape {self.learning_rates.shape}, but the last loss is of update "
                f"{self.steps[-1]}; pass the learning rate of every update."
            )
        if not (np.isfinite(self.learning_rates).all() and (self.learning_rates >= 0).all()):
            raise ValueError(f"{name}: learning_rates must be finite and not negative.")
        if not self.learning_rates.any():
            raise ValueError(f"{name}: every learning rate is 0; pass the log of a run that trains.")

    @property
    def centres(self) -> NDArray[np.int64]:
        """The update in the middle of those that each loss is the mean of, 1-based, shape (n,)."""
        return self.steps - np.diff(self.steps, prepend=0) // 2 if self.means_since_last else self.steps

    @property
    def last_step(self) -> int:
        """The last update that has a loss."""
        return int(self.steps[-1])

    @property
    def total_steps(self) -> int:
        """T: the planned number of updates, or the last update with a loss where that is larger or no plan is known."""
        return max(self.num_training_steps or 0, self.last_step)

    @property
    def peak(self) -> float:
        """The largest learning rate up to the last loss."""
        return float(self.learning_rates[: self.last_step].max())

    @property
    def warmup_steps(self) -> int:
        """Updates of a warm-up from near 0 up to the first that has the peak rate; 0 where the run begins otherwise."""
        rates = self.learning_rates[: self.last_step]
        first = int(np.argmax(rates >= (1 - 1e-6) * self.peak))
        rises = (np.diff(rates[: first + 1]) >= 0).all()
        return first if rises and rates[0] < 0.5 * self.peak else 0

    @property
    def description(self) -> str:
        """One line: the source, the number of losses, their spacing, the part of the run, the rates, what was noticed."""
        words = [
            f"{shown(self.source)} ({self.origin}): {len(self.steps)} losses",
            *describe_steps(self.steps, self.total_steps, self.remarks),
            f"learning rate up to {self.peak:.3g}",
        ]
        words += [f"{self.num_epochs:.2f} epochs"] if self.num_epochs is not None else []
        return ", ".join([*words, *self.remarks])


def rates_of_every_update(
    steps: NDArray[np.int64], rates: NDArray[np.float64], last_step: int, warmup_steps: int | None = None
) -> NDArray[np.float64]:
    """Rebuild the learning rate of every update from logged ones.

    Between two logged rates, linear interpolation. Before the first, a warm-up is a line from 0 at update 1: to
    the first logged rate if the second is higher and `warmup_steps` is not 0, otherwise over `warmup_steps`. Without either,
    the first logged rate holds from update 1 on. After the last, that one holds.

    What this costs: with a rate logged every k updates, a corner of the schedule moves by less than k updates, and a curved
    decay is off by at most k ** 2 / 8 times its second derivative; both vanish for k = 1. A warm-up that ends before the
    first logged rate is not seen: a sum of rates is then too large by half of it. Trainers before transformers 4.56 or so
    log the rate of the next update, which shifts all by one.

    Args:
        steps: updates with a logged rate, 1-based, increasing, shape (n,).
        rates: those rates, shape (n,).
        last_step: T', the last update to rebuild.
        warmup_steps: the updates of a warm-up that the log does not show.

    Returns:
        The rates of updates 1 .. T', shape (T',).

    Raises:
        ValueError: if the logged rates refute `warmup_steps`.

    Example:
        >>> rates_of_every_update(np.array([3, 5, 9]), np.array([0.2, 0.4, 0.0]), 9)
        array([0. , 0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1, 0. ])
    """
    updates = np.arange(1, last_step + 1)
    rebuilt: NDArray[np.float64] = np.interp(updates, steps, rates)
    first = int(steps[0])
    rises = len(rates) > 1 and rates[1] > rates[0]
    if warmup_steps:
        _check_warmup(steps, rates, warmup_steps, rises=rises)
    if rises and warmup_steps != 0:
        warmup_steps = first - 1
    if warmup_steps:
        ramp = np.minimum((updates - 1) / warmup_steps, 1.0)
        rebuilt[: first - 1] *= ramp[: first - 1]
    return rebuilt


def _check_warmup(steps: NDArray[np.int64], rates: NDArray[np.float64], warmup_steps: int, *, rises: bool) -> None:
    """Refuse a warm-up that ends elsewhere than the logged rates show.

    Where they rise, it ends within one entry of the highest rate before they first fall; otherwise, before the first. Later peaks are
    restarts. An old Trainer's rates are one update early.
    """
    falls = np.flatnonzero(np.diff(rates) < 0)
    highest = int(np.argmax(rates[: falls[0] + 1] if len(falls) else rates))
    shortest = int(steps[highest - 1]) - 1 if rises else 0
    longest = int(steps[min(highest + 1, len(steps) - 1)]) if rises else int(steps[0])
    if not shortest <= warmup_steps <= longest:
        raise ValueError(
            f"--warmup-steps (warmup_steps) is {warmup_steps}, but the logged learning rates "
            + (f"rise to update {steps[highest]}" if rises else f"do not rise after update {steps[0]}")
            + "; leave it out, or pass the length of the run's warm-up."
        )
