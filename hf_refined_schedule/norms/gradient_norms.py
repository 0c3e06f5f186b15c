"""What a run recorded: its gradient norms and what is known about the run."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..theory.refinement import NormKind
from .message_text import shown
from .size_limits import ANY_NUMBER_OF_NORMS, MAX_STEPS, MAX_UPDATES_PER_NORM
from .step_order import describe_steps

OptimizerFamily = Literal["adam", "sgd"]
"""Optimizers by their steps: coordinate-wise, as Adam's, or along the gradient, as SGD's."""


class UnfinishedRunError(ValueError):
    """The norms cover too little of the planned run."""


def _no_steps() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """The gradient norms of one run, before clipping. Updates that were not taken are left out.

    A norm of 0 carries no information: the update had no gradient (a group without advantage in reinforcement learning),
    or a loss scaler skipped it. Such norms move from `steps`, `l1` and `l2` to `zero_steps`.

    Args:
        steps: optimizer updates that have a norm, 1-based, increasing, shape (n,).
        l1: L1 norm of the whole gradient at each of them, shape (n,), or None where it is not known.
        l2: L2 norm likewise.
        num_training_steps: T, the number of updates planned for the run; None if the source does not say.
        optimizer: `"adam"` for coordinate-wise steps, `"sgd"`, or None if the source does not say.
        source: where the norms come from, for messages.
        num_not_finite: log entries that were left out because their norm is NaN or infinite.
        origin: the kind of record that the norms come from, for messages.
        clipped_share: the fraction of updates whose gradient was clipped, None if the source does not say.
        zero_steps: updates of norm 0, 1-based, increasing; those among `steps` are added.
        finished: False for a run that did not end and whose planned length is not known; None if the source does not say.
        remarks: what a reader noticed about the log, a clause each.
        logged_by_trainer: whether a Hugging Face Trainer logged the norms; its default optimizer is AdamW.
        max_grad_norm: the L2 norm to which the run clipped its gradients; 0 for no clipping, None if the source does not say.

    Raises:
        UnfinishedRunError: if the planned run is too long for the number of norms.
        ValueError: if the arrays do not fit together, most norms are 0, or the last step is too large for the number of
            norms.
    """

    steps: NDArray[np.int64]
    l1: NDArray[np.float64] | None = None
    l2: NDArray[np.float64] | None = None
    num_training_steps: int | None = None
    optimizer: OptimizerFamily | None = None
    source: str = "norms in memory"
    num_not_finite: int = 0
    origin: str = "norms in memory"
    clipped_share: float | None = None
    zero_steps: NDArray[np.int64] = field(default_factory=_no_steps)
    finished: bool | None = None
    remarks: tuple[str, ...] = ()
    logged_by_trainer: bool = False
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", np.asarray(self.steps, dtype=np.int64))
        self._check_arrays()
        self._move_zeros()
        self._check_length()

    def _check_arrays(self) -> None:
        name = shown(self.source)
        if self.l1 is None and self.l2 is None:
            raise ValueError(f"{name} holds neither L1 nor L2 norms; record a run with GradientNormCallback.")
        for kind in ("l1", "l2"):
            if getattr(self, kind) is None:
                continue
            values = np.asarray(getattr(self, kind), dtype=np.float64)
            if values.shape != self.steps.shape:
                raise ValueError(f"{name}: {kind} has shape {values.shape}, steps {self.steps.shape}; match them.")
            object.__setattr__(self, kind, values)
        if self.steps.ndim != 1 or len(self.steps) == 0:
            raise ValueError(f"{name} holds no gradient norms; record a run with GradientNormCallback.")
        if self.steps[0] < 1 or np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"{name}: steps must be 1-based and increasing; sort them and leave out repeats.")

    def _move_zeros(self) -> None:
        known = [values for values in (self.l1, self.l2) if values is not None]
        zero = np.any([values == 0 for values in known], axis=0)
        zero_steps = np.union1d(np.asarray(self.zero_steps, dtype=np.int64), self.steps[zero])
        object.__setattr__(self, "zero_steps", zero_steps)
        num_norms = int((~zero).sum())
        if len(zero_steps) > num_norms:
            raise ValueError(
                f"{shown(self.source)}: {len(zero_steps)} of {len(zero_steps) + num_norms} gradient norms are 0, the first "
                f"at update {zero_steps[0]}, but at most half may be; take the norms of a run that trains in most updates."
            )
        for name in ("l1", "l2", "steps"):
            values = getattr(self, name)
            if values is not None and zero.any():
                object.__setattr__(self, name, values[~zero])

    def _check_length(self) -> None:
        limit = min(MAX_STEPS, max(ANY_NUMBER_OF_NORMS, MAX_UPDATES_PER_NORM * len(self.steps)))
        if self.total_steps > limit:
            error = ValueError if self.last_step > limit else UnfinishedRunError
            raise error(
                f"{shown(self.source)}: {len(self.steps)} gradient norms up to update {self.last_step:,} cannot describe a "
                f"run of {self.total_steps:,} updates, but at most {limit:,}; record more norms, or correct the numbers."
            )

    @property
    def num_zero(self) -> int:
        """The number of norms of 0 that were left out."""
        return len(self.zero_steps)

    @property
    def last_step(self) -> int:
        """The last recorded update, also where its norm is 0."""
        return int(max([self.steps[-1], *self.zero_steps[-1:]]))

    @property
    def total_steps(self) -> int:
        """T: the planned number of updates, or the last recorded update where that is larger or no plan is known."""
        return max(self.num_training_steps or 0, self.last_step)

    @property
    def length_is_unknown(self) -> bool:
        """Whether the run did not end, and its planned length is not known."""
        return self.finished is False and self.num_training_steps is None

    @property
    def description(self) -> str:
        """One line: the source, the number and kind of norms, their spacing, the part of the run, what was left out."""
        kinds = " and ".join(kind.upper() for kind in ("l1", "l2") if getattr(self, kind) is not None)
        words = [
            f"{shown(self.source)} ({self.origin}): {len(self.steps)} {kinds} norms",
            *describe_steps(self.steps, self.total_steps, self.remarks),
        ]
        if self.num_training_steps is not None and self.num_training_steps < self.last_step:
            words.append(f"though {self.num_training_steps} were planned")
        words += [f"{self.num_not_finite} not finite"] if self.num_not_finite else []
        words += (
            [f"{self.num_zero} of norm 0 left out, the first at update {self.zero_steps[0]}"] if self.num_zero else []
        )
        return ", ".join([*words, *self.remarks])

    def at_every_step(self, kind: NormKind) -> NDArray[np.float64]:
        """One norm for each update up to the last recorded one, interpolated where a norm is missing or 0.

        Args:
            kind: which norm.

        Returns:
            Norms at steps 1, 2, .. `last_step`, shape (last_step,).
        """
        values: NDArray[np.float64] = np.interp(np.arange(1, self.last_step + 1), self.steps, getattr(self, kind))
        return values
