"""Accelerate loops under FSDP1 on gloo processes. Every rank writes what it found into the folder argv[1], as JSON."""

import copy
import json
import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from experiments.sharding import sharded_on_cpu
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

from hf_refined_schedule import GradientNormRecorder
from hf_refined_schedule.recording.failures import RecordingError

UPDATES = 3
LIMIT = 0.1
SETTINGS = {
    "shards of the parameters": {"use_orig_params": True},
    "shards of flat parameters": {"use_orig_params": False},
    "one layer is whole on every rank": {"use_orig_params": True, "whole_layer": True},
    "nothing is sharded": {"use_orig_params": True, "sharding_strategy": ShardingStrategy.NO_SHARD},
}


def tiny_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))


def batch(step):
    return torch.randn(8, 7, generator=torch.Generator().manual_seed(step)) * (step + 1)


def expected_norms(network, step):
    """L1 and L2 of the gradient of the whole batch, in one process and in float64."""
    network = copy.deepcopy(network).double()
    network(batch(step).double()).square().mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    return [gradient.abs().sum().item(), gradient.norm().item()]


class Loop:
    """A loop that does not change its model: the learning rate is 0."""

    def __init__(self, accelerator, use_orig_params, sharding_strategy=ShardingStrategy.FULL_SHARD, whole_layer=False):
        plugin = accelerator.state.fsdp_plugin
        plugin.use_orig_params, plugin.sharding_strategy = use_orig_params, sharding_strategy
        network = tiny_network()
        if whole_layer:
            network[2] = FullyShardedDataParallel(
                network[2],
                sharding_strategy=ShardingStrategy.NO_SHARD,
                use_orig_params=True,
                device_id=accelerator.device,
            )
        accelerator.free_memory()  # Accelerate cannot clip with FSDP1 while it knows two models
        self.accelerator = accelerator
        self.model = accelerator.prepare(network)
        self.optimizer = accelerator.prepare(torch.optim.SGD(self.model.parameters(), lr=0.0))

    def backward(self, step, poison=None):
        """The gradients that this rank holds; an element of rank 0's is replaced by `poison`."""
        rank, size = self.accelerator.process_index, 8 // self.accelerator.num_processes
        self.accelerator.backward(self.model(batch(step)[rank * size : (rank + 1) * size]).square().mean())
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if poison is not None and rank == 0:
            gradients[0].view(-1)[0] = poison
        return gradients

    def update(self, step, limit=LIMIT, first=0, poison=None):
        """One update, clipped to a limit if there is one, over the parameters from `first` on; the bits of the gradient at its end."""
        gradients = self.backward(step, poison)
        if limit is not None:
            self.accelerator.clip_grad_norm_(list(self.model.parameters())[first:], limit)
        self.optimizer.step()
        bits = [gradient.flatten().view(torch.int32).tolist() for gradient in gradients]
        self.optimizer.zero_grad()
        return bits


def record(accelerator, path, **options):
    """Record a loop whose last update overflows: its file, the norms of one process, and whether it has changed a gradient."""
    steps = [{"step": step} for step in range(UPDATES)] + [{"step": 0, "poison": math.inf}]
    loop = Loop(accelerator, **options)
    without = [loop.update(**step) for step in steps]
    loop = Loop(accelerator, **options)
    with GradientNormRecorder(loop.optimizer, path=path):
        gradients = [loop.update(**step) for step in steps]
    return {
        "file": str(path),
        "expected": [expected_norms(tiny_network(), step) for step in range(UPDATES)],
        "same gradients": gradients == without,
        "elements": sum(map(len, gradients[0])),
    }


def clip_to_infinity(loop, element):
    """The L1 norm that FSDP1's own clip returns, whether each bit of the gradient stays, and whether all of it is NaN.

    Args:
        loop: the loop.
        element: a value for an element of rank 0's gradient; None to leave it.
    """
    gradients = loop.backward(0, element)
    before = [gradient.clone() for gradient in gradients]
    l1 = loop.model.clip_grad_norm_(math.inf, norm_type=1)
    found = {
        "l1": l1.item(),
        "same": all(map(torch.equal, gradients, before)),
        "nan": all(bool(gradient.isnan().all()) for gradient in gradients),
    }
    loop.optimizer.zero_grad()
    return found


def refusal(loop, path, **options):
    """The error of a loop that cannot be recorded."""
    try:
        with GradientNormRecorder(loop.optimizer, path=path):
            loop.update(0, **options)
    except RecordingError as error:
        return str(error)
    return None


def main():
    folder = Path(sys.argv[1])
    PartialState(cpu=True)
    with sharded_on_cpu():
        plugin = FullyShardedDataParallelPlugin(fsdp_version=1, auto_wrap_policy="no_wrap", sync_module_states=False)
        accelerator = Accelerator(fsdp_plugin=plugin)
    found = {"world_size": accelerator.num_processes, "distributed_type": accelerator.distributed_type.value}
    for number, (name, options) in enumerate(SETTINGS.items()):
        found[name] = record(accelerator, folder / f"{number}.jsonl", **options)
    loop = Loop(accelerator, use_orig_params=True)
    found["clip to infinity"] = [clip_to_infinity(loop, element) for element in (None, math.inf)]
    found["no clip"] = refusal(loop, folder / "none.jsonl", limit=None)
    found["a clip of some parameters"] = refusal(loop, folder / "none.jsonl", first=1)
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main()
