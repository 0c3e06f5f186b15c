"""Writes a norms file in each of many folders, at the same moment as another process of this script.

Arguments: this process's name, the other's, and the folder that holds the numbered folders.
"""

import json
import sys
import time
from pathlib import Path

from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME, NormsFileWriter

UPDATES = 6


def wait_for(other, here):
    here.touch()
    deadline = time.monotonic() + 60
    while not other.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{other} has not appeared")
        time.sleep(0)


def write(folder, name):
    """What became of the file: how many updates were written, and the error that ended it."""
    written, error = 0, None
    try:
        writer = NormsFileWriter(folder / NORMS_FILE_NAME, {"optimizer": name, "num_training_steps": None})
        for step in range(1, UPDATES + 1):
            writer.append([{"step": step, "l1": 2.0, "l2": 1.0, "clip_factor": 1.0, "learning_rate": 0.1, "by": name}])
            written = step
            if step in (2, UPDATES):
                writer.rewrite_header({"optimizer": name, "num_training_steps": UPDATES})
    except OSError as failure:
        error = str(failure)
    return {"written": written, "error": error}


if __name__ == "__main__":
    me, other, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    outcomes = []
    for folder in sorted(root.iterdir()):
        wait_for(folder / f"ready.{other}", folder / f"ready.{me}")
        outcomes.append(write(folder, me))
    (root.parent / f"{me}.json").write_text(json.dumps(outcomes))
