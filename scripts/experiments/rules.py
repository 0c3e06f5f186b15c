"""Rules that make a schedule from the norms of a run, the candidates of results/protocol.md for one that is safe without tuning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.gradient_norms import GradientNorms, OptimizerFamily
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.schedule_file import write_schedule
from hf_refined_schedule.theory.refinement import refine_schedule, smooth_norms

Array = NDArray[np.float64]


BETWEEN_WARMUPS, SECOND_REFINEMENT = "between two warm-ups", "second refinement"


@dataclass(frozen=True)
class Evidence:
    """The norms that a rule sees.

    Args:
        baselines: norms of all baselines, that of the rule's own seed first.
        second: norms of a run with rising norms ignored, made from the first baseline; None unless the rule needs it.
        optimizer: the optimizer's family.
        max_grad_norm: the L2 norm to which gradients are clipped; 0 for no clipping.
    """

    baselines: Sequence[GradientNorms]
    second: GradientNorms | None
    optimizer: OptimizerFamily
    max_grad_norm: float

    def ignoring(self, runs: Sequence[GradientNorms] | None = None) -> RefinedSchedule:
        """The schedule with rising norms ignored and clipping left out of account, by default of the first baseline."""
        return self.refined(RefinementOptions(rising_norms="ignore"), runs)

    def refined(self, options: RefinementOptions, runs: Sequence[GradientNorms] | None = None) -> RefinedSchedule:
        """The schedule of runs, by default the first baseline."""
        if self.optimizer == "sgd" and options.max_grad_norm is None:
            options = replace(options, max_grad_norm=0.0)
        return RefinedSchedule.from_norms(self.baselines[:1] if runs is None else runs, self.optimizer, options)


def from_effective(schedule: RefinedSchedule, effective: Array, power: float | None = None) -> RefinedSchedule:
    """The schedule for other effective norms, shape (T,), or another power."""
    power = schedule.power if power is None else power
    grid = refine_schedule(np.append(effective, effective[-1]), power=power, smoothing=0)
    return replace(schedule, grid=grid, effective_norms=effective)


def floored(evidence: Evidence, quantile: float) -> RefinedSchedule:
    """The running minimum of the norms, but not below a quantile of the smoothed norms."""
    ignoring, kept = evidence.ignoring(), evidence.refined(RefinementOptions()).effective_norms
    assert kept is not None and ignoring.effective_norms is not None
    return from_effective(ignoring, np.maximum(ignoring.effective_norms, np.quantile(kept, quantile)))


def shrunk_power(evidence: Evidence) -> RefinedSchedule:
    """The running minimum, with a power that is smaller the less the odd and the even updates agree."""
    ignoring = evidence.ignoring()
    reliability = split_half_reliability(evidence.baselines[0].at_every_step(ignoring.norm), ignoring.smoothing)
    if reliability == 0:
        linear = 1 - np.arange(len(ignoring.grid)) / (len(ignoring.grid) - 1)
        return replace(ignoring, grid=linear)
    assert ignoring.effective_norms is not None
    return from_effective(ignoring, ignoring.effective_norms, reliability * ignoring.power)


def split_half_reliability(norms: Array, smoothing: float) -> float:
    """The fraction of the variance of the smoothed norms, in logarithms, that is not noise.

    Args:
        norms: the norm of every update, shape (T,).
        smoothing: tau, the window as a fraction of the run.

    Returns:
        1 - noise / variance, from 0 to 1. The odd and the even updates are smoothed apart; the noise of their mean is a
        quarter of the variance of their difference.
    """
    length = len(norms) // 2
    odd, even = (np.log(smooth_norms(half[:length], smoothing)) for half in (norms[::2], norms[1::2]))
    variance = np.var((odd + even) / 2)
    return float(max(0.0, 1 - np.var(odd - even) / 4 / variance)) if variance > 0 else 0.0


def second_refinement(evidence: Evidence) -> RefinedSchedule:
    """Rising norms ignored, from a run that had this schedule already."""
    assert evidence.second is not None
    return evidence.ignoring([evidence.second])


RULES: dict[str, Callable[[Evidence], RefinedSchedule]] = {
    "floor at the median": lambda evidence: floored(evidence, 0.5),
    "floor at the upper quartile": lambda evidence: floored(evidence, 0.75),
    "shrunk power": shrunk_power,
    BETWEEN_WARMUPS: lambda evidence: evidence.refined(RefinementOptions(bounded_warmup=True)),
    "mean of three baselines": lambda evidence: evidence.ignoring(evidence.baselines),
    SECOND_REFINEMENT: second_refinement,
}
"""The candidates, by the names of results/protocol.md."""

CLIPPED_RULES: dict[str, Callable[[Evidence], RefinedSchedule]] = {
    "refined, clipping undone": lambda evidence: evidence.refined(
        RefinementOptions(max_grad_norm=evidence.max_grad_norm)
    ),
    "rising norms ignored, clipping undone": lambda evidence: evidence.refined(
        RefinementOptions(rising_norms="ignore", max_grad_norm=evidence.max_grad_norm)
    ),
}
"""For SGD whose updates are clipped."""

ALL_RULES = {**RULES, **CLIPPED_RULES}


def rule_file(folder: Path, name: str, index: int) -> Path:
    """The schedule file of a rule.

    Args:
        folder: the folder of the study.
        name: of the rule.
        index: of the baseline.
    """
    return folder / "rules" / f"{name.replace(', ', '_').replace(' ', '_')}_{index}.json"


def write_rules(
    folder: Path,
    names: Sequence[str],
    baselines: Sequence[Path],
    seconds: Sequence[Path],
    optimizer: OptimizerFamily,
    max_grad_norm: float,
) -> None:
    """Write the schedule of each rule for each baseline, unless the folder has it.

    Args:
        folder: the folder of the study.
        names: of the rules.
        baselines: the norms of the baselines.
        seconds: the norms of a run with rising norms ignored, for each baseline; may be empty if no rule needs them.
        optimizer: the optimizer's family.
        max_grad_norm: as in `Evidence`.
    """
    runs = [load_norms(path) for path in baselines]
    for index in range(len(runs)):
        second = load_norms(seconds[index]) if seconds else None
        evidence = Evidence([*runs[index:], *runs[:index]], second, optimizer, max_grad_norm)
        for name in names:
            path = rule_file(folder, name, index)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_schedule(replace(ALL_RULES[name](evidence), source=f"baseline {index}, {name}"), path)
