"""The page on LLaMA-Factory: its version 1 trains a tiny model."""

import json

import pytest

from .pages import run_page
from .reference import median_smoothing, multipliers_of
from .tiny_hub import Speaker, save_dataset, save_model

pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed")

UPDATES = 24
DATA = "tiny:\n  path: data/train.jsonl\n  source: local\n  converter: alpaca\n"
ON_A_CPU = f"bf16: false\nbatching_workers: 0\ncutoff_len: 32\nglobal_batch_size: 2\nmax_steps: {UPDATES}\n"


def test_version_1(tmp_path):
    speaker = Speaker()
    save_model(tmp_path / "Qwen" / "Qwen3-0.6B")
    rows = [{"instruction": speaker.words(4), "input": "", "output": speaker.words(6)} for _ in range(2 * UPDATES)]
    save_dataset(tmp_path / "data", rows)
    (tmp_path / "data.yaml").write_text(DATA)
    run_page("llamafactory", tmp_path, languages=("bash",), more={"yaml": ON_A_CPU})
    baseline, refined = (
        [json.loads(line) for line in (tmp_path / "outputs" / name / "trainer_log.jsonl").read_text().splitlines()]
        for name in ("baseline", "refined")
    )
    assert len(baseline) == UPDATES
    smoothed = median_smoothing([row["grad_norm"] for row in baseline], 0.2)  # a window of five, the default for so few
    grid = multipliers_of([*smoothed, smoothed[-1]], -1)
    # It logs the rate after the update's step of the scheduler, that of the next update.
    assert [row["learning_rate"] for row in refined] == pytest.approx([1e-4 * value for value in grid[1:]], abs=1e-12)
