"""Scripts that have never heard of this package, run as whole processes: alone, and under accelerate and torchrun."""

import json
import os
import re
import signal
from contextlib import nullcontext

import pytest

from hf_refined_schedule.cli import main
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.training.launch import _check_source as check_source
from hf_refined_schedule.training.launch import _may_resume as may_resume
from hf_refined_schedule.training.launch import _possible_families as possible_families
from hf_refined_schedule.training.launch import launch as launch_here

from .records import write_norms
from .tiny import BIN, PYTHONPATH, SCRIPTS, accelerate_launch, free_port, read_rows, run_command
from .tolerances import LAUNCH_SECONDS

TRAINER = SCRIPTS / "unmodified_trainer.py"
RAW = SCRIPTS / "no_trainer.py"
TRAINER_OPTIONS = (
    "--max_steps", 24, "--per_device_train_batch_size", 2, "--logging_steps", 1, "--report_to", "none",
    "--save_strategy", "no", "--use_cpu", "--dataloader_pin_memory", "false", "--disable_tqdm", "true",
)  # fmt: skip

VANISHING = [10.0 ** (-step / 10) for step in range(100)]
"""Norms of a model that fits its data perfectly: nearly all learning would lie at the end of the run."""
FALLING = [10.0 ** (-step / 70) for step in range(100)]
"""The square of the weights, as SGD has it, is too much; the weights themselves are not."""


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
    last_files = [tmp_path / "two" / f"report.{rank}" for rank in range(2)]
    done = run_command(*torchrun, *refined, tmp_path / "two" / "report", timeout=90, last_files=last_files)
    for rank in range(2):
        assert raw_report(tmp_path / "two", rank) == {"world_size": 2, "rates": pytest.approx(rates)}, done.stderr


def test_a_raw_loop_under_fsdp2(tmp_path):
    """FSDP2 puts shards in the place of the parameters while the script prepares its optimizer. The norms are those of one process."""
    for name, words in (("one", ()), ("two", ("--nproc_per_node", 2, "--master_port", free_port()))):
        (tmp_path / name).mkdir()
        command = (BIN / "torchrun", *words) if words else (BIN / "python",)
        options = ("launch", "--gradient-norms-file", tmp_path / name, RAW, "--report", tmp_path / name / "report")
        fsdp2 = ("--fsdp2",) if words else ()
        last_files = [tmp_path / name / f"report.{rank}" for rank in range(2 if words else 1)]
        done = run_command(*command, "-m", "hf_refined_schedule", *options, *fsdp2, timeout=90, last_files=last_files)
        norms = tmp_path / name / "gradient_norms.jsonl"
        assert norms.exists() and len(read_rows(norms)[1]) == 24, done.stderr
        assert done.returncode in ((0, -signal.SIGKILL) if words else (0,)), done.stderr  # gloo may hang at exit
    (_, one), (header, two) = (read_rows(tmp_path / name / "gradient_norms.jsonl") for name in ("one", "two"))
    assert (header["world_size"], header["num_training_steps"]) == (2, 24)
    for norm in ("l1", "l2"):
        assert [row[norm] for row in two] == pytest.approx([row[norm] for row in one], rel=1e-5)


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


LOOP = """
import math, os, sys, torch
from accelerate import Accelerator
from transformers import get_wsd_schedule, get_scheduler
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
weight = torch.nn.Parameter(torch.zeros(3))
optimizer = torch.optim.SGD([weight], lr=0.1)
scheduler = SCHEDULER
optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
for step in range(24):
    with accelerator.accumulate(torch.nn.Identity()):
        accelerator.backward((weight * torch.tensor([1.0, -2.0, 2.0])).sum() * 2)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if accelerator.sync_gradients and step == STOP:
        HAPPENS
"""


def linear_schedule(horizon):
    return f"get_scheduler('linear', optimizer, 0, {horizon})"


