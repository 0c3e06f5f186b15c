"""scripts/run_clm.py and scripts/quickstart.sh, run as a user runs them, on models and data made on the spot."""

import csv
import json
import shutil

import pytest
import run_clm
from datasets import Dataset, DatasetDict
from experiments.builtin_text import builtin_documents
from experiments.language_modeling import END_OF_TEXT, train_byte_level_bpe
from tokenizers import ByteLevelBPETokenizer

from hf_refined_schedule.training.checkpoints import last_complete_checkpoint

from .refusals import refusal
from .tiny import BIN, REPOSITORY, accelerate_launch, read_rows, run_command
from .tolerances import QUICKSTART_SECONDS

RUN_CLM = REPOSITORY / "scripts" / "run_clm.py"
SHORT = (
    "--do_train", "--do_eval", "--max_steps", 6, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--report_to", "none",
    "--use_cpu", "--dataloader_pin_memory", "false", "--disable_tqdm", "true", "--block_size", 32, "--save_strategy", "no",
    "--max_eval_samples", 8,
)  # fmt: skip
NEW_MODEL = ("--config_overrides", "n_embd=16,n_layer=1,n_head=2,n_positions=32", "--vocab_size", 400)
TEXT = builtin_documents("english")[:60]


def train(*words):
    done = run_command(BIN / "python", RUN_CLM, *words)
    assert done.returncode == 0, done.stderr
    return done


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    text = folder / "text.txt"
    text.write_text("\n".join(TEXT))
    train("--train_file", text, *NEW_MODEL, *SHORT, "--output_dir", folder)
    return folder


def test_the_tokenizer_is_a_byte_level_bpe():
    tokenizer, reference = train_byte_level_bpe(TEXT, 400), ByteLevelBPETokenizer()
    reference.train_from_iterator(TEXT, 400, special_tokens=[END_OF_TEXT])
    assert tokenizer.get_vocab_size() == 400
    for text in (*TEXT, " ünïcode\n\t\N{CJK UNIFIED IDEOGRAPH-4E00} ", END_OF_TEXT):
        assert tokenizer.encode(text).ids == reference.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_from_scratch_with_a_tokenizer_of_its_own(pretrained):
    metrics = results(pretrained)
    assert metrics["perplexity"] == pytest.approx(2.718281828 ** metrics["eval_loss"], rel=1e-6)
    assert metrics["perplexity"] < 500
    assert len(read_rows(pretrained / "gradient_norms.jsonl")[1]) == 6
    assert {"config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"} <= {
        p.name for p in pretrained.iterdir()
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv", "dataset folder"])
def test_a_saved_model_on_every_kind_of_data(pretrained, tmp_path, kind):
    if kind == "jsonl":
        data = ("--train_file", tmp_path / "train.jsonl", "--validation_file", tmp_path / "validation.jsonl")
        for path in (data[1], data[3]):
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [None, *TEXT]))
    elif kind == "csv":
        data = ("--train_file", tmp_path / "train.csv", "--text_column", "body")
        with data[1].open("w", newline="") as file:
            csv.writer(file).writerows([["title", "body"], *(["a", text] for text in TEXT)])
    else:
        data = ("--dataset_name", tmp_path / "dataset")
        part = Dataset.from_dict({"text": TEXT})
        DatasetDict(train=part, validation=part.select(range(20))).save_to_disk(tmp_path / "dataset")
    refined = ("--lr_scheduler_type", "refined", "--refined_from", pretrained)
    train("--model_name_or_path", pretrained, *data, *SHORT, *refined, "--output_dir", tmp_path / "out")
    assert results(tmp_path / "out")["eval_loss"] < results(pretrained)["eval_loss"] + 1
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "out" / "gradient_norms.jsonl")[1]]
    assert rates != [row["learning_rate"] for row in read_rows(pretrained / "gradient_norms.jsonl")[1]]


