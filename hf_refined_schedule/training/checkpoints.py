"""Which checkpoint of a Trainer to resume from."""

import json
import os
import re
import zipfile
from pathlib import Path

from .rank_zero import on_main_process


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint that was written to its end.

    A Trainer writes a checkpoint file by file, `trainer_state.json` last, so one that was being written when the run was
    killed has none, or half of one. One that was being written over an older one of the same step has the older's, and
    after a power failure, any file may be cut off: tensors that end too early make a checkpoint incomplete, too.
    `transformers.trainer_utils.get_last_checkpoint` takes it all the same. Where there are several processes, the main one
    looks for all, so that none resumes from another checkpoint than the others.

    Args:
        output_dir: the Trainer's `output_dir`.

    Returns:
        The path of the checkpoint, or None if there is none.

    Example:
        >>> last_complete_checkpoint("no/such/folder") is None
        True
    """
    folder = Path(output_dir)
    found = on_main_process(lambda: _last_complete(folder), f"the name of the newest checkpoint in {folder.name}")
    if found.error is not None:
        raise found.error
    return None if found.value is None else str(folder / found.value)


def _last_complete(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    checkpoints = [path for path in folder.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            if _is_complete(checkpoint):
                return checkpoint.name
        except (OSError, ValueError):
            continue
    return None


def _is_complete(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return (
        isinstance(state, dict)
        and state.get("global_step") == int(checkpoint.name.split("-")[1])
        and not (checkpoint / "checkpoint-is-incomplete.txt").exists()  # Trainer's mark while it saves on SIGTERM
        and all(zipfile.is_zipfile(file) for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(kind))
        and all(map(_is_whole_safetensors, checkpoint.glob("*.safetensors")))
        and _has_weights(checkpoint)
        and _has_all_random_states(checkpoint)
    )


def _has_weights(checkpoint: Path) -> bool:
    """FSDP and DeepSpeed may keep them in folders."""
    return any(
        path.is_dir() or (path.suffix in (".safetensors", ".bin") and path.name != "training_args.bin")
        for path in checkpoint.iterdir()
    )


def _has_all_random_states(checkpoint: Path) -> bool:
    """Each of several processes saves its own, and the main one does not wait for the others before it ends the checkpoint.

    Which is the last is not written anywhere; but there is none alone, and no gap.
    """
    ranks = {
        int(match[1]) for path in checkpoint.iterdir() if (match := re.fullmatch(r"rng_state_(\d+)\.pth", path.name))
    }
    return ranks != {0} and ranks == set(range(len(ranks)))


def _is_whole_safetensors(path: Path) -> bool:
    """Whether a file is as long as its header says: 8 bytes for the header's length, the header, then the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return False
        header = json.loads(file.read(length))
    end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
    return path.stat().st_size == 8 + length + end
