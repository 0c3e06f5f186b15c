"""Models and data so small that a run takes seconds, for checks that need real training but no good model."""

import os
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

VOCABULARY = 64
LENGTH = 16
"""Tokens in a sequence."""


def random_gpt2(seed: int = 0, **config: Any) -> GPT2LMHeadModel:
    """A GPT-2 with random weights.

    Args:
        seed: for the weights. It also seeds what torch draws after them, such as dropout.
        **config: entries of `GPT2Config`.
    """
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **config))
    model.loss_type = "ForCausalLM"  # transformers infers it from other class names, and warns for this one
    return model


def tiny_model(seed: int = 0, **config: Any) -> GPT2LMHeadModel:
    """A GPT-2 of 28,000 parameters, without dropout unless `config` asks for it.

    Without dropout a batch has one gradient, however it is split over micro-batches or processes.
    """
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
    dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    return random_gpt2(seed, **{**sizes, **dropout, **config})


def tiny_t5() -> T5ForConditionalGeneration:
    """An encoder-decoder without dropout."""
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2,
        "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**config))


class SparseModel(torch.nn.Module):
    """Predicts each token from the one before it. The gradient of its embedding is a sparse tensor.

    Args:
        train_head: whether the output layer is trained. Its gradient is dense, which `torch.optim.SparseAdam` refuses.
    """

    def __init__(self, train_head: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCABULARY, 32, sparse=True)
        self.head = torch.nn.Linear(32, VOCABULARY)
        self.head.requires_grad_(train_head)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss, in a dictionary as transformers' models return it."""
        logits = self.head(self.embedding(input_ids[:, :-1]))
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())}


def tiny_data(count: int = 256, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Random sequences in which every token occurs twice in a row, so that a model can learn something.

    Args:
        count: the number of sequences.
        seed: for the tokens.
    """
    tokens = torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    tokens[:, 1::2] = tokens[:, ::2]
    return [{"input_ids": row, "labels": row} for row in tokens]


def tiny_options(output_dir: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """`TrainingArguments` of a short run on the CPU that logs every update and saves nothing.

    Args:
        output_dir: the folder of the run.
        **options: changes and additions.
    """
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 30,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return {**defaults, **options}
