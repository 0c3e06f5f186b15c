"""Record sharded gradients on several gloo processes where the main process cannot write; then resume a run on them."""

import json
import logging
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import Trainer

from hf_refined_schedule import GradientNormCallback, GradientNormRecorder
from hf_refined_schedule.recording import measuring
from hf_refined_schedule.recording.measuring import measure_gradient_norms
from hf_refined_schedule.training.checkpoints import last_complete_checkpoint
from tests.tiny import rates, tiny_arguments, tiny_data, tiny_model


def resume(folder, **options):
    arguments = tiny_arguments(folder, per_device_train_batch_size=2, save_strategy="steps", save_steps=10, **options)
    trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[GradientNormCallback()])
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    return {"world_size": arguments.world_size, "rates": rates(trainer)}


def record_shards(path):
    """Every norm of a sharded gradient takes all ranks; `path` cannot be written."""
    accelerator = Accelerator(cpu=True)
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    parameter = torch.nn.Parameter(distribute_tensor(torch.ones(8), mesh, [Shard(0)]))
    optimizer = accelerator.prepare(torch.optim.SGD([parameter], lr=0.1))
    l1 = []
    with GradientNormRecorder(optimizer, path=path, num_training_steps=120, on_failure="warn") as recorder:
        for step in range(120):
            parameter.grad = distribute_tensor(torch.full((8,), float(step)), mesh, [Shard(0)])
            optimizer.step()
            l1.append(recorder.last_l1())
    return {"world_size": accelerator.num_processes, "l1": l1, **reductions(mesh)}


def clip_shards(path):
    """Record sharded gradients where L2 comes from the clip, as on an accelerator. The clip returns twice the norm, to show it."""
    clip = Accelerator.clip_grad_norm_
    exact, doubled = patch.object(measuring, "DEVICES_WITH_INEXACT_NORM", frozenset()), lambda *args: 2 * clip(*args)
    accelerator = Accelerator(cpu=True)
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    parameters = [torch.nn.Parameter(distribute_tensor(torch.zeros(3), mesh, [Shard(0)])) for _ in range(2)]
    optimizer = accelerator.prepare(torch.optim.SGD(parameters, lr=0.1))
    with (
        exact,
        patch.object(Accelerator, "clip_grad_norm_", doubled),
        GradientNormRecorder(optimizer, path=path, num_training_steps=1),
    ):
        for parameter in parameters:
            parameter.grad = distribute_tensor(torch.tensor([1.0, -2.0, 2.0]), mesh, [Shard(0)])
        accelerator.clip_grad_norm_(parameters, 1e3)
        optimizer.step()
    dist.barrier()
    (row,) = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return {"l1": row["l1"], "l2": row["l2"]}


def reductions(mesh):
    """How often the ranks talk for parameters that lie on them in two ways, one of them unevenly."""
    placements = [Shard(0), Shard(0), Replicate()]
    parameters = [torch.nn.Parameter(distribute_tensor(torch.zeros(3), mesh, [kind])) for kind in placements]
    for parameter, kind in zip(parameters, placements, strict=True):
        parameter.grad = distribute_tensor(torch.tensor([1.0, -2.0, 2.0]), mesh, [kind])
    with CommDebugMode() as talk:
        norms = measure_gradient_norms(parameters)
    return {"reductions": talk.get_total_counts(), "norms": [float(norm) for norm in norms]}


def large_shards():
    """Norms of sharded gradients whose squares leave float32, as on an accelerator without float64: elements 3, -4, 12 and 84."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parameters = []
    for elements, kind in (([3.0, -4.0, 0.0], Shard(0)), ([12.0], Shard(0)), ([84.0], Replicate())):
        gradient = torch.tensor(elements) * 1e19
        parameters.append(torch.nn.Parameter(distribute_tensor(torch.zeros_like(gradient), mesh, [kind])))
        parameters[-1].grad = distribute_tensor(gradient, mesh, [kind])
    names = ("DEVICES_WITH_FLOAT64", "DEVICES_WITH_INEXACT_NORM")
    with patch.multiple(measuring, **dict.fromkeys(names, frozenset())):
        return [float(norm) / 1e19 for norm in measure_gradient_norms(parameters)]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    report, folder, path, options = sys.argv[1:]
    for name, work in {
        "shards": lambda: record_shards(path),
        "clipped": lambda: clip_shards(Path(report) / "clipped.jsonl"),
        "large": large_shards,
        "resumed": lambda: resume(folder, **json.loads(options)),
    }.items():
        seen = work()
        (Path(report) / f"{name}{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()