def test_two_processes_and_resume_from_the_newest_complete_checkpoint(pretrained, tmp_path):
    out = tmp_path / "out"
    words = ("--model_name_or_path", pretrained, "--builtin_text", "english", *SHORT, "--output_dir", out)
    saving = ("--save_strategy", "steps", "--save_steps", 2, "--resume_from_checkpoint", "True")
    done = accelerate_launch(RUN_CLM, *words, *saving)
    assert (out / "eval_results.json").exists(), done.stderr
    whole = (out / "gradient_norms.jsonl").read_text()
    assert read_rows(out / "gradient_norms.jsonl")[0]["world_size"] == 2

    (out / "checkpoint-6" / "trainer_state.json").unlink()  # killed while it was being written
    (out / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4, ')
    assert last_complete_checkpoint(out) == str(out / "checkpoint-2")
    done = accelerate_launch(RUN_CLM, *words, *saving)
    assert (out / "gradient_norms.jsonl").read_text() == whole, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "pass one of --dataset_name, --train_file and --builtin_text"),
        (("--builtin_text", "english", "--train_file", "x.txt"), "--train_file and --builtin_text; pass one"),
        (("--train_file", "nothing.txt"), "There is no file 'nothing.txt'"),
        (("--train_file", RUN_CLM), "must end in one of .txt"),
        (
            ("--builtin_text", "english", "--lr_scheduler_type", "refined"),
            "needs the run to refine it from: refined_from in lr_scheduler_kwargs",
        ),
        (("--builtin_text", "english", "--model_name_or_path", "a", "--config_overrides", "b=1"), "leave out"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    assert message in refusal(run_clm.main, ("--output_dir", tmp_path, *words), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model_name_or_path", "no/such-model"), "Cannot load the model no/such-model: "),
        (("--validation_file", "short.txt"), "The text of --validation_file is shorter than a block"),
        (("--validation_file", "text.jsonl"), "give files of one type"),
        (("--train_file", "empty.txt"), "Cannot load the text empty.txt: "),
        (
            ("--train_file", "numbers.jsonl"),
            "The column 'id' holds int64, not text; pass --text_column one of id, words",
        ),
        (("--text_column", "words"), "The column 'words' holds List, not text"),
        (("--dataset_name", "scripted"), "Cannot load the text scripted: Dataset scripts are no longer supported"),
        (("--block_size", 0), "--block_size is 0"),
        (("--max_eval_samples", 0), "--max_eval_samples is 0"),
    ],
)
def test_text_and_models_that_do_not_load_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("text.txt", "the quick brown fox\n" * 200),
        ("short.txt", "fox\n"),
        ("empty.txt", ""),
        ("text.jsonl", '{"text": "fox"}\n'),
        ("numbers.jsonl", '{"id": 1, "words": ["fox"]}\n'),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("")
    options = {"--train_file": "text.txt", "--vocab_size": 300, "--block_size": 32, "--output_dir": "out"}
    if words[0] == "--text_column":
        options["--train_file"] = "numbers.jsonl"
    if words[0] == "--dataset_name":
        del options["--train_file"]
    options |= dict([words])
    words = [word for option in options.items() for word in option]
    assert message in refusal(run_clm.main, words, monkeypatch, capsys)


def test_a_user_sees_no_traceback(tmp_path):
    done = run_command(BIN / "python", RUN_CLM, "--output_dir", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("run_clm.py: error: ") and done.stderr.count("\n") == 1


def test_quickstart_with_few_steps(tmp_path):
    """In a copy of the repository with the environment that runs this test, not one of its own."""
    copy = tmp_path / "repository"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "tests", "*_cache"))
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "installed").touch()
    for name in ("python", "hf-refined-schedule"):
        (copy / ".venv" / "bin" / name).write_text(f'#!/bin/sh\nexec "{BIN / name}" "$@"\n')
        (copy / ".venv" / "bin" / name).chmod(0o755)
    done = run_command(
        "bash",
        copy / "scripts" / "quickstart.sh",
        STEPS="10",
        PRETRAIN_STEPS="5",
        PEAKS="1e-3",
        OUT=tmp_path / "out",
        timeout=QUICKSTART_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    for schedule in ("linear", "linear_warmup", "cosine_warmup", "refined", "bounded_warmup"):
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {schedule} ")]
        loss = json.loads((tmp_path / "out" / f"{schedule}_1e-3" / "eval_results.json").read_text())["eval_loss"]
        assert row.split()[3::2] == [f"{loss:.4f}"] * 2
    assert "one seed proves nothing" in done.stdout
    for picture in ("norms_and_schedule.png", "training_curves.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
