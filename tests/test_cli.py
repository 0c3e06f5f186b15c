"""The command line, by running it."""

import json
import re
import shlex
import tracemalloc

import numpy as np
import pytest
import torch
from transformers import get_scheduler

import hf_refined_schedule
from hf_refined_schedule import get_refined_schedule
from hf_refined_schedule.cli import main
from hf_refined_schedule.schedules.refined_schedule import Extension, RefinedSchedule
from hf_refined_schedule.schedules.schedule_file import write_schedule

from .records import entry, write_norms, write_state
from .tiny import BIN, run_command


@pytest.fixture
def run(tmp_path):
    write_norms(tmp_path / "run" / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    return tmp_path / "run"


def test_refine_and_plot_as_processes(run, tmp_path):
    command = BIN / "hf-refined-schedule"
    done = run_command(command, "refine", run, "-o", tmp_path / "out" / "schedule.json")
    assert done.returncode == 0, done.stderr
    assert "(a recorded file): 100 L1 and L2 norms, of every update, to update 100 of 100" in done.stdout
    assert "weights: L1 ** -1 (adam), smoothing 0.1" in done.stdout
    assert "times linear decay's, by the last-iterate bound" in done.stdout
    schedule = json.loads((tmp_path / "out" / "schedule.json").read_text())
    assert len(schedule["multipliers"]) == 101
    for source in (run, tmp_path / "out" / "schedule.json"):
        done = run_command(command, "plot", source, "-o", tmp_path / "out" / "picture.png")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "out" / "picture.png").unlink()


def table(output):
    lines = [line for line in output.splitlines()[2:] if not line.startswith("no predicted losses")]
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    return {name: [float(value) for value in values] for name, *values in rows}


def test_rank(run, tmp_path, capsys):
    flat = tmp_path / "flat"
    write_norms(flat / "gradient_norms.jsonl", [0.5] * 200)
    assert main(["refine", str(run), "-o", str(tmp_path / "other.json")]) == 0
    capsys.readouterr()
    assert main(["rank", str(flat), "--with", str(tmp_path / "other.json")]) == 0
    output = capsys.readouterr().out
    rows = table(output.replace(str(tmp_path / "other.json"), "other"))
    assert rows["refined"] == rows["linear"] == [1.0, 1.0, 1.0]
    assert 1.0 < rows["other"][0] == rows["other"][1]
    bounds = [with_norms for with_norms, _, _ in rows.values()]
    assert bounds == sorted(bounds)
    assert main(["rank", str(run)]) == 0
    rows = table(capsys.readouterr().out)
    assert next(iter(rows)) == "refined"
    assert rows["refined"][0] < 1.0 < rows["refined"][1]


