"""benchmark.py runs, reports every figure, and refuses sizes that it cannot measure. Its times are not judged here."""

import re

import benchmark
import pytest
import torch
from accelerate import Accelerator
from experiments.step_times import RecorderBoundary, Stopwatch, TrainingLoop, judge_goal, time_pairs
from experiments.timing import run_isolated
from torch.utils._python_dispatch import TorchDispatchMode

from hf_refined_schedule import GradientNormRecorder

from .refusals import refusal
from .tiny import BIN, REPOSITORY, read_rows, run_command

BENCHMARK = REPOSITORY / "scripts" / "benchmark.py"


def test_every_figure_is_reported(tmp_path):
    report = tmp_path / "benchmark.md"
    options = (
        "--models", "1M", "--tokens", 128, "--dtypes", "bfloat16", "--seconds", 2, "--largest", 100_000, "--repeats", 1,
    )  # fmt: skip
    done = run_command(BIN / "python", BENCHMARK, "--output", report, *options)
    assert done.returncode == 0, done.stderr
    text = report.read_text()
    assert text in done.stdout
    assert re.search(
        r"^\| cpu +\| 1M +\| bfloat16 \| 128 +\| \d+ +\|( [\d.]+ +\|){2} [\d.]+ to [\d.]+ +\|( [\d.]+ +\|){2} none +\|$",
        text,
        re.M,
    )
    assert re.search(r"^\| 10\^4 +\| [\d.]+ s +\| \d+ ns +\| +\|", text, re.M)
    assert re.search(r"^\| 10\^5 +\| [\d.]+ s +\| \d+ ns +\| T\^-?[\d.]+ +\|", text, re.M)
    errors = [float(error) for error in re.findall(r"relative error of L. for 10\^8 gradients +\| ([\d.e-]+)", text)]
    assert len(errors) == 2
    assert max(errors) < 1e-5
    assert int(re.search(r"bytes on disk per update +\| (\d+)", text)[1]) < 200
    for figure in (
        "memory to measure",
        "memory for 1,000 more",
        "import of hf_ref",
        "start of a Trainer",
        "writing to",
    ):
        assert re.search(rf"^\| {figure}[^|]* \| \d", text, re.M)
    assert "torch is not loaded" in text
    assert "python scripts/benchmark.py --output" in text


@pytest.mark.parametrize("options", [("--tokens", 100), ("--largest", 10), ("--models", "7B")])
def test_sizes_that_cannot_be_measured_are_refused(monkeypatch, capsys, options):
    assert str(options[1]) in refusal(benchmark.main, options, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("tokens", "low", "high", "recorder_alone", "verdict"),
    [
        (511, 1.5, 1.6, 1.5, "none"),  # too small a batch for a goal
        (512, 1.00, 1.02, 1.01, "1.03 met"),
        (1023, 1.02, 1.04, 1.02, "1.03 met by the recorder alone, undecided by the pairs"),
        (1024, 1.00, 1.02, 1.02, "1.01 missed"),  # by the recorder's own time
        (2048, 1.02, 1.04, 1.00, "1.01 missed"),  # by the whole interval
    ],
)
def test_goals_are_judged(tokens, low, high, recorder_alone, verdict):
    assert judge_goal(tokens, low, high, recorder_alone) == verdict


class OperationsBySide(TorchDispatchMode):
    """Notes each operation of torch with the side of a recorder's boundary that it runs on."""

    def __init__(self):
        super().__init__()
        self.side = "loop"
        self.names = {"loop": set(), "recorder": set()}

    def enter_recorder(self):
        assert self.side == "loop"
        self.side = "recorder"

    def leave_recorder(self):
        assert self.side == "recorder"
        self.side = "loop"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[self.side].add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_boundary_separates_the_recorder_from_the_loop(tmp_path):
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.1, foreach=False))
    recorder = GradientNormRecorder(optimizer, path=tmp_path / "norms.jsonl", num_training_steps=9)
    operations = OperationsBySide()
    boundary = RecorderBoundary(operations.enter_recorder, operations.leave_recorder)
    methods = (Accelerator.clip_grad_norm_, type(optimizer).step, type(optimizer).zero_grad)
    with boundary.record(recorder, optimizer):
        for _ in range(2):
            weight.grad = torch.tensor([1.0, -2.0, 2.0])
            with operations:
                boundary.call(accelerator.clip_grad_norm_, [weight], 1.0)
                boundary.call(optimizer.step)
                boundary.call(optimizer.zero_grad)
    assert operations.side == "loop"
    assert operations.names["recorder"] & {"abs", "sum"}, "it sums absolute values"
    assert "add_" in operations.names["loop"], "the optimizer's step"
    assert not operations.names["recorder"] & {"add_", "mul_", "_foreach_mul_"}, "it neither steps nor clips"
    _, rows = read_rows(tmp_path / "norms.jsonl")
    assert [(row["l1"], row["l2"]) for row in rows] == [(5.0, 3.0)] * 2
    assert (Accelerator.clip_grad_norm_, type(optimizer).step, type(optimizer).zero_grad) == methods, (
        "wraps are removed"
    )
    optimizer.step()  # so are the hooks, which would call `enter_recorder`
    assert operations.side == "loop"


def time_a_few_pairs(norms_file):
    loop = TrainingLoop("1M", torch.float32, 128, cpu=True)
    loop.update()
    return time_pairs(loop, 3, norms_file, write_seconds=1000.0)


def test_the_recorder_takes_a_part_of_its_steps(tmp_path):
    times = run_isolated(time_a_few_pairs, tmp_path / "norms.jsonl")
    assert len(times.recorded) == len(times.plain) == len(times.recorder) == 3
    for recorded, plain, recorder in zip(*times, strict=True):
        assert 1000 < recorder < recorded
        assert 0 < plain < 1000
    _, rows = read_rows(tmp_path / "norms.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_a_stopwatch_adds_up():
    stopwatch = Stopwatch()
    for _ in range(2):
        before = stopwatch.seconds
        stopwatch.start()
        stopwatch.stop()
        assert stopwatch.seconds > before
