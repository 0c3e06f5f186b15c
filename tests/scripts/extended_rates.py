"""On two ranks, the rates of a run that is resumed with an extension, in a loop that steps once for every process."""

import json
import sys

import torch
import torch.distributed as dist

from hf_refined_schedule import get_refined_schedule

if __name__ == "__main__":
    path, folder, horizon = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_refined_schedule(optimizer, 0, horizon, refined_from=path)
    step = 40 * dist.get_world_size()
    scheduler.load_state_dict(
        {"base_lrs": [1e-3], "last_epoch": step, "_step_count": step + 1, "_last_lr": [1e-3], "lr_lambdas": [None]}
    )
    rates = []
    for _ in range(40):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        for _ in range(dist.get_world_size()):
            scheduler.step()
    with open(f"{folder}/rank{dist.get_rank()}.json", "w") as file:
        json.dump({"world_size": dist.get_world_size(), "rates": rates}, file)
    dist.barrier()
    dist.destroy_process_group()
