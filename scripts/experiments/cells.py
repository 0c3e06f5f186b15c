"""Cells of a grid of training runs, and their results.

Cells that differ only in schedule and peak learning rate are pairs: the seed fixes the initial weights and the order of the
batches, so a difference between two of them is due to the schedule.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASELINE = "baseline"
"""The role of a run that the refined schedule is made from. It is never compared."""

TWICE_THE_STEPS = "linear, twice the steps"
"""The schedule of cells that give linear decay the compute of a refined run and its baseline."""

FINER_PEAKS = "linear, finer peaks"
"""The schedule that tables show for cells of linear decay at peaks between those of the grid."""


@dataclass(frozen=True)
class Cell:
    """One training run.

    Args:
        regime: what is trained, such as `"finetune"` or `"digits, SGD"`. Only cells of one regime are compared.
        schedule: the name of the learning-rate schedule.
        peak: the peak learning rate.
        seed: the seed of the weights and of the order of the batches.
        steps: T, the number of optimizer updates.
        role: why the cell runs, if not to be compared.
        finer: whether the peak lies between two peaks of the grid.
    """

    regime: str
    schedule: str
    peak: float
    seed: int
    steps: int
    role: str | None = None
    finer: bool = False


@dataclass(frozen=True)
class Result:
    """The result of a cell.

    Args:
        cell: the cell.
        loss: the final loss, infinite if the run diverged.
        curve: pairs of optimizer update and training loss.
        seconds: the time that the cell took.
    """

    cell: Cell
    loss: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def to_row(self) -> dict[str, Any]:
        """The row of results.jsonl. A diverged run has no loss and no curve."""
        cell, diverged = self.cell, not math.isfinite(self.loss)
        return {
            "regime": cell.regime,
            "schedule": cell.schedule,
            "peak": cell.peak,
            "seed": cell.seed,
            "steps": cell.steps,
            **({"role": cell.role} if cell.role else {}),
            **({"finer": True} if cell.finer else {}),
            "eval_loss": None if diverged else self.loss,
            "diverged": diverged,
            "curve": [] if diverged else self.curve,
            "seconds": self.seconds,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Result":
        """Read a row of results.jsonl.

        Raises:
            KeyError, TypeError, ValueError: if the row is not the result of a cell.
        """
        cell = Cell(
            regime=str(row["regime"]),
            schedule=str(row["schedule"]),
            peak=float(row["peak"]),
            seed=int(row["seed"]),
            steps=int(row["steps"]),
            role=row.get("role"),
            finer=bool(row.get("finer", False)),
        )
        diverged = row["diverged"] or row["eval_loss"] is None or not math.isfinite(row["eval_loss"])
        curve = [
            (int(step), float(loss))
            for step, loss in row.get("curve") or []
            if loss is not None and math.isfinite(loss)
        ]
        return cls(cell, math.inf if diverged else float(row["eval_loss"]), curve, float(row.get("seconds", 0.0)))
