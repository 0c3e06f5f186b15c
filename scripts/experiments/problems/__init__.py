"""The problems of `scripts/problem_suite.py`: small, real, and of the kinds that arXiv 2310.07831 evaluates on."""

from .digit_images import ResNetOnDigits
from .problem import Problem

__all__ = ["PROBLEMS", "Problem"]

SGD_IMAGES = {"optimizer": "sgd", "weight_decay": 5e-4, "max_grad_norm": 0.0}

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        ResNetOnDigits("resnet_digits_sgd", "CIFAR10", steps=400, start_peak=0.1, batch_size=64, **SGD_IMAGES),
    )
}
