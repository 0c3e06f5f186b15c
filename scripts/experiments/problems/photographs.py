"""Pieces of photographs that come with scikit-learn and matplotlib."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HELD_OUT = 0.75
"""Pieces left of this fraction of a photograph's width are for training, those right of it are held out."""


def load_photographs() -> list[NDArray[np.uint8]]:
    """Photographs of a temple, a flower and a person, shape (height, width, 3) each.

    Raises:
        ValueError: if a package is missing.
    """
    try:
        import matplotlib
        import sklearn.datasets
    except ImportError as error:
        raise ValueError(
            f"The photographs come with scikit-learn and matplotlib, but {error.name} is missing; pip install it."
        ) from None
    person = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return [*sklearn.datasets.load_sample_images().images, np.asarray(Image.open(person).convert("RGB"))]


def random_pieces(count: int, size: int, *, held_out: bool, random: np.random.Generator) -> NDArray[np.uint8]:
    """Square pieces of the photographs.

    Args:
        count: the number of pieces.
        size: of the pieces, in pixels.
        held_out: from which side of the photographs.
        random: for the choice.

    Returns:
        The pieces, shape (count, size, size, 3).
    """
    sides = []
    for photograph in load_photographs():
        border = round(HELD_OUT * photograph.shape[1])
        sides.append(photograph[:, border:] if held_out else photograph[:, :border])
    pieces = np.empty((count, size, size, 3), dtype=np.uint8)
    for index in range(count):
        side = sides[random.integers(len(sides))]
        top, left = (random.integers(length - size + 1) for length in side.shape[:2])
        pieces[index] = side[top : top + size, left : left + size]
    return pieces
