"""The problems of `scripts/problem_suite.py`: small, real, and of the kinds that arXiv 2310.07831 evaluates on."""

from typing import Any

from .detection import Detection
from .diamonds import DiamondPrices
from .digit_images import ResNetOnDigits, ViTOnDigits
from .emoticons import EmoticonCategories
from .encoder import BibleSections
from .glyph_images import RegNetOnGlyphs
from .image_network import EfficientNetOnLetters
from .language_models import CausalLanguageModel, MaskedLanguageModel, RecurrentLanguageModel
from .problem import Problem
from .reconstruction import Reconstruction
from .translation import Translation

__all__ = ["CHOOSING", "PROBLEMS", "Problem"]

SGD: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 5e-4, "max_grad_norm": 0.0}
CLIPPED_SGD = {**SGD, "weight_decay": 0.0, "max_grad_norm": 1.0}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.01}

ALL = (
    ResNetOnDigits("resnet_digits_sgd", "CIFAR10", steps=400, start_peak=0.05, batch_size=16, **SGD),
    RegNetOnGlyphs(
        "regnet_glyphs_sgd", "CIFAR100", steps=400, start_peak=0.05, batch_size=16, pretraining_steps=2000, **SGD
    ),
    EfficientNetOnLetters(
        "efficientnet_letters_sgd", "ImageNet", steps=80, start_peak=0.02, batch_size=12, num_evaluation=512, **SGD
    ),
    Translation("t5_translation", "IWSLT14", steps=300, start_peak=4e-3, batch_size=8, pretraining_steps=3000, **ADAMW),
    CausalLanguageModel("causal_lm", "GPT", steps=300, start_peak=2e-3, batch_size=8, pretraining_steps=2500, **ADAMW),
    MaskedLanguageModel(
        "masked_lm", "RoBERTa", steps=300, start_peak=2e-3, batch_size=8, pretraining_steps=4000, **ADAMW
    ),
    EmoticonCategories("embeddings_emoticons", "DLRM", steps=850, start_peak=4e-3, batch_size=64, **ADAMW),
    Reconstruction("unet_reconstruction", "MRI", steps=300, start_peak=2e-3, batch_size=8, **ADAMW),
    ViTOnDigits("vit_digits", "ViT", steps=400, start_peak=1e-3, batch_size=32, pretraining_steps=3000, **ADAMW),
    Detection("yolos_digits", "RCNN", steps=300, start_peak=1e-3, batch_size=8, pretraining_steps=4000, **ADAMW),
    BibleSections(
        "minilm_sections",
        "fine-tuning of an encoder",
        steps=100,
        start_peak=4e-4,
        batch_size=8,
        num_evaluation=512,
        **ADAMW,
    ),
    DiamondPrices("mlp_diamonds", "regression", steps=3000, start_peak=4e-3, batch_size=32, **ADAMW),
    RecurrentLanguageModel(
        "lstm_characters", "sequences", steps=800, start_peak=4e-3, batch_size=8, pretraining_steps=1500, **ADAMW
    ),
    EmoticonCategories(
        "embeddings_emoticons_clipped_sgd", "SGD, clipped", steps=850, start_peak=0.2, batch_size=64, **CLIPPED_SGD
    ),
)

PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in ALL}

CHOOSING = (
    "resnet_digits_sgd",
    "t5_translation",
    "causal_lm",
    "embeddings_emoticons",
    "vit_digits",
    "minilm_sections",
    "lstm_characters",
)
"""The problems that choose rules and thresholds; the others test them."""
