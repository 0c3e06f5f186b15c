"""Images from a part of their Fourier coefficients, as in fast magnetic resonance imaging."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import l1_loss

from .photographs import random_pieces
from .problem import EVALUATION, TRAIN, Problem, Tensors

SIZE = 32

LOW_LINES = 3
"""Lines from the lowest frequency on, all of which are measured. A line at a negative frequency is the conjugate of another."""

MEASURED = 0.25
"""The fraction of the other lines that is measured, chosen anew for each image."""

NOISE = 0.02
"""The standard deviation of the noise of a pixel of the measured image."""


def undersample(images: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """The images of the measured lines alone: the other Fourier coefficients are zero.

    Args:
        images: shape (count, size, size).
        random: for the lines and the noise.

    Returns:
        Blurred images with artefacts, of the same shape.
    """
    coefficients = np.fft.rfft2(images + random.normal(0, NOISE, images.shape))
    measured = random.random((len(images), 1, coefficients.shape[2])) < MEASURED
    measured[..., :LOW_LINES] = True
    return np.fft.irfft2(coefficients * measured)


class SmallUNet(torch.nn.Module):
    """Corrects the blurred image. One level works at half the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> torch.nn.Sequential:
            return torch.nn.Sequential(
                torch.nn.Conv2d(inputs, outputs, 3, padding=1),
                torch.nn.GroupNorm(4, outputs),
                torch.nn.SiLU(),
                torch.nn.Conv2d(outputs, outputs, 3, padding=1),
                torch.nn.GroupNorm(4, outputs),
                torch.nn.SiLU(),
            )

        self.fine = block(1, width)
        self.coarse = block(width, 2 * width)
        self.joined = block(3 * width, width)
        self.output = torch.nn.Conv2d(width, 1, 1)

    def forward(self, blurred: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean absolute error."""
        fine = self.fine(blurred)
        coarse = self.coarse(torch.nn.functional.avg_pool2d(fine, 2))
        upsampled = torch.nn.functional.interpolate(coarse, scale_factor=2.0)
        restored = blurred + self.output(self.joined(torch.cat([fine, upsampled], dim=1)))
        return {"loss": l1_loss(restored, labels)}


class Reconstruction(Problem):
    """Restore pieces of photographs from a third of their Fourier coefficients. Every training example is seen once."""

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Cut the pieces and measure them."""
        counts = {TRAIN: self.steps * self.batch_size, EVALUATION: self.num_evaluation}
        parts = {}
        for seed, (name, count) in enumerate(counts.items()):
            random = np.random.default_rng(seed)
            images = random_pieces(count, SIZE, held_out=name == EVALUATION, random=random).mean(axis=3) / 255
            images = (images - images.mean(axis=(1, 2), keepdims=True)) / (
                0.05 + images.std(axis=(1, 2), keepdims=True)
            )
            columns = {"blurred": undersample(images, random), "labels": images}
            parts[name] = {key: torch.from_numpy(column[:, None]).float() for key, column in columns.items()}
        return parts

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make the network."""
        return SmallUNet(width=16)
