"""Measure what recording and refining cost: time, memory, disk and imports; and how accurate the norms are.

    python scripts/benchmark.py

Steps with and without recording are timed in pairs, one right after the other, and the median of their ratios is reported:
other work on the machine then slows both. Which step comes first alternates. On a machine with a CUDA device the steps are
timed there too, and the script checks that the recorder does not wait for the device at every update. Small measurements of
memory run in processes of their own. The report is printed and written to results/benchmark.md.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from experiments.markdown_tables import markdown_table
from experiments.provenance import collect_provenance, render_provenance
from experiments.resource_costs import (
    measure_accuracy,
    measure_imports,
    measure_refining,
    memory_and_disk_of_recording,
    memory_of_measuring,
    time_writing,
)
from experiments.step_times import MODELS, SEQUENCE, check_waiting, measure_step
from experiments.timing import fresh_process, run_isolated
from tqdm import tqdm


def measure_steps(options: argparse.Namespace, folder: Path, write_seconds: float) -> pd.DataFrame:
    """Measure a step of each model, type and batch, on the CPU and on a CUDA device.

    Args:
        options: of the command line.
        folder: for norms files.
        write_seconds: the time of writing to disk, for each update.
    """
    cells = list(product(options.models, options.dtypes, options.tokens))
    rows = []
    for cpu in (True, False) if torch.cuda.is_available() else (True,):
        with fresh_process() as pool:  # a process keeps the device of its first Accelerator
            progress = tqdm(cells, desc=f"step times on {'CPU' if cpu else 'CUDA'}")
            for number, (model, dtype, tokens) in enumerate(progress):
                norms_file = folder / f"{cpu}_{number}.jsonl"
                row = pool.submit(measure_step, model, dtype, tokens, cpu, options.seconds, norms_file, write_seconds)
                rows.append(row.result())
    return pd.DataFrame(rows)


def render_report(steps: pd.DataFrame, refining: pd.DataFrame, figures: Mapping[str, str], seconds: float) -> str:
    """The report, as Markdown.

    Args:
        steps: the rows of `measure_steps`.
        refining: the rows of `measure_refining`.
        figures: the other figures, by their names.
        seconds: the time of all measurements.
    """
    provenance = collect_provenance("benchmark.py", seconds, threads=torch.get_num_threads())
    return f"""# The cost of recording and refining

## A training step with recording, over one without

Each ratio is the median over single steps that are timed in pairs. The time of writing to disk is added. The interval is the confidence
interval of the median, from the order of the ratios. "Recorder alone" is 1 + the share of the step that the recorder's own code
takes; on a CUDA device that is the time of the host. The floor is 1 + the share that reading the gradient once would take at the
memory's bandwidth. torch has no operation that sums |x| and x^2 in one pass, so the recorder copies each gradient into a buffer that
stays in the cache and passes over that buffer four times; this explains the distance to the floor. The goals are 1.01 from 1,024
tokens in a batch and 1.03 from 512. A goal is met if the whole interval meets it, and missed if the whole interval or the recorder
alone exceeds it.

{markdown_table(steps)}

## Refining and scheduling

Growth is the exponent of T in the time of `refine_schedule`, from the row above: 1 is linear. The window of the median filter is a
tenth of the norms, and from some T on it exceeds the cache.

{markdown_table(refining)}

## Memory, disk, imports, accuracy

{markdown_table(pd.DataFrame(figures.items(), columns=["figure", "measured"]))}

{render_provenance(provenance)}
"""


def parse_arguments() -> argparse.Namespace:
    """The options; sizes that cannot be measured are errors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/benchmark.md"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=(128, 512, 1024), help=f"multiples of {SEQUENCE}")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each row of the step times")
    parser.add_argument("--largest", type=int, default=10**7, help="most norms to refine, a power of ten from 10^4 on")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each import time")
    options = parser.parse_args()
    for tokens in options.tokens:
        if tokens < SEQUENCE or tokens % SEQUENCE:
            parser.error(f"--tokens is {tokens}, but must be a multiple of {SEQUENCE}, the length of a sequence")
    if options.largest < 10**4:
        parser.error(f"--largest is {options.largest}, but must be at least 10000; pass a power of ten")
    return options


def main() -> None:
    """Measure, and write the report."""
    options = parse_arguments()
    started = time.monotonic()
    figures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tqdm(total=5, desc="memory, accuracy, imports, refining") as progress:
            # Memory first: a new process inherits the peak of the one that starts it.
            figures |= run_isolated(memory_of_measuring)
            progress.update()
            figures |= run_isolated(memory_and_disk_of_recording, 2000, folder / "disk.jsonl")
            progress.update()
            figures |= measure_accuracy()
            progress.update()
            figures |= measure_imports(options.repeats)
            progress.update()
            refining = measure_refining(options.largest)
            progress.update()
        write_seconds = time_writing(folder / "writing.jsonl")
        figures["writing to disk, per update"] = f"{1e6 * write_seconds:.0f} µs"
        steps = measure_steps(options, folder, write_seconds)
        if torch.cuda.is_available():
            figures["the recorder does not wait for the CUDA device"] = run_isolated(
                check_waiting, folder / "wait.jsonl"
            )
    report = render_report(steps, refining, figures, time.monotonic() - started)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
