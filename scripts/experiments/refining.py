"""The route of the studies from recorded norms to a refined schedule and its verdict."""

from typing import NamedTuple

from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.schedules.health import Health, check_health
from hf_refined_schedule.schedules.refined_schedule import OptimizerFamily, RefinedSchedule
from hf_refined_schedule.theory.refinement import RisingNorms


class Refinement(NamedTuple):
    """A refined schedule, and what is doubtful about it."""

    schedule: RefinedSchedule
    health: Health

    @property
    def notes(self) -> list[str]:
        """A sentence for each remark on the schedule and each doubt about it."""
        if self.health.verdict in ("doubtful", "degenerate"):
            return [*self.schedule.notes, f"It is {self.health.verdict}: {'; '.join(self.health.reasons)}."]
        return list(self.schedule.notes)


def refine(
    norms: GradientNorms,
    optimizer: OptimizerFamily,
    *,
    smoothing: float | None = None,
    rising_norms: RisingNorms | None = None,
    pilot: bool = False,
) -> Refinement:
    """Refine the schedule of a run, degenerate or not: a study measures every schedule.

    Args:
        norms: the norms of the run.
        optimizer: the optimizer family, `"adam"` or `"sgd"`.
        smoothing: tau, the window of the median filter as a fraction of the run.
        rising_norms: `"keep"` or `"ignore"`.
        pilot: whether the norms may end before the run does.

    Returns:
        The schedule and its health.
    """
    schedule = RefinedSchedule.from_norms(norms, optimizer, smoothing=smoothing, rising_norms=rising_norms, pilot=pilot)
    return Refinement(schedule, check_health(norms, schedule))
