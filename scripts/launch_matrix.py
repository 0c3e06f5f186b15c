"""Run every kind of launch for real, and compare what it records with one process on the same batches.

    python scripts/launch_matrix.py
    python scripts/launch_matrix.py --cells 'DDP*' 'one process'

Each cell trains a tiny model for 12 updates with a refined schedule that is known in closed form, while its gradient norms are
recorded. What the ranks report (see launch_matrix_worker.py) is compared with one process that runs the same batches without a
recorder, and measures every gradient in float64 as soon as it is there. A cell that this machine cannot run says why.

The table is printed, and goes to OUTPUT_DIR/launch_matrix.md. All cells take 9 to 15 minutes on two cores. Exit status 1 if
a cell fails.
"""

import argparse
import fnmatch
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

try:
    import psutil
except ImportError:
    sys.exit("launch_matrix.py needs psutil, to end launches that hang: pip install psutil")

REPOSITORY = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("launch_matrix_worker.py")

UPDATES = 12
BATCH = 8
"""Sequences in the batch of one update, over all processes and micro-batches."""
LEARNING_RATE = 5e-3

STRICT = 3
"""Updates that are compared strictly: after a step on rounded gradients, two runs are no longer the same run."""
LATER = 10
"""How many times the tolerance later updates may differ by."""
FLOAT32 = 1e-5
"""Float32 sums in another order: 1e-7 a sum, some of them behind each other. What goes wrong (a part of the gradient, an
average for a sum, a clipped gradient) is off by per cents."""
BFLOAT16 = 5e-3
"""bfloat16 rounds to 8 bits, 4e-3 each, and the errors of a gradient's elements mostly cancel in its norm."""
FLOAT16 = 1e-3
"""fp16 rounds to 11 bits, and sums on a CUDA device are not in the same order twice."""
BFLOAT16_PARAMETERS = 1e-2
"""Here the micro-batches' gradients themselves are rounded to 8 bits before they are averaged."""

LIMIT = 75.0
"""Seconds for a launch."""
COMPILING = 180.0
"""Seconds for a launch that compiles C++ first."""
GRACE = 10.0
"""Seconds for a launch to end once every rank has reported: gloo now and then hangs after a good run."""

MARK = "HF_REFINED_SCHEDULE_LAUNCH"
"""An environment variable that marks the processes of a launch: torchrun's workers have sessions of their own."""


def known_rates() -> list[float]:
    """The learning rates refined from norms that halve in the middle, by Algorithm 1 of arXiv 2310.07831, worked out by hand.

    The weights are 1/2 six times, then 1 seven times (T updates visit T+1 iterates); times the sum of those after them:
    (19 - t) / 4 for t < 6, then 12 - t. The largest is 6.
    """
    return [LEARNING_RATE * ((19 - t) / 24 if t < 6 else (12 - t) / 6) for t in range(UPDATES)]


def write_known_norms(path: Path) -> None:
    header = {"format": "gradient_norms", "version": 1, "optimizer_family": "adam", "num_training_steps": UPDATES}
    # L1 ** -1 and L2 ** -2 are the same weights here, so that SGD has the rates of Adam.
    rows = [{"step": t + 1, "l1": 2.0 if t < 6 else 1.0, "l2": 2.0**0.5 if t < 6 else 1.0} for t in range(UPDATES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]))


SCRIPT_PREFACE = """\
import argparse, json, torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, SchedulerType, Trainer, TrainingArguments, get_scheduler

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0,
    embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, loss_type="ForCausalLM",
)
model = GPT2LMHeadModel(config)
tokens = torch.randint(0, 64, (96, 16), generator=torch.Generator().manual_seed(1))
tokens[:, 1::2] = tokens[:, ::2]
data = [{"input_ids": row, "labels": row} for row in tokens]

def report(folder, accelerator, rates):
    seen = {
        "world_size": accelerator.num_processes, "distributed_type": accelerator.distributed_type.value,
        "facts": [], "network": "", "norms": [], "warnings": [], "rates": rates,
    }
    with open(f"{folder}/rank{accelerator.process_index}.json", "w") as file:
        json.dump(seen, file)
    accelerator.wait_for_everyone()
    accelerator.end_training()

"""
SCRIPTS = {
    "run_clm": SCRIPT_PREFACE
    + """\
arguments = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()[0]
trainer = Trainer(model, arguments, train_dataset=data)
trainer.train()
rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
report(arguments.output_dir, trainer.accelerator, rates)
""",
    "no_trainer": SCRIPT_PREFACE
    + """\
parser = argparse.ArgumentParser()
parser.add_argument("--lr_scheduler_type", type=SchedulerType, choices=["linear", "cosine", "polynomial", "constant"])
parser.add_argument("--output_dir")
parser.add_argument("--learning_rate", type=float)
parser.add_argument("--max_train_steps", type=int)
parser.add_argument("--per_device_train_batch_size", type=int)
options = parser.parse_args()
accelerator = Accelerator(cpu=True)
loader = torch.utils.data.DataLoader(data, batch_size=options.per_device_train_batch_size)
optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
scheduler = get_scheduler(
    options.lr_scheduler_type, optimizer, 0, options.max_train_steps * accelerator.num_processes
)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
rates = []
for batch in loader:
    accelerator.backward(model(**batch).loss)
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
report(options.output_dir, accelerator, rates)
""",
}
"""Scripts that have never heard of this package, in the style of transformers' examples."""


