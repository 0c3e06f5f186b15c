"""FSDP without GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


@contextmanager
def sharded_on_cpu() -> Iterator[None]:
    """Let an Accelerator that is built in this block shard over gloo processes.

    On a CPU, Accelerate replaces FSDP by DDP without a warning. So the processes pass for GPUs until the Accelerator is
    built, and return to the CPU before it gets a model.
    """
    PartialState().distributed_type = DistributedType.MULTI_GPU
    yield
    for state in (PartialState(), AcceleratorState()):
        state.device = torch.device("cpu")
