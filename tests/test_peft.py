"""The page on PEFT, with a tiny model in place of the one it names, and which gradients it is about."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

from hf_refined_schedule import GradientNormCallback

from .pages import run_page
from .tiny import read_rows, tiny_arguments, tiny_data
from .tiny_hub import save_model
from .tolerances import FLOAT32_GRADIENTS

peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")

EXAMPLES = 64
UPDATES = 24
"""Three epochs of batches of eight are the defaults of transformers."""

BEFORE = f"from experiments.tiny_models import tiny_data\ndataset = tiny_data({EXAMPLES})\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    save_model(folder / "Qwen" / "Qwen3-0.6B")
    return folder


def test_the_page(folder):
    printed = run_page("peft", folder, before=BEFORE)
    header, rows = read_rows(folder / "runs" / "lora" / "gradient_norms.jsonl")
    assert (header["num_training_steps"], len(rows)) == (UPDATES, UPDATES)
    assert "sensitivity to the first norm" in printed


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_the_norm_is_that_of_what_is_trained(folder, tmp_path, saved):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / "Qwen" / "Qwen3-0.6B")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", modules_to_save=saved))
    data = tiny_data(8)
    model(**{name: torch.stack([row[name] for row in data]) for name in data[0]}).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_B" in name for name in gradients)
    assert any("lm_head" in name for name in gradients) is (saved is not None)
    assert all(not gradient.any() for name, gradient in gradients.items() if "lora_A" in name)
    l1 = sum(gradient.abs().sum().item() for gradient in gradients.values())
    l2 = sum(gradient.square().sum().item() for gradient in gradients.values()) ** 0.5
    model.zero_grad()
    arguments = tiny_arguments(tmp_path, max_steps=1, per_device_train_batch_size=8)
    Trainer(model, arguments, train_dataset=data, callbacks=[GradientNormCallback()]).train()
    (row,) = read_rows(tmp_path / "gradient_norms.jsonl")[1]
    assert (row["l1"], row["l2"]) == (
        pytest.approx(l1, rel=FLOAT32_GRADIENTS),
        pytest.approx(l2, rel=FLOAT32_GRADIENTS),
    )
