"""Scripts of the shapes that people write, under the launcher. test_launch has those with options and with raw loops."""

import json

import pytest
import yaml

from .records import write_norms
from .reference import median_smoothing, multipliers_of
from .tiny import BIN, SCRIPTS, read_rows, run_command, tiny_options

UPDATES = 20
PEAK = 1e-2
NORMS = [9.0, 7, 6, 5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]


@pytest.fixture
def options(tmp_path):
    """Arguments of a refined run."""
    write_norms(tmp_path / "baseline" / "gradient_norms.jsonl", NORMS)
    kwargs = {"refined_from": str(tmp_path / "baseline"), "smoothing": 0.1}
    options = tiny_options(tmp_path / "run", max_steps=UPDATES, lr_scheduler_type="refined", lr_scheduler_kwargs=kwargs)
    assert options["learning_rate"] == PEAK
    return options


def rates(folder):
    return [row["learning_rate"] for row in read_rows(folder / "gradient_norms.jsonl")[1]]


def expected():
    smoothed = median_smoothing(NORMS, 0.1)
    return pytest.approx([PEAK * value for value in multipliers_of([*smoothed, smoothed[-1]], -1)[:-1]])


def launch(*words, folder):
    done = run_command(BIN / "hf-refined-schedule", "launch", *words, folder=folder)
    assert done.returncode == 0, done.stderr


def test_arguments_from_a_json_file(options, tmp_path):
    (tmp_path / "arguments.json").write_text(json.dumps(options))
    launch(SCRIPTS / "from_a_file.py", "arguments.json", folder=tmp_path)
    assert rates(tmp_path / "run") == expected()


def test_arguments_from_a_yaml_file_of_a_module(options, tmp_path):
    (tmp_path / "arguments.yaml").write_text(yaml.safe_dump(options))
    (tmp_path / "train_it.py").write_text((SCRIPTS / "from_a_file.py").read_text())
    launch("-m", "train_it", "arguments.yaml", folder=tmp_path)
    assert rates(tmp_path / "run") == expected()


def test_arguments_that_the_script_leaves_and_two_trainers(options, tmp_path):
    del options["output_dir"]
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    ]
    mine = ("--phases", "first", "second", "--run", tmp_path / "run", "--theirs", "1")
    launch(SCRIPTS / "known_arguments.py", *mine, *words, folder=tmp_path)
    assert rates(tmp_path / "run" / "first") == expected()
    assert rates(tmp_path / "run" / "second") == expected()
