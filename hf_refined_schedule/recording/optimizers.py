"""What recording and scheduling ask of an optimizer, inside the wrappers of Accelerate and DeepSpeed."""

from typing import Any

import torch

from ..norms.gradient_norms import OptimizerFamily


def optimizer_family(optimizer: Any) -> OptimizerFamily:
    """Find which weights of the refined schedule suit an optimizer.

    Args:
        optimizer: an optimizer, which Accelerate or DeepSpeed may have wrapped.

    Returns:
        `"sgd"` for `torch.optim.SGD` and its subclasses, `"adam"` for all others.
    """
    return "sgd" if isinstance(unwrap_optimizer(optimizer), torch.optim.SGD) else "adam"


def unwrap_optimizer(optimizer: Any) -> Any:
    """Take off the wrappers of Accelerate and DeepSpeed, which keep the optimizer as their attribute `optimizer`.

    Args:
        optimizer: an optimizer, wrapped or not.

    Returns:
        The innermost optimizer.
    """
    while getattr(optimizer, "optimizer", None) is not None:
        optimizer = optimizer.optimizer
    return optimizer


def parameters_of(optimizer: Any) -> list[torch.nn.Parameter]:
    """List the parameters of an optimizer over all of its groups.

    Args:
        optimizer: an optimizer, wrapped or not.

    Returns:
        The parameters.
    """
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def is_main_process(optimizer: Any) -> bool:
    """Decide whether this process writes and warns for all.

    Args:
        optimizer: an optimizer; one that Accelerate has prepared knows the state of the processes.

    Returns:
        True on the main process, and where the optimizer was not prepared.
    """
    state = getattr(optimizer, "accelerator_state", None)
    return state is None or state.is_main_process