@dataclass(frozen=True)
class Cell:
    """One kind of launch, what it has to be, and how close it has to come to one process."""

    name: str
    launch: str = "torchrun"
    """`"alone"`, `"torchrun"`, `"accelerate"`, `"two nodes"`, or `"two networks"`."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """`TrainingArguments`; `"deepspeed"` holds the config."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The worker's other options."""
    distributed_type: str = ""
    """Accelerate's word for it; that of the launch if empty."""
    facts: tuple[str, ...] = ()
    """What the ranks must say of their run."""
    tolerance: float = FLOAT32
    has_l1: bool = True
    warnings: tuple[str, ...] = ()
    """How each warning of the recorder begins, over all ranks."""
    refused: bool = False
    """Whether the last of them is the end of the recording."""
    repeats_samples: bool = False
    """Whether the last update differs by design."""
    needs: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        return 1 if self.launch == "alone" else 2

    @property
    def script(self) -> str | None:
        loop = self.options.get("loop")
        return loop if loop in SCRIPTS else None

    def worker_options(self) -> dict[str, Any]:
        accumulation = self.training.get("gradient_accumulation_steps", 1)
        batch_size = BATCH // self.world_size // accumulation
        return {**DEFAULTS, **self.options, "training": {"per_device_train_batch_size": batch_size, **self.training}}

    def reference_options(self) -> dict[str, Any]:
        """The same run by one process, without what must make no difference."""
        options = {**DEFAULTS, "measure": True}
        training = {"per_device_train_batch_size": BATCH}
        if not self.refused:  # there, rates are compared alone
            options |= self.options
            training |= {key: self.training[key] for key in SAME_RUN if key in self.training}
        if self.script:
            options |= RAW if self.script == "no_trainer" else {"loop": "Trainer"}
        return {**options, "split_batches": False, "training": training}


DEFAULTS = {
    "loop": "Trainer", "model": "gpt2", "optimizer": None, "samples": BATCH * UPDATES, "measure": False, "cuda": False,
    "overflow": False, "split_batches": False, "updates": UPDATES, "learning_rate": LEARNING_RATE,
}  # fmt: skip

SAME_RUN = ("max_grad_norm", "bf16", "fp16", "optim")
"""Arguments that make another run, and not only another way to run it."""

DDP = ("DistributedDataParallel",)
FSDP = {"fsdp": "full_shard auto_wrap"}
BLOCKS = {"transformer_layer_cls_to_wrap": "GPT2Block"}
RAW = {"loop": "raw", "optimizer": "AdamW"}
ENGINE = "DeepSpeed reports only the L2 norm of the gradient"
REFUSED = "Gradient norms are not recorded from update 1 on: "


