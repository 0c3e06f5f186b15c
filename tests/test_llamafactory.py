"""The page on LLaMA-Factory: its two versions train a tiny model."""

import json
import os
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import transformers
from packaging.version import Version

from .pages import blocks, run_page
from .reference import bounded_warmup_rates
from .tiny import PYTHONPATH, read_rows
from .tiny_hub import Speaker, save_dataset, save_model

pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed")

UPDATES = 24

# --- version 0, which trains with transformers' Trainer ---

HAS_VERSION_0 = Version(version("trl")) < Version("0.25") and find_spec("torchaudio") is not None
TINY = (
    f"cutoff_len: 32\nlearning_rate: 0.0001\nmax_steps: {UPDATES}\nper_device_train_batch_size: 2\n"
    "resize_vocab: true\n"  # the template adds tokens that the tiny tokenizer lacks
)
IS_TOO_NEW = Version(transformers.__version__) > Version("5.6")
"""What the page says of transformers after 5.6: version 0 does not allow it, and its gradient checkpointing fails with it."""


@pytest.mark.skipif(not HAS_VERSION_0, reason="version 0 needs TRL 0.24 or earlier, and torchaudio")
def test_version_0(tmp_path):
    save_model(tmp_path / "Qwen" / "Qwen3-0.6B")
    save_dataset(tmp_path / "data", instructions())
    datasets = {"alpaca_en_demo": {"file_name": "train.jsonl"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(datasets))
    (sitecustomize,) = [code for language, code in blocks("without-code") if language == "python"]
    (tmp_path / "sitecustomize.py").write_text(sitecustomize)
    run_page(
        "llamafactory", tmp_path, section="Version 0",
        more={"yaml": TINY + "disable_gradient_checkpointing: true\n" * IS_TOO_NEW},
        DISABLE_VERSION_CHECK=str(int(IS_TOO_NEW)), PYTHONPATH=os.pathsep.join([str(tmp_path), PYTHONPATH]),
    )  # fmt: skip
    (header, rows), (_, refined), (_, again) = (
        read_rows(tmp_path / "saves" / run / "gradient_norms.jsonl") for run in ("baseline", "refined", "again")
    )
    assert (header["num_training_steps"], header["optimizer"]) == (UPDATES, "AdamW")
    assert rates(rows) == pytest.approx([1e-4 * (1 - t / UPDATES) for t in range(UPDATES)])
    expected = [1e-4 * value for value in grid_of([row["l1"] for row in rows])[:-1]]
    assert rates(refined) == rates(again) == pytest.approx(expected)


def rates(rows):
    return [row["learning_rate"] for row in rows]


def instructions():
    speaker = Speaker()
    return [{"instruction": speaker.words(4), "input": "", "output": speaker.words(6)} for _ in range(2 * UPDATES)]


def grid_of(norms):
    """Multipliers at the updates and at the end, with a window of five norms: the default for so few."""
    return [*bounded_warmup_rates(norms, 0.2), 0.0]


# --- version 1, which has a trainer of its own ---

DATA = "tiny:\n  path: data/train.jsonl\n  source: local\n  converter: alpaca\n"
ON_A_CPU = f"bf16: false\nbatching_workers: 0\ncutoff_len: 32\nglobal_batch_size: 2\nmax_steps: {UPDATES}\n"


def test_version_1(tmp_path):
    save_model(tmp_path / "Qwen" / "Qwen3-0.6B")
    save_dataset(tmp_path / "data", instructions())
    (tmp_path / "data.yaml").write_text(DATA)
    run_page("llamafactory", tmp_path, section="Version 1", languages=("bash",), more={"yaml": ON_A_CPU})
    baseline, refined = (
        [json.loads(line) for line in (tmp_path / "outputs" / name / "trainer_log.jsonl").read_text().splitlines()]
        for name in ("baseline", "refined")
    )
    assert len(baseline) == UPDATES
    grid = grid_of([row["grad_norm"] for row in baseline])
    # It logs the rate after the update's step of the scheduler, that of the next update.
    assert rates(refined) == pytest.approx([1e-4 * value for value in grid[1:]], abs=1e-12)
