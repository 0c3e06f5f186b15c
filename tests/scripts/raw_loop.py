"""A raw Accelerate loop with GradientNormRecorder, clipping or not; options as JSON in argv[1]."""

import json
import sys

import torch
from accelerate import Accelerator

from hf_refined_schedule import GradientNormRecorder

if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=options.get("accumulation", 1))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    data = torch.randn(192, 9, generator=torch.Generator().manual_seed(1))
    batch_size = 8 // accelerator.num_processes // options.get("accumulation", 1)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with GradientNormRecorder(optimizer, output_dir=options["output_dir"]) as recorder:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = (model(batch[:, :8]).squeeze(-1) - batch[:, 8]).square().mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients and options["max_grad_norm"] is not None:
                    accelerator.clip_grad_norm_(model.parameters(), options["max_grad_norm"])
                optimizer.step()
                optimizer.zero_grad()
    with open(f"{options['output_dir']}.rank{accelerator.process_index}", "w") as file:
        json.dump({"world_size": accelerator.num_processes, "steps": recorder.step}, file)
    accelerator.wait_for_everyone()
    accelerator.end_training()
