"""Handwritten digits of scikit-learn under fresh noise."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .problem import EVALUATION, PRETRAINING, TRAIN, Problem, Tensors

NOISE = 0.35
"""The standard deviation of the noise; grey levels are between 0 and 1."""


def load_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The images, shape (1797, 8, 8), from 0 to 1, and their digits.

    Raises:
        ValueError: if scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ValueError("The digits come with scikit-learn, which is missing; pip install scikit-learn.") from None
    loaded = datasets.load_digits()
    return loaded.images / 16, loaded.target


def split_digits(held_out: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Every third image is held out."""
    images, labels = load_digits()
    chosen = (np.arange(len(labels)) % 3 == 0) == held_out
    return images[chosen], labels[chosen]


def noisy_digits(count: int, *, held_out: bool, seed: int) -> Tensors:
    """Digits, each shifted by up to a pixel and under noise of its own.

    Args:
        count: the number of examples.
        held_out: whether they are made from the held-out third.
        seed: of the choice, the shifts and the noise.

    Returns:
        `pixel_values`, shape (count, 1, 32, 32), bytes, and `labels`.
    """
    images, labels = split_digits(held_out)
    random = np.random.default_rng(seed)
    chosen = random.integers(len(labels), size=count)
    padded = np.pad(images[chosen], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))
    down, right = random.integers(3, size=(2, count))
    shifted = windows[np.arange(count), down, right]
    noisy = np.clip(0.25 + shifted / 2 + random.normal(0, NOISE / 2, shifted.shape), 0, 1)
    enlarged = np.kron(noisy, np.ones((1, 4, 4)))
    return {
        "pixel_values": torch.from_numpy((255 * enlarged).astype(np.uint8)[:, None]),
        "labels": torch.from_numpy(labels[chosen]),
    }


class DigitImages(Problem):
    """Classify noisy digits. Every example is seen once, in the pretraining, if there is one, or in the runs."""

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Make the examples."""
        return {
            PRETRAINING: noisy_digits(self.pretraining_steps * self.batch_size, held_out=False, seed=3),
            TRAIN: noisy_digits(self.steps * self.batch_size, held_out=False, seed=1),
            EVALUATION: noisy_digits(self.num_evaluation, held_out=True, seed=2),
        }


class ResNetOnDigits(DigitImages):
    """A ResNet with batch normalisation."""

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make a ResNet with 12 convolutions."""
        from transformers import ResNetConfig, ResNetForImageClassification

        config = ResNetConfig(
            num_channels=1,
            embedding_size=32,
            hidden_sizes=[32, 64, 128],
            depths=[2, 2, 2],
            layer_type="basic",
            num_labels=10,
        )
        return ResNetForImageClassification(config)


class ViTOnDigits(DigitImages):
    """A vision transformer."""

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make a vision transformer with three layers on 16 patches."""
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            image_size=32,
            patch_size=8,
            num_channels=1,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=10,
        )
        return ViTForImageClassification(config)
