"""The checkpoint folders of a Trainer, newest first."""

import os
import re
from pathlib import Path

_NAME = re.compile(r"checkpoint-([0-9]+)")


def checkpoint_folders(output_dir: str | os.PathLike[str]) -> dict[int, Path]:
    """List the checkpoints that a Trainer has saved, complete or not.

    Args:
        output_dir: the Trainer's `output_dir`; it may be missing.

    Returns:
        The folders `checkpoint-N` by their N, the number of optimizer updates, largest first.

    Example:
        >>> checkpoint_folders("no/such/folder")
        {}
    """
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        return {}
    named = [(_NAME.fullmatch(path.name), path) for path in output_dir.iterdir()]
    folders = {int(name[1]): path for name, path in named if name is not None and path.is_dir()}
    return dict(sorted(folders.items(), reverse=True))
