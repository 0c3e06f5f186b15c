"""scripts/log_survey.py: logs of recorded norms, against differences known from their construction."""

import log_survey
import numpy as np
import pytest
from experiments.markdown_tables import NOT_AVAILABLE
from experiments.protocol import baseline_file

from hf_refined_schedule import load_norms

from .records import write_norms
from .refusals import refusal
from .tolerances import EXACT_ROUNDING

STEPS = 400
FALLING = np.r_[np.linspace(4, 1, 40), np.ones(STEPS - 40)]


def write_study(folder, norms):
    (folder / "baseline_norms").mkdir(parents=True)
    for seed in range(3):
        write_norms(baseline_file(folder, seed), norms)


def test_a_log_keeps_the_l2_norms_of_every_kth_update(tmp_path):
    write_study(tmp_path, FALLING)
    norms = load_norms(baseline_file(tmp_path, 0))
    log = log_survey.Log(25).of(norms)
    assert log.steps.tolist() == [*range(25, STEPS + 1, 25)]
    assert log.l1 is None
    assert log.l2.tolist() == norms.l2[24::25].tolist()
    assert log.num_training_steps == STEPS
    assert log_survey.Log(100, first_step=True).of(norms).steps.tolist() == [1, 100, 200, 300, 400]


def test_differences(tmp_path, monkeypatch, capsys):
    """Constant norms give one schedule from any log; falling ones another one from fewer norms. 16 norms are too few."""
    write_study(tmp_path / "constant", np.ones(STEPS))
    write_study(tmp_path / "suite" / "falling", FALLING)
    monkeypatch.setattr(
        "sys.argv", ["log_survey.py", "--results_dir", str(tmp_path), "--output", str(tmp_path / "logs.md")]
    )
    log_survey.main()
    report = (tmp_path / "logs.md").read_text()
    assert capsys.readouterr().out.strip() == report.strip()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("| ")]
    _, _, constant, falling, *_ = rows
    assert constant == ["constant", "400", "0.000", "0.000", "0.000", "0.000", NOT_AVAILABLE]
    assert falling[:3] == ["falling", "400", "0.000"]
    assert 0 <= float(falling[3]) < float(falling[4]) < 0.05
    assert "in 1 of 2 studies no more than another recorded run." in report


def test_the_distance_is_the_root_mean_square_over_the_run(tmp_path):
    write_study(tmp_path, FALLING)
    norms = load_norms(baseline_file(tmp_path, 0))
    options = log_survey.SCHEDULES["refined"]
    measured = log_survey.measure("x", [norms, norms, norms], options).values
    difference = log_survey.refine(log_survey.Log(10).of(norms), options) - log_survey.refine(norms, options)
    assert measured["L2 norms of every 10th update"] == pytest.approx(
        np.sqrt(np.mean(difference**2)), rel=EXACT_ROUNDING
    )
    assert measured["another recorded run"] == 0


def test_a_folder_without_baselines_is_refused(tmp_path, monkeypatch, capsys):
    message = refusal(log_survey.main, ("--results_dir", tmp_path), monkeypatch, capsys)
    assert message.endswith("has no study with 3 baselines; give the folder of several studies.")
