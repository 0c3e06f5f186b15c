"""The newest complete checkpoint of a Trainer."""

import json
import os
import re
import zipfile
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open

from ..norms.checkpoint_folders import checkpoint_folders


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Find the newest complete checkpoint.

    A Trainer writes a checkpoint file by file and `trainer_state.json` last, so a run that is killed leaves the last one
    without that file or with half of it. A checkpoint that replaces an older one of the same step keeps the older file, and a
    power failure can cut off any file. A checkpoint with a truncated file is therefore incomplete, too.
    `transformers.trainer_utils.get_last_checkpoint` does not check any of this.

    With several processes, call it on all of them, once `TrainingArguments` or an `Accelerator` exists. Rank 0 looks for all,
    so that all resume from the same checkpoint.

    Args:
        output_dir: the Trainer's `output_dir`.

    Returns:
        The path of the checkpoint, or None if there is none.

    Raises:
        OSError: if the folder cannot be read.

    Example:
        >>> last_complete_checkpoint("no/such/folder") is None
        True
    """
    folder = Path(output_dir)
    if not (dist.is_available() and dist.is_initialized()):  # PartialState() would choose a device and start a group
        name = _last_complete(folder)
    else:
        name = _last_complete_on_rank_zero(folder)
    return None if name is None else str(folder / name)


def _last_complete_on_rank_zero(folder: Path) -> str | None:
    """Broadcast the name, not the path: every node may have a folder of its own."""
    answer: list[str | OSError | None] = [None]
    if PartialState().is_main_process:
        try:
            answer[0] = _last_complete(folder)
        except OSError as error:  # other ranks wait for the answer
            answer[0] = error
    broadcast_object_list(answer)
    if isinstance(answer[0], OSError):
        raise answer[0]
    return answer[0]


def _last_complete(folder: Path) -> str | None:
    for step, checkpoint in checkpoint_folders(folder).items():
        try:
            if _is_complete(checkpoint, step):
                return checkpoint.name
        except (OSError, ValueError, RecursionError, SafetensorError):  # a file that is missing or cannot be parsed
            continue
    return None


def _is_complete(checkpoint: Path, step: int) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return (
        isinstance(state, dict)
        and state.get("global_step") == step
        and not (checkpoint / "checkpoint-is-incomplete.txt").exists()  # Trainer's mark while it saves on SIGTERM
        and all(zipfile.is_zipfile(file) for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(kind))
        and all(map(_is_whole_safetensors, checkpoint.glob("*.safetensors")))
        and _has_weights(checkpoint)
        and _has_all_random_states(checkpoint)
    )


def _is_whole_safetensors(path: Path) -> bool:
    """Opening checks that the header is valid and that the file ends where the header says. It reads no tensor."""
    with safe_open(path, framework="np"):
        return True


def _has_weights(checkpoint: Path) -> bool:
    """FSDP and DeepSpeed may keep weights in folders."""
    return any(
        path.is_dir() or (path.suffix in (".safetensors", ".bin") and path.name != "training_args.bin")
        for path in checkpoint.iterdir()
    )


def _has_all_random_states(checkpoint: Path) -> bool:
    """Each of several ranks saves its own, and rank 0 ends the checkpoint without waiting for the others.

    The number of ranks is not stored, but several ranks never leave a single file, or a gap in the numbers.
    """
    ranks = {
        int(match[1]) for path in checkpoint.iterdir() if (match := re.fullmatch(r"rng_state_(\d+)\.pth", path.name))
    }
    return ranks != {0} and ranks == set(range(len(ranks)))