@pytest.mark.parametrize(
    ("scheduler", "stop", "happens", "horizon", "updates"),
    [
        # All updates were made: the evaluation crashed, or the user interrupted it.
        (linear_schedule(12), 23, "raise ValueError('evaluation')", 12, 12),
        (linear_schedule(12), 23, "raise KeyboardInterrupt", 12, 12),
        (linear_schedule(12), 23, "sys.exit('evaluation')", 12, 12),
        # 10 of 12 updates, through get_wsd_schedule, which keeps no horizon but its parts.
        ("get_wsd_schedule(optimizer, 2, 4, 12)", 19, "raise ValueError", 12, 10),
        # The rounding of an accumulating loop: one update more than the horizon says.
        (linear_schedule(11), 23, "raise ValueError", 12, 12),
        # A schedule without a horizon.
        ("torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)", 23, "raise ValueError", None, 12),
    ],
)  # fmt: skip
def test_a_raw_loop_that_stops_knows_its_horizon(tmp_path, scheduler, stop, happens, horizon, updates):
    script = tmp_path / "loop.py"
    script.write_text(
        LOOP.replace("SCHEDULER", scheduler).replace("STOP", f"{stop}").replace("HAPPENS", happens)
    )  # fmt: skip
    done = launch("--gradient_norms_file", tmp_path / "run", script)
    assert done.returncode != 0
    header, rows = read_rows(tmp_path / "run" / "gradient_norms.jsonl")
    assert (header["num_training_steps"], [row["l2"] for row in rows]) == (horizon, [6.0] * updates), done.stderr


def test_a_scheduler_that_the_loop_steps_in_another_way_gives_no_horizon(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(
        LOOP.replace("SCHEDULER", linear_schedule(24)).replace("optimizer, scheduler = accelerator.prepare(optimizer, scheduler)", "optimizer = accelerator.prepare(optimizer)")
        .replace("STOP", "19").replace("HAPPENS", "raise ValueError")
    )  # fmt: skip
    launch("--gradient-norms-file", tmp_path / "norms.jsonl", script)
    header, rows = read_rows(tmp_path / "norms.jsonl")
    assert (header["num_training_steps"], len(rows)) == (None, 10)  # it counts 24 micro-batches, not 12 updates


def test_a_horizon_of_several_processes_counts_their_steps(tmp_path):
    """21 scheduler steps on 2 processes are 11 updates."""
    script = tmp_path / "loop.py"
    script.write_text(
        LOOP.replace("SCHEDULER", linear_schedule(21)).replace("STOP", "17")
        .replace("HAPPENS", "sys.stdout.flush(); accelerator.wait_for_everyone(); accelerator.end_training(); sys.exit(3)")
    )  # fmt: skip
    norms = tmp_path / "norms.jsonl"
    done = accelerate_launch("-m", "hf_refined_schedule", "launch", "--gradient-norms-file", norms, script)
    header, rows = read_rows(norms)
    assert (header["world_size"], header["num_training_steps"], len(rows)) == (2, 11, 9), done.stderr


def test_a_trainer_that_stops_with_an_error_leaves_every_update(tmp_path):
    script = tmp_path / "stops.py"
    script.write_text(
        "import sys\n"
        "from transformers import Trainer, TrainerCallback\n"
        "from tests.tiny import tiny_arguments, tiny_data, tiny_model\n"
        "class Stop(TrainerCallback):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        if state.global_step == 7:\n"
        "            raise KeyboardInterrupt\n"
        "arguments = tiny_arguments(sys.argv[1], max_steps=9)\n"
        "Trainer(tiny_model(), arguments, train_dataset=tiny_data(), callbacks=[Stop()]).train()\n"
    )
    launch(script, tmp_path)
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert (header["num_training_steps"], len(rows)) == (9, 7)


def test_relative_paths_mean_what_they_meant_when_the_launcher_started(tmp_path):
    """And the folder of the norms is there from the beginning."""
    (tmp_path / "source").mkdir()
    write_norms(tmp_path / "source" / "gradient_norms.jsonl", [10.0] * 8 + [6.0] * 32)
    script = tmp_path / "elsewhere.py"
    script.write_text(
        "import os, torch\n"
        "assert os.listdir('run') == []\n"
        "torch.save({}, 'run/model.pt')\n"
        "os.mkdir('elsewhere'); os.chdir('elsewhere')\n"
        "from accelerate import Accelerator\n"
        "from transformers import get_scheduler\n"
        "accelerator = Accelerator(cpu=True)\n"
        "weight = torch.nn.Parameter(torch.zeros(3))\n"
        "optimizer = torch.optim.AdamW([weight], lr=0.1)\n"
        "optimizer, scheduler = accelerator.prepare(optimizer, get_scheduler('refined', optimizer, 0, 4))\n"
        "for step in range(4):\n"
        "    accelerator.backward(weight.sum())\n"
        "    optimizer.step(); scheduler.step(); optimizer.zero_grad()\n"
    )
    done = launch("--refined_from", "source", "--gradient-norms-file", "run/", script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "run" / "gradient_norms.jsonl")[1]) == 4
    assert list((tmp_path / "elsewhere").iterdir()) == []
    # Nothing configures logging: the better peak is seen, with the name of the package.
    assert re.search(
        rf"^WARNING hf_refined_schedule\S*: Refined schedule from {tmp_path}/source/gradient_norms.jsonl \(\w+\): its best peak "
        r"learning rate is \d\.\d\d times linear decay's",
        done.stderr,
        re.M,
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "There is no file or folder"),
        ("unfinished", "covers 10 of 100"),
        ("damaged", "is damaged at line 3"),
        ("picture.png", "holds no gradient norms that can be read"),
        ("degenerate", "is degenerate: peak position"),
    ],
)
def test_a_wrong_source_fails_before_the_script_starts(tmp_path, source, message):
    write_norms(tmp_path / "degenerate" / "gradient_norms.jsonl", VANISHING)
    write_norms(tmp_path / "unfinished" / "gradient_norms.jsonl", [1.0] * 10, planned=100)
    damaged = write_norms(tmp_path / "damaged" / "gradient_norms.jsonl", [1.0] * 10)
    damaged.write_text(damaged.read_text().replace('"step": 2,', '"step": "two",'))
    (tmp_path / "picture.png").write_bytes(bytes(100))
    (tmp_path / "script.py").write_text("print('started')")
    with pytest.raises(ValueError, match=message) as caught:
        launch_here(tmp_path / "script.py", [], refined_from=str(tmp_path / source))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("norms", "words", "options", "accepted"),
    [
        pytest.param(VANISHING, [], {}, False, id="degenerate for adam and for sgd"),
        pytest.param(VANISHING, [], {"allow_degenerate": True}, True, id="allowed"),
        pytest.param(FALLING, [], {}, True, id="degenerate for sgd alone"),
        pytest.param(FALLING, ["--optim", "adamw_torch"], {}, True, id="adam is named"),
        pytest.param(FALLING, ["--lr", "1", "--optim=sgd"], {}, False, id="sgd is named"),
    ],
)
def test_a_degenerate_schedule_is_refused_where_no_optimizer_can_use_it(tmp_path, norms, words, options, accepted):
    source = write_norms(tmp_path / "norms.jsonl", norms)
    with nullcontext() if accepted else pytest.raises(ValueError, match="is degenerate"):
        check_source(str(source), RefinementOptions(**options), possible_families(words))


