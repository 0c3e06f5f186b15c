"""Scripts that have never heard of this package, run as whole processes: alone, and under accelerate and torchrun."""

import json
import re

import pytest

from .tiny import BIN, SCRIPTS, accelerate_launch, free_port, read_rows, run_command

TRAINER = SCRIPTS / "unmodified_trainer.py"
RAW = SCRIPTS / "no_trainer.py"
TRAINER_OPTIONS = (
    "--max_steps", 24, "--per_device_train_batch_size", 2, "--logging_steps", 1, "--report_to", "none",
    "--save_strategy", "no", "--use_cpu", "--dataloader_pin_memory", "false", "--disable_tqdm", "true",
)  # fmt: skip


def launch(*words, **environment):
    return run_command(BIN / "hf-refined-schedule", "launch", *words, **environment)


def reported_rates(folder, rank=0):
    world_size, rates = (folder / f"rank{rank}.txt").read_text().split(" ", 1)
    return int(world_size), json.loads(rates)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    done = launch(TRAINER, "--output_dir", folder, *TRAINER_OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_an_unmodified_script_leaves_its_norms(baseline):
    folder, done = baseline
    header, rows = read_rows(folder / "gradient_norms.jsonl")
    assert (header["world_size"], header["num_training_steps"], len(rows)) == (1, 24, 24)
    assert f"argv --output_dir main {TRAINER}" in done.stdout  # its own sys.argv and __main__


def test_refined_parses_in_it(baseline, tmp_path):
    folder, _ = baseline
    kwargs = json.dumps({"refined_from": str(folder)})
    refined = ("--lr_scheduler_type", "refined", "--lr_scheduler_kwargs", kwargs)
    done = launch(TRAINER, "--output_dir", tmp_path, *TRAINER_OPTIONS, *refined)
    assert done.returncode == 0, done.stderr
    assert reported_rates(tmp_path)[1] != reported_rates(folder)[1]
    assert len(read_rows(tmp_path / "gradient_norms.jsonl")[1]) == 24


def test_several_processes(baseline, tmp_path):
    """One source, two ranks: the same rates on both, those of one process; one file, by the main process."""
    folder, _ = baseline
    words = ("-m", "hf_refined_schedule", "launch", "--refined-from", folder, TRAINER)
    options = ("--output_dir", tmp_path, *TRAINER_OPTIONS, "--lr_scheduler_type", "refined")
    done = accelerate_launch(*words, *options)
    assert (tmp_path / "rank1.txt").exists(), done.stderr
    world_size, rates = reported_rates(tmp_path)
    assert world_size == 2
    assert reported_rates(tmp_path, rank=1) == (2, rates)
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert (header["world_size"], len(rows)) == (2, 24)
    assert [path.name for path in tmp_path.glob("gradient_norms*")] == ["gradient_norms.jsonl"]
    single = launch("--refined-from", folder, TRAINER, "--output_dir", tmp_path / "one", *options[2:])
    assert single.returncode == 0, single.stderr
    assert reported_rates(tmp_path / "one") == (1, rates)


def test_a_source_that_is_not_there_stops_all_processes_before_the_script(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text("import torch.distributed as dist\ndist.init_process_group('gloo')\nprint('started')\n")
    words = ("-m", "hf_refined_schedule", "launch", "--refined-from", tmp_path / "nothing", script)
    done = accelerate_launch(*words)
    assert done.returncode != 0
    assert done.stderr.count("hf-refined-schedule launch: error: There is no file or folder") == 1
    assert "started" not in done.stdout


def test_a_source_that_is_not_there_stops_all_processes(tmp_path):
    """Where a script names its own source."""
    kwargs = json.dumps({"refined_from": str(tmp_path / "nothing")})
    words = ("-m", "hf_refined_schedule", "launch", TRAINER, "--lr_scheduler_kwargs", kwargs)
    done = accelerate_launch(*words, "--output_dir", tmp_path, *TRAINER_OPTIONS, "--lr_scheduler_type", "refined")
    assert done.returncode != 0
    assert (
        len(
            re.findall(
                r"^(?:\[rank\d\]: )?hf_refined_schedule\S*MissingSourceError: There is no file", done.stderr, re.M
            )
        )
        >= 2
    )
    assert not (tmp_path / "rank0.txt").exists()


def raw_report(folder, rank=0):
    return json.loads((folder / f"report.{rank}").read_text())


def test_a_raw_loop_with_literal_choices(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    norms = tmp_path / "one" / "norms.jsonl"
    done = launch("--gradient-norms-file", norms, RAW, "--report", tmp_path / "one" / "report")
    assert done.returncode == 0, done.stderr
    header, rows = read_rows(norms)
    assert (header["optimizer"], header["num_training_steps"], len(rows)) == ("AdamW", 24, 24)

    refined = ("--refined-from", norms, RAW, "--lr_scheduler_type", "refined", "--report")
    done = launch(*refined, tmp_path / "one" / "report")
    assert done.returncode == 0, done.stderr
    rates = raw_report(tmp_path / "one")["rates"]
    assert max(rates) == pytest.approx(0.1)
    assert rates != sorted(rates, reverse=True), "as linear decay"

    torchrun = (
        BIN / "torchrun",
        "--nproc_per_node",
        2,
        "--master_port",
        free_port(),
        "-m",
        "hf_refined_schedule",
        "launch",
    )
    done = run_command(*torchrun, *refined, tmp_path / "two" / "report", timeout=90)
    for rank in range(2):
        assert raw_report(tmp_path / "two", rank) == {"world_size": 2, "rates": pytest.approx(rates)}, done.stderr


def test_trainers_one_after_another_into_one_file(tmp_path):
    """Each records; neither is said to be left out."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "from transformers import Trainer\n"
        "from tests.tiny import tiny_arguments, tiny_data, tiny_model\n"
        "for steps in (3, 4):\n"
        "    arguments = tiny_arguments(sys.argv[1], max_steps=steps)\n"
        "    Trainer(tiny_model(), arguments, train_dataset=tiny_data()).train()\n"
    )
    done = launch("--gradient-norms-file", tmp_path, script, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "gradient_norms.1.jsonl")[1]) == 3
    assert len(read_rows(tmp_path / "gradient_norms.jsonl")[1]) == 4
    assert "more than one optimizer" not in done.stderr


RESUMING = """
import os, torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
weight = torch.nn.Parameter(torch.zeros(3))
optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))
start = 0
if os.path.isdir("checkpoint"):
    accelerator.load_state("checkpoint")
    start = 4
for step in range(start, 9):
    accelerator.backward((weight * torch.tensor([1.0, -2.0, 2.0])).sum() * (step + 1))
    optimizer.step()
    optimizer.zero_grad()
    if step == 3:
        accelerator.save_state("checkpoint")
    if step == 6 and start == 0:
        os._exit(9)
"""


def test_a_raw_loop_that_resumes_goes_on_with_the_file(tmp_path):
    script, norms = tmp_path / "resuming.py", tmp_path / "norms.jsonl"
    script.write_text(RESUMING)
    words = ("--gradient-norms-file", norms, script)
    assert launch(*words, folder=tmp_path).returncode == 9
    header, rows = read_rows(norms)
    assert (header["num_training_steps"], len(rows)) == (None, 4)
    done = launch(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    header, rows = read_rows(norms)
    assert header["num_training_steps"] == 9
    assert [row["l2"] for row in rows] == [3.0 * step for step in range(1, 10)]

    (tmp_path / "checkpoint" / "gradient_norms_step.json").unlink()  # as saved without the launcher
    before = norms.read_text()
    done = launch(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has no valid gradient_norms_step.json") == 1
    assert norms.read_text() == before


def test_a_raw_loop_that_tries_again_with_a_smaller_batch(tmp_path):
    script, norms = tmp_path / "again.py", tmp_path / "norms.jsonl"
    script.write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "from accelerate.utils import find_executable_batch_size\n"
        "accelerator = Accelerator(cpu=True)\n"
        "@find_executable_batch_size(starting_batch_size=8)\n"
        "def train(batch_size):\n"
        "    accelerator.free_memory()\n"
        "    weight = torch.nn.Parameter(torch.zeros(3))\n"
        "    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1))\n"
        "    for step in range(5):\n"
        "        if batch_size == 8 and step == 2:\n"
        "            raise RuntimeError('CUDA out of memory. ')\n"
        "        accelerator.backward((weight * torch.ones(batch_size, 3)).sum())\n"
        "        optimizer.step()\n"
        "        optimizer.zero_grad()\n"
        "train()\n"
    )
    done = launch("--gradient-norms-file", norms, script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "more than one optimizer" not in done.stderr
    header, rows = read_rows(norms)
    assert header["num_training_steps"] == len(rows) == 5
    header, rows = read_rows(tmp_path / "norms.1.jsonl")
    assert (header["num_training_steps"], len(rows)) == (None, 2)


def test_without_the_launcher_the_script_refuses(tmp_path):
    done = run_command(BIN / "python", RAW, "--report", tmp_path / "report", "--lr_scheduler_type", "refined")
    assert done.returncode == 2


def test_exit_codes_and_tracebacks_are_the_scripts_own(tmp_path):
    options = ("--output_dir", tmp_path, *TRAINER_OPTIONS[2:], "--max_steps", 1)
    assert launch(TRAINER, *options, STATUS="7").returncode == 7
    failed = launch(TRAINER, *options, FAIL="1")
    alone = run_command(BIN / "python", TRAINER, *options, FAIL="1")
    assert failed.returncode == alone.returncode == 1
    tracebacks = [text[text.index("Traceback") :] for text in (failed.stderr, alone.stderr)]
    assert tracebacks[0] == tracebacks[1]


def test_a_script_that_is_not_there(tmp_path):
    done = launch(tmp_path / "nothing.py")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"hf-refined-schedule launch: error: There is no script '{tmp_path}/nothing.py'; pass the path of a Python file, the name of a console "
        "script, or -m MODULE, options before it."
    ]
