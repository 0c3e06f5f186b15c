"""The folder of a study belongs to one process at a time."""

import os
import subprocess
import sys

import compare_finetuning
import finetuning_study
import logistic_regression
import pilot
import problem_suite
import pytest
from experiments.study_folder import only_run_in

from .refusals import refusal, refuses
from .tiny import PYTHONPATH, SCRIPTS

HOLDER = SCRIPTS / "folder_holder.py"


def test_a_folder_is_free_when_its_process_was_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(
        [sys.executable, HOLDER, tmp_path / "study"], stdout=subprocess.PIPE, env=environment
    ) as holder:
        try:
            assert holder.stdout.readline() == b"running\n"
            with refuses("another process is running in", "study; wait until it ends"), only_run_in(tmp_path / "study"):
                pytest.fail("two processes ran in one folder")
        finally:
            holder.kill()
    with only_run_in(tmp_path / "study"):
        pass


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_run_in(tmp_path):
        1 / 0  # noqa: B018
    with only_run_in(tmp_path):
        pass


@pytest.mark.parametrize(
    ("script", "words", "folder"),
    [
        (finetuning_study, (), "."),
        (compare_finetuning, (), "."),
        (logistic_regression, ("--datasets", "breast_cancer"), "."),
        (pilot, (), "."),
        (problem_suite, ("--problems", "mlp_diamonds", "--num_workers", 1), "mlp_diamonds"),
    ],
)
def test_every_script_that_adds_to_a_folder_is_refused_while_another_does(
    tmp_path, monkeypatch, capsys, script, words, folder
):
    if hasattr(script, "print_errors_only"):
        monkeypatch.setattr(script, "print_errors_only", lambda: None)  # it would change the loggers of all tests
    with only_run_in(tmp_path / folder):
        before = sorted(tmp_path.rglob("*"))
        message = refusal(script.main, ("--output_dir", tmp_path, *words), monkeypatch, capsys)
        assert f"{script.__name__}.py: error: another process is running in" in message
        assert sorted(tmp_path.rglob("*")) == before
