"""Pictures for model cards and trackers, without which training goes on."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..plots import DrawnRun, norms_and_schedule_figure
from ..recording.failures import in_one_line

logger = logging.getLogger(__name__)


def draw_if_possible(path: Path, runs: Sequence[DrawnRun], *, label: str, title: str | None = None) -> Path | None:
    """Draw norms and schedules.

    Args:
        path: the PNG file.
        runs: as `norms_and_schedule_figure` takes them.
        label: that of the axis of norms.
        title: that of the picture.

    Returns:
        The file; None without matplotlib, which is an extra, or with a warning where it cannot be drawn or written.
    """
    if find_spec("matplotlib") is None:
        return None
    try:
        return norms_and_schedule_figure(path, runs, label=label, title=title)
    except Exception as error:  # a matplotlib that cannot be imported, a full disk
        logger.warning("There is no picture of the refined schedule: %s", in_one_line(error))
        return None
