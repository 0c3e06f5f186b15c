"""The page on hyperparameter search."""

import pytest

from .pages import blocks, run_code
from .records import write_norms
from .reference import bounded_warmup_rates
from .tiny import read_rows

optuna = pytest.importorskip("optuna", reason="Optuna is not installed")

UPDATES = 24
NORMS = [10.0, 8, 6, 5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6]
BEFORE = f"""
from experiments.tiny_models import tiny_data, tiny_model
dataset, model_init = tiny_data({UPDATES * 8 // 3}), lambda: tiny_model()
"""


def expected_rates(learning_rate, refined_smoothing):
    return [learning_rate * value for value in bounded_warmup_rates(NORMS, refined_smoothing)]


def test_the_page(tmp_path):
    """The rates of each trial are those of the peak and the smoothing that it was given."""
    write_norms(tmp_path / "runs" / "baseline" / "gradient_norms.jsonl", NORMS)
    ((_, code),) = blocks("optuna")
    stored = code.replace('backend="optuna"', 'backend="optuna", storage="sqlite:///search.db", study_name="search"')
    assert stored != code
    printed = run_code(BEFORE + stored, "python", tmp_path)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/search.db")
    assert f"runs/search/run-{study.best_trial.number}" in printed
    for trial in study.trials:
        _, rows = read_rows(tmp_path / "runs" / "search" / f"run-{trial.number}" / "gradient_norms.jsonl")
        assert [row["learning_rate"] for row in rows] == pytest.approx(expected_rates(**trial.params)), trial.params
