"""Ranks that make a refined scheduler alone, then all of them together; each writes what it saw."""

import argparse
import json
import logging
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

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


def trained_rates(source, before_asking):
    """The rates that the optimizer's own steps see, once the ranks have met as in a backward pass."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    before_asking()
    scheduler = get_refined_schedule(optimizer, 0, 20, refined_from=source, allow_degenerate=True)
    dist.barrier()
    seen = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    return seen


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
    rank = dist.get_rank()
    logging.basicConfig(level=logging.WARNING)
    if options.second_rank_alone:
        rank_zero.SILENT_WAIT = timedelta(seconds=1)
        if rank == 1:
            rates(options.source)
        return
    seen = {"world_size": dist.get_world_size(), "together": rates(options.source)}
    dist.barrier()
    if rank == 0:
        Path(options.other).replace(options.source)
    seen["replaced"] = rates(options.source)
    if rank == 0:
        seen["preview"] = rates(options.source)
        rates(options.source, smoothing=0.5)
    seen["after the preview"] = rates(options.source)
    seen["once more"] = rates(options.source)
    dist.barrier()
    if rank == 0:
        rates(options.source)
        options.report.joinpath("third.jsonl").replace(options.source)
    dist.barrier()
    # The second rank asks first, and is given what the preview saw.
    seen["replaced after a preview"] = trained_rates(options.source, lambda: time.sleep(1 - rank))
    # The main process asks twice before the second rank asks at all.
    pairs = [torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2)]
    time.sleep(rank)
    both = [get_refined_schedule(one, 0, 20, refined_from=options.source, allow_degenerate=True) for one in pairs]
    seen["two at once"] = [one.fingerprint for one in both]
    # Nodes without a shared disk, the second a checkpoint behind.
    for step in (10, 20) if rank == 0 else (10,):
        write_checkpoint(options.report / f"node{rank}" / "out", step)
    found = Path(last_complete_checkpoint(options.report / f"node{rank}" / "out"))
    seen["checkpoint"] = found.name
    assert found.parent.parent.name == f"node{rank}"
    options.report.joinpath(f"rank{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
