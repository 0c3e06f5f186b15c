"""Learning-rate schedules refined from the gradient norms of your own run (arXiv 2310.07831), for Hugging Face.

Importing this package imports neither torch nor transformers and changes nothing; its names are loaded when used.
"""

import logging
import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "GradientNormCallback": "training.callback",
    "GradientNormRecorder": "recording.recorder",
    "GradientNorms": "norms.gradient_norms",
    "LossLog": "norms.loss_log",
    "RefinedScheduleArguments": "training.training_args",
    "RefinedScheduleMixin": "training.trainer",
    "RefinedScheduleTrainer": "training.trainer",
    "extend_run": "training.extending",
    "LossLaw": "theory.loss_law",
    "fit_loss_law": "theory.loss_law",
    "get_refined_schedule": "training.scheduler",
    "last_iterate_bound": "theory.bounds",
    "minimize_predicted_loss": "theory.loss_law",
    "optimize_schedule": "theory.bounds",
    "predict_losses": "schedules.predicting",
    "rank_schedules": "theory.bounds",
    "linear_decay": "theory.refinement",
    "load_losses": "norms.loss_sources",
    "load_norms": "norms.sources",
    "refine_schedule": "theory.refinement",
    "register": "training.registration",
    "register_scheduler": "training.registration",
    "smooth_norms": "theory.refinement",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _NamedLastResort(logging.Handler):
    """Prints warnings to stderr with the name of their logger, unless the program has configured logging.

    Python's own last resort prints the bare message, which does not say that it comes from this package.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers or logging.getLogger(__name__).handlers != [self]:
            return
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # of any class, as in every handler of `logging`: a message must not stop the program
            self.handleError(record)


logging.getLogger(__name__).addHandler(_NamedLastResort())
