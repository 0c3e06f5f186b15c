"""What recording and refining cost apart from training steps: memory, disk, import time; and the accuracy of the norms."""

import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from hf_refined_schedule import GradientNormRecorder, GradientNorms, get_refined_schedule, refine_schedule
from hf_refined_schedule.recording.measuring import measure_gradient_norms
from hf_refined_schedule.recording.norms_log import FLUSH_EVERY

from .processes import PYTHONPATH
from .timing import timed

UPDATES_PER_WRITE = FLUSH_EVERY - 1
"""One fewer than the updates after which a recorder writes by itself."""

THEORY = "hf_refined_schedule.theory.refinement"
IMPORT_TRAINER = Path(__file__).parent / "unmodified" / "import_trainer.py"


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_of_measuring() -> dict[str, str]:
    """The memory that measuring 10^8 gradients takes. Needs a process of its own."""
    parameter = torch.nn.Parameter(torch.empty(10**8))
    parameter.grad = torch.ones(10**8)
    small = torch.nn.Parameter(torch.zeros(2**21))
    small.grad = torch.ones(2**21)
    measure_gradient_norms([small])  # torch loads code at the first such sums
    before = peak_memory()
    for _ in range(3):
        measure_gradient_norms([parameter])
    return {"memory to measure 10^8 gradients": f"{(peak_memory() - before) / 1e6:.2f} MB"}


def tiny_optimizer() -> tuple[torch.nn.Parameter, AcceleratedOptimizer]:
    """A parameter of three elements, and its prepared optimizer."""
    weight = torch.nn.Parameter(torch.zeros(3))
    return weight, Accelerator(cpu=True).prepare(torch.optim.SGD([weight], lr=0.1))


def memory_and_disk_of_recording(num_steps: int, norms_file: Path) -> dict[str, str]:
    """The memory that a recorder takes in the second half of a run, and its bytes on disk. Needs a process of its own.

    Args:
        num_steps: updates of the run.
        norms_file: where the recorder writes.
    """
    weight, optimizer = tiny_optimizer()
    peaks = []
    with GradientNormRecorder(optimizer, path=norms_file, num_training_steps=num_steps):
        for step in range(num_steps):
            weight.grad = torch.rand(3)
            optimizer.step()
            if step in (num_steps // 2, num_steps - 1):
                peaks.append(peak_memory())
    return {
        f"memory for {num_steps // 2:,} more updates": f"{(peaks[1] - peaks[0]) / 1e6:.2f} MB",
        "bytes on disk per update": f"{norms_file.stat().st_size / num_steps:.0f}",
    }


def time_writing(norms_file: Path) -> float:
    """The time of writing to disk, in seconds for each update that is written.

    Args:
        norms_file: where the recorder writes.
    """
    weight, optimizer = tiny_optimizer()
    seconds = []
    with GradientNormRecorder(optimizer, path=norms_file, num_training_steps=20 * UPDATES_PER_WRITE) as recorder:
        for _ in range(20):
            for _ in range(UPDATES_PER_WRITE):
                weight.grad = torch.rand(3)
                optimizer.step()
            seconds.append(timed(recorder.flush) / UPDATES_PER_WRITE)
    return median(seconds)


def measure_refining(largest: int) -> pd.DataFrame:
    """The times of refining and scheduling, for 10^4 norms and each further power of ten.

    Args:
        largest: the largest number of norms.

    Returns:
        A row for each number of norms, with the growth from row to row as an exponent of T.
    """
    rows, previous = [], None
    for exponent in range(4, round(math.log10(largest)) + 1):
        number = 10**exponent
        norms = np.exp(0.1 * np.random.default_rng(0).standard_normal(number))
        refining = min(timed(_refining(norms)) for _ in range(3))
        scheduling, stepping = _time_scheduler(norms)
        rows.append(
            {
                "norms": f"10^{exponent}",
                "refine_schedule": f"{refining:.3f} s",
                "per norm": f"{1e9 * refining / number:.0f} ns",
                "growth": "" if previous is None else f"T^{math.log10(refining / previous):.2f}",
                "get_refined_schedule, with its health check": f"{scheduling:.2f} s",
                "scheduler.step()": f"{1e6 * stepping:.0f} µs",
            }
        )
        previous = refining
    return pd.DataFrame(rows)


def _refining(norms: np.ndarray) -> Callable[[], object]:
    return lambda: refine_schedule(norms)


def _time_scheduler(norms: np.ndarray) -> tuple[float, float]:
    """The seconds that building a scheduler takes, and a step of it."""
    number = len(norms)
    source = GradientNorms(steps=np.arange(1, number + 1), l1=norms, l2=norms, num_training_steps=number)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers: list[torch.optim.lr_scheduler.LambdaLR] = []
    building = timed(lambda: schedulers.append(get_refined_schedule(optimizer, 0, number, refined_from=source)))
    (scheduler,) = schedulers
    optimizer.step()
    num_steps = 1000

    def step_often() -> None:
        for _ in range(num_steps):
            scheduler.step()

    return building, timed(step_often) / num_steps


def run_python(*words: str) -> str:
    """Run Python in a new process that finds this repository; returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def import_seconds(module: str, *loaded_before: str, repeats: int) -> tuple[float, bool]:
    """The median time of an import in new processes, and whether it loads torch.

    Args:
        module: what to import.
        *loaded_before: modules that are already loaded.
        repeats: the number of processes.
    """
    words = ("-m", "experiments.import_time", module, *loaded_before)
    outputs = [run_python(*words).split() for _ in range(repeats)]
    return median(float(seconds) for seconds, _ in outputs), any(loaded == "True" for _, loaded in outputs)


def measure_imports(repeats: int) -> dict[str, str]:
    """Import times, and what the launcher adds to the start of a training script.

    Args:
        repeats: processes for each figure.
    """
    package, _ = import_seconds("hf_refined_schedule", repeats=repeats)
    theory, loads_torch = import_seconds(THEORY, repeats=repeats)
    theory_alone, _ = import_seconds(THEORY, "numpy", "scipy.ndimage", repeats=repeats)
    script = str(IMPORT_TRAINER)
    ratios = []
    for _ in range(repeats):
        plain = timed(lambda: run_python(script))
        launched = timed(lambda: run_python("-m", "hf_refined_schedule", "launch", script))
        ratios.append(launched / plain)
    return {
        "import of hf_refined_schedule": f"{1000 * package:.0f} ms",
        "import of its theory": f"{1000 * theory:.0f} ms, {1000 * theory_alone:.0f} ms if numpy and scipy.ndimage are "
        f"loaded; torch is {'' if loads_torch else 'not '}loaded",
        "start of a Trainer script with the launcher, over without": f"{median(ratios):.3f}",
    }


def measure_accuracy() -> dict[str, str]:
    """The relative errors of the norms of 10^8 random gradients, against float64."""
    parameter = torch.nn.Parameter(torch.empty(10**8))
    parameter.grad = torch.randn(10**8, generator=torch.Generator().manual_seed(0))
    norms = measure_gradient_norms([parameter])
    assert norms is not None  # the parameter has a gradient
    l1, l2 = map(float, norms)
    parts = [part.astype(np.float64) for part in np.array_split(parameter.grad.numpy(), 100)]
    exact_l1 = math.fsum(np.abs(part).sum() for part in parts)
    exact_l2 = math.sqrt(math.fsum(np.square(part).sum() for part in parts))
    return {
        "relative error of L1 for 10^8 gradients": f"{abs(l1 / exact_l1 - 1):.1e}",
        "relative error of L2 for 10^8 gradients": f"{abs(l2 / exact_l2 - 1):.1e}",
    }
