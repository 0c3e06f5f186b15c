"""Run the cells of `launch_cells.py`: what the machine must have, the commands of a launch, and its time limit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .launch_cells import LEARNING_RATE, UPDATES, Cell, TrainingRun, write_known_norms
from .launch_outcomes import Outcome, judge
from .processes import PYTHONPATH, ProcessTree, free_port
from .rank_reports import RankReport, report_path

LIBRARY = Path(__file__).parent

LAUNCH_LIMIT = 75.0
"""Seconds for a launch."""
COMPILE_LIMIT = 180.0
"""Seconds for a launch that compiles C++ first."""
EXIT_LIMIT = 10.0
"""Seconds for a launch to end after every rank has reported. gloo now and then hangs after a good run."""


class Node(NamedTuple):
    """A machine, or a network namespace in its place."""

    address: str
    prefix: Sequence[str] = ()
    """Words before a command that runs there."""
    interface: str = ""
    """The network interface; gloo's choice if empty."""


LOCAL = Node("127.0.0.1")


@contextmanager
def two_networks() -> Iterator[list[Node]]:
    """Two network namespaces, joined only by a virtual cable.

    Yields:
        The two nodes.

    Raises:
        subprocess.CalledProcessError: if the machine does not allow it.
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
            nodes.append(Node(address, ("ip", "netns", "exec", name), interface))
        yield nodes


@cache
def reason_not_to_run(requirement: str) -> str | None:
    """Check a requirement of a cell on this machine.

    Args:
        requirement: an entry of `Cell.requirements`.

    Returns:
        What is missing, or None.
    """
    if requirement == "CUDA":
        import torch

        return None if torch.cuda.is_available() else "needs a CUDA device"
    if requirement == "a C++ compiler":
        return None if shutil.which("g++") or shutil.which("clang++") else "needs a C++ compiler"
    if requirement == "network namespaces":
        return _reason_against_network_namespaces()
    return None if find_spec(requirement.lower()) else f"{requirement} is not installed"


def _reason_against_network_namespaces() -> str | None:
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


def launch_commands(kind: str, program: Sequence[str], nodes: Sequence[Node], engine: str) -> list[list[str]]:
    """The commands of a launch, one for each node.

    Args:
        kind: as in `Cell.launch`.
        program: what each rank runs after `python`: a script or `-m` and a module, and its arguments.
        nodes: where; a launch on one node uses the first.
        engine: the option that makes `accelerate launch` join the processes. Without one, two processes on CPUs are two
            independent runs.
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
    machines = ["--num_machines", "2", "--main_process_ip", nodes[0].address]
    return [
        [*node.prefix, *accelerate, *machines, "--machine_rank", str(rank), *program] for rank, node in enumerate(nodes)
    ]


def run_launch(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    reports: Sequence[Path],
    log: Path,
    limit: float,
) -> bool:
    """Run a launch until it ends, or until some seconds after all ranks have reported, or until its time limit; then kill it.

    Args:
        commands: one for each node, started at the same time.
        environments: of the commands.
        reports: the files that the ranks write at their end.
        log: the file for all output.
        limit: seconds.

    Returns:
        False if it reached the time limit.
    """
    empty = log.parent / "empty"  # a working directory where no file shadows a module
    empty.mkdir(exist_ok=True)
    with log.open("wb") as output, ProcessTree() as tree:
        for command, environment in zip(commands, environments, strict=True):
            tree.start(command, environment=environment, folder=empty, output=output)
        in_time = tree.wait(limit, until=lambda: all(report.exists() for report in reports))
        if in_time:
            tree.wait(EXIT_LIMIT)
    return in_time


class LaunchError(RuntimeError):
    """A rank of a launch did not report."""


