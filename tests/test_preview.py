"""`hf-refined-schedule preview`: the rates of a coming run are those that the run then has."""

import numpy as np
import pytest
from transformers import Trainer

from hf_refined_schedule.cli import main
from hf_refined_schedule.plots import rates_as_text
from hf_refined_schedule.training.coming_run import learning_rates, parse_run_arguments, run_arguments

from .records import write_norms
from .tiny import BIN, rates, run_command, tiny_arguments, tiny_data, tiny_model


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("", [1.0, 0.75, 0.5, 0.25], id="the default is linear decay"),
        pytest.param("--lr_scheduler_type constant", [1, 1, 1, 1], id="constant"),
        pytest.param("--warmup_steps 2", [0, 0.5, 1, 0.5], id="a warm-up in updates"),
        pytest.param("--warmup-steps 0.5", [0, 0.5, 1, 0.5], id="a warm-up as a fraction; dashes"),
        pytest.param("--lr_scheduler_type cosine", [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5], id="cosine"),
        pytest.param('--lr_scheduler_type polynomial --lr_scheduler_kwargs {"power":2,"lr_end":0}', [1, 0.5625, 0.25, 0.0625], id="kwargs"),
        pytest.param("--bf16 --deepspeed zero3.json --fsdp full_shard", [1.0, 0.75, 0.5, 0.25], id="what this machine lacks"),
    ],
)  # fmt: skip
def test_rates_of_a_scripts_arguments(words, expected):
    arguments, ignored = parse_run_arguments(f"--learning_rate 1 --max_steps 4 {words}".split())
    assert ignored == []
    np.testing.assert_allclose(learning_rates(arguments, 4), expected, atol=1e-12)


def test_words_that_are_no_arguments_of_a_trainer():
    arguments, ignored = parse_run_arguments(["--data", "x.json", "--max_steps", "4"], learning_rate=1.0, max_steps=9)
    assert ignored == ["--data", "x.json"]
    assert (arguments.max_steps, arguments.learning_rate) == (4, 1.0)


@pytest.mark.parametrize("name", ["cosine_with_restarts", "refined"])
def test_the_trainer_then_uses_these_rates(tmp_path, name):
    write_norms(tmp_path / "gradient_norms.jsonl", list(np.linspace(3, 1, 30)))
    keywords = {"refined_from": str(tmp_path)} if name == "refined" else {"num_cycles": 3}
    options = {"lr_scheduler_type": name, "lr_scheduler_kwargs": keywords, "warmup_steps": 0.1, "max_steps": 20}
    expected = learning_rates(run_arguments(learning_rate=1e-2, **options), 20)
    arguments = tiny_arguments(tmp_path, per_device_train_batch_size=1, **options)
    trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data(20))
    trainer.train()
    assert rates(trainer) == list(expected)


def test_the_optimizer_decides_the_weights(tmp_path):
    """The refined schedule of SGD uses the square of norms that here are as large, so it starts lower."""
    write_norms(tmp_path / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    adam, sgd = (
        learning_rates(run_arguments(lr_scheduler_type="refined", refined_from=str(tmp_path), learning_rate=1.0, optim=optim), 100)
        for optim in ("adamw_torch", "sgd")
    )  # fmt: skip
    assert sgd[0] < adam[0] - 0.1


def test_as_a_process_with_a_picture(tmp_path):
    write_norms(tmp_path / "run" / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    words = ["linear", tmp_path / "run", "--max-steps", 100, "--learning_rate", "1e-3", "--warmup_steps", 10]
    script = ["--", "--lr_scheduler_type", "cosine", "--model_name_or_path", "gpt2", "--", "--warmup_steps", 0]
    done = run_command(BIN / "hf-refined-schedule", "preview", *words, "-o", tmp_path / "rates", *script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "linear, warm-up 10: 0 at update 1, 0.001 at update 11, 1.11e-05 at update 100; the mean is 0.50 of the peak"
    )
    assert "c: cosine, warm-up 10\n" in done.stdout
    assert "d: linear\n" in done.stdout
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert "not arguments of a Trainer, ignored: '--model_name_or_path', 'gpt2'" in done.stderr


def test_text_picture():
    text = rates_as_text({"falling": np.array([4.0, 3, 2, 1]), "flat": np.array([2.0, 2])}, columns=4, rows=4)
    assert text.splitlines() == [
        "4.00e+00 |a",
        "         | a",
        "2.00e+00 |bba",
        "         |   a",
        "       0 +----",
        "          1update 4",
        "a: falling",
        "b: flat",
    ]
    assert rates_as_text({"zero": np.zeros(3)}, columns=3, rows=2).splitlines()[1] == "5.00e-01 |###"
    assert "*" in rates_as_text({"one": np.ones(5), "other": np.ones(5)})


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        pytest.param([], ["nothing to preview", "pass schedules"], id="nothing"),
        pytest.param(["cosin", "--max-steps", "9"], ["'cosin'", "did you mean 'cosine'?"], id="a misspelt schedule"),
        pytest.param(["sawtooth", "--max-steps", "9"], ["'sawtooth'", "pass one of 'linear'"], id="an unknown schedule"),
        pytest.param(["--", "--lr_scheduler_type", "cosin"], ["'cosin'", "did you mean 'cosine'?"], id="in a script's arguments"),
        pytest.param(["linear"], ["max_steps is not given", "pass --max-steps T"], id="no length"),
        pytest.param(["linear", "--max-steps", "0"], ["max_steps is 0", "pass --max-steps T"], id="no updates"),
        pytest.param(["linear", "--max-steps", "10000000"], ["10,000,000", "1,000,000"], id="too long"),
        pytest.param(["polynomial {power: 2}", "--max-steps", "9"], ["no JSON object", 'polynomial {"power": 2}'], id="options that are no JSON"),
        pytest.param(['polynomial {"power": -2}', "--max-steps", "9"], ["polynomial refuses its lr_scheduler_kwargs", "power"], id="options that cannot be computed"),
        pytest.param(['cosine {"turns": 2}', "--max-steps", "9"], ["cosine refuses", "turns"], id="an unknown option"),
        pytest.param(["warmup_stable_decay", "--max-steps", "9"], ["warmup_stable_decay", "num_decay_steps"], id="a missing option"),
        pytest.param(["reduce_lr_on_plateau", "--max-steps", "9"], ["reduce_lr_on_plateau", "evaluations"], id="by evaluation"),
        pytest.param(["linear", "--max-steps", "9", "--learning-rate", "nan"], ["learning_rate is nan", "pass the peak"], id="no number"),
        pytest.param(["linear"] * 30 + ["--max-steps", "9"], ["30 curves", "at most 26"], id="too many"),
        pytest.param(["refined", "--max-steps", "9"], ["refined", "gradient_norms.jsonl"], id="refined from nothing"),
        pytest.param(["--", "--max_steps", "x"], ["max_steps", "'x'"], id="a malformed value"),
        pytest.param(["linear", "--max-steps", "9", "--warmup-steps", "-2"], ["warmup_steps"], id="a negative warm-up"),
    ],
)  # fmt: skip
def test_refusals(capsys, words, parts):
    assert main(["preview", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-refined-schedule preview: error: ")
    assert [part for part in parts if part not in line] == []
    assert len(line) < 400
