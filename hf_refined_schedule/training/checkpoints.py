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


def last_complete_checkpoint(output_dir: str | os.PathLike[str], *, save_on_each_node: bool = False) -> str | None:
    """Find the newest complete checkpoint.

    A Trainer writes a checkpoint file by file and `trainer_state.json` last, so a run that is killed leaves the last one
    without that file or with half of it. A checkpoint that replaces an older one of the same step keeps the older file, and a
    power failure can cut off any file. A checkpoint with a truncated file is therefore incomplete, too.
    `transformers.trainer_utils.get_last_checkpoint` does not check any of this.

    With several processes, call it on all of them, once `TrainingArguments` or an `Accelerator` exists. Rank 0 looks for all,
    so that all resume from the same checkpoint.

    Args:
        output_dir: the Trainer's `output_dir`.
        save_on_each_node: that of `TrainingArguments`: the folder holds the files of one node's ranks. Before a process group
            exists, each node is taken to have one rank.

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
        name = _last_complete(folder, one_rank=save_on_each_node)
    else:
        one_rank = save_on_each_node and os.environ.get("LOCAL_WORLD_SIZE") == "1"
        name = _last_complete_on_rank_zero(folder, one_rank=one_rank)
    return None if name is None else str(folder / name)


def _last_complete_on_rank_zero(folder: Path, *, one_rank: bool) -> str | None:
    """Broadcast the name, not the path: every node may have a folder of its own."""
    answer: list[str | OSError | None] = [None]
    if PartialState().is_main_process:
        try:
            answer[0] = _last_complete(folder, one_rank=one_rank)
        except OSError as error:  # other ranks wait for the answer
            answer[0] = error
    broadcast_object_list(answer)
    if isinstance(answer[0], OSError):
        raise answer[0]
    return answer[0]


def _last_complete(folder: Path, *, one_rank: bool) -> str | None:
    for step, checkpoint in checkpoint_folders(folder).items():
        try:
            if _is_complete(checkpoint, step, one_rank=one_rank):
                return checkpoint.name
        except (OSError, ValueError, RecursionError, SafetensorError):  # a file that is missing or cannot be parsed
            continue
    return None


def _is_complete(checkpoint: Path, step: int, *, one_rank: bool) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return (
        isinstance(state, dict)
        and state.get("global_step") == step
        and not (checkpoint / "checkpoint-is-incomplete.txt").exists()  # Trainer's mark while it saves on SIGTERM
        and all(zipfile.is_zipfile(file) for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(kind))
        and all(map(_is_whole_safetensors, checkpoint.glob("*.safetensors")))
        and _has_weights(checkpoint)
        and _has_all_random_states(checkpoint, one_rank=one_rank)
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


def _has_all_random_states(checkpoint: Path, *, one_rank: bool) -> bool:
    """Each of several ranks saves its own, and rank 0 ends the checkpoint without waiting for the others.

    The number of ranks is not stored, but several ranks never leave a gap in the numbers, or a single file, unless each node has one
    rank and a folder of its own (`one_rank`).
    """
    ranks = {
        int(match[1]) for path in checkpoint.iterdir() if (match := re.fullmatch(r"rng_state_(\d+)\.pth", path.name))
    }
    return ranks == set(range(len(ranks))) and (one_rank or ranks != {0})
