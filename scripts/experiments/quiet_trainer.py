"""The trainer of studies: a run leaves its log entries and prints nothing, because a progress bar covers all runs."""

import logging

import transformers

from hf_refined_schedule import RefinedScheduleTrainer


class QuietTrainer(RefinedScheduleTrainer):
    """A trainer that keeps its log entries and prints nothing."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep a log entry."""
        self.state.log_history.append({**logs, "step": self.state.global_step})


def print_errors_only() -> None:
    """Leave out progress bars of models, and what the package warns of for every schedule: the forecasts have it."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("hf_refined_schedule").setLevel(logging.ERROR)
