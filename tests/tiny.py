"""Tiny training runs, and commands that run as processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers
from experiments.processes import PYTHONPATH, ProcessTree, free_port
from experiments.tiny_models import tiny_data, tiny_model, tiny_options
from packaging.version import Version
from transformers import TrainingArguments

from .tolerances import COMMAND_SECONDS, EXIT_SECONDS, LAUNCH_SECONDS

__all__ = [
    "BIN",
    "CAN_RESUME_ON_CPUS",
    "PYTHONPATH",
    "REPOSITORY",
    "SCRIPTS",
    "accelerate_launch",
    "free_port",
    "rates",
    "read_rows",
    "run_command",
    "tiny_arguments",
    "tiny_data",
    "tiny_model",
    "tiny_options",
    "torchrun",
]

SCRIPTS = Path(__file__).parent / "scripts"
REPOSITORY = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

CAN_RESUME_ON_CPUS = Version(transformers.__version__) >= Version("5.18")
"""With several processes, an earlier Trainer loads optimizer.pt to the device "cpu:0", which torch does not know."""


def tiny_arguments(output_dir, **options) -> TrainingArguments:
    return TrainingArguments(**tiny_options(output_dir, **options))


def read_rows(path) -> tuple[dict, list[dict]]:
    """Header and updates of a norms file, read without the package."""
    header, *rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return header, rows


def rates(trainer) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def run_command(
    *words, timeout: float = COMMAND_SECONDS, folder=None, last_files: Sequence[Path] = (), **environment
) -> subprocess.CompletedProcess:
    """Run a command as a user would: outside the repository, in an empty folder where no file shadows a module, or in `folder`.

    gloo processes now and then hang at exit after a good run. A command that exceeds its time is therefore killed, and its
    output up to then returned; tests of several processes judge by what every rank wrote. When `last_files` are there, the command
    gets some seconds more, and not the rest of its time.
    """
    with (
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
        tempfile.TemporaryDirectory() as empty,
        ProcessTree() as tree,
    ):
        command = [str(word) for word in words]
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, **environment}
        process = tree.start(command, environment=environment, folder=folder or empty, output=output, errors=errors)
        has_ended = tree.wait(timeout, until=lambda: bool(last_files) and all(path.exists() for path in last_files))
        if has_ended and last_files:
            timeout = EXIT_SECONDS
            has_ended = tree.wait(timeout)
        if not has_ended:
            tree.kill()
            errors.write(f"\nkilled after {timeout} s")
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, output.read(), errors.read())


def torchrun(*words, processes: int = 2, **environment) -> subprocess.CompletedProcess:
    return run_command(
        BIN / "torchrun", "--nproc_per_node", processes, "--master_port", free_port(), *words,
        timeout=LAUNCH_SECONDS, **environment,
    )  # fmt: skip


def accelerate_launch(*words, processes: int = 2) -> subprocess.CompletedProcess:
    """`accelerate launch` of gloo processes. Without --multi_gpu it runs unconnected single processes on a CPU."""
    return run_command(
        BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", processes, "--num_machines", 1,
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(), *words,
        ACCELERATE_USE_CPU="true", timeout=LAUNCH_SECONDS,
    )  # fmt: skip
