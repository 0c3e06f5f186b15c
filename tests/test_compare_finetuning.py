"""scripts/compare_finetuning.py, run as a user runs it on a grid of a few seconds."""

import json

import compare_finetuning
import pytest
from experiments.report import write_report

from .refusals import refusal
from .tiny import BIN, REPOSITORY, accelerate_launch, read_rows, run_command

SCRIPT = REPOSITORY / "scripts" / "compare_finetuning.py"
GRID = (
    "--max_steps",
    12,
    "--num_seeds",
    2,
    "--per_device_train_batch_size",
    4,
    "--num_workers",
    1,
)


def compare(*words):
    done = run_command(BIN / "python", SCRIPT, *words)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def small_text(tmp_path_factory):
    """Options for a text that takes no time to tokenize, unlike that of the default."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    return ("--vocab_size", 300, "--train_file", text)


TINY_MODEL = (
    "--regime",
    "scratch",
    "--config_overrides",
    "n_embd=16,n_layer=1,n_head=2,n_positions=32",
    "--block_size",
    32,
)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def grid(tmp_path_factory, small_text):
    folder = tmp_path_factory.mktemp("grid")
    words = (
        "--output_dir",
        folder,
        *GRID,
        "--peaks",
        2e-3,
        1e30,
        "--schedules",
        "linear",
        "refined",
        "--equal_compute",
        "true",
        *TINY_MODEL,
        *small_text,
    )
    compare(*words)
    return folder, words


def test_every_cell_is_there_once(grid):
    rows = rows_of(grid[0])
    cells = [
        (row["schedule"], row["peak"], row["seed"], row["steps"], row.get("role"), row.get("finer")) for row in rows
    ]
    expected = [("linear", peak, 0, 12, "baseline", None) for peak in (2e-3, 1e30)]
    expected += [
        (name, peak, seed, 12, None, None) for name in ("linear", "refined") for peak in (2e-3, 1e30) for seed in (1, 2)
    ]
    expected += [("linear, twice the steps", peak, seed, 24, None, None) for peak in (2e-3, 1e30) for seed in (1, 2)]
    expected += [("linear", 4.47e13, seed, 12, None, True) for seed in (1, 2)]
    assert sorted(map(str, cells)) == sorted(map(str, expected))


def test_the_setting_is_in_the_report(grid):
    setting = json.loads((grid[0] / "setting.json").read_text())
    assert (setting["regime"], setting["tokens per update"]) == ("scratch", 4 * 32)
    assert setting["optimizer"].endswith("weight decay 0, betas 0.9 and 0.999, max_grad_norm 1")
    write_report(grid[0], grid[0].with_suffix(".md"), "Grid")
    report = grid[0].with_suffix(".md").read_text()
    assert f"- model: {setting['model']}\n" in report
    assert "- clipped updates of the baselines: " in report


def test_a_diverged_cell_is_a_result(grid):
    for row in rows_of(grid[0]):
        assert row["diverged"] is (row["eval_loss"] is None)
        if row["peak"] == 1e30:
            assert row["diverged"]
        elif row["peak"] == 2e-3:
            assert 3 < row["eval_loss"] < 8


def test_the_refined_schedule_comes_from_the_best_run_of_the_seed_that_is_not_compared(grid):
    header, rows = read_rows(grid[0] / "baseline.jsonl")
    assert (header["num_training_steps"], len(rows), rows[0]["learning_rate"]) == (12, 12, 2e-3)
    schedules = json.loads((grid[0] / "schedules.json").read_text())["scratch"]
    assert schedules["linear"] == pytest.approx([1 - point / 200 for point in range(201)], abs=1e-4)
    assert max(schedules["refined"]) == pytest.approx(1.0, abs=1e-2)
    assert schedules["refined"] != schedules["linear"]


def test_a_rerun_finishes_what_a_kill_has_left_and_repeats_it_exactly(grid):
    folder, words = grid
    whole = (folder / "results.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:-3]) + lines[-3][:40])
    compare(*words)
    assert (folder / "results.jsonl").read_text().startswith("".join(lines[:-3]))

    def losses(text):
        return {(row["schedule"], row["peak"], row["seed"], row["steps"], row.get("role")): row["eval_loss"]
                for row in map(json.loads, text.splitlines())}  # fmt: skip

    assert losses((folder / "results.jsonl").read_text()) == losses(whole)
    about = json.loads((folder / "grid.json").read_text())
    assert about["commands"][0].startswith("python scripts/compare_finetuning.py --output_dir")


def test_cells_on_two_processes(tmp_path, small_text):
    words = (
        "--output_dir",
        tmp_path / "out",
        *GRID,
        "--peaks",
        2e-3,
        "--schedules",
        "linear",
        "refined",
        "--equal_compute",
        "false",
    )
    done = accelerate_launch(SCRIPT, *words, *TINY_MODEL, *small_text)
    assert (tmp_path / "out" / "results.jsonl").exists(), done.stderr
    assert len(rows_of(tmp_path / "out")) == 5, done.stderr
    assert json.loads((tmp_path / "out" / "grid.json").read_text())["processes"] == 2
    assert read_rows(tmp_path / "out" / "baseline.jsonl")[0]["world_size"] == 2
    assert json.loads((tmp_path / "out" / "setting.json").read_text())["tokens per update"] == 2 * 4 * 32


def test_variants_at_two_sizes_from_scratch(tmp_path, small_text):
    sizes = [f"n_embd={width},n_layer=1,n_head=2,n_positions=32" for width in (16, 32)]
    schedules = ("linear", "refined", "refined_ignore_rising+warmup", "variants")
    words = (*GRID, "--num_seeds", 1, "--peaks", 2e-3, "--schedules", *schedules, "--sizes", *sizes, "--block_size", 32)
    compare("--output_dir", tmp_path, "--regime", "scratch", *words, *small_text)
    for size in sizes:
        rows = rows_of(tmp_path / size)
        assert {row["regime"] for row in rows} == {f"scratch, {size}"}
        names = [row["schedule"] for row in rows if row["seed"] == 1]
        changed = [name for name in names if name.startswith("refined, ")]
        assert sorted(names) == sorted({"linear", "refined", "refined_ignore_rising+warmup", *changed})
        assert len(changed) == 8
        assert {f"{name}+warmup" for name in changed if "+" not in name} == {name for name in changed if "+" in name}
        losses = {row["schedule"]: row["eval_loss"] for row in rows if row["seed"] == 1}
        assert losses["refined"] not in [losses[name] for name in changed]


def test_lora_trains_with_a_schedule_that_check_would_refuse(tmp_path):
    compare(
        "--output_dir",
        tmp_path,
        "--regime",
        "lora",
        "--pretrain_steps",
        4,
        *GRID,
        "--peaks",
        2e-3,
        "--schedules",
        "linear",
        "refined",
    )
    assert [row["diverged"] for row in rows_of(tmp_path)] == [False] * 5
    assert read_rows(tmp_path / "baseline.jsonl")[0]["num_training_steps"] == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--schedules", "linear", "sine"), "--schedules has 'sine'"),
        (("--schedules", "refined"), "add linear to --schedules"),
        (("--peaks", "-1"), "must be positive learning rates"),
        (("--num_seeds", "0"), "--num_seeds is 0"),
        (("--train_file", "nothing.txt"), "There is no file 'nothing.txt'"),
        (("--model_name_or_path", "somewhere"), "Text is missing"),
        (("--model_name_or_path", "somewhere", "--sizes", "n_embd=16"), "leave out --model_name_or_path"),
        (("--config_overrides", "n_layer=1", "--sizes", "n_embd=16"), "leave out --config_overrides"),
        (("--vocab_size", "300"), "leave out --vocab_size"),
        (("--regime", "scratch", "--pretrain_steps", "3"), "leave out --pretrain_steps"),
        (("--builtin_text", "english"), "needs a trained model; pass --model_name_or_path, or --regime scratch"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    words = ("--output_dir", tmp_path, *words)
    assert message in refusal(compare_finetuning.main, words, monkeypatch, capsys)
    assert not (tmp_path / "grid.json").exists()


def test_a_user_sees_no_traceback(tmp_path):
    done = run_command(BIN / "python", SCRIPT, "--output_dir", tmp_path, "--num_seeds", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "compare_finetuning.py: error: --num_seeds is 0, but must be at least 1.\n"
