"""Shows a refined schedule in the trackers that a Trainer reports to: its fingerprint, and its picture if matplotlib is there."""

import logging
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, integrations

from ..plots import DrawnRun
from ..recording.failures import in_one_line
from .optional_pictures import draw_if_possible

logger = logging.getLogger(__name__)

KEY = "refined_schedule"
"""The name of the fingerprint and of the picture in every tracker."""


class ShownSchedule(NamedTuple):
    """What trackers get.

    Attributes:
        fingerprint: that of the schedule, which the log and the schedule file have, too.
        picture: a PNG file; None without matplotlib.
    """

    fingerprint: str
    picture: Path | None


def show_schedule(callbacks: Iterable[TrainerCallback], fingerprint: str, grid: NDArray[np.float64]) -> None:
    """Show a schedule in every tracker whose run is open. A tracker that fails costs a warning.

    TensorBoard, Weights & Biases, MLflow and trackio get it; other trackers get `lr_scheduler_kwargs` alone, from transformers.

    Args:
        callbacks: those of the Trainer.
        fingerprint: that of the schedule.
        grid: multipliers at even progress from 0 to 1, shape (T+1,).
    """
    shows = [(callback, show) for callback in callbacks for kind, show in _SHOWS.items() if isinstance(callback, kind)]
    if not shows:
        return
    with ExitStack() as exits:
        picture = _picture(exits, fingerprint, grid)
        for callback, show in shows:
            try:
                show(callback, ShownSchedule(fingerprint, picture))
            except Exception as error:  # of any tracker's own class
                logger.warning("%s does not show the refined schedule: %r", type(callback).__name__, error)


def _picture(exits: ExitStack, fingerprint: str, grid: NDArray[np.float64]) -> Path | None:
    """Draw the schedule into a folder that is there until `exits` closes; None as `draw_if_possible`, or on a full disk."""
    try:
        folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="hf_refined_schedule-"))
    except OSError as error:
        logger.warning("The trackers get no picture of the refined schedule: %s", in_one_line(error))
        return None
    title = f"Refined schedule {fingerprint}"
    return draw_if_possible(Path(folder) / f"{KEY}.png", [DrawnRun("refined", grid)], label="", title=title)


def _show_in_tensorboard(callback: Any, shown: ShownSchedule) -> None:
    callback.tb_writer.add_text(KEY, shown.fingerprint)
    if shown.picture is not None:
        from matplotlib.image import imread

        callback.tb_writer.add_image(KEY, imread(shown.picture), dataformats="HWC")


def _show_in_wandb(callback: Any, shown: ShownSchedule) -> None:
    import wandb

    wandb.config.update({KEY: shown.fingerprint}, allow_val_change=True)
    if shown.picture is not None:
        wandb.log({KEY: wandb.Image(str(shown.picture))}, commit=False)


def _show_in_mlflow(callback: Any, shown: ShownSchedule) -> None:
    import mlflow

    mlflow.set_tag(KEY, shown.fingerprint)
    if shown.picture is not None:
        mlflow.log_artifact(str(shown.picture))


def _show_in_trackio(callback: Any, shown: ShownSchedule) -> None:
    import trackio

    trackio.config.update({KEY: shown.fingerprint}, allow_val_change=True)
    if shown.picture is not None:
        trackio.log({KEY: trackio.Image(str(shown.picture))})


_SHOWS: dict[type, Callable[[Any, ShownSchedule], None]] = {
    integrations.TensorBoardCallback: _show_in_tensorboard,
    integrations.WandbCallback: _show_in_wandb,
    integrations.MLflowCallback: _show_in_mlflow,
    integrations.TrackioCallback: _show_in_trackio,
}
