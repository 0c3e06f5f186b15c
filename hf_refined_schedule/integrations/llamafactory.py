"""The refined schedule as a scheduler plugin of LLaMA-Factory's version 1, which has a trainer of its own.

Version 0 trains with transformers' Trainer and needs no plugin.
"""

from collections.abc import Mapping
from typing import Any

from llamafactory.v1.plugins.trainer_plugins.lr_scheduler import LRSchedulerPlugin
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..training.scheduler import get_refined_schedule

NAME = "refined"


def register_lr_scheduler() -> None:
    """Make `lr_scheduler_config: {name: refined, refined_from: ...}` known to LLaMA-Factory's version 1.

    The other entries are those of `get_refined_schedule`, and `num_warmup_steps`. A second call changes nothing.
    """
    plugin = LRSchedulerPlugin(NAME)
    try:
        plugin["__call__"]
    except ValueError:  # its word for a name that is not registered
        plugin.register()(_create)


def _create(optimizer: Optimizer, num_training_steps: int, config: Mapping[str, Any]) -> LambdaLR:
    """Called by the trainer with the entries of `lr_scheduler_config`."""
    options = {"num_warmup_steps": 0, **config}
    del options["name"]
    return get_refined_schedule(optimizer, num_training_steps=num_training_steps, **options)
