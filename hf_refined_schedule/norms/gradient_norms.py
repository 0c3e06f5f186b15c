"""What a run recorded: its gradient norms and what is known about the run."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..theory.refinement import NormKind

OptimizerFamily = Literal["adam", "sgd"]
"""Optimizers by their steps: coordinate-wise, as Adam's, or along the gradient, as SGD's."""

MAX_STEPS = 5 * 10**7
"""More updates than a run makes. A file with a larger step number is damaged, and would fill the memory."""


class UnfinishedRunError(ValueError):
    """The norms cover too little of the planned run."""


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """The gradient norms of one run, before clipping; updates that were not taken are left out.

    Args:
        steps: optimizer updates that have a norm, 1-based, increasing, shape (n,).
        l1: L1 norm of the whole gradient at each of them, shape (n,), or None where it is not known.
        l2: L2 norm likewise.
        num_training_steps: T, the updates that the run was planned for; None if the source does not say.
        optimizer: `"adam"` for coordinate-wise steps, `"sgd"`, or None if the source does not say.
        source: where the norms come from, for messages.
        num_not_finite: log entries that were left out because their norm is NaN or infinite.
        origin: the kind of record that the norms come from, for messages.
        clipped_share: the fraction of updates whose gradient was clipped, None if the source does not say.

    Raises:
        ValueError: if the arrays do not fit together.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", np.asarray(self.steps, dtype=np.int64))
        if self.l1 is None and self.l2 is None:
            raise ValueError(f"{self.source} holds neither L1 nor L2 norms; record a run with GradientNormCallback.")
        for kind in ("l1", "l2"):
            values = getattr(self, kind)
            if values is None:
                continue
            values = np.asarray(values, dtype=np.float64)
            if values.shape != self.steps.shape:
                raise ValueError(
                    f"{self.source}: {kind} has shape {values.shape}, steps {self.steps.shape}; match them."
                )
            object.__setattr__(self, kind, values)
        if self.steps.ndim != 1 or len(self.steps) == 0:
            raise ValueError(f"{self.source} holds no gradient norms; record a run with GradientNormCallback.")
        if self.steps[0] < 1 or np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"{self.source}: steps must be 1-based and increasing; sort them and leave out repeats.")

    @property
    def total_steps(self) -> int:
        """T: the planned number of updates, or the last update where the source does not say."""
        return self.num_training_steps or int(self.steps[-1])

    @property
    def description(self) -> str:
        """One line: the source, the number and kind of norms, their spacing, the part of the run, the bad entries."""
        kinds = " and ".join(kind.upper() for kind in ("l1", "l2") if getattr(self, kind) is not None)
        every = round(float(np.median(np.diff(self.steps)))) if len(self.steps) > 1 else 1
        words = [
            f"{self.source} ({self.origin}): {len(self.steps)} {kinds} norms",
            "of every update" if every == 1 else f"one every {every} updates",
            f"to update {self.steps[-1]} of {self.total_steps}",
        ]
        words += [f"{self.num_not_finite} not finite"] if self.num_not_finite else []
        return ", ".join(words)

    def at_every_step(self, kind: NormKind) -> NDArray[np.float64]:
        """One norm for each update up to the last recorded one, interpolated where a norm is missing.

        Args:
            kind: which norm.

        Returns:
            Norms at steps 1, 2, .. steps[-1], shape (steps[-1],).
        """
        values = getattr(self, kind)
        return np.interp(np.arange(1, self.steps[-1] + 1), self.steps, values)


def is_step_number(value: Any) -> bool:
    """Whether a value read from a file is a valid number of an optimizer update.

    Args:
        value: anything.

    Returns:
        True for an integer from 1 to `MAX_STEPS`.
    """
    return type(value) is int and 0 < value <= MAX_STEPS
