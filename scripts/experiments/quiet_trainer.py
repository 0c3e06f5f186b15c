"""The trainer of studies: a run leaves its log entries and prints nothing, because a progress bar covers all runs."""

from hf_refined_schedule import RefinedScheduleTrainer


class QuietTrainer(RefinedScheduleTrainer):
    """A trainer that keeps its log entries and prints nothing."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep a log entry."""
        self.state.log_history.append({**logs, "step": self.state.global_step})
