"""What recording and scheduling ask of an optimizer, inside the wrappers of Accelerate and DeepSpeed."""

import re
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


COORDINATE_WISE = re.compile(
    r"adam|adagrad|adadelta|adafactor|rmsprop|lion|signsgd|rprop|prodigy|sophia|ademamix|came|lomo|schedulefree", re.I
)
"""Names of optimizers whose steps are normalised, or signs, coordinate by coordinate. Their dual norm is L1.

A sign step moves every coordinate by the same amount, so one power of the L1 norm is done by it, as by Adam's step.
"""

ORTHOGONALISED = re.compile(r"muon|shampoo|soap", re.I)
"""Names of optimizers whose steps are orthogonalised matrices. Their dual norm is the nuclear norm, which is not recorded."""


def stand_in_note(optimizer: Any) -> str | None:
    """Say where the weights of Adam stand in for those that theory gives an optimizer.

    Args:
        optimizer: an optimizer, which Accelerate or DeepSpeed may have wrapped.

    Returns:
        A sentence, or None for SGD and for coordinate-wise optimizers.
    """
    innermost = unwrap_optimizer(optimizer)
    name = type(innermost).__name__
    if ORTHOGONALISED.search(name):
        return (
            f"{name} takes orthogonalised steps, whose weights are the inverse nuclear norm. That norm is not recorded, so the "
            "weights for Adam stand in."
        )
    if isinstance(innermost, torch.optim.SGD) or COORDINATE_WISE.search(name):
        return None
    return f"The steps of {name} are not known; the weights for Adam stand in."


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
