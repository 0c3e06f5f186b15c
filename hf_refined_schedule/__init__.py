"""Learning-rate schedules refined from the gradient norms of your own run (arXiv 2310.07831), for Hugging Face.

Importing this package imports neither torch nor transformers and changes nothing; its names are loaded when used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "GradientNormCallback": "callback",
    "GradientNormRecorder": "recorder",
    "GradientNorms": "norms_file",
    "RefinedScheduleArguments": "training_args",
    "RefinedScheduleMixin": "trainer",
    "RefinedScheduleTrainer": "trainer",
    "get_refined_schedule": "schedule",
    "last_iterate_bound": "bounds",
    "optimize_schedule": "bounds",
    "rank_schedules": "bounds",
    "linear_decay": "refinement",
    "load_norms": "sources",
    "refine_schedule": "refinement",
    "register": "registration",
    "register_scheduler": "registration",
    "smooth_norms": "refinement",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
