"""A model and data small enough to train in a second, and launches of whole processes."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch
import transformers
from packaging.version import Version
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

SCRIPTS = Path(__file__).parent / "scripts"
REPOSITORY = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

CAN_RESUME_ON_CPUS = Version(transformers.__version__) >= Version("5.18")
"""With several processes, a Trainer before that loads optimizer.pt to the device "cpu:0", which torch does not know."""


def tiny_model(seed: int = 0, **config) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
    # Dropout off: the same batch gives the same gradient, however it is cut into micro-batches or over processes.
    dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **tokens, **dropout, **config}))


def tiny_data(count: int = 256, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, 64, (count, 16), generator=torch.Generator().manual_seed(seed))
    tokens[:, 1::2] = tokens[:, ::2]  # something to learn: every token comes twice
    return [{"input_ids": row, "labels": row} for row in tokens]


def tiny_options(output_dir, **options) -> dict:
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 30,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return {**defaults, **options}


def tiny_arguments(output_dir, **options) -> TrainingArguments:
    return TrainingArguments(**tiny_options(output_dir, **options))


def read_rows(path) -> tuple[dict, list[dict]]:
    """Header and updates of a norms file, read without the package."""
    header, *rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return header, rows


def rates(trainer) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def run_command(*words, timeout: float = 240, folder=None, **environment) -> subprocess.CompletedProcess:
    """Run a command as a user would, outside the repository's root: in an empty folder, where no file shadows a module, or in `folder`.

    gloo processes now and then hang at exit after a good run. So a command past its time is ended with all its processes
    and returns what it has printed; tests of several processes judge by what every rank has written.
    """
    with (
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
        tempfile.TemporaryDirectory() as empty,
    ):
        process = psutil.Popen(
            [str(word) for word in words],
            stdout=output,
            stderr=errors,
            cwd=folder or empty,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        )
        try:
            process.wait(timeout)
        except psutil.TimeoutExpired:
            for running in [*process.children(recursive=True), process]:
                running.kill()
            process.wait()
            errors.write(f"\nended after {timeout} s")
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(process.args, process.returncode, output.read(), errors.read())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(*words, processes: int = 2, **environment) -> subprocess.CompletedProcess:
    return run_command(
        BIN / "torchrun", "--nproc_per_node", processes, "--master_port", free_port(), *words, timeout=90, **environment
    )  # fmt: skip


def accelerate_launch(*words, processes: int = 2) -> subprocess.CompletedProcess:
    """`accelerate launch` of gloo processes. Without --multi_gpu it runs single, unconnected processes on a CPU."""
    return run_command(
        BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", processes, "--num_machines", 1,
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(), *words,
        ACCELERATE_USE_CPU="true", timeout=90,
    )  # fmt: skip
