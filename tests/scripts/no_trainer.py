"""A run_clm_no_trainer-style script: literal choices, a raw Accelerate loop, and no options for the scheduler."""

import argparse
import json
import sys

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from transformers import SchedulerType, get_scheduler

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--lr_scheduler_type",
        type=SchedulerType,
        default="linear",
        choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
    )
    parser.add_argument("--report", required=True)
    parser.add_argument("--max_train_steps", type=int, default=24)
    parser.add_argument("--fsdp2", action="store_true")
    options = parser.parse_args()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2) if options.fsdp2 else None
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    data = torch.randn(24 * 8, 9, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(data, batch_size=8 // accelerator.num_processes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = get_scheduler(
        name=options.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=0,
        num_training_steps=options.max_train_steps * accelerator.num_processes,
    )
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    rates = []
    for batch in loader:
        loss = (model(batch[:, :8]).squeeze(-1) - batch[:, 8]).square().mean()
        accelerator.backward(loss)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    with open(f"{options.report}.{accelerator.process_index}", "w") as file:
        json.dump({"world_size": accelerator.num_processes, "rates": rates}, file)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    sys.exit()
