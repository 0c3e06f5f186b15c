"""The learning-rate schedules that the studies compare, by the names that results and reports use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from hf_refined_schedule.theory.classical import WARMUP

DECAY = 0.2
"""The fraction of the run over which warmup-stable-decay decays."""

NUM_SAMPLES = 201
"""Points of a sampled schedule."""

NUM_EVALUATIONS = 30
"""How often the greedy schedule looks at the evaluation loss during a run."""


@dataclass(frozen=True)
class ComparedSchedule:
    """A schedule of transformers with its settings.

    Args:
        name: the `lr_scheduler_type`.
        warmup: the warm-up as a fraction of the run.
        decay: the decay of warmup-stable-decay as a fraction of the run.
        refinement: options of the refined schedule.
        optim: the optimizer that the method needs, AdamW if None.
    """

    name: str
    warmup: float = 0.0
    decay: float | None = None
    refinement: Mapping[str, Any] = field(default_factory=dict)
    optim: str | None = None

    @property
    def is_refined(self) -> bool:
        """Whether the schedule is made from the norms of an earlier run."""
        return self.name == "refined"

    @property
    def is_known_in_advance(self) -> bool:
        """Whether the learning rates of the run are fixed before it starts."""
        return self.name != "greedy" and self.optim is None

    def warmup_steps(self, steps: int) -> int:
        """The number of warm-up updates in a run of `steps` updates."""
        return max(1, round(self.warmup * steps)) if self.warmup else 0

    def scheduler_options(self, steps: int, source: Path) -> dict[str, Any]:
        """The scheduler's own options.

        Args:
            steps: T, the number of optimizer updates.
            source: the norms, or the schedule file, that a refined schedule is made from.
        """
        if self.is_refined:
            return {"refined_from": str(source), "allow_degenerate": True, **self.refinement}
        if self.decay is not None:
            return {"num_decay_steps": max(1, round(self.decay * steps)), "decay_type": "linear"}
        return {}

    def training_arguments(self, steps: int, peak: float, source: Path) -> dict[str, Any]:
        """The training arguments that select the schedule.

        Args:
            steps: T, the number of optimizer updates.
            peak: the peak learning rate.
            source: as in `scheduler_options`.
        """
        arguments: dict[str, Any] = {"lr_scheduler_type": self.name, "warmup_steps": self.warmup_steps(steps)}
        options = self.scheduler_options(steps, source)
        if self.name == "greedy":
            # It acts on evaluations. The default of min_lr is above many peaks.
            options = {"min_lr": peak / 100, "max_lr": peak, "patience": 1, "smooth": False}
            arguments |= {
                "eval_strategy": "steps",
                "eval_steps": max(1, steps // NUM_EVALUATIONS),
                "metric_for_best_model": "loss",
            }
        if options:
            arguments["lr_scheduler_kwargs"] = options
        if self.optim is not None:
            arguments["optim"] = self.optim
        return arguments

    def make_scheduler(self, optimizer: Optimizer, steps: int, source: Path) -> LRScheduler:
        """Make the scheduler for a training loop; the arguments are those of `scheduler_options`."""
        options = self.scheduler_options(steps, source)
        return get_scheduler(self.name, optimizer, self.warmup_steps(steps), steps, scheduler_specific_kwargs=options)


SCHEDULES: dict[str, ComparedSchedule] = {
    "constant": ComparedSchedule("constant"),
    "constant+warmup": ComparedSchedule("constant_with_warmup", WARMUP),
    "cosine": ComparedSchedule("cosine"),
    "cosine+warmup": ComparedSchedule("cosine", WARMUP),
    "linear": ComparedSchedule("linear"),
    "linear+warmup": ComparedSchedule("linear", WARMUP),
    "inverse_sqrt": ComparedSchedule("inverse_sqrt", WARMUP),
    "wsd": ComparedSchedule("warmup_stable_decay", WARMUP, DECAY),
    "greedy": ComparedSchedule("greedy"),
    "schedule_free": ComparedSchedule("constant", WARMUP, optim="schedule_free_adamw"),
    "refined": ComparedSchedule("refined"),
    "refined+warmup": ComparedSchedule("refined", WARMUP),
    "refined_ignore_rising": ComparedSchedule("refined", refinement={"rising_norms": "ignore"}),
    "refined_ignore_rising+warmup": ComparedSchedule("refined", WARMUP, refinement={"rising_norms": "ignore"}),
    "refined_l2": ComparedSchedule("refined", refinement={"norm": "l2"}),
}


def sample_multipliers(
    schedule: ComparedSchedule, steps: int, source: Path, make_optimizer: Callable[..., Optimizer] = torch.optim.AdamW
) -> list[float]:
    """Step a scheduler through a run and sample its multipliers at even progress.

    Args:
        schedule: a schedule that is known in advance.
        steps: T, the number of optimizer updates.
        source: as in `ComparedSchedule.scheduler_options`.
        make_optimizer: the class of the optimizer that is scheduled.

    Returns:
        Multipliers at `NUM_SAMPLES` points from progress 0 to 1.
    """
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule.make_scheduler(optimizer, steps, source)
    grid = [float(scheduler.get_last_lr()[0])]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        grid.append(float(scheduler.get_last_lr()[0]))
    points = np.interp(np.linspace(0, 1, NUM_SAMPLES), np.linspace(0, 1, steps + 1), grid)
    return [round(float(point), 5) for point in points]
