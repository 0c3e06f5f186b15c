"""Folders with the names of models and datasets of the hub, so that code which loads those finds tiny ones here."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = [f"w{number}" for number in range(56)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s> ' + message['role'] + ' ' + message['content'] + ' </s> ' }}{% endfor %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, 64 in all."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, "user", "assistant", *WORDS, "wx", "wy"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, begin, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end, unk_token=unknown,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def save_model(folder: Path) -> None:
    """A language model of 30,000 parameters and its tokenizer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_dataset(folder: Path, rows: list[dict]) -> None:
    """A dataset with one split, `train`."""
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Speaker:
    """Random text, the same in every run."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def words(self, count: int) -> str:
        return " ".join(self._random.choice(WORDS) for _ in range(count))

    def dialogue(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.words(4)}, {"role": "assistant", "content": self.words(8)}]