def test_check(run, tmp_path, capsys):
    assert main(["check", str(run)]) == 0
    *lines, lora, scratch, next_run = capsys.readouterr().out.splitlines()
    source, verdict, *figures, of_verdict, of_advice, peak = lines
    assert source.startswith(f"{run}/gradient_norms.jsonl (a recorded file): 100 L1 and L2 norms")
    assert verdict == "verdict: sound for the rule of the paper and for the schedule of the next run"
    assert len(figures) == 15
    assert not any(line.startswith(" ! ") for line in figures)
    label, _, flags = next_run.partition(": ")
    assert label == "next run, full fine-tuning"
    *words, keywords = shlex.split(flags)
    assert words == ["--lr_scheduler_type", "refined", "--lr_scheduler_kwargs"]
    assert json.loads(keywords) == {"refined_from": str(run), "bounded_warmup": True}
    assert lora == "next run with LoRA: --lr_scheduler_type linear"
    assert scratch == "next run from scratch: --lr_scheduler_type linear --warmup_steps 0.2"
    assert re.fullmatch(
        r"peak learning rate: try half, once and twice the best for linear decay \(the bound expects \d\.\d\d times\)",
        peak,
    )
    assert of_verdict.startswith("measured: of ")
    assert of_advice.startswith(
        "measured: bounded_warmup was worse than linear decay with the best of five warm-ups in "
    )
    assert "(not a forecast; rank correlation with the gain measured without warm-up: " in figures[-1]
    write_norms(tmp_path / "rising" / "gradient_norms.jsonl", list(np.linspace(1, 3, 100)))
    assert main(["check", str(tmp_path / "rising"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["next_run_verdict"]) == ("doubtful", "sound")
    assert report["next_run_with_lora"] == "--lr_scheduler_type linear"
    assert shlex.split(report["next_run"])[:2] == ["--lr_scheduler_type", "refined"]
    assert report["best_peak_ratio"] == pytest.approx(0.98, abs=0.05)
    (bad,) = [finding for finding in report["findings"] if not finding["ok"] and "smallest norm" in finding["name"]]
    assert bad["value"] == pytest.approx(2.9, abs=0.05)  # the median of the last tenth is 2.9, the least norm about 1


def test_a_trainers_log_needs_no_optimizer(tmp_path, capsys):
    """AdamW is Trainer's default. Another log may be of SGD, so there the question stays."""
    write_state(
        tmp_path / "checkpoint-50" / "trainer_state.json", [entry(step, 3 - step / 30) for step in range(1, 51)], 50
    )
    assert main(["check", str(tmp_path)]) == 0
    assert "note: The log does not say which optimizer it used; adam is assumed" in capsys.readouterr().out
    for command in (["refine", "-o", str(tmp_path / "schedule.json")], ["plot", "-o", str(tmp_path / "plot.png")]):
        assert main([command[0], str(tmp_path / "checkpoint-50"), *command[1:]]) == 0
    assert json.loads((tmp_path / "schedule.json").read_text())["optimizer"] == "adam"
    assert main(["check", str(tmp_path), "--optimizer", "sgd"]) == 0
    capsys.readouterr()
    table = tmp_path / "log.csv"
    table.write_text("step,total_gradient_norm_l2\n" + "".join(f"{step},{3 - step / 30}\n" for step in range(1, 51)))
    assert "pass --optimizer adam or --optimizer sgd" in refused(capsys, "check", table)


def test_a_downloaded_checkpoint_needs_no_option(tmp_path, capsys, monkeypatch):
    """As Trainer writes it, without the optimizer's state: every command answers, and none writes a file."""
    log = [entry(step, grad_norm=3 - step / 20) for step in range(1, 41)]
    write_state(tmp_path / "checkpoint-40" / "trainer_state.json", log, max_steps=40)
    (tmp_path / "checkpoint-40" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    for command, last in (
        ("check", "next run, full fine-tuning: "),
        ("plot", "progress of the run"),
        ("refine", "nothing is written; pass --output"),
    ):
        assert main([command, "checkpoint-40"]) == 0
        assert last in capsys.readouterr().out.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("norms", "planned", "options", "expected"),
    [
        pytest.param(np.ones(100), 100, [], '"bounded_warmup": true}', id="flat"),
        pytest.param(0.5 + np.arange(100) / 100, 100, [], '"bounded_warmup": true}', id="rising"),
        pytest.param(np.exp(-np.arange(100) / 8), 100, [], '"bounded_warmup": true}', id="degenerate by the rule of the paper"),
        pytest.param(np.linspace(3, 1, 40), 100, [], '"bounded_warmup": true, "pilot": true}', id="unfinished: a pilot"),
        pytest.param(np.linspace(3, 1, 100), 100, ["--rising-norms", "keep"], '"rising_norms": "keep"}', id="the rule that was asked for"),
        pytest.param(0.5 + np.arange(100) / 100, 100, ["--rising-norms", "keep"], '"bounded_warmup": true}', id="unless it is doubtful"),
    ],
)  # fmt: skip
def test_the_verdict_ends_with_the_flags_of_the_next_run(tmp_path, capsys, norms, planned, options, expected):
    write_norms(tmp_path / "gradient_norms.jsonl", list(norms), planned=planned)
    assert main(["check", str(tmp_path), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    label = "next run, full fine-tuning" if "bounded" in expected else "next run"
    assert lines[-1].startswith(f"{label}: --lr_scheduler_type refined --lr_scheduler_kwargs ")
    assert expected in lines[-1]
    assert any(line.startswith("next run with LoRA: ") for line in lines) == ("bounded" in expected)
    assert any(line.startswith("measured: bounded_warmup was worse") for line in lines) == ("bounded" in expected)
    assert any(line.startswith("measured: norms rise from scratch") for line in lines) == (norms[-1] > norms[0])


def test_the_advised_flags_are_those_of_a_schedule_that_can_be_trained_with(tmp_path, capsys):
    write_norms(tmp_path / "gradient_norms.jsonl", list(np.exp(-np.arange(100) / 8)))
    assert main(["check", str(tmp_path)]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    keywords = json.loads(words[words.index("--lr_scheduler_kwargs") + 1])
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_refined_schedule(optimizer, 0, 100, **keywords)
    assert scheduler.get_last_lr() == [0.0]


def test_check_and_plot_answer_for_an_unfinished_run(tmp_path, capsys):
    write_norms(tmp_path / "gradient_norms.jsonl", list(np.linspace(3, 1, 40)), planned=100)
    assert main(["check", str(tmp_path)]) == 0
    assert "note: A pilot: norms cover 40% of the 100 planned updates" in capsys.readouterr().out
    assert main(["plot", str(tmp_path), "--text"]) == 0
    assert "sound" in capsys.readouterr().out
    assert "--pilot" in refused(capsys, "refine", tmp_path, "-o", tmp_path / "schedule.json")


def test_a_reader_that_has_seen_enough(run):
    done = run_command("bash", "-c", f"set -o pipefail; {BIN / 'hf-refined-schedule'} rank {run} | head -n 1")
    assert (done.stderr, len(done.stdout.splitlines())) == ("", 1)


def test_python_m_and_version():
    done = run_command(BIN / "python", "-m", "hf_refined_schedule", "--version")
    assert (done.returncode, done.stdout) == (0, f"hf-refined-schedule {hf_refined_schedule.__version__}\n")


@pytest.mark.parametrize(
    "command",
    [[], ["refine"], ["check"], ["rank"], ["plot"], ["preview"], ["diagnose"], ["launch"], ["predict"], ["extend"]],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "usage: hf-refined-schedule" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["refine"], ["polish", "x"], ["refine", "x", "-o", "y", "--norm", "l3"]])
def test_bad_usage(command):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2


def refused(capsys, *words):
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_bad_input_is_one_line(run, tmp_path, capsys):
    out = tmp_path / "schedule.json"
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    write_norms(tmp_path / "short" / "gradient_norms.jsonl", [1.0] * 40, planned=100)
    write_norms(tmp_path / "unknown" / "gradient_norms.jsonl", [1.0] * 40, family=None)
    assert "no file or folder" in refused(capsys, "refine", tmp_path / "nothing", "-o", out)
    assert "holds no gradient norms" in refused(capsys, "refine", tmp_path / "picture.png", "-o", out)
    assert "power is 2.0" in refused(capsys, "refine", run, "--power", 2, "-o", out)
    assert "smoothing is 5.0" in refused(capsys, "plot", run, "--smoothing", 5, "-o", out)
    assert "pass --optimizer adam or --optimizer sgd" in refused(capsys, "refine", tmp_path / "unknown", "-o", out)
    assert "covers 40 of 100" in refused(capsys, "refine", tmp_path / "short", "-o", out)
    assert "xyz" in refused(capsys, "plot", run, "-o", tmp_path / "picture.xyz")
    assert refused(capsys, "refine", run, "-o", run)  # a folder
    assert not out.exists()


def test_plot_as_text(run, tmp_path, capsys):
    write_norms(run / "gradient_norms.jsonl", [1.0] * 100)
    assert main(["plot", str(run), "--text"]) == 0
    _, verdict, *drawn = capsys.readouterr().out.splitlines()
    assert verdict == "doubtful", "equal norms look clipped"
    areas = [line.count("#") for line in drawn[:12]]
    assert areas == [round(72 * row / 12) for row in range(1, 13)], "linear decay fills a triangle"
    assert list(tmp_path.glob("*.png")) == []
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [verdict, *drawn], "without an option, too"


def test_several_runs(tmp_path, capsys):
    for name, scale in (("a", 1.0), ("b", 4.0)):
        write_norms(tmp_path / name / "gradient_norms.jsonl", list(scale * np.linspace(3, 1, 100)))
    runs, out = [str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "schedule.json"
    multipliers = []
    for sources in (runs[:1], runs):
        assert main(["refine", *sources, "-o", str(out)]) == 0
        assert capsys.readouterr().out.count("a recorded file") == len(sources)
        multipliers.append(json.loads(out.read_text())["multipliers"])
        for command in (["check"], ["rank"], ["plot", "-o", str(tmp_path / "picture.png")]):
            assert main([*command, *sources]) == 0
        capsys.readouterr()
    assert multipliers[0] == pytest.approx(multipliers[1])
    write_norms(tmp_path / "b" / "gradient_norms.jsonl", [1.0] * 100, family="sgd")
    assert "different families" in refused(capsys, "refine", *runs, "-o", out)


def test_plot_of_several_sources(run, tmp_path, capsys):
    """Each source's own schedule, and their average where all are runs; a schedule file has no norms to average."""
    write_norms(tmp_path / "flat" / "gradient_norms.jsonl", [1.0] * 50)
    flat, picture = tmp_path / "flat", tmp_path / "picture.svg"
    assert main(["plot", str(run), str(flat), "--text", "-o", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("progress of the run") == 3
    assert "2 runs: weights L1 ** -1\ntheir average: " in printed
    assert picture.read_text().startswith("<?xml")

    schedule = tmp_path / "schedule.json"
    assert main(["refine", str(run), "-o", str(schedule)]) == 0
    assert main(["plot", str(schedule), str(flat), "--text", "-o", str(picture)]) == 0
    assert capsys.readouterr().out.count("progress of the run") == 2


def test_numerical_refinement(run, tmp_path, capsys):
    paths = {method: tmp_path / f"{method}.json" for method in ("closed-form", "numerical")}
    for method, path in paths.items():
        assert main(["refine", str(run), "--method", method, "-o", str(path)]) == 0
    assert "minimised numerically" in capsys.readouterr().out
    assert main(["rank", str(run), "--with", str(paths["closed-form"]), "--with", str(paths["numerical"])]) == 0
    rows = {name.split("/")[-1]: row for name, row in table(capsys.readouterr().out).items()}
    assert rows["numerical.json"][0] < rows["closed-form.json"][0] == rows["refined"][0]


def test_fitted_schedules_are_what_transformers_makes_of_the_flags(tmp_path, capsys):
    write_norms(tmp_path / "run" / "gradient_norms.jsonl", list(1 + 4 * np.exp(-np.arange(200) / 4)))
    out = tmp_path / "schedule.json"
    assert main(["refine", str(tmp_path / "run"), "--fit", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    refined = np.array(json.loads(out.read_text())["multipliers"])
    errors = [float(error) for error in re.findall(r"RMSE ([\d.]+)", printed)]
    flags = re.findall(r"--lr_scheduler_type (\w+) --warmup_steps (\d+) --lr_scheduler_kwargs '(.*)'", printed)
    assert [name for name, _, _ in flags] == ["polynomial", "warmup_stable_decay"]
    for (name, warmup, kwargs), error in zip(flags, errors, strict=True):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = get_scheduler(name, optimizer, int(warmup), 200, scheduler_specific_kwargs=json.loads(kwargs))
        multipliers = []
        for _ in range(201):
            multipliers.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        assert np.sqrt(np.mean(np.square(np.array(multipliers) - refined))) == pytest.approx(error, abs=0.005)
    assert errors[0] < 0.05
    assert "comes close" not in printed


def test_a_power_at_the_edge_of_the_search_is_told(tmp_path, capsys):
    write_norms(tmp_path / "run" / "gradient_norms.jsonl", [0.02] * 12 + [1.0] * 188)
    assert main(["refine", str(tmp_path / "run"), "--fit", "-o", str(tmp_path / "schedule.json")]) == 0
    assert "no power from 0.1 to 10 comes close" in capsys.readouterr().out


def test_rising_norms(tmp_path, capsys):
    write_norms(tmp_path / "run" / "gradient_norms.jsonl", list(np.linspace(1, 3, 100)))
    out = tmp_path / "schedule.json"
    assert main(["refine", str(tmp_path / "run"), "--rising-norms", "ignore", "-o", str(out)]) == 0
    assert "note: Rising norms are ignored" in capsys.readouterr().out
    assert json.loads(out.read_text())["multipliers"] == pytest.approx([1 - t / 100 for t in range(101)])


def test_pilot(tmp_path, capsys):
    write_norms(tmp_path / "short" / "gradient_norms.jsonl", [1.0] * 40, planned=100)
    out = tmp_path / "schedule.json"
    assert main(["refine", str(tmp_path / "short"), "--pilot", "-o", str(out)]) == 0
    assert "norms cover 40% of the 100 planned updates" in capsys.readouterr().out
    assert json.loads(out.read_text())["multipliers"] == pytest.approx([1 - t / 100 for t in range(101)])


def test_a_short_run_as_the_first_part_of_the_full_one(tmp_path, capsys):
    """40 complete updates, then its last norm: not the same as 40 updates stretched over 200."""
    norms = [4.0] * 20 + [1.0] * 20
    write_norms(tmp_path / "short" / "gradient_norms.jsonl", norms)
    write_norms(tmp_path / "first" / "gradient_norms.jsonl", norms, planned=200)
    short, out = tmp_path / "short", tmp_path / "schedule.json"
    as_first_part = ("--pilot", "--num-training-steps", 200)
    grids = []
    for words in ((short, *as_first_part), (tmp_path / "first", "--pilot"), (short,)):
        assert main([str(word) for word in ("refine", *words, "-o", out)]) == 0
        grids.append(json.loads(out.read_text())["multipliers"])
    assert grids[0] == grids[1]
    assert len(grids[2]) == 41
    assert np.argmax(grids[0]) / 200 == pytest.approx(0.1, abs=0.01)
    assert np.argmax(grids[2]) / 40 == pytest.approx(0.5, abs=0.05)
    assert main(["check", str(short), "--pilot", "--num-training-steps", "200"]) == 0
    assert " ! recorded fraction of the run: 0.2 (less than 0.25)" in capsys.readouterr().out
    for words, remedy in (
        (("--num-training-steps", 200), "covers 40 of 200"),
        (("--pilot", "--num-training-steps", 39), "pass at least 40"),
    ):
        assert remedy in refused(capsys, "refine", short, *words, "-o", out)


def test_schedule_file_is_not_a_source_of_norms(run, tmp_path, capsys):
    out = tmp_path / "schedule.json"
    assert main(["refine", str(run), "-o", str(out)]) == 0
    capsys.readouterr()
    assert "schedule file already" in refused(capsys, "refine", out, "-o", tmp_path / "again.json")
    assert "is a schedule file; pass the run" in refused(capsys, "rank", out)
    assert "is a schedule file; pass the run" in refused(capsys, "check", out)


def test_what_is_no_schedule_of_a_whole_run_is_not_ranked(run, tmp_path, capsys):
    assert f"{run} is no schedule file; write one with" in refused(capsys, "rank", run, "--with", run)
    extension = RefinedSchedule(np.ones(81), "a checkpoint", None, extension=Extension(40, 80, 1e-3))
    write_schedule(extension, tmp_path / "extension.json")
    assert "extends a run from its checkpoint" in refused(capsys, "rank", run, "--with", tmp_path / "extension.json")


def test_norms_are_not_replaced_by_their_schedule(run, tmp_path, capsys):
    norms = run / "gradient_norms.jsonl"
    before = norms.read_text()
    (tmp_path / "link").symlink_to(norms)
    for source, out in ((run, norms), (norms, norms), (norms, tmp_path / "link")):
        assert "the schedule would replace it" in refused(capsys, "refine", source, "-o", out)
    assert norms.read_text() == before


def test_only_a_schedule_file_is_replaced(run, tmp_path, capsys):
    script, log, schedule = tmp_path / "train.py", run / "trainer_state.json", tmp_path / "schedule.json"
    script.write_text("print()\n")
    log.write_text("{}")
    schedule.touch()
    assert main(["refine", str(run), "-o", str(schedule)]) == 0
    assert main(["refine", str(run), "--pilot", "--num-training-steps", "400", "-o", str(schedule)]) == 0
    capsys.readouterr()
    for other in (script, log):
        before = other.read_text()
        assert "is no schedule file, and the schedule would replace it; name another file" in refused(
            capsys, "refine", run, "-o", other
        )
        assert other.read_text() == before


def test_a_picture_without_an_ending(run, tmp_path, capsys):
    assert main(["plot", str(run), "-o", str(tmp_path / "picture")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'picture.png'}\n"
    assert (tmp_path / "picture.png").exists()


def test_a_file_called_like_a_schedule_replaces_no_row(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["refine", str(run), "-o", "linear"]) == 0
    capsys.readouterr()
    assert main(["rank", str(run), "--with", "linear"]) == 0
    rows = capsys.readouterr().out.splitlines()
    (own,) = [row for row in rows if row.startswith("linear  ")]
    (file,) = [row for row in rows if row.startswith("linear (file) ")]
    assert own.split()[1] == "1.000"
    assert file.split()[2:] == next(row for row in rows if row.startswith("refined  ")).split()[1:]


@pytest.mark.parametrize("command", ["check", "rank", "plot"])
def test_a_path_in_a_terminal_is_escaped(tmp_path, capsys, command):
    folder = tmp_path / "a\x1b[31mred\nrun"
    write_norms(folder / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    assert main([command, str(folder), *(["--text"] if command == "plot" else [])]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\x1b[31mred\nrun" in out


def test_a_dollar_in_a_path_is_no_formula_in_a_picture(tmp_path):
    """matplotlib would refuse the formula."""
    folders = [tmp_path / name for name in ("$x_{", "b$\\frac$")]
    for folder in folders:
        write_norms(folder / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    assert main(["plot", *map(str, folders), "-o", str(tmp_path / "two.png")]) == 0
    assert main(["plot", str(folders[0]), "-o", str(tmp_path / "one.png")]) == 0


def test_ranking_for_a_long_run_fits_in_memory(tmp_path, capsys):
    """Half a hundred schedules of a million updates would take 400 MB. Constant norms make linear decay."""
    path = write_norms(tmp_path / "gradient_norms.jsonl", [2.0] * 100)
    tracemalloc.start()
    try:
        assert main(["rank", str(path), "--pilot", "--num-training-steps", "1000000"]) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert ["refined", "1.000", "1.000", "1.00"] in rows
    assert ["linear", "1.000", "1.000", "1.00"] in rows