def zero(stage: int, **changes: Any) -> dict[str, Any]:
    """A DeepSpeed config of a ZeRO stage."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        **changes,
    }


def zero_cell(name: str, stage: int, *, training: Mapping[str, Any] | None = None, **changes: Any) -> Cell:
    """A cell of ZeRO 1 to 3, which knows L2 alone."""
    options = {
        "distributed_type": "DEEPSPEED", "facts": ("DeepSpeedEngine", f"ZeRO {stage}"), "has_l1": False,
        "warnings": (ENGINE,), "needs": ("DeepSpeed",),
    }  # fmt: skip
    return Cell(name, training={"deepspeed": zero(stage), **(training or {})}, **{**options, **changes})


ADAM_OF_DEEPSPEED = {
    "type": "AdamW",
    "params": {
        **dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"),
        "torch_adam": True,
        "adam_w_mode": True,
    },
}

CELLS = [
    Cell("one process", "alone"),
    Cell("DDP, accelerate launch", "accelerate", facts=DDP),
    Cell("DDP, torchrun", facts=DDP),
    Cell("DDP, two nodes", "two nodes", facts=DDP),
    Cell("DDP, two nodes in two network namespaces", "two networks", facts=DDP, needs=("network namespaces",)),
    Cell(
        "DDP, uneven last batch, even_batches",
        options={"samples": BATCH * UPDATES - 3},
        facts=DDP,
        repeats_samples=True,
    ),
    Cell(
        "DDP, uneven last batch, even_batches false",
        training={"accelerator_config": {"even_batches": False}},
        options={"samples": BATCH * UPDATES - 3},
        facts=DDP,
    ),
    Cell(
        "DDP, gradient accumulation 4",
        training={"gradient_accumulation_steps": 4},
        facts=(*DDP, "accumulates 4"),
    ),
    Cell("gradient accumulation 4", "alone", training={"gradient_accumulation_steps": 4}, facts=("accumulates 4",)),
    Cell("DDP, max_grad_norm 0", training={"max_grad_norm": 0.0}, facts=DDP),
    Cell("DDP, max_grad_norm 1", training={"max_grad_norm": 1.0}, facts=DDP),
    Cell("DDP, max_grad_norm 1e-3", training={"max_grad_norm": 1e-3}, facts=DDP),
    Cell(
        "FSDP2",
        training={**FSDP, "fsdp_config": {"version": 2, **BLOCKS}},
        distributed_type="FSDP",
        facts=("FSDPGPT2LMHeadModel", "DTensor gradients"),
    ),
    Cell(
        "FSDP2, max_grad_norm 0",
        training={**FSDP, "fsdp_config": {"version": 2, **BLOCKS}, "max_grad_norm": 0.0},
        distributed_type="FSDP",
        facts=("FSDPGPT2LMHeadModel", "DTensor gradients"),
    ),
    Cell(
        "FSDP1",
        training={**FSDP, "fsdp_config": {"version": 1, "sync_module_states": False, **BLOCKS}},
        distributed_type="FSDP",
        facts=("FullyShardedDataParallel",),
        warnings=(REFUSED + "FSDP1 keeps the gradients to itself",),
        refused=True,
    ),
    zero_cell(
        "ZeRO 0",
        0,
        warnings=(REFUSED + "DeepSpeed without ZeRO clips inside its own step",),
        refused=True,
    ),
    zero_cell("ZeRO 0, max_grad_norm 0", 0, training={"max_grad_norm": 0.0}, has_l1=True, warnings=()),
    zero_cell("ZeRO 1", 1),
    zero_cell("ZeRO 2", 2),
    zero_cell("ZeRO 3", 3),
    zero_cell("ZeRO 1, max_grad_norm 0", 1, training={"max_grad_norm": 0.0}),
    zero_cell("ZeRO 3, max_grad_norm 1e-3", 3, training={"max_grad_norm": 1e-3}),
    zero_cell(
        "ZeRO 2, gradient accumulation 4",
        2,
        training={"gradient_accumulation_steps": 4},
        facts=("ZeRO 2", "accumulates 4"),
    ),
    zero_cell("ZeRO 1, DeepSpeed's optimizer", 1, training={"deepspeed": zero(1, optimizer=ADAM_OF_DEEPSPEED)}),
    zero_cell(
        "ZeRO 0, DeepSpeed's optimizer, max_grad_norm 0",
        0,
        training={"deepspeed": zero(0, optimizer=ADAM_OF_DEEPSPEED), "max_grad_norm": 0.0},
        has_l1=True,
        warnings=(),
    ),
    zero_cell(
        "ZeRO 1, bf16 autocast",
        1,
        training={"deepspeed": zero(1, bf16={"enabled": "auto"}), "bf16": True},
        tolerance=BFLOAT16,
    ),
    zero_cell(
        "ZeRO 2, raw loop",
        2,
        launch="accelerate",
        options=RAW,
        training={"max_grad_norm": 0.5, "deepspeed": zero(2, gradient_clipping=0.5)},
    ),
    zero_cell(
        "ZeRO 1, raw loop that does not clip",
        1,
        launch="accelerate",
        options=RAW,
        training={"max_grad_norm": 0},
        warnings=(ENGINE, REFUSED + "DeepSpeed reports its norm only through accelerator.clip_grad_norm_"),
        refused=True,
    ),
    Cell("DDP, bf16 autocast", training={"bf16": True}, facts=(*DDP, "bf16 autocast"), tolerance=BFLOAT16),
    Cell(
        "DDP, bf16 parameters",
        options={"dtype": "bfloat16"},
        facts=(*DDP, "bfloat16 parameters"),
        tolerance=BFLOAT16_PARAMETERS,
    ),
    *(
        Cell(
            f"fp16 with overflow, {optim}, on {'CUDA' if cuda else 'CPU'}",
            "alone",
            training={"fp16": True, "optim": optim},
            options={"cuda": cuda, "overflow": True},
            facts=("fp16 autocast", *(("fused",) if "fused" in optim else ())),
            tolerance=FLOAT16,
            needs=("CUDA",) if cuda else (),
        )
        for cuda in (False, True)
        for optim in ("adamw_torch_fused", "adamw_torch")
    ),
    Cell(
        "DDP, gradient checkpointing",
        training={"gradient_checkpointing": True},
        facts=(*DDP, "gradient checkpointing"),
    ),
    Cell("torch.compile", "alone", training={"torch_compile": True}, facts=("compiled",), needs=("a C++ compiler",)),
    Cell("DDP, LoRA", options={"lora": True}, facts=(*DDP, "PeftModel"), needs=("peft",)),
    Cell("DDP, tied weights", facts=(*DDP, "tied")),
    Cell("sparse embedding, SGD", "alone", {"max_grad_norm": 0}, {**RAW, "model": "sparse", "optimizer": "SGD"}),
    Cell(
        "DDP, sparse embedding, SGD",
        training={"max_grad_norm": 0},
        options={**RAW, "model": "sparse", "optimizer": "SGD"},
        facts=DDP,
    ),
    Cell(
        "sparse embedding, SparseAdam",
        "alone",
        {"max_grad_norm": 0},
        {**RAW, "model": "sparse only", "optimizer": "SparseAdam"},
    ),
    Cell(
        "optimizer that steps in the backward pass",
        "alone",
        options={"optimizer": "consumes gradients"},
        warnings=(REFUSED + "no parameter of the optimizer had a gradient at its step",),
        refused=True,
    ),
    Cell(
        "DDP, Seq2SeqTrainer, T5",
        # T5 leaves out the number of tokens that Trainer counts by default, and two processes train on twice the loss.
        training={"average_tokens_across_devices": False},
        options={"loop": "Seq2SeqTrainer", "model": "t5"},
        facts=DDP,
    ),
    Cell("DDP, raw loop", options=RAW, training={"max_grad_norm": 1.0}, facts=DDP),
    Cell("DDP, raw loop that does not clip", options=RAW, training={"max_grad_norm": 0}, facts=DDP),
    Cell(
        "DDP, raw loop, split_batches",
        options={**RAW, "split_batches": True},
        training={"max_grad_norm": 1.0},
        facts=(*DDP, "splits batches"),
    ),
    Cell(
        "DDP, raw loop, gradient accumulation 4",
        options=RAW,
        training={"max_grad_norm": 1.0, "gradient_accumulation_steps": 4},
        facts=(*DDP, "accumulates 4"),
    ),
    Cell("unmodified run_clm-style script", "alone", options={"loop": "run_clm"}),
    Cell("unmodified run_clm-style script, DDP", "accelerate", options={"loop": "run_clm"}),
    Cell("unmodified no_trainer-style script", "alone", {"max_grad_norm": 0}, {"loop": "no_trainer"}),
    Cell("unmodified no_trainer-style script, DDP", "torchrun", {"max_grad_norm": 0}, {"loop": "no_trainer"}),
]


@cache
def missing(need: str) -> str | None:
    """Why this machine does not have something, or None."""
    if need == "CUDA":
        import torch

        return None if torch.cuda.is_available() else "needs a CUDA device"
    if need == "a C++ compiler":
        return None if shutil.which("g++") or shutil.which("clang++") else "needs a C++ compiler"
    if need == "network namespaces":
        if shutil.which("ip") is None:
            return "needs the command ip"
        if os.geteuid() != 0:
            return "needs root, for ip netns"
        try:
            with two_networks() as nodes:
                subprocess.run([*nodes[0].prefix, "true"], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return f"ip netns does not work here: {error.stderr.strip()}"
        return None
    return None if find_spec(need.lower()) else f"{need} is not installed"


class Node(NamedTuple):
    """A machine, or a network namespace that passes for one."""

    address: str
    prefix: list[str]
    """Words before a command that runs there."""
    interface: str


@contextmanager
def two_networks() -> Iterator[list[Node]]:
    """Two network namespaces, joined by nothing but a pair of virtual cables.

    Yields:
        The two nodes.
    """
    names = [f"hfrs{os.getpid()}{side}" for side in "ab"]
    interface = "hfrs0"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("link", "add", interface, "netns", names[0], "type", "veth", "peer", "name", interface, "netns", names[1])
        nodes = []
        for number, name in enumerate(names, start=1):
            address = f"10.231.87.{number}"
            ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            ip("-n", name, "link", "set", interface, "up")
            ip("-n", name, "link", "set", "lo", "up")
            nodes.append(Node(address, ["ip", "netns", "exec", name], interface))
        yield nodes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch_commands(kind: str, program: list[str], nodes: list[Node], engine: str) -> list[list[str]]:
    """The commands of a launch, one for each node.

    Args:
        kind: as in `Cell.launch`.
        program: what each rank runs after `python`: a script, or `-m` and a module, and its arguments.
        nodes: where, if there are two.
        engine: the option by which `accelerate launch` knows that the processes belong together; without one, two
            processes on CPUs would be two runs.
    """
    python, port = sys.executable, str(free_port())
    if kind == "alone":
        return [[python, *program]]
    if kind == "torchrun":
        return [[python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, *program]]
    accelerate = [
        python, "-m", "accelerate.commands.launch", engine, "--num_processes", "2", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", port,
    ]  # fmt: skip
    if kind == "accelerate":
        return [[*accelerate, "--num_machines", "1", *program]]
    where = ["--num_machines", "2", "--main_process_ip", nodes[0].address]
    return [
        [*node.prefix, *accelerate, *where, "--machine_rank", str(rank), *program] for rank, node in enumerate(nodes)
    ]


def run_launch(
    commands: list[list[str]],
    environments: list[dict[str, str]],
    reports: list[Path],
    log: Path,
    limit: float,
) -> bool:
    """Run a launch to its end, to its time limit, or until a while after all ranks have reported; then end all of it.

    Args:
        commands: one for each node, at the same time.
        environments: theirs.
        reports: the files that the ranks write last.
        log: where they print to.
        limit: seconds.

    Returns:
        False if it was at the time limit.
    """
    mark = uuid.uuid4().hex
    empty = log.parent / "empty"  # a folder where no file shadows a module
    empty.mkdir(exist_ok=True)
    deadline = time.monotonic() + limit
    running: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("wb") as output:
            for command, environment in zip(commands, environments, strict=True):
                running.append(
                    subprocess.Popen(
                        command, stdout=output, stderr=subprocess.STDOUT, cwd=empty, env={**environment, MARK: mark}
                    )
                )
        reported = False
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline:
                return reported
            if not reported and all(report.exists() for report in reports):
                reported, deadline = True, time.monotonic() + GRACE
            time.sleep(0.1)
        return True
    finally:
        end_marked(mark)
        for process in running:
            process.wait()


def end_marked(mark: str) -> None:
    """End what is left of a launch, also what is no child of ours any more, and what it starts meanwhile."""
    deadline = time.monotonic() + GRACE
    while (left := [process for process in psutil.process_iter() if has_mark(process, mark)]) and (
        time.monotonic() < deadline
    ):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


def has_mark(process: psutil.Process, mark: str) -> bool:
    """Whether a process lives, and is of a launch."""
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


class Outcome(NamedTuple):
    """What came of a cell."""

    got: str
    l1: str
    l2: str
    result: str
    failed: bool


class Matrix:
    """Runs cells in a folder, and keeps the runs of single processes that they are compared with.

    Args:
        folder: for all that is written on the way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known_norms = folder / "known.jsonl"
        write_known_norms(self.known_norms)
        self._extensions = folder / "extensions"
        """Where DeepSpeed compiles to, for all launches."""
        self._references: dict[str, dict[str, Any]] = {}
        self._count = 0

    def run(self, cell: Cell) -> Outcome:
        """Run a cell, if this machine can."""
        for need in cell.needs:
            reason = missing(need)
            if reason is not None:
                return Outcome("", "", "", f"not run: {reason}", False)
        try:
            reference = self._reference(cell)
            output_dir, reports = self._launch(cell, cell.worker_options())
        except LaunchError as error:
            return Outcome("", "", "", f"FAILED: {error}", True)
        return judge(cell, reports, reference, output_dir)

    def _reference(self, cell: Cell) -> dict[str, Any]:
        options = cell.reference_options()
        key = json.dumps(options, sort_keys=True)
        if key not in self._references:
            _, (report,) = self._launch(Cell("one process without a recorder", "alone"), options)
            self._references[key] = report
        return self._references[key]

    def _launch(self, cell: Cell, options: dict[str, Any]) -> tuple[Path, list[dict[str, Any]]]:
        self._count += 1
        folder = self.folder / str(self._count)
        output_dir = folder / "out"
        output_dir.mkdir(parents=True)
        program = self._scripted(cell, options, folder) if cell.script else self._worker(options, folder)
        deepspeed, compiled = (bool(options["training"].get(key)) for key in ("deepspeed", "torch_compile"))
        limit = COMPILING if deepspeed or compiled else LIMIT
        engine = "--use_deepspeed" if deepspeed else "--multi_gpu"
        for lock in self._extensions.rglob("lock"):  # of a launch that was ended while it compiled
            lock.unlink()
        reports = [output_dir / f"rank{rank}.json" for rank in range(cell.world_size)]
        with ExitStack() as stack:
            nodes = [Node("127.0.0.1", [], "")] * 2
            if cell.launch == "two networks":
                nodes = stack.enter_context(two_networks())
            commands = launch_commands(cell.launch, program, nodes, engine)
            environments = [self._environment(options["cuda"], node) for node, _ in zip(nodes, commands, strict=False)]
            log = folder / "log.txt"
            in_time = run_launch(commands, environments, reports, log, limit)
        silent = [report.stem for report in reports if not report.exists()]
        if silent:
            why = f"ended after {limit:.0f} s" if not in_time else last_error(log)
            raise LaunchError(f"{', '.join(silent)} did not report: {why}")
        return output_dir, [json.loads(report.read_text()) for report in reports]

    def _worker(self, options: dict[str, Any], folder: Path) -> list[str]:
        options = {**options, "output_dir": str(folder / "out"), "refined_from": str(self.known_norms)}
        if "deepspeed" in options["training"]:
            config = folder / "deepspeed.json"
            config.write_text(json.dumps(options["training"]["deepspeed"]))
            options["training"] = {**options["training"], "deepspeed": str(config)}
        path = folder / "options.json"
        path.write_text(json.dumps(options))
        return [str(WORKER), str(path)]

    def _scripted(self, cell: Cell, options: dict[str, Any], folder: Path) -> list[str]:
        script = folder / f"{cell.script}.py"
        script.write_text(SCRIPTS[cell.script])
        words = ["-m", "hf_refined_schedule", "launch", "--refined-from", str(self.known_norms)]
        if cell.script == "no_trainer":
            words += ["--gradient-norms-file", str(folder / "out" / "gradient_norms.jsonl")]
        words += [str(script), "--output_dir", str(folder / "out"), "--lr_scheduler_type", "refined"]
        words += ["--learning_rate", str(LEARNING_RATE)]
        words += ["--per_device_train_batch_size", str(options["training"]["per_device_train_batch_size"])]
        if cell.script == "no_trainer":
            return [*words, "--max_train_steps", str(UPDATES)]
        return [
            *words, "--max_steps", str(UPDATES), "--logging_steps", "1", "--report_to", "none", "--save_strategy", "no",
            "--use_cpu", "--dataloader_pin_memory", "false", "--disable_tqdm", "true",
        ]  # fmt: skip

    def _environment(self, cuda: bool, node: Node) -> dict[str, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TORCH_EXTENSIONS_DIR": str(self._extensions),
        }
        if cuda:
            environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        else:
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        if node.interface:
            environment["GLOO_SOCKET_IFNAME"] = node.interface
        return environment


