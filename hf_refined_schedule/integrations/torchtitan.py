"""The refined schedule as torchtitan's scheduler.

lr_scheduler=RefinedLRSchedulersContainer.Config(refined_from="schedule.json")
"""

from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer

from ..training.scheduler import get_refined_schedule


class RefinedLRSchedulersContainer(LRSchedulersContainer):
    """One refined schedule for each optimizer of torchtitan's container. `Config` describes it.

    Args:
        optimizers: torchtitan's container of optimizers.
        schedulers: one scheduler for each of them.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        """torchtitan's own options, of which `warmup_steps`, `total_steps` and `min_lr_factor` apply."""

        refined_from: str = ""
        """The earlier run: a schedule file of 'hf-refined-schedule refine', or what the schedule 'refined' takes elsewhere."""

        warmup_steps: int = 0
        """Steps of a ramp that caps the schedule. The warm-up that the norms ask for is already part of it."""

        def build(self, *, optimizers: OptimizersContainer, training_steps: int) -> "RefinedLRSchedulersContainer":
            """Build the schedulers, as torchtitan's trainer does.

            Args:
                optimizers: the optimizers.
                training_steps: T, the steps of the run.

            Returns:
                The container of the schedulers. Its checkpoints hold the step alone, so that a resumed run needs `refined_from`
                again.

            Raises:
                ValueError: if `refined_from` is missing or cannot be used, or an option is given that has no effect.
            """
            if self.decay_ratio is not None or self.decay_type != "linear":
                raise ValueError(
                    "decay_ratio and decay_type cannot be used by a refined schedule, which is the whole decay; leave them out."
                )
            steps = training_steps if self.total_steps is None else self.total_steps
            schedulers: list[Any] = [
                get_refined_schedule(
                    optimizer, self.warmup_steps, steps, refined_from=self.refined_from, min_lr_ratio=self.min_lr_factor
                )
                for optimizer in optimizers
            ]
            for scheduler in schedulers:
                scheduler.raise_if_unavailable()  # torchtitan's checkpoints could not bring the schedule back
            return RefinedLRSchedulersContainer(optimizers, schedulers)

    def __init__(self, optimizers: OptimizersContainer, schedulers: Any) -> None:
        self.schedulers: list[LRScheduler] = schedulers
