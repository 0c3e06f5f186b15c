"""An Accelerate loop in the style of transformers' run_clm_no_trainer.py. It does not use hf_refined_schedule."""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from experiments.rank_reports import end_run
from experiments.tiny_models import tiny_data, tiny_model
from transformers import SchedulerType, get_scheduler

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--lr_scheduler_type", type=SchedulerType, choices=["linear", "cosine", "polynomial", "constant"]
    )
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--max_train_steps", type=int)
    parser.add_argument("--per_device_train_batch_size", type=int)
    options = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    model = tiny_model()
    data: Any = tiny_data(96)
    loader: Any = torch.utils.data.DataLoader(data, batch_size=options.per_device_train_batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    scheduler = get_scheduler(
        options.lr_scheduler_type, optimizer, 0, options.max_train_steps * accelerator.num_processes
    )
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    rates = []
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    end_run(accelerator, options.output_dir, rates)