class LaunchError(RuntimeError):
    """A launch whose ranks did not all report."""


def last_error(log: Path) -> str:
    """The last line of a log that names an error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if "Error" in line]
    lines = [line for line in lines if "ChildFailedError" not in line]
    return lines[-1] if lines else "it ended without an error message"


def judge(cell: Cell, reports: list[dict[str, Any]], reference: dict[str, Any], output_dir: Path) -> Outcome:
    """Compare what the ranks report, and the file that they leave, with the single process.

    Args:
        cell: what was run.
        reports: one for each rank.
        reference: the single process's.
        output_dir: where the file is.
    """
    problems = what_it_is_not(cell, reports)
    for rank, report in enumerate(reports):
        if report["rates"] != reference["rates"]:
            problems.append(f"rank {rank} applied {report['rates']}, one process {reference['rates']}")
    if not cell.options.get("overflow") and not all(
        rate is not None and math.isclose(rate, known, rel_tol=1e-12)
        for rate, known in zip(reference["rates"], known_rates(), strict=True)
    ):
        problems.append(f"one process applied {reference['rates']}, not the known rates {known_rates()}")
    written = sorted(output_dir.rglob("gradient_norms*"))
    l1 = l2 = ""
    if cell.refused:
        result = f"refused: {cell.warnings[-1].removeprefix(REFUSED)}"
        if written:
            problems.append(f"files were written: {written}")
    elif len(written) != 1 or (not cell.script and written[0].parent.name != "rank0"):
        result = ""
        problems.append(f"rank 0 alone should have written a file: {[str(path) for path in written]}")
    else:
        header, *rows = [json.loads(line) for line in written[0].read_text().splitlines()]
        l1, l2, result, more = compare(cell, header, rows, reference)
        problems += more
    got = f"{reports[0]['distributed_type']}, {reports[0]['world_size']}"
    if problems:
        result = "FAILED: " + "; ".join(problems)
    return Outcome(got, l1, l2, result, bool(problems))


def what_it_is_not(cell: Cell, reports: list[dict[str, Any]]) -> list[str]:
    """In what a launch is not the one that the cell names."""
    problems = []
    distributed_type = cell.distributed_type or ("NO" if cell.world_size == 1 else "MULTI_CPU")
    for rank, report in enumerate(reports):
        if (report["world_size"], report["distributed_type"]) != (cell.world_size, distributed_type):
            problems.append(f"rank {rank} is one of {report['world_size']} in {report['distributed_type']}")
        lacking = set() if cell.script else set(cell.facts) - set(report["facts"])
        if lacking:
            problems.append(f"rank {rank} has no {', '.join(sorted(lacking))}, but {report['facts']}")
    if cell.launch == "two networks" and len({report["network"] for report in reports}) != 2:
        problems.append("the ranks share a network")
    warnings = [warning for report in reports for warning in report["warnings"] if not warning.startswith("Refined")]
    if len(warnings) != len(cell.warnings) or not all(map(str.startswith, warnings, cell.warnings)):
        problems.append(f"the recorder warned {warnings}")
    return problems


def compare(
    cell: Cell, header: dict[str, Any], rows: list[dict[str, Any]], reference: dict[str, Any]
) -> tuple[str, str, str, list[str]]:
    """The file against the single process: both columns of the table, the result, and what is wrong."""
    problems = []
    if header["world_size"] != cell.world_size:
        problems.append(f"the file says {header['world_size']} processes")
    if [row["step"] for row in rows] != list(range(1, UPDATES + 1)):
        problems.append(f"the file has the updates {[row['step'] for row in rows]}")
        return "", "", "", problems
    max_grad_norm = cell.training.get("max_grad_norm", 1.0)
    for row, rate in zip(rows, reference["rates"], strict=True):
        if rate is not None and row["learning_rate"] != rate:
            problems.append(f"update {row['step']} has the learning rate {row['learning_rate']}, not {rate}")
        if row["l2"] is not None:
            factor = min(1.0, max_grad_norm / (row["l2"] + 1e-6)) if max_grad_norm else 1.0
            if not math.isclose(row["clip_factor"], factor, rel_tol=cell.tolerance):
                problems.append(f"update {row['step']} has the clip factor {row['clip_factor']}, not {factor}")
    same = UPDATES - cell.repeats_samples
    columns = []
    for number, name in enumerate(("l1", "l2")):
        if name == "l1" and not cell.has_l1:
            columns.append("not told")
            if any(row["l1"] is not None for row in rows):
                problems.append("L1 norms are there")
            continue
        problems += [
            f"update {row['step']} has the {name} {row[name]}, and one process {norms}"
            for row, norms in zip(rows, reference["norms"], strict=True)
            if (row[name] is None) != (norms is None)
        ]
        differences = [
            abs(row[name] / norms[number] - 1) if row[name] is not None and norms is not None else 0.0
            for row, norms in zip(rows, reference["norms"], strict=True)
        ]
        strict, later = max(differences[:STRICT]), max(differences[:same])
        columns.append(f"{strict:.0e}, {later:.0e}")
        if strict > cell.tolerance or later > LATER * cell.tolerance:
            problems.append(f"{name.upper()} differs by {strict:.1e}, later by {later:.1e}")
    result = "recorded"
    if cell.repeats_samples:
        difference = rows[-1]["l2"] / reference["norms"][-1][1] - 1
        result += f"; L2 of the last update is off by {difference:+.1%}, by design"
        if abs(difference) < LATER * cell.tolerance:
            problems.append("the last update is not another one, although samples were repeated")
    if cell.options.get("overflow"):
        voids = [row["step"] for row in rows if row["l2"] is None]
        result += f"; overflow at update {', '.join(map(str, voids))}"
        if not voids:
            problems.append("no update overflowed")
    return *columns, result, problems


def report(cells: list[Cell], outcomes: list[Outcome], seconds: list[float], command: str) -> str:
    """The table, and what it says."""
    packages = []
    for name in ("torch", "transformers", "accelerate", "deepspeed", "peft"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} not installed")
    header = ("cell", "launch", "got", "L1", "L2", "result", "s")
    rows = [
        (cell.name, cell.launch, outcome.got, outcome.l1, outcome.l2, outcome.result, f"{duration:.0f}")
        for cell, outcome, duration in zip(cells, outcomes, seconds, strict=True)
    ]
    rows = [tuple(text.replace("|", "\\|").replace("\n", " ") for text in row) for row in rows]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in [header, tuple("-" * width for width in widths), *rows]
    ]
    ran = [outcome for outcome in outcomes if not outcome.result.startswith("not run")]
    failed = sum(outcome.failed for outcome in outcomes)
    return f"""# Every kind of launch, against one process