class CellRunner:
    """Runs cells, and keeps the single-process runs that they are compared with.

    Args:
        folder: where all runs go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known_norms = folder / "known.jsonl"
        write_known_norms(self._known_norms)
        self._extensions = folder / "extensions"
        """Where DeepSpeed compiles, for all launches."""
        self._references: dict[str, RankReport] = {}
        self._num_launches = 0

    def run(self, cell: Cell) -> Outcome:
        """Run a cell if this machine can, and judge what its ranks report."""
        for requirement in cell.requirements:
            reason = reason_not_to_run(requirement)
            if reason is not None:
                return Outcome.skipped(reason)
        try:
            reference = self._reference(cell)
            output_dir, reports = self._launch(cell, cell.run())
        except LaunchError as error:
            return Outcome.failed_with(str(error))
        return judge(cell, reports, reference, output_dir)

    def _reference(self, cell: Cell) -> RankReport:
        run = cell.reference_run()
        key = json.dumps(asdict(run), sort_keys=True)
        if key not in self._references:
            _, (report,) = self._launch(Cell("one process without a recorder", "alone"), run)
            self._references[key] = report
        return self._references[key]

    def _launch(self, cell: Cell, run: TrainingRun) -> tuple[Path, list[RankReport]]:
        """Launch a run as a cell says; returns the folder and what the ranks report."""
        self._num_launches += 1
        folder = self._folder / str(self._num_launches)
        output_dir = folder / "out"
        output_dir.mkdir(parents=True)
        program = self._script_words(cell, run, output_dir) if cell.script else self._worker_words(run, folder)
        deepspeed, compiled = (bool(run.training.get(key)) for key in ("deepspeed", "torch_compile"))
        limit = COMPILE_LIMIT if deepspeed or compiled else LAUNCH_LIMIT
        for lock in self._extensions.rglob("lock"):  # left by a launch that was killed while it compiled
            lock.unlink()
        log = folder / "log.txt"
        reports = [report_path(output_dir, rank) for rank in range(cell.world_size)]
        with ExitStack() as stack:
            nodes = stack.enter_context(two_networks()) if cell.launch == "two networks" else [LOCAL, LOCAL]
            engine = "--use_deepspeed" if deepspeed else "--multi_gpu"
            commands = launch_commands(cell.launch, program, nodes, engine)
            environments = [self._environment(run.cuda, node) for node, _ in zip(nodes, commands, strict=False)]
            in_time = run_launch(commands, environments, reports, log, limit)
        missing = [report.stem for report in reports if not report.exists()]
        if missing:
            reason = last_error(log) if in_time else f"killed after {limit:.0f} s"
            raise LaunchError(f"{', '.join(missing)} did not report: {reason}")
        return output_dir, [RankReport.read(output_dir, rank) for rank in range(cell.world_size)]

    def _worker_words(self, run: TrainingRun, folder: Path) -> list[str]:
        run_file = folder / "run.json"
        run_file.write_text(json.dumps(asdict(run)))
        return ["-m", "experiments.launch_worker", str(run_file), str(folder / "out"), str(self._known_norms)]

    def _script_words(self, cell: Cell, run: TrainingRun, output_dir: Path) -> list[str]:
        words = ["-m", "hf_refined_schedule", "launch", "--refined-from", str(self._known_norms)]
        if cell.script == "no_trainer_style":
            words += ["--gradient-norms-file", str(output_dir / "gradient_norms.jsonl")]
        words += [
            str(LIBRARY / "unmodified" / f"{cell.script}.py"), "--output_dir", str(output_dir),
            "--lr_scheduler_type", "refined", "--learning_rate", str(LEARNING_RATE),
            "--per_device_train_batch_size", str(run.training["per_device_train_batch_size"]),
        ]  # fmt: skip
        if cell.script == "no_trainer_style":
            return [*words, "--max_train_steps", str(UPDATES)]
        return [
            *words, "--max_steps", str(UPDATES), "--logging_steps", "1", "--report_to", "none", "--save_strategy", "no",
            "--use_cpu", "--dataloader_pin_memory", "false", "--disable_tqdm", "true",
        ]  # fmt: skip

    def _environment(self, cuda: bool, node: Node) -> dict[str, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": PYTHONPATH,
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


def last_error(log: Path) -> str:
    """The last line of a log that names an error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if "Error" in line]
    lines = [line for line in lines if "ChildFailedError" not in line]
    return lines[-1] if lines else "it ended without an error message"
