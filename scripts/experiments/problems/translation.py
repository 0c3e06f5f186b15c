"""Sequence to sequence between two translations of the Bible."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from .bible import (
    AMERICAN_STANDARD,
    END,
    KING_JAMES,
    PADDING,
    load_verses,
    part_of,
    train_tokenizer,
)
from .problem import EVALUATION, IGNORED, PRETRAINING, TRAIN, Problem, Tensors

VOCABULARY = 1024
LENGTH = 48
"""Tokens in a verse; longer verses are left out."""


def encode_pairs(pairs: list[tuple[str, str]], tokenizer: Tokenizer) -> Tensors:
    """Tokens of the pairs that are not too long: `input_ids`, `attention_mask` and `labels`."""
    sources, targets = (
        [[*encoding.ids, END] for encoding in tokenizer.encode_batch(list(texts))] for texts in zip(*pairs, strict=True)
    )
    short = [pair for pair in zip(sources, targets, strict=True) if max(map(len, pair)) <= LENGTH]
    inputs = torch.full((len(short), LENGTH), PADDING)
    labels = torch.full((len(short), LENGTH), IGNORED)
    for row, (source, target) in enumerate(short):
        inputs[row, : len(source)] = torch.tensor(source)
        labels[row, : len(target)] = torch.tensor(target)
    return {"input_ids": inputs, "attention_mask": (inputs != PADDING).long(), "labels": labels}


class Translation(Problem):
    """Write verses of the King James Version as the American Standard Version has them.

    The start weights are trained on the Old Testament, the runs on the New Testament.
    """

    requirements = (KING_JAMES, AMERICAN_STANDARD)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Align the verses that both translations have, and encode them."""
        source, target = (load_verses(requirement, folder) for requirement in self.requirements)
        parts: dict[str, list[tuple[str, str]]] = {PRETRAINING: [], TRAIN: [], EVALUATION: []}
        for verse in sorted(source.keys() & target.keys()):
            parts[part_of(verse)].append((source[verse], target[verse]))
        tokenizer = train_tokenizer([text for pair in parts[PRETRAINING] for text in pair], VOCABULARY)
        return {name: encode_pairs(pairs, tokenizer) for name, pairs in parts.items()}

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make a T5 with two layers on each side."""
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=96,
            d_kv=24,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=PADDING,
            eos_token_id=END,
            decoder_start_token_id=PADDING,
        )
        return T5ForConditionalGeneration(config)