{len(ran)} of {len(cells)} cells ran on this machine, {failed} failed. Each trains a tiny model for {UPDATES} updates of {BATCH} sequences with a refined
schedule that is known in closed form.

- got: Accelerate's `distributed_type` and the number of processes. The ranks also had to be wrapped, sharded and set up as the name of
  the cell says. FSDP runs on CPUs here, which pass for GPUs while Accelerate looks; fp16 on a CPU is torch's own autocast and loss
  scale, switched on behind Accelerate, which refuses them there.
- L1, L2: the largest relative difference between the recorded norms and those of one process on the same batches, measured there
  without the recorder and in float64; first over {STRICT} updates, then over all. Tolerances over {STRICT} updates: {FLOAT32:g} in float32 (sums in another
  order), {FLOAT16:g} with fp16 (11 bits), {BFLOAT16:g} with bfloat16 autocast (8 bits), {BFLOAT16_PARAMETERS:g} with bfloat16 parameters (gradients are
  rounded before they are averaged); {LATER} times that over all, since the rounding of one update changes the next. DeepSpeed's ZeRO
  does not tell L1.
- recorded: besides, every rank applied exactly the learning rates of the single process, which are the known ones; the file's
  learning rates are those, its clip factors follow from its L2 norms, and rank 0 alone wrote it.
