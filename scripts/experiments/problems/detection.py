"""Handwritten digits in scenes: which are there, and where."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .digit_images import split_digits
from .problem import EVALUATION, PRETRAINING, TRAIN, Problem, Tensors

SIZE = 32
NUM_OBJECTS = 3
NOISE = 0.15


def compose_scenes(count: int, *, held_out: bool, seed: int) -> Tensors:
    """Scenes of three digits that do not overlap, each 8 to 12 pixels large.

    Args:
        count: the number of scenes.
        held_out: whether the digits are of the held-out third.
        seed: of all choices.

    Returns:
        `pixel_values`, shape (count, 1, SIZE, SIZE), bytes; `classes`, shape (count, NUM_OBJECTS); `boxes`, shape
        (count, NUM_OBJECTS, 4), as x and y of the centre, width and height, in fractions of the scene.
    """
    images, labels = split_digits(held_out)
    random = np.random.default_rng(seed)
    scenes = np.zeros((count, SIZE, SIZE))
    chosen = random.integers(len(labels), size=(count, NUM_OBJECTS))
    boxes = np.empty((count, NUM_OBJECTS, 4))
    cell = SIZE // 2  # each digit lies in a quarter of its own
    for row in range(count):
        for number, quarter in enumerate(random.permutation(4)[:NUM_OBJECTS]):
            size = int(random.integers(8, 13))
            pixels = np.arange(size) * 8 // size
            top, left = random.integers(cell - size + 1, size=2) + cell * np.array(divmod(quarter, 2))
            scenes[row, top : top + size, left : left + size] = images[chosen[row, number]][np.ix_(pixels, pixels)]
            boxes[row, number] = left + size / 2, top + size / 2, size, size
    noisy = np.clip(0.2 + 0.6 * scenes + random.normal(0, NOISE, scenes.shape), 0, 1)
    return {
        "pixel_values": torch.from_numpy((255 * noisy).astype(np.uint8)[:, None]),
        "classes": torch.from_numpy(labels[chosen]),
        "boxes": torch.from_numpy(boxes / SIZE).float(),
    }


def collate_scenes(rows: list[Tensors]) -> dict[str, Any]:
    """A batch as YOLOS takes it: the objects of each scene in a dictionary."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": [{"class_labels": row["classes"], "boxes": row["boxes"]} for row in rows],
    }


class Detection(Problem):
    """Find digits with YOLOS, a vision transformer. The start weights are trained on other scenes of the same digits."""

    data_collator = staticmethod(collate_scenes)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Compose the scenes."""
        return {
            PRETRAINING: compose_scenes(self.pretraining_steps * self.batch_size, held_out=False, seed=1),
            TRAIN: compose_scenes(self.steps * self.batch_size, held_out=False, seed=2),
            EVALUATION: compose_scenes(self.num_evaluation, held_out=True, seed=3),
        }

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make a YOLOS with three layers on 64 patches."""
        from transformers import YolosConfig, YolosForObjectDetection

        config = YolosConfig(
            image_size=[SIZE, SIZE],
            patch_size=4,
            num_channels=1,
            num_detection_tokens=5,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            use_mid_position_embeddings=False,
            num_labels=10,
        )
        return YolosForObjectDetection(config)
