"""Causal, masked and recurrent language models on the King James Version."""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .bible import (
    END,
    KING_JAMES,
    MASK,
    PADDING,
    START,
    load_verses,
    part_of,
    train_tokenizer,
)
from .problem import EVALUATION, IGNORED, PRETRAINING, TRAIN, Problem, Tensors

VOCABULARY = 1024
BLOCK = 64
"""Tokens in an example."""

MASKED = 0.3
"""The fraction of tokens that a masked language model predicts."""


def verses_by_part(folder: Path) -> dict[str, list[str]]:
    """The verses of each part, in the order of the text."""
    parts: dict[str, list[str]] = {PRETRAINING: [], TRAIN: [], EVALUATION: []}
    for verse, text in load_verses(KING_JAMES, folder).items():
        parts[part_of(verse)].append(text)
    return parts


def cut_into_blocks(tokens: list[int], length: int) -> torch.Tensor:
    """Blocks of tokens, shape (num_blocks, length); a shorter last block is dropped."""
    count = len(tokens) // length
    return torch.tensor(tokens[: count * length]).view(count, length)


def token_blocks(folder: Path) -> dict[str, torch.Tensor]:
    """The blocks of each part."""
    parts = verses_by_part(folder)
    tokenizer = train_tokenizer(parts[PRETRAINING], VOCABULARY)
    return {
        name: cut_into_blocks([token for line in tokenizer.encode_batch(texts) for token in [*line.ids, END]], BLOCK)
        for name, texts in parts.items()
    }


class CausalLanguageModel(Problem):
    """Predict the next token."""

    requirements = (KING_JAMES,)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Tokenize the text."""
        return {name: {"input_ids": blocks, "labels": blocks.clone()} for name, blocks in token_blocks(folder).items()}

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make a Llama with three layers."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=BLOCK,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=PADDING,
        )
        return LlamaForCausalLM(config)


def mask_tokens(blocks: torch.Tensor, seed: int) -> Tensors:
    """Replace tokens by the mask; the labels are the tokens below it."""
    masked = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(seed)) < MASKED
    return {"input_ids": blocks.masked_fill(masked, MASK), "labels": blocks.masked_fill(~masked, IGNORED)}


class MaskedLanguageModel(Problem):
    """Predict the tokens below masks. Each pass over the text has masks of its own."""

    requirements = (KING_JAMES,)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Tokenize the text and mask it."""
        blocks = token_blocks(folder)
        counts = {
            PRETRAINING: self.pretraining_steps * self.batch_size,
            TRAIN: self.steps * self.batch_size,
            EVALUATION: len(blocks[EVALUATION]),
        }
        return {
            name: mask_tokens(blocks[name].repeat(-(-count // len(blocks[name])), 1)[:count], seed)
            for seed, (name, count) in enumerate(counts.items())
        }

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make a ModernBERT with three layers. With learned positions, so small a model needs far longer to look at neighbours."""
        from transformers import ModernBertConfig, ModernBertForMaskedLM

        config = ModernBertConfig(
            vocab_size=VOCABULARY,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=BLOCK,
            local_attention=16,
            pad_token_id=PADDING,
            bos_token_id=START,
            cls_token_id=START,
            eos_token_id=END,
            sep_token_id=END,
        )
        return ModernBertForMaskedLM(config)


class CharacterLSTM(torch.nn.Module):
    """Predicts the next character.

    Args:
        num_characters: the size of the alphabet.
        width: of the embedding and of the state.
    """

    def __init__(self, num_characters: int, width: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(num_characters, width)
        self.lstm = torch.nn.LSTM(width, width, batch_first=True)
        self.head = torch.nn.Linear(width, num_characters)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean loss of a character."""
        states, _ = self.lstm(self.embedding(input_ids[:, :-1]))
        return {"loss": cross_entropy(self.head(states).flatten(0, 1), labels[:, 1:].flatten())}


class RecurrentLanguageModel(Problem):
    """Predict the next character with an LSTM."""

    requirements = (KING_JAMES,)

    def make_data(self, folder: Path) -> dict[str, Tensors]:
        """Encode the text as bytes."""
        parts = {}
        for name, texts in verses_by_part(folder).items():
            codes = np.frombuffer("\n".join(texts).encode("ascii", "ignore"), dtype=np.uint8)
            blocks = cut_into_blocks(codes.tolist(), BLOCK + 1)
            parts[name] = {"input_ids": blocks, "labels": blocks.clone()}
        return parts

    def make_model(self, folder: Path) -> torch.nn.Module:
        """Make an LSTM of one layer."""
        return CharacterLSTM(128, 128)