def test_a_schedule_file_is_checked_for_the_optimizer_that_is_named(tmp_path):
    source = write_norms(tmp_path / "norms.jsonl", [10.0] * 8 + [6.0] * 32)
    assert main(["refine", str(source), "--optimizer", "sgd", "-o", str(tmp_path / "schedule.json")]) == 0
    check_source(str(tmp_path / "schedule.json"), RefinementOptions(), possible_families([]))
    with pytest.raises(ValueError, match="was refined for sgd, but the optimizer is of the adam family"):
        check_source(
            str(tmp_path / "schedule.json"), RefinementOptions(), possible_families(["--optim", "adamw_torch"])
        )


def test_a_wrong_source_is_left_to_a_script_that_resumes(tmp_path):
    """A resumed run goes on with the schedule of its checkpoint."""
    (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    assert may_resume(["--resume_from_checkpoint", "out/checkpoint-4"])
    assert may_resume(["--resume_from_checkpoint=true"])
    assert may_resume(["--output_dir", str(tmp_path / "out")])
    assert not may_resume(["--resume_from_checkpoint", "False"])
    assert not may_resume(["--output_dir", str(tmp_path)])
    assert not may_resume([])


def test_a_wrong_source_on_the_command_line(tmp_path):
    (tmp_path / "script.py").write_text("print('started')")
    done = launch("--refined_from", tmp_path / "nothing", tmp_path / "script.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line[:70] for line in done.stderr.splitlines()] == [
        "hf-refined-schedule launch: error: There is no file or folder '" + f"{tmp_path}"[:7]
    ]


@pytest.mark.parametrize(
    ("words", "source", "warning"),
    [
        ((), "pass", "no gradient norms were recorded, because neither a Trainer nor an Accelerate loop trained here"),
        ((), "import torch, accelerate; accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD([torch.ones(1)]))", "pass --gradient-norms-file FILE"),
        (("--refined-from", "norms.jsonl", "--gradient-norms-file", "run"), "import torch, accelerate; accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD([torch.ones(1)]))", "pass --lr_scheduler_type refined to the script"),
        (("--gradient-norms-file", "run"), "import torch, accelerate; accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD([torch.ones(1)]))", None),
        ((), "import sys; sys.exit(1)", None),
    ],
    ids=["nothing trains", "a raw loop without a file", "linear", "recorded", "the script failed"],
)  # fmt: skip
def test_what_did_not_happen_is_said_once(tmp_path, words, source, warning):
    write_norms(tmp_path / "norms.jsonl", [10.0] * 8 + [6.0] * 32)
    (tmp_path / "script.py").write_text(source)
    done = launch(*words, "script.py", folder=tmp_path)
    warnings = [line for line in done.stderr.splitlines() if "The run ended, but" in line]
    assert len(warnings) == (warning is not None), done.stderr
    assert warning is None or warning in warnings[0]


CHILD = """
import sys
from tests.tiny import tiny_arguments, tiny_data, tiny_model
from transformers import Trainer
REGISTER
Trainer(tiny_model(), tiny_arguments(sys.argv[1], max_steps=3), train_dataset=tiny_data()).train()
"""


PARENT = """
import json, os, subprocess, sys
subprocess.run([sys.executable, *sys.argv[2:]], check=True, env={**os.environ, **json.loads(sys.argv[1])})
"""

ANOTHER_PATH = {"PYTHONPATH": PYTHONPATH}
"""An import path without the launcher's own folder."""


@pytest.mark.parametrize(
    ("environment", "code", "records"),
    [
        pytest.param({}, "", True, id="a child that knows nothing"),
        pytest.param(
            {}, "import hf_refined_schedule; hf_refined_schedule.register()", True, id="a child that registers"
        ),
        pytest.param(
            ANOTHER_PATH,
            "import hf_refined_schedule; hf_refined_schedule.register()",
            True,
            id="... on a path of its own",
        ),
        pytest.param(ANOTHER_PATH, "", False, id="a child that is hidden from the launcher"),
    ],
)
def test_a_child_process_records(tmp_path, environment, code, records):
    (tmp_path / "child.py").write_text(CHILD.replace("REGISTER", code))
    (tmp_path / "parent.py").write_text(PARENT)
    done = launch(tmp_path / "parent.py", json.dumps(environment), tmp_path / "child.py", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "gradient_norms.jsonl").exists() is records
    assert ("launch the script that trains" in done.stderr) is not records
    if records:
        assert len(read_rows(tmp_path / "run" / "gradient_norms.jsonl")[1]) == 3


def test_another_launcher_under_the_launcher(tmp_path):
    """`launch torchrun ...`: all ranks are children, and the main process writes."""
    words = ("torchrun", "--nproc_per_node", 2, "--master_port", free_port(), TRAINER, "--output_dir", tmp_path)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = run_command(
        BIN / "hf-refined-schedule", "launch", *words, *TRAINER_OPTIONS, PATH=path, timeout=LAUNCH_SECONDS
    )
    assert reported_rates(tmp_path, rank=1)[0] == 2, done.stderr
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert (header["world_size"], len(rows)) == (2, 24)
    assert [path.name for path in tmp_path.glob("gradient_norms*")] == ["gradient_norms.jsonl"]


def test_a_launcher_in_a_launched_program_records_by_itself(tmp_path):
    outer = json.dumps({"gradient_norms_file": str(tmp_path / "outer.jsonl"), "notes": str(tmp_path)})
    script = tmp_path / "script.py"
    script.write_text(CHILD.replace("REGISTER", ""))
    done = launch(script, tmp_path / "run", HF_REFINED_SCHEDULE_LAUNCH=outer)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "run" / "gradient_norms.jsonl")[1]) == 3
    assert not (tmp_path / "outer.jsonl").exists()


def test_a_module_and_a_console_script(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\nprint(sys.argv, __name__)\nraise KeyError('its own')\n")
    done = launch("-m", "package", "--lr", "1", folder=tmp_path)
    alone = run_command(BIN / "python", "-m", "package", "--lr", "1", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, f"['{package}/__main__.py', '--lr', '1'] __main__\n")
    assert done.stdout == alone.stdout
    assert done.stderr.splitlines()[1:] == alone.stderr.splitlines()[-3:]

    command = tmp_path / "train-it"
    command.write_text(f"#!{BIN}/python\nimport sys\nprint(sys.argv)\n")
    command.chmod(0o755)
    done = launch("train-it", "--lr", "1", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (0, f"['{command}', '--lr', '1']\n"), done.stderr
    for words in (("-m", "no_such_module"), ("sh",)):
        done = launch(*words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
