"""The page on Sentence Transformers, with a tiny model."""

import pytest

from .pages import run_page
from .reference import bounded_warmup_rates
from .tiny import read_rows

pytest.importorskip("sentence_transformers", reason="Sentence Transformers is not installed")

UPDATES = 24
BEFORE = f"""
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from sentence_transformers.losses import SoftmaxLoss
from transformers import BertConfig, BertModel, set_seed
from tests.tiny_hub import Speaker, tiny_tokenizer

set_seed(0)
BertModel(BertConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
)).save_pretrained("encoder")
tiny_tokenizer().save_pretrained("encoder")

def new_model():
    module = models.Transformer("encoder", max_seq_length=16)
    return SentenceTransformer(modules=[module, models.Pooling(16)], device="cpu")

speaker, count = Speaker(), {UPDATES * 8 // 3}
pairs = Dataset.from_dict({{
    "sentence1": [speaker.words(6) for _ in range(count)], "sentence2": [speaker.words(6) for _ in range(count)],
    "label": [number % 2 for number in range(count)],
}})
loss = lambda model: SoftmaxLoss(model, 16, num_labels=2)
"""


def test_the_page(tmp_path):
    run_page("sentence-transformers", tmp_path, before=BEFORE)
    (header, rows), (_, refined) = (
        read_rows(tmp_path / "runs" / name / "gradient_norms.jsonl") for name in ("baseline", "refined")
    )
    assert (header["num_training_steps"], len(rows)) == (UPDATES, UPDATES)
    assert all(row["l1"] > row["l2"] > 0 for row in rows)
    expected = bounded_warmup_rates([row["l1"] for row in rows], 0.2)  # a window of five, the default for so few norms
    assert [row["learning_rate"] for row in refined] == pytest.approx([5e-5 * value for value in expected])
