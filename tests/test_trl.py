"""The page on TRL, with tiny models in place of those it names."""

import pytest

from .pages import run_page
from .tiny import read_rows
from .tiny_hub import Speaker, save_dataset, save_model

pytest.importorskip("trl", reason="TRL is not installed: pip install 'hf-refined-schedule[trl]'")

BFLOAT16_ON_CPUS = "import transformers.training_args as arguments\narguments.is_torch_bf16_gpu_available = lambda: True\n"
"""TRL trains in bfloat16 by default, and transformers refuses that without a GPU, although the CPU can do it, too."""

UPDATES = 24
BATCH = 8
"""The default batch of transformers."""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder in which the Python blocks of the page have run."""
    folder = tmp_path_factory.mktemp("page")
    speaker = Speaker()
    save_model(folder / "Qwen" / "Qwen3-0.6B")
    count = UPDATES * BATCH
    save_dataset(folder / "trl-lib" / "Capybara", [{"messages": speaker.dialogue()} for _ in range(count)])
    pairs = [{"chosen": speaker.dialogue(), "rejected": speaker.dialogue()} for _ in range(count)]
    for pair in pairs:
        pair["rejected"][0] = pair["chosen"][0]
    save_dataset(folder / "trl-lib" / "ultrafeedback_binarized", pairs)
    save_dataset(folder / "trl-lib" / "tldr", [{"prompt": speaker.words(4)} for _ in range(count // 2)])
    run_page("trl", folder, languages=("python",), before=BFLOAT16_ON_CPUS, HF_HOME=str(folder / "cache"))
    return folder


def rows(folder, run):
    return read_rows(folder / "runs" / run / "gradient_norms.jsonl")[1]


@pytest.mark.parametrize("run", ["sft", "sft-refined", "dpo", "grpo"])
def test_every_trainer_records(page, run):
    recorded = rows(page, run)
    assert len(recorded) >= UPDATES // 4
    assert all(row["l1"] > row["l2"] >= 0 for row in recorded if row["l2"]), recorded