- refused: training went on to its end with the right learning rates, one warning said why, and there is no file.

{chr(10).join(lines)}

Made by `{command}` in {sum(seconds) / 60:.1f} minutes. Python {platform.python_version()}, {", ".join(packages)}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cells", nargs="+", metavar="PATTERN", help="run the cells of these names alone; * for anything"
    )
    parser.add_argument("--list", action="store_true", help="print the cells' names, and run nothing")
    parser.add_argument("--output_dir", type=Path, default=Path("results"), help="where launch_matrix.md goes")
    options = parser.parse_args()
    if options.list:
        print("\n".join(cell.name for cell in CELLS))
        return
    cells = CELLS
    if options.cells:
        for pattern in options.cells:
            if not any(fnmatch.fnmatch(cell.name, pattern) for cell in CELLS):
                parser.exit(2, f"launch_matrix.py: error: No cell is named {pattern!r}; --list prints the names.\n")
        cells = [cell for cell in CELLS if any(fnmatch.fnmatch(cell.name, pattern) for pattern in options.cells)]
    outcomes, seconds = [], []
    with tempfile.TemporaryDirectory() as folder, tqdm(cells, unit="cell") as progress:
        matrix = Matrix(Path(folder))
        for cell in progress:
            progress.set_postfix_str(cell.name)
            begin = time.monotonic()
            outcomes.append(matrix.run(cell))
            seconds.append(time.monotonic() - begin)
    command = "python scripts/launch_matrix.py" + (
        f" --cells {' '.join(map(repr, options.cells))}" if options.cells else ""
    )
    text = report(cells, outcomes, seconds, command)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "launch_matrix.md").write_text(text)
    print(text)
    sys.exit(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    main()
