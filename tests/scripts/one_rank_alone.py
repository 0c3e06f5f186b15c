"""Ranks that create a refined scheduler alone, then all of them together; each writes what it saw."""

import argparse
import json
import logging
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from hf_refined_schedule import get_refined_schedule
from hf_refined_schedule.training import rank_zero
from hf_refined_schedule.training.checkpoints import last_complete_checkpoint


def rates(source, **options):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_refined_schedule(optimizer, 0, 20, refined_from=source, allow_degenerate=True, **options)
    seen = []
    for _ in range(20):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


class NotListed(Exception):
    """A class that no other rank knows."""


def fail():
    raise NotListed("as this rank said")


def write_checkpoint(output_dir, step):
    """As much of one as makes it complete."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--other", help="a source that replaces the first, between two schedulers of all ranks")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--second-rank-alone", action="store_true")
    options = parser.parse_args()
    dist.init_process_group("gloo", timeout=timedelta(seconds=4 if options.second_rank_alone else 60))
    PartialState(cpu=True)
    rank = dist.get_rank()
    logging.basicConfig(level=logging.WARNING)
    if options.second_rank_alone:
        rank_zero.SILENT_WAIT = timedelta(seconds=1)
        if rank == 1:
            rates(options.source)
        return
    seen = {"world_size": dist.get_world_size(), "together": rates(options.source)}
    preview = rates(options.source, smoothing=0.25) if rank == 0 else None
    dist.barrier()
    if rank == 0:
        Path(options.other).replace(options.source)
    dist.barrier()
    seen["replaced"] = rates(options.source)
    if rank == 0:
        assert rates(options.source) == seen["replaced"]
    seen["replaced after a preview"] = rates(options.source, smoothing=0.25)
    assert preview in (None, seen["replaced after a preview"])
    seen["first asked for after the change"] = rates(options.source, smoothing=0.0)
    # Rank 0 asks twice, and ends its wait for nobody, before the second rank asks at all.
    time.sleep(rank)
    seen["two at once"] = [rates(options.source, smoothing=0.5) for _ in range(2)]
    seen["error"] = repr(rank_zero.on_rank_zero(fail, "an error").error)
    # Nodes without a shared disk, the second a checkpoint behind.
    for step in (10, 20) if rank == 0 else (10,):
        write_checkpoint(options.report / f"node{rank}" / "out", step)
    found = Path(last_complete_checkpoint(options.report / f"node{rank}" / "out"))
    seen["checkpoint"] = found.name
    assert found.parent.parent.name == f"node{rank}"
    # On rank 0 the folder cannot be listed, on the second it is missing.
    unreadable = options.report / f"node{rank}" / "unreadable"
    if rank == 0:
        Path.iterdir = lambda self: fail_to_read(self)
        unreadable.mkdir()
    try:
        last_complete_checkpoint(unreadable)
    except PermissionError as error:
        seen["unreadable"] = str(error)
    options.report.joinpath(f"rank{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


def fail_to_read(folder):
    raise PermissionError(f"no permission to read {folder.name}")


if __name__ == "__main__":
    main()
