"""The benchmark runs, reports every figure, and refuses sizes that it cannot measure. Its times are not judged here."""

import re

import pytest

from .tiny import BIN, REPOSITORY, run_command

BENCHMARK = REPOSITORY / "scripts" / "benchmark.py"


def test_every_figure_is_reported(tmp_path):
    report = tmp_path / "benchmark.md"
    options = (
        "--models",
        "1M",
        "--tokens",
        128,
        "--dtypes",
        "bfloat16",
        "--seconds",
        2,
        "--largest",
        100_000,
        "--repeats",
        1,
    )
    done = run_command(BIN / "python", BENCHMARK, "--output", report, *options)
    assert done.returncode == 0, done.stderr
    text = report.read_text()
    assert text in done.stdout
    assert re.search(
        r"^\| cpu \| 1M \| bfloat16 \| 128 \| \d+ \|( [\d.]+ \|){2} [\d.]+ to [\d.]+ \|( [\d.]+ \|){2} none \|$",
        text,
        re.M,
    )
    assert re.search(r"^\| 10\^4 \| [\d.]+ s \| \d+ ns \|  \|", text, re.M)
    assert re.search(r"^\| 10\^5 \| [\d.]+ s \| \d+ ns \| T\^-?[\d.]+ \|", text, re.M)
    errors = [float(error) for error in re.findall(r"relative error of L. for 10\^8 gradients \| ([\d.e-]+)", text)]
    assert len(errors) == 2
    assert max(errors) < 1e-5
    assert int(re.search(r"bytes on disk for an update \| (\d+)", text)[1]) < 200
    assert "torch is not loaded" in text
    assert "python scripts/benchmark.py --output" in text


@pytest.mark.parametrize("options", [("--tokens", 100), ("--largest", 10), ("--models", "7B")])
def test_what_cannot_be_measured_is_refused(options):
    done = run_command(BIN / "python", BENCHMARK, *options)
    assert done.returncode == 2
    assert str(options[1]) in done.stderr.splitlines()[-1]
