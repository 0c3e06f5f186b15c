"""What recording and refining cost: time, memory, bytes on disk, import time; and how exact the norms are.

    python scripts/benchmark.py

Steps with and without recording are timed in pairs, one right after the other and in turn first, and the median of their
ratios is reported: other work on the machine then hits both. On a machine with a CUDA device the step is timed there too, with a
check that the recorder's own calls never wait for it. Writes results/benchmark.md and prints it.
"""

import argparse
import gc
import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from scipy.stats import quantile_test
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from hf_refined_schedule import GradientNormRecorder, GradientNorms, get_refined_schedule, refine_schedule
from hf_refined_schedule.recording.measuring import measure_gradient_norms
from hf_refined_schedule.recording.norms_log import FLUSH_EVERY

MODELS = {"1M": (128, 4, 1_000), "10M": (320, 7, 4_000), "124M": (768, 12, 50_257)}
"""Width, layers and vocabulary of GPT-2-shaped models with about so many parameters."""

TOKENS = (128, 512, 1024)
"""In a batch; sequences have 128."""

SEQUENCE = 128

GOALS = {512: 1.03, 1024: 1.01}
"""The largest ratio of step times that is meant to be, from so many tokens on."""

MIN_PAIRS, MAX_PAIRS = 9, 199
"""Of steps, with recording and without."""

MATHS = "hf_refined_schedule.theory.refinement"


def small_gpt2(name: str, dtype: torch.dtype, device: torch.device) -> GPT2LMHeadModel:
    """A model with random weights."""
    width, layers, vocabulary = MODELS[name]
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=width // 32,
        n_positions=SEQUENCE,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).to(device, dtype)


