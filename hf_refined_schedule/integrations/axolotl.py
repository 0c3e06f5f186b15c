"""A plugin for axolotl, which configures training in a YAML file.

plugins:
  - hf_refined_schedule.integrations.axolotl.RefinedSchedulePlugin
lr_scheduler: refined
refined_from: runs/baseline
"""

from collections.abc import Mapping
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from ..training.callback import GradientNormCallback
from ..training.registration import register


class RefinedScheduleInputs(BaseModel):
    """What the plugin adds to axolotl's configuration."""

    refined_from: str | list[str] | None = Field(
        default=None,
        description="For lr_scheduler refined: the earlier run, its output_dir or gradient_norms.jsonl, or a list of several",
    )


class RefinedSchedulePlugin(BasePlugin):
    """Records the gradient norms of every run, and makes `lr_scheduler: refined` known.

    Other options of the schedule go into axolotl's own `lr_scheduler_kwargs`.
    """

    def register(self, cfg: Mapping[str, Any]) -> None:
        """Register the schedule with transformers.

        Args:
            cfg: the configuration of the run.
        """
        register()

    def get_input_args(self) -> str:
        """Name the model of the options that the plugin adds.

        Returns:
            The path of a pydantic model.
        """
        return f"{__name__}.{RefinedScheduleInputs.__name__}"

    def get_training_args(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Write `refined_from` into the scheduler's keywords, where the schedule looks for it.

        Args:
            cfg: the configuration of the run.

        Returns:
            Training arguments that replace axolotl's.

        Raises:
            ValueError: if `refined_from` is given with another scheduler.
        """
        source = cfg.get("refined_from")
        if source is None:
            return {}
        if cfg.get("lr_scheduler") != "refined":
            raise ValueError(
                f"refined_from cannot be used by lr_scheduler: {cfg.get('lr_scheduler')!r}; set lr_scheduler: refined, or "
                "leave it out."
            )
        return {"lr_scheduler_kwargs": {**(cfg.get("lr_scheduler_kwargs") or {}), "refined_from": source}}

    def add_callbacks_post_trainer(self, cfg: Mapping[str, Any], trainer: Any) -> list[GradientNormCallback]:
        """Record the run.

        Args:
            cfg: the configuration of the run.
            trainer: its Trainer.

        Returns:
            The callback that records.
        """
        return [GradientNormCallback()]
