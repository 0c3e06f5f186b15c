"""The time of a training step with and without recording, and whether recording waits for a CUDA device."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from scipy.stats import quantile_test

from hf_refined_schedule import GradientNormRecorder

from .timing import timed
from .tiny_models import random_gpt2

SEQUENCE = 128
"""Tokens in a sequence."""

MODELS = {"1M": (128, 4, 1_000), "10M": (320, 7, 4_000), "124M": (768, 12, 50_257)}
"""Width, number of layers and size of the vocabulary of GPT-2 models, by their number of parameters."""

GOALS = {512: 1.03, 1024: 1.01}
"""The largest acceptable ratio of step times, by the smallest number of tokens in a batch that it applies to."""

MIN_PAIRS, MAX_PAIRS = 9, 199
"""Pairs of steps, one with recording and one without."""

PLANNED_STEPS = 10**6
"""More updates than any measurement makes."""


class TrainingLoop:
    """An Accelerate loop that clips, as Trainer does by default.

    Args:
        model: a key of `MODELS`.
        dtype: of the parameters.
        tokens: in a batch, a multiple of `SEQUENCE`.
        cpu: whether to train on the CPU although there is a CUDA device. The first loop of a process decides for all.
    """

    def __init__(self, model: str, dtype: torch.dtype, tokens: int, cpu: bool) -> None:
        width, layers, vocabulary = MODELS[model]
        self.accelerator = Accelerator(cpu=cpu)
        self.device = self.accelerator.device
        gpt2 = random_gpt2(
            vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=width // 32, n_positions=SEQUENCE
        ).to(self.device, dtype)
        self.model, self.optimizer = self.accelerator.prepare(gpt2, torch.optim.AdamW(gpt2.parameters(), lr=1e-5))
        self.batch = torch.randint(0, vocabulary, (tokens // SEQUENCE, SEQUENCE), device=self.device)

    def update(self, call: Callable[..., Any] = lambda method, *args: method(*args)) -> None:
        """Make one update, and wait for the device.

        Args:
            call: calls the methods that a recorder wraps, with their arguments.
        """
        self.accelerator.backward(self.model(input_ids=self.batch, labels=self.batch).loss)
        call(self.accelerator.clip_grad_norm_, self.model.parameters(), 1.0)
        call(self.optimizer.step)
        call(self.optimizer.zero_grad)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class RecorderBoundary:
    """Notices from outside when a recorder begins to work and when it ends.

    A recorder works around `Accelerator.clip_grad_norm_` and the optimizer's `step` and `zero_grad`, and in a hook before
    torch's step. Inside of these calls, accelerate and torch do what they do without it.

    Args:
        begin: called when the recorder begins to work.
        end: called when it ends.
    """

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end

    @contextmanager
    def record(self, recorder: GradientNormRecorder, optimizer: AcceleratedOptimizer) -> Iterator[None]:
        """Record the updates of this block, which must call the wrapped methods with `call`.

        Args:
            recorder: entered here.
            optimizer: of the recorder.
        """
        methods = (
            (Accelerator, "clip_grad_norm_"),
            (AcceleratedOptimizer, "step"),
            (AcceleratedOptimizer, "zero_grad"),
        )
        register = optimizer.optimizer.register_step_pre_hook
        with ExitStack() as stack:
            for owner, name in methods:
                stack.enter_context(mock.patch.object(owner, name, self._without_recorder(getattr(owner, name))))
            stack.callback(register(lambda *_: self._begin()).remove)  # hooks are called in this order
            stack.enter_context(recorder)
            stack.callback(register(lambda *_: self._end()).remove)
            yield

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method that the recorder wraps.

        Args:
            method: the method.
            *args: its arguments.

        Returns:
            What it returns.
        """
        self._begin()
        try:
            return method(*args)
        finally:
            self._end()

    def _without_recorder(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._end()
            try:
                return method(*args, **kwargs)
            finally:
                self._begin()

        return wrapped


class Stopwatch:
    """Adds up the time between `start` and `stop`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def start(self) -> None:
        """Start to count."""
        self.seconds -= time.perf_counter()

    def stop(self) -> None:
        """Stop to count."""
        self.seconds += time.perf_counter()


class StepTimes(NamedTuple):
    """The seconds of pairs of steps."""

    recorded: list[float]
    plain: list[float]
    recorder: list[float]
    """The recorder's share of `recorded`; on a CUDA device the time of the host."""


def time_pairs(loop: TrainingLoop, num_pairs: int, norms_file: Path, write_seconds: float) -> StepTimes:
    """Time steps with recording and without in pairs, one after the other, so that other work on the machine slows both.

    Args:
        loop: trained before, so that its optimizer has its state.
        num_pairs: how many. Recording comes first in every other pair.
        norms_file: where the recorder writes, outside of the timed steps.
        write_seconds: the time of writing to disk, for each update, which is added.
    """
    stopwatch = Stopwatch()
    boundary = RecorderBoundary(stopwatch.start, stopwatch.stop)
    recorder = GradientNormRecorder(loop.optimizer, path=norms_file, num_training_steps=PLANNED_STEPS)
    times = StepTimes([], [], [])

    def time_recorded() -> None:
        before = stopwatch.seconds
        with boundary.record(recorder, loop.optimizer):
            seconds = timed(lambda: loop.update(boundary.call))
        times.recorded.append(seconds + write_seconds)
        times.recorder.append(stopwatch.seconds - before + write_seconds)

    for pair in range(num_pairs):
        if pair % 2:
            time_recorded()
        times.plain.append(timed(loop.update))
        if not pair % 2:
            time_recorded()
    return times


def memory_bandwidth(device: torch.device) -> float:
    """The bytes per second that a sum over 256 MB reads."""
    values = torch.ones(2**26, device=device)

    def read() -> None:
        values.sum()
        if device.type == "cuda":
            torch.cuda.synchronize()

    read()
    return values.numel() * values.element_size() / min(timed(read) for _ in range(5))


def measure_step(
    model: str, dtype: str, tokens: int, cpu: bool, seconds: float, norms_file: Path, write_seconds: float
) -> dict[str, object]:
    """The row of a model in the report: the ratio of step times with recording and without.

    Args:
        model: a key of `MODELS`.
        dtype: of the parameters, a name in torch.
        tokens: in a batch.
        cpu: whether to train on the CPU, as in `TrainingLoop`.
        seconds: for the measurement.
        norms_file: where the recorder writes.
        write_seconds: the time of writing to disk, for each update.

    Returns:
        The columns of the row.
    """
    loop = TrainingLoop(model, getattr(torch, dtype), tokens, cpu)
    loop.update()
    num_pairs = round(seconds / 2 / min(timed(loop.update) for _ in range(2)))
    num_pairs = max(MIN_PAIRS, min(MAX_PAIRS, num_pairs))
    times = time_pairs(loop, num_pairs, norms_file, write_seconds)
    step = median(times.plain)
    ratios = [recorded / plain for recorded, plain in zip(times.recorded, times.plain, strict=True)]
    interval: Any = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
    recorder_alone = 1 + median(times.recorder) / step
    gradient_bytes = sum(parameter.numel() * parameter.element_size() for parameter in loop.model.parameters())
    return {
        "device": loop.device.type,
        "parameters": model,
        "type": dtype,
        "tokens": tokens,
        "pairs": num_pairs,
        "ms per step": f"{1000 * step:.1f}",
        "ratio": f"{median(ratios):.4f}",
        "95 % interval": f"{interval.low:.3f} to {interval.high:.3f}",
        "recorder alone": f"{recorder_alone:.4f}",
        "floor": f"{1 + gradient_bytes / memory_bandwidth(loop.device) / step:.4f}",
        "goal": judge_goal(tokens, interval.low, interval.high, recorder_alone),
    }


def judge_goal(tokens: int, low: float, high: float, recorder_alone: float) -> str:
    """The goal for a batch, and whether it is met.

    Args:
        tokens: in the batch.
        low: the lower end of the confidence interval of the ratio.
        high: its upper end.
        recorder_alone: the ratio from the recorder's own time, which decides where the interval is too wide.
    """
    limits = [limit for limit in GOALS if limit <= tokens]
    if not limits:
        return "none"
    goal = GOALS[max(limits)]
    if low > goal or recorder_alone > goal:
        verdict = "missed"
    else:
        verdict = "met" if high <= goal else "met by the recorder alone, undecided by the pairs"
    return f"{goal:.2f} {verdict}"


def check_waiting(norms_file: Path) -> str:
    """Record an update while torch raises an error whenever the recorder waits for the CUDA device.

    The recorder has to wait when it writes, which it does every 50 updates, and when it looks at the size of the gradient,
    which it does at the first update and after every 50.

    Args:
        norms_file: where the recorder writes.

    Returns:
        `"yes"` if the recorder does not wait at another update, or `"no"` with the error.
    """
    loop = TrainingLoop("1M", torch.float32, 512, cpu=False)
    loop.update()
    mode_in_recorder = "default"
    boundary = RecorderBoundary(
        lambda: torch.cuda.set_sync_debug_mode(mode_in_recorder), lambda: torch.cuda.set_sync_debug_mode("default")
    )
    recorder = GradientNormRecorder(loop.optimizer, path=norms_file, num_training_steps=PLANNED_STEPS)
    try:
        with boundary.record(recorder, loop.optimizer):
            for mode in ("default", "error"):
                mode_in_recorder = mode
                loop.update(boundary.call)
    except RuntimeError as error:
        return f"no: {error}"
    return "yes"