class TrainingLoop:
    """A raw Accelerate loop that clips, as a Trainer does by default.

    Args:
        name: of the model.
        dtype: of its parameters.
        tokens: in a batch.
        cpu: whether to train on the CPU.
    """

    def __init__(self, name: str, dtype: torch.dtype, tokens: int, cpu: bool) -> None:
        self.accelerator = Accelerator(cpu=cpu)
        self.device = self.accelerator.device
        model = small_gpt2(name, dtype, self.device)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-5))
        self.batch = torch.randint(0, MODELS[name][2], (tokens // SEQUENCE, SEQUENCE), device=self.device)

    def backward(self) -> None:
        """Make gradients."""
        self.accelerator.backward(self.model(input_ids=self.batch, labels=self.batch).loss)

    def step(self) -> None:
        """Train for an update."""
        self.backward()
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wait()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> float:
    """Seconds, with the garbage collector out of the way."""
    gc.disable()
    started = time.perf_counter()
    work()
    elapsed = time.perf_counter() - started
    gc.enable()
    return elapsed


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a sum over 256 MB reads."""
    values = torch.ones(2**26, device=device)

    def read() -> None:
        values.sum()
        if device.type == "cuda":
            torch.cuda.synchronize()

    read()
    return values.numel() * values.element_size() / min(timed(read) for _ in range(5))


class TimedRecorder(GradientNormRecorder):
    """A recorder that notes how long it was at work."""

    spent = 0.0
    """Seconds, the optimizer's own step left out."""

    @contextmanager
    def _at_work(self, sign: int = 1) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent += sign * (time.perf_counter() - started)

    def before_clip(self, parameters: list[torch.nn.Parameter], norm_type: float = 2.0) -> bool:
        with self._at_work():
            return super().before_clip(parameters, norm_type)

    def after_clip(self, max_norm: float, total_norm: torch.Tensor | float | None) -> None:
        with self._at_work():
            super().after_clip(max_norm, total_norm)

    def _before_taken_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        with self._at_work():
            super()._before_taken_step(optimizer, args, kwargs)

    def _around_step(self, step: Callable[..., object], optimizer: object, *args: object, **kwargs: object) -> object:
        def step_at_rest(*args: object, **kwargs: object) -> object:
            with self._at_work(-1):
                return step(*args, **kwargs)

        with self._at_work():
            return super()._around_step(step_at_rest, optimizer, *args, **kwargs)


def step_time(
    name: str, dtype: torch.dtype, tokens: int, cpu: bool, seconds: float, file: Path, writing: float
) -> dict[str, object]:
    """The ratio of step times with recording over without; `writing` is what a write to disk takes of an update, in seconds."""
    loop = TrainingLoop(name, dtype, tokens, cpu)
    loop.step()
    number = max(MIN_PAIRS, min(MAX_PAIRS, round(seconds / 2 / min(timed(loop.step) for _ in range(2)))))
    recorder = TimedRecorder(loop.optimizer, path=file, num_training_steps=10**6)
    spent = []

    def recorded() -> float:
        before = recorder.spent
        with recorder:
            seconds = timed(loop.step)
        spent.append(recorder.spent - before + writing)
        return seconds + writing

    times = []
    for pair in range(number):
        if pair % 2:
            on = recorded()
            times.append((on, timed(loop.step)))
        else:
            off = timed(loop.step)
            times.append((recorded(), off))
    step = median(off for _, off in times)
    ratios = [on / off for on, off in times]
    interval = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
    by_itself = 1 + median(spent) / step
    gradient_bytes = sum(parameter.numel() * parameter.element_size() for parameter in loop.model.parameters())
    goal = max((limit for limit in GOALS if limit <= tokens), default=None)
    return {
        "device": loop.device.type,
        "parameters": name,
        "type": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "pairs": number,
        "ms a step": f"{1000 * step:.1f}",
        "ratio": f"{median(ratios):.4f}",
        "95 % interval": f"{interval.low:.3f} to {interval.high:.3f}",
        "recorder by itself": f"{by_itself:.4f}",
        "floor": f"{1 + gradient_bytes / bandwidth(loop.device) / step:.4f}",
        "goal": "none" if goal is None else f"{GOALS[goal]:.2f} {verdict(GOALS[goal], *interval, by_itself)}",
    }


def verdict(goal: float, low: float, high: float, by_itself: float) -> str:
    """What an interval of the ratio says of a goal; where it is too wide, what the recorder's own time does."""
    if low > goal or by_itself > goal:
        return "missed"
    return "met" if high <= goal else "met by itself, pairs undecided"


def time_of_writing(file: Path) -> float:
    """Seconds of a write to disk, for each update in it."""
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD([weight := torch.nn.Parameter(torch.zeros(3))], lr=0.1))
    writes = []
    with GradientNormRecorder(optimizer, path=file, num_training_steps=10**6) as recorder:
        for _ in range(20):
            for _ in range(FLUSH_EVERY - 1):
                weight.grad = torch.rand(3)
                optimizer.step()
            writes.append(timed(recorder.flush) / (FLUSH_EVERY - 1))
    return median(writes)


def never_waits(file: Path) -> str:
    """Whether measuring makes no call that waits for a CUDA device; flushing, every 50 updates, has to."""
    loop = TrainingLoop("1M", torch.float32, 512, cpu=False)
    parameters = list(loop.model.parameters())
    loop.backward()
    with GradientNormRecorder(loop.optimizer, path=file, num_training_steps=1) as recorder:
        torch.cuda.set_sync_debug_mode("error")
        try:
            recorder.before_clip(parameters)
            recorder.after_clip(1.0, torch.ones((), device=loop.device))
            recorder._around_step(lambda: None, loop.optimizer)
        except RuntimeError as error:
            return f"no: {error}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "yes"


def peak_memory() -> int:
    """Bytes of this process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_of_measuring() -> dict[str, str]:
    """Memory that measuring 10^8 gradients takes."""
    parameter = torch.nn.Parameter(torch.empty(10**8))
    parameter.grad = torch.ones(10**8)
    few = torch.nn.Parameter(torch.zeros(2**21))
    few.grad = torch.ones(2**21)
    measure_gradient_norms([few])  # what torch loads at the first such sums
    before = peak_memory()
    for _ in range(3):
        measure_gradient_norms([parameter])
    return {"memory taken by measuring 10^8 gradients": f"{(peak_memory() - before) / 1e6:.2f} MB"}


def memory_and_disk_of_recording(num_steps: int, file: Path) -> dict[str, str]:
    """Memory that a recorder holds after half of so many updates and takes in the other half; bytes on disk for an update."""
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD([weight := torch.nn.Parameter(torch.zeros(3))], lr=0.1))
    with GradientNormRecorder(optimizer, path=file, num_training_steps=num_steps):
        held = []
        for step in range(num_steps):
            weight.grad = torch.rand(3)
            optimizer.step()
            if step in (num_steps // 2, num_steps - 1):
                held.append(peak_memory())
    return {
        f"memory taken by {num_steps // 2:,} more updates": f"{(held[1] - held[0]) / 1e6:.2f} MB",
        "bytes on disk for an update": f"{file.stat().st_size / num_steps:.0f}",
    }


def maths(largest: int) -> pd.DataFrame:
    """Times of refining and scheduling; how refining grows from row to row, as an exponent of T."""
    rows, before = [], None
    for exponent in range(4, round(math.log10(largest)) + 1):
        number = 10**exponent
        norms = np.exp(0.1 * np.random.default_rng(0).standard_normal(number))
        source = GradientNorms(steps=np.arange(1, number + 1), l1=norms, l2=norms, num_training_steps=number)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedulers: list[torch.optim.lr_scheduler.LambdaLR] = []

        def schedule(
            source: GradientNorms = source, optimizer: torch.optim.Optimizer = optimizer, into: list = schedulers
        ) -> None:
            into.append(get_refined_schedule(optimizer, 0, len(source.steps), refined_from=source))

        refining = min(timed(lambda norms=norms: refine_schedule(norms)) for _ in range(3))
        scheduling = timed(schedule)
        optimizer.step()
        stepping = timed(lambda scheduler=schedulers[0]: [scheduler.step() for _ in range(1000)]) / 1000
        rows.append(
            {
                "norms": f"10^{exponent}",
                "refine_schedule": f"{refining:.3f} s",
                "for a norm": f"{1e9 * refining / number:.0f} ns",
                "growth": "" if before is None else f"T^{math.log10(refining / before):.2f}",
                "get_refined_schedule, with its check": f"{scheduling:.2f} s",
                "scheduler.step()": f"{1e6 * stepping:.0f} µs",
            }
        )
        before = refining
    return pd.DataFrame(rows)


def seconds_of_process(code: str, *arguments: str, repeats: int) -> float:
    """The median over runs of what a Python process prints: the seconds of its own work."""
    measured = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        measured.append(float(done.stdout.split()[-1]))
    return median(measured)


def import_times(repeats: int, folder: Path) -> dict[str, str]:
    """Import times in fresh processes, and what the launcher adds to a script's own start."""
    importing = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"
    script = folder / "script.py"
    script.write_text("import transformers\nfrom transformers import Trainer, TrainingArguments\n")
    running = "import subprocess, sys, time; s = time.perf_counter(); subprocess.run(sys.argv[1:], check=True); print(time.perf_counter() - s)"
    alone, launched = (
        [sys.executable, str(script)],
        [sys.executable, "-m", "hf_refined_schedule", "launch", str(script)],
    )
    ratios = []
    for _ in range(repeats):
        seconds = [seconds_of_process(running, *words, repeats=1) for words in (alone, launched)]
        ratios.append(seconds[1] / seconds[0])
    package, refinement, beside = (
        1000 * seconds_of_process(before + importing.format(module), repeats=repeats)
        for before, module in (("", "hf_refined_schedule"), ("", MATHS), ("import numpy, scipy.ndimage; ", MATHS))
    )
    torch_loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {MATHS}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    return {
        "import of hf_refined_schedule": f"{package:.0f} ms",
        "import of its maths": f"{refinement:.0f} ms, {beside:.0f} ms where numpy and scipy.ndimage are loaded already; "
        f"torch is {'' if torch_loaded.stdout.strip() == 'True' else 'not '}loaded",
        "start of a Trainer script under the launcher over without": f"{median(ratios):.3f}",
    }


def accuracy() -> dict[str, str]:
    """Relative errors of the norms of 10^8 random gradients against float64."""
    parameter = torch.nn.Parameter(torch.empty(10**8))
    parameter.grad = torch.randn(10**8, generator=torch.Generator().manual_seed(0))
    l1, l2 = (float(norm) for norm in measure_gradient_norms([parameter]))
    parts = [part.astype(np.float64) for part in np.array_split(parameter.grad.numpy(), 100)]
    exact_l1 = math.fsum(np.abs(part).sum() for part in parts)
    exact_l2 = math.sqrt(math.fsum(np.square(part).sum() for part in parts))
    return {
        "relative error of L1 for 10^8 gradients": f"{abs(l1 / exact_l1 - 1):.1e}",
        "relative error of L2 for 10^8 gradients": f"{abs(l2 / exact_l2 - 1):.1e}",
    }


def isolated(name: str, **arguments: object) -> dict[str, str]:
    """Call a function of this file in a process of its own, whose memory nothing else has touched."""
    code = "import json, sys; from pathlib import Path; import benchmark; a = json.loads(sys.argv[2]); "
    code += "a = {k: Path(v) if k == 'file' else v for k, v in a.items()}; print(json.dumps(getattr(benchmark, sys.argv[1])(**a)))"
    done = subprocess.run(
        [sys.executable, "-c", code, name, json.dumps(arguments, default=str)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def markdown(table: pd.DataFrame) -> str:
    """A table of strings."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/benchmark.md"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, help="multiples of 128")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=40.0, help="for each row of step times")
    parser.add_argument("--largest", type=int, default=10**7, help="norms to refine, a power of ten from 10^4 on")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each import time")
    options = parser.parse_args()
    if any(tokens < SEQUENCE or tokens % SEQUENCE for tokens in options.tokens):
        parser.error(f"--tokens are {options.tokens}, but must be multiples of {SEQUENCE}, the length of a sequence")
    if options.largest < 10**4:
        parser.error(f"--largest is {options.largest}, but must be at least 10000")
    return options


def main() -> None:
    options = parsed_arguments()
    started = time.perf_counter()
    devices = [True] + [False] * torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, str] = {}
        with tqdm(total=5, desc="memory, accuracy, imports") as progress:
            for part in (
                lambda: isolated("memory_of_measuring"),
                lambda: isolated("memory_and_disk_of_recording", num_steps=2000, file=folder / "disk.jsonl"),
                accuracy,
                lambda: import_times(options.repeats, folder),
            ):
                figures |= part()
                progress.update()
            refining = maths(options.largest)
            progress.update()
        writing = time_of_writing(folder / "writing.jsonl")
        figures["writing to disk, for an update"] = f"{1e6 * writing:.0f} µs"
        cells = list(product(devices, options.models, options.dtypes, options.tokens))
        steps = pd.DataFrame(
            [
                step_time(
                    model, getattr(torch, dtype), tokens, cpu, options.seconds, folder / f"{number}.jsonl", writing
                )
                for number, (cpu, model, dtype, tokens) in enumerate(tqdm(cells, desc="step times"))
            ]
        )
        if torch.cuda.is_available():
            figures["measuring never waits for the device"] = never_waits(folder / "sync.jsonl")
    versions = ", ".join(
        f"{package} {version(package)}" for package in ("torch", "transformers", "accelerate", "scipy")
    )
    text = f"""# What recording and refining cost

## A training step, with recording over without

Medians of the ratios of single steps timed in pairs, the time of writing to disk added, and the interval of the median (from
the order of the ratios). "Recorder by itself" is 1 + the time that the recorder's own calls took in those steps, as a share of
the step; on a CUDA device, of the host. The floor is 1 + the bytes of the gradient over the memory bandwidth: what reading each
gradient once must cost. What lies between them: torch has no operation that sums |x| and x^2 in one pass, so a gradient is read
once into a buffer that stays in the cache, and that is gone over four times. Goals: at most 1.01 from 1,024 tokens in a batch, 1.03
from 512. A goal is met where the whole interval is, and missed where the interval or the recorder by itself is beyond it.

{markdown(steps)}

## Refining and scheduling

Growth is the exponent of T in the time of `refine_schedule`, from the row above: 1 is linear. The median filter's window is a
tenth of the norms, and from some T on it does not fit into a core's cache.

{markdown(refining)}

## Memory, disk, imports, accuracy

{markdown(pd.DataFrame(figures.items(), columns=["figure", "measured"]))}

## How it was made

```bash
{shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])}
```

- machine: {os.cpu_count()} cores, {platform.machine()}{", " + torch.cuda.get_device_name() if torch.cuda.is_available() else ", no CUDA device"}; {torch.get_num_threads()} threads
- versions: {versions}
- duration: {(time.perf_counter() - started) / 60:.1f} minutes
"""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
