"""Categories of Japanese emoticons from embeddings of their characters."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .packages import package_folder
from .problem import EVALUATION, TRAIN, Problem, Tensors

KAOMOJI = "kaomoji-dataset==1.0.6"

NUM_CATEGORIES = 24
"""The most frequent categories; emoticons of others are left out."""

NO_CATEGORY = ("uncategorized", "special")

LENGTH = 24
"""Characters of an emoticon that are used."""

NUM_CHARACTERS = 1024
"""The most frequent characters have an embedding each; 0 stands for others and for none."""

NUM_PAIRS = 8192
"""Rows of the table of embeddings of neighbouring characters, which share rows."""


def load_emoticons(folder: Path) -> list[tuple[str, str]]:
    """Emoticons and their categories.

    Raises:
        ValueError: if the package is missing.
    """
    path = package_folder(KAOMOJI, folder) / "data" / "kaomoji.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["text"], row["category"]) for row in rows if row["category"] not in NO_CATEGORY]


class EmbeddingsAndMLP(torch.nn.Module):
    """Sums the embeddings of characters and of neighbours, and classifies the sum and their product."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.characters = torch.nn.EmbeddingBag(NUM_CHARACTERS, width, mode="sum", padding_idx=0)
        self.pairs = torch.nn.EmbeddingBag(NUM_PAIRS, width, mode="sum", padding_idx=0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3 * width, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, NUM_CATEGORIES),
        )
        for table in (self.characters, self.pairs):
            torch.nn.init.normal_(table.weight, std=0.1)

    def forward(self, characters: torch.Tensor, pairs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cross entropy."""
        first, second = self.characters(characters), self.pairs(pairs)
        scores = self.layers(torch.cat([first, second, first * second], dim=1))
        return {"loss": cross_entropy(scores, labels)}


class EmoticonCategories(Problem):
    """Classify emoticons by large embedding tables and a small network."""

    requirements = (KAOMOJI,)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Number characters, neighbours and categories."""
        emoticons = load_emoticons(folder)
        categories = [name for name, _ in Counter(name for _, name in emoticons).most_common(NUM_CATEGORIES)]
        emoticons = [(text, name) for text, name in emoticons if name in categories]
        frequent = Counter(character for text, _ in emoticons for character in text).most_common(NUM_CHARACTERS - 1)
        numbers = {character: number for number, (character, _) in enumerate(frequent, start=1)}
        characters = np.zeros((len(emoticons), LENGTH), dtype=np.int64)
        for row, (text, _) in enumerate(emoticons):
            characters[row, : len(text[:LENGTH])] = [numbers.get(character, 0) for character in text[:LENGTH]]
        both = (characters[:, :-1] > 0) & (characters[:, 1:] > 0)
        pairs = np.where(both, 1 + (characters[:, :-1] * 7919 + characters[:, 1:]) % (NUM_PAIRS - 1), 0)
        columns = {
            "characters": torch.from_numpy(characters),
            "pairs": torch.from_numpy(pairs),
            "labels": torch.tensor([categories.index(name) for _, name in emoticons]),
        }
        order = np.random.default_rng(1).permutation(len(emoticons))
        parts = {EVALUATION: order[: self.num_evaluation], TRAIN: order[self.num_evaluation :]}
        return {name: {key: column[rows] for key, column in columns.items()} for name, rows in parts.items()}

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make the tables and the network."""
        return EmbeddingsAndMLP(width=64, hidden=256)
