"""Characters of the fonts that come with matplotlib, turned, scaled, shifted and under noise."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .problem import EVALUATION, PRETRAINING, TRAIN, Problem, Tensors

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HUNDRED_CHARACTERS = f"0123456789{CAPITALS}{CAPITALS.lower()}ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπστφχψωБДЖЗИЦЧШЮЯ"

NOISE = 0.15
"""The standard deviation of the noise; grey levels are between 0 and 1."""


def draw_glyphs(characters: NDArray[np.str_], size: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Draw each character in a font, at an angle, in a size and at a place of its own.

    Args:
        characters: shape (count,).
        size: of the images, in pixels.
        random: for all choices.

    Returns:
        Images, shape (count, size, size), from 0 to 1.

    Raises:
        ValueError: if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("The fonts come with matplotlib, which is missing; pip install matplotlib.") from None
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    points = np.linspace(0.5 * size, 0.85 * size, 6).round()
    fonts = [[ImageFont.truetype(folder / f"{name}.ttf", float(size)) for size in points] for name in FONTS]
    images = np.empty((len(characters), size, size), dtype=np.float32)
    for index, character in enumerate(characters):
        font = fonts[random.integers(len(FONTS))][random.integers(len(points))]
        x, y = random.uniform(0.42 * size, 0.58 * size, 2)
        image = Image.new("L", (size, size))
        ImageDraw.Draw(image).text((x, y), str(character), font=font, fill=255, anchor="mm")
        turned = image.rotate(random.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
        images[index] = np.asarray(turned, dtype=np.float32) / 255
    return images


def noisy_glyphs(alphabet: str, count: int, *, size: int, seed: int) -> Tensors:
    """Bright characters on a dark ground, in a contrast of their own and under noise.

    Args:
        alphabet: the classes.
        count: the number of examples.
        size: of the images, in pixels.
        seed: of all choices.

    Returns:
        `pixel_values`, shape (count, 1, size, size), bytes, and `labels`.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(len(alphabet), size=count)
    images = draw_glyphs(np.array(list(alphabet))[labels], size, random)
    contrast = random.uniform(0.25, 0.65, (count, 1, 1))
    noisy = np.clip(0.25 + contrast * images + random.normal(0, NOISE, images.shape), 0, 1)
    return {
        "pixel_values": torch.from_numpy((255 * noisy).astype(np.uint8)[:, None]),
        "labels": torch.from_numpy(labels),
    }


class RegNetOnGlyphs(Problem):
    """Classify 100 characters with a RegNet. Every example is seen once, in the pretraining or in the runs."""

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Draw the examples."""
        return {
            PRETRAINING: noisy_glyphs(HUNDRED_CHARACTERS, self.pretraining_steps * self.batch_size, size=24, seed=3),
            TRAIN: noisy_glyphs(HUNDRED_CHARACTERS, self.steps * self.batch_size, size=24, seed=1),
            EVALUATION: noisy_glyphs(HUNDRED_CHARACTERS, self.num_evaluation, size=24, seed=2),
        }

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make a RegNet with three stages."""
        from transformers import RegNetConfig, RegNetForImageClassification

        config = RegNetConfig(
            num_channels=1,
            embedding_size=32,
            hidden_sizes=[48, 96, 192],
            depths=[1, 1, 1],
            groups_width=24,
            layer_type="x",
            downsample_in_first_stage=False,
            num_labels=len(HUNDRED_CHARACTERS),
        )
        return RegNetForImageClassification(config)
