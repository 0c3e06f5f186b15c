"""The page on TRL, with tiny models in place of those it names."""

import pytest

from .pages import run_page
from .reference import bounded_warmup_rates
from .tiny import read_rows
from .tiny_hub import Speaker, save_dataset, save_model

pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

BFLOAT16_ON_CPUS = (
    "import transformers.training_args as arguments\narguments.is_torch_bf16_gpu_available = lambda: True\n"
)
"""TRL trains in bfloat16 by default, and transformers refuses that without a GPU, although the CPU can do it, too."""

EXAMPLES = 64
UPDATES = 24
"""Three epochs of batches of eight are the defaults of transformers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    speaker = Speaker()
    save_model(folder / "Qwen" / "Qwen3-0.6B")
    save_dataset(folder / "trl-lib" / "Capybara", [{"messages": speaker.dialogue()} for _ in range(EXAMPLES)])
    pairs = [{"chosen": speaker.dialogue(), "rejected": speaker.dialogue()} for _ in range(EXAMPLES)]
    for pair in pairs:
        pair["rejected"][0] = pair["chosen"][0]
    save_dataset(folder / "trl-lib" / "ultrafeedback_binarized", pairs)
    save_dataset(folder / "trl-lib" / "tldr", [{"prompt": speaker.words(4)} for _ in range(EXAMPLES // 2)])
    return folder


def recorded(folder, run):
    header, rows = read_rows(folder / "runs" / run / "gradient_norms.jsonl")
    return header["num_training_steps"], rows


def linear(peak):
    return pytest.approx([peak * (1 - t / UPDATES) for t in range(UPDATES)])


def refined_rates(rows):
    """The rates at the peak 2e-5, from a window of five norms, which is the default for so few of them."""
    return pytest.approx([2e-5 * value for value in bounded_warmup_rates([row["l1"] for row in rows], 0.2)])


def rates(rows):
    return [row["learning_rate"] for row in rows]


def test_the_trainers(folder):
    run_page("trl", folder, languages=("python",), before=BFLOAT16_ON_CPUS, HF_HOME=str(folder / "cache"))
    for run, peak in (("sft", 2e-5), ("dpo", 1e-6), ("grpo", 1e-6)):
        planned, rows = recorded(folder, run)
        assert (planned, rates(rows)) == (UPDATES, linear(peak)), run
        assert all(row["l1"] > row["l2"] > 0 for row in rows), run
    _, refined = recorded(folder, "sft-refined")
    assert rates(refined) == refined_rates(recorded(folder, "sft")[1])


def test_the_command_line(folder):
    run_page("trl", folder, languages=("bash",), more={"yaml": "use_cpu: true\n"}, HF_HOME=str(folder / "cache"))
    planned, rows = recorded(folder, "cli")
    assert (planned, rates(rows)) == (UPDATES, linear(2e-5))
    _, refined = recorded(folder, "cli-refined")
    assert rates(refined) == refined_rates(rows)
