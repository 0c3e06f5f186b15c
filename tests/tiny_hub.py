"""Folders with the names of models and datasets of the hub, so that code which loads those finds tiny ones here."""

import json
import random
from pathlib import Path

from experiments.tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = [f"w{number}" for number in range(56)]
CHAT_TEMPLATE = "{% for message in messages %}{{ '<s> ' + message['role'] + ' ' + message['content'] + ' </s> ' }}{% endfor %}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, 64 in all, as many as `tiny_model` knows."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, "user", "assistant", *WORDS, "wx", "wy"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, begin, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end, unk_token=unknown,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def save_model(folder: Path) -> None:
    """A language model and its tokenizer, for sequences of up to 64 tokens."""
    model = tiny_model(n_positions=64)
    model.config.eos_token_id = model.config.bos_token_id = 2
    model.save_pretrained(folder)
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
