"""The study of the loss law: curves read from CSV files and results, and its tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from experiments import loss_law_tables
from experiments.loss_curves import Curve, equal_lengths, read_curve, read_curves, read_study
from experiments.loss_law_tables import (
    named_schedules,
    one_log_table,
    optimum_row,
    power_table,
    predict_all,
    study_row,
)
from scipy.signal import lfilter

from hf_refined_schedule.theory.loss_fit import LossFit
from hf_refined_schedule.theory.loss_forms import EXPONENTIAL_ANNEALING

from .refusals import refuses
from .tolerances import COMMAND_SECONDS

SCRIPT = Path(__file__).parent.parent / "scripts" / "loss_law_study.py"


def write_csv(path, rows, columns="step,lr,loss"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([columns, *[",".join(map(str, row)) for row in rows]]) + "\n")
    return path


def test_rates_between_logged_steps_are_linear_after_a_ramp(tmp_path):
    curve = read_curve(write_csv(tmp_path / "run.csv", [(2, 0.4, 3.0), (4, 0.4, 2.5), (6, 0.2, 2.25)]))
    assert curve.name == "run" and curve.final_loss == 2.25
    np.testing.assert_allclose(curve.rates, [0.2, 0.4, 0.4, 0.4, 0.3, 0.2])
    assert curve.steps.tolist() == [2, 4, 6]


def test_a_folder_or_its_subfolders_are_read(tmp_path):
    for name in ("b", "a"):
        write_csv(tmp_path / "small" / f"{name}.csv", [(1, 0.1, 3.0), (2, 0.1, 2.0)])
    assert {size: [one.name for one in curves] for size, curves in read_curves(tmp_path).items()} == {
        "small": ["a", "b"]
    }
    assert list(read_curves(tmp_path / "small")) == ["small"]


def test_folders_that_are_not_curves_are_refused(tmp_path):
    with refuses("no CSV files", str(tmp_path)):
        read_curves(tmp_path)
    write_csv(tmp_path / "run.csv", [(1, 0.1)], columns="step,loss")
    with refuses("run.csv", "step, loss", "step, lr, loss"):
        read_curves(tmp_path)


def test_the_most_frequent_length_is_compared():
    def curve(updates):
        return Curve("run", np.ones(updates), np.array([updates]), np.array([1.0]))

    assert equal_lengths([curve(23_936), curve(71_936), curve(23_904), curve(12_000)]) == [0, 2]
    assert equal_lengths([curve(1000), curve(3000)]) == [1], "the longer one if all differ"


def falling_curves():
    """Runs of one law, 3 + sum^-0.5 / 10 + 0.2 times a leaky mean of the rate: the annealing sum with lambda = 0.995."""
    steps = np.arange(20, 2001, 20)
    curves = []
    for name, multipliers in named_schedules(2000, 100).items():
        if name in ("constant", "cosine", "wsd 20% linear"):
            leaky_means = lfilter([0.005], [1, -0.995], multipliers)
            losses = 3 + ((np.cumsum(multipliers) + 1) / 1000) ** -0.5 / 10 + 0.2 * leaky_means
            curves.append(Curve(name, 0.001 * multipliers, steps, losses[steps - 1]))
    return curves


@pytest.fixture(scope="module")
def predictions():
    curves = falling_curves()
    return curves, [predict_all(curves, (position,)) for position in (0, 1)]


def test_the_table_of_one_log(predictions):
    table = one_log_table(*predictions).set_index("log")
    assert table.index.tolist() == ["constant", "cosine", "the bound"]
    assert table["gate"].tolist()[:2] == ["refuses", "opens"]
    assert table.loc["cosine", "Spearman, all 3"] == "1.000"
    assert float(table.loc["cosine", "mean error"]) < 0.02
    assert table.loc["cosine", "in interval"] == "100%"
    assert table.loc["the bound", "mean error"] == "\N{EN DASH}"


def test_the_powers_of_the_rate_are_compared(monkeypatch):
    monkeypatch.setattr(loss_law_tables, "PROGRESS_POWERS", (2 / 3, 1.0))
    monkeypatch.setattr(loss_law_tables, "NOISE_POWERS", (0.8, 1.0))
    law = LossFit(EXPONENTIAL_ANNEALING, np.array([3.0, 0.2, 0.2, 0.53, np.log(100)]), 0.001, 2000)
    curves = [curve._replace(losses=law.predict(curve.rates, curve.steps - 1)) for curve in falling_curves()]
    table = power_table(curves)
    assert table["progress"].tolist() == ["0.67", "1.00"]
    spreads = table[["noise 0.8", "noise 1.0"]].map(lambda cell: float(cell.partition("%")[0])).to_numpy()
    assert spreads[0, 0] < 0.01 < spreads.flat[1:].min(), "the powers of the law that the curves are from"


def test_the_row_of_an_optimum(predictions):
    _, (_, cosine) = predictions
    row = optimum_row("cosine", cosine.law, 0.001, 2000, 100)
    gain, low, high = (float(word.strip("[],")) for word in row["difference by the law [95 % interval]"].split())
    assert float(row["difference by the minimised form"]) < 0 and low < gain < high
    assert row["best named"] != "constant"
    assert float(row["at the end"]) < 0.05 < float(row["half-way through the decay"]) < 0.6


def test_a_study_that_logs_too_little_is_reported_with_the_reason(tmp_path):
    rows = [
        {"regime": "r", "schedule": name, "peak": 0.1, "steps": 40, "role": role, "eval_loss": loss, "diverged": False}
        | {"curve": [[10, 3.0], [20, 2.5], [30, loss], [40, loss]]}
        for name, role, loss in [
            ("linear", "baseline", 2.0),
            ("linear", "", 2.0),
            ("cosine", "", 2.1),
            ("wsd", "", 1.9),
            ("wsd", "", 1.7),
        ]
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "schedules.json").write_text(
        json.dumps({"r": {name: [1.0, 0.5] for name in ("linear", "cosine", "wsd")}})
    )
    (runs,) = read_study(tmp_path)
    assert runs.evaluation_losses == {"cosine": 2.1, "linear": 2.0, "wsd": pytest.approx(1.8)}
    assert runs.training_losses == {"cosine": 2.1, "linear": 2.0, "wsd": pytest.approx(1.8)}
    np.testing.assert_allclose(runs.schedules["wsd"], 0.1 * np.linspace(1, 0.5, 41)[:40])
    np.testing.assert_allclose(runs.source.rates, 0.1 * (1 - np.arange(40) / 40))
    row = study_row("tiny", runs)
    assert (
        row["study"] == "tiny: r"
        and row["updates"] == "40"
        and "too few losses after its first 3 updates: 4" in row["gate"]
    )


def test_the_script_refuses_an_empty_folder_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("loss_law_study.py: error: ") and done.stderr.count("\n") == 1
