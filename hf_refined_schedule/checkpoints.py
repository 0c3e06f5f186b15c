"""Which checkpoint of a Trainer to resume from."""

import json
import os
import re
from pathlib import Path


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint that was written to its end.

    A Trainer writes a checkpoint file by file, `trainer_state.json` last, so one that was being written when the run was
    killed has none, or half of one. `transformers.trainer_utils.get_last_checkpoint` takes it all the same.

    Args:
        output_dir: the Trainer's `output_dir`.

    Returns:
        The path of the checkpoint, or None if there is none.

    Example:
        >>> last_complete_checkpoint("no/such/folder") is None
        True
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    checkpoints = [path for path in folder.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(state, dict) and state.get("global_step") == int(checkpoint.name.split("-")[1]):
            return str(checkpoint)
    return None
