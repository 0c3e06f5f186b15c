"""The schedule files that commands write."""

from pathlib import Path

from ..norms.message_text import shown
from ..norms.sources import begins_schedule_file
from ..schedules.refined_schedule import RefinedSchedule
from ..schedules.schedule_file import write_schedule


def write_output(schedule: RefinedSchedule, output: str) -> None:
    """Write a schedule file, unless it would replace a file of another kind: norms, a log, a checkpoint, a script.

    Args:
        schedule: the schedule.
        output: the file that the user named.

    Raises:
        ValueError: if the file exists, is not empty, and is no schedule file.
        OSError: if the file cannot be written.
    """
    path = Path(output)
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(200)
        if beginning.strip() and not begins_schedule_file(beginning):
            raise ValueError(
                f"{shown(output)} is no schedule file, and the schedule would replace it; name another file."
            )
    write_schedule(schedule, path)
