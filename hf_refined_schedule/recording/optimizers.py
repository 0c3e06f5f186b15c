"""What kind of optimizer a run uses, inside the wrappers of Accelerate and DeepSpeed."""

from typing import Any

import torch

from ..norms.gradient_norms import OptimizerFamily


def optimizer_family(optimizer: Any) -> OptimizerFamily:
    """Which weights an optimizer asks for.

    Args:
        optimizer: an optimizer, also wrapped by Accelerate or DeepSpeed.

    Returns:
        `"sgd"` for `torch.optim.SGD` and its subclasses, `"adam"` for all others.
    """
    return "sgd" if isinstance(unwrap_optimizer(optimizer), torch.optim.SGD) else "adam"


def unwrap_optimizer(optimizer: Any) -> Any:
    """The optimizer inside Accelerate's and DeepSpeed's wrappers, which call it `optimizer`.

    Args:
        optimizer: an optimizer, wrapped or not.

    Returns:
        The innermost optimizer.
    """
    while getattr(optimizer, "optimizer", None) is not None:
        optimizer = optimizer.optimizer
    return optimizer
