"""Refined schedules with a change that could make refinement safer: other norms, more smoothing, a mixture with linear decay."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from hf_refined_schedule import load_norms, smooth_norms
from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources
from hf_refined_schedule.schedules.schedule_file import write_schedule
from hf_refined_schedule.theory.classical import WARMUP

from .cells import TWICE_THE_STEPS
from .schedules_compared import SCHEDULES, ComparedSchedule
from .study_folder import BASELINE_FILE

WARMUP_SUFFIX = "+warmup"

REFINED_TWICE = "refined, of a refined run"
"""The schedule that is refined from a run with a refined schedule."""


def unchanged(smoothed: NDArray[np.float64]) -> NDArray[np.float64]:
    """The norms themselves."""
    return smoothed


def capped(smoothed: NDArray[np.float64]) -> NDArray[np.float64]:
    """The norms, limited to their upper quartile."""
    return np.minimum(smoothed, np.quantile(smoothed, 0.75))


@dataclass(frozen=True)
class Variant:
    """A change to the refinement.

    Args:
        change: applied to the smoothed norms.
        smoothing: tau, the window of the median filter as a fraction of the run.
        share: the weight of the refined schedule in the mixture with linear decay.
    """

    change: Callable[[NDArray[np.float64]], NDArray[np.float64]] = unchanged
    smoothing: float = 0.1
    share: float = 1.0

    def schedule(self, name: str, norms: GradientNorms) -> RefinedSchedule:
        """The schedule that it makes from the norms of a run."""
        smoothed = self.change(smooth_norms(norms.at_every_step("l1"), self.smoothing))
        changed = GradientNorms(steps=np.arange(1, len(smoothed) + 1), l1=smoothed, num_training_steps=len(smoothed))
        schedule = refine_sources(changed, "adam", RefinementOptions(smoothing=0.0)).schedule
        linear = 1 - np.linspace(0, 1, len(schedule.grid))
        mixture = self.share * schedule.grid + (1 - self.share) * linear
        return replace(schedule, grid=mixture / mixture.max(), source=f"the baseline, {name}")


VARIANTS = {
    "refined, capped": Variant(change=capped),
    "refined, smoothing 0.3": Variant(smoothing=0.3),
    "refined, half linear": Variant(share=0.5),
}


def variant_names() -> list[str]:
    """The names of all variants, without and with warm-up."""
    names = [*VARIANTS, REFINED_TWICE]
    return [*names, *(f"{name}{WARMUP_SUFFIX}" for name in names)]


def schedule_and_source(name: str, folder: Path) -> tuple[ComparedSchedule, Path]:
    """A schedule by its name in the results, and the file that it is refined from.

    Args:
        name: a name in `SCHEDULES`, a variant, or `TWICE_THE_STEPS`.
        folder: the folder of the results.
    """
    if name in SCHEDULES or name == TWICE_THE_STEPS:
        return SCHEDULES["linear" if name == TWICE_THE_STEPS else name], folder / BASELINE_FILE
    warmup = WARMUP if name.endswith(WARMUP_SUFFIX) else 0.0
    return ComparedSchedule("refined", warmup), _variant_file(folder, name.removesuffix(WARMUP_SUFFIX))


def write_variants(folder: Path, norms_of_refined_run: Path) -> None:
    """Write the schedule file of each variant, unless the folder has it.

    Args:
        folder: the folder of the results, with the baseline's norms.
        norms_of_refined_run: the norms of a run with the refined schedule.
    """
    norms = load_norms(folder / BASELINE_FILE)
    schedules = {name: variant.schedule(name, norms) for name, variant in VARIANTS.items()}
    twice = refine_sources(norms_of_refined_run, "adam").schedule
    schedules[REFINED_TWICE] = replace(twice, source="a refined run")
    if PartialState().is_main_process:
        for name, schedule in schedules.items():
            path = _variant_file(folder, name)
            if not path.exists():
                write_schedule(schedule, path)
    PartialState().wait_for_everyone()


def _variant_file(folder: Path, name: str) -> Path:
    return folder / "variants" / f"{name.replace(', ', '_').replace(' ', '_')}.json"
