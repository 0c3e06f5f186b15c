"""What happens when recording cannot go on: an error, or one warning while the run goes on."""

import logging

logger = logging.getLogger(__name__)


class RecordingError(RuntimeError):
    """The gradients cannot be measured, or their norms cannot be written."""


def report_failure(reason: str, step: int, *, on_failure: str, is_main_process: bool) -> None:
    """Raise an error or log one warning, as the user has chosen.

    Args:
        reason: why recording stops.
        step: the first update that is not recorded, 1-based.
        on_failure: `"raise"` or `"warn"`.
        is_main_process: whether this process warns for all.

    Raises:
        RecordingError: if `on_failure` is `"raise"`.
    """
    if on_failure == "raise":
        raise RecordingError(f"Gradient norms cannot be recorded: {reason}.")
    if is_main_process:
        logger.warning("Gradient norms are not recorded from update %d on: %s.", step, reason)


def in_one_line(error: Exception) -> str:
    """Put an error of another library into one line of a message.

    Args:
        error: the error.

    Returns:
        Its class and the beginning of its text.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
