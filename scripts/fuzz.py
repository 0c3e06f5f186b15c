"""Break valid inputs at random, and see that every reader and command accepts them or refuses them in one line.

    python scripts/fuzz.py --inputs 20000

A fault is an exception other than ValueError and OSError, a warning, an error message of more than one line or 300 characters,
or with control characters, a call of more than 2 seconds or 300 MB, a schedule outside [0, 1] or with another maximum than 1, or
an input that `check`, `refine` and `rank` do not all accept or refuse. The report goes to OUTPUT_DIR/fuzz.md. The inputs of faults
are kept in OUTPUT_DIR/fuzz, and the exit status is then 1.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
from experiments.fuzzing import Fault, Seed, choose_options, find_faults, mutate, valid_inputs
from experiments.markdown_tables import markdown_table
from experiments.provenance import collect_provenance, render_provenance
from tqdm import tqdm

BATCH = 50
"""Inputs that a worker process takes at a time."""


def try_batch(seed_of_batch: int, inputs: list[Seed]) -> tuple[list[Fault], Counter[tuple[str, bool]]]:
    """Break `BATCH` inputs, and try them."""
    chance = random.Random(seed_of_batch)
    faults: list[Fault] = []
    counts: Counter[tuple[str, bool]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(BATCH):
            seed = chance.choice(inputs)
            input_folder = Path(folder) / str(number)
            input_folder.mkdir()
            found, accepted = find_faults(seed, mutate(seed.content, chance), input_folder, choose_options(chance))
            faults += found
            counts[seed.kind, accepted] += 1
    return faults, counts


def batches(num_inputs: int, seed: int) -> Iterator[int]:
    """The seed of each batch."""
    return (seed * 10**6 + number for number in range(-(-num_inputs // BATCH)))


def report(counts: Counter[tuple[str, bool]], faults: list[Fault], provenance: str) -> str:
    """The table of inputs and the list of faults."""
    kinds = sorted({kind for kind, _ in counts})
    table = pd.DataFrame(
        {
            "input": kinds,
            "broken inputs": [counts[kind, True] + counts[kind, False] for kind in kinds],
            "accepted by a call": [counts[kind, True] for kind in kinds],
            "refused by all": [counts[kind, False] for kind in kinds],
            "faults": [sum(fault.kind == kind for fault in faults) for kind in kinds],
        }
    )
    lines = [
        "# Broken inputs",
        "",
        "Valid inputs of every kind, broken in one to four random ways, and given to every reader and command. A fault is an exception other",
        "than ValueError and OSError, a warning, an error message of more than one line or 300 characters, or with control characters, a call",
        "of more than 2 seconds or 300 MB, a schedule outside [0, 1] or with another maximum than 1, or an input that `check`, `refine` and",
        "`rank` do not all accept or refuse. Half of the inputs are tried with one or two options of the commands.",
        "",
        markdown_table(table),
        "",
        *[f"- {fault.kind}, {fault.call}: `{fault.what}`" for fault in faults[:50]],
        *([""] if faults else []),
        provenance,
    ]
    return "\n".join(lines)


def main() -> int:
    """Break the inputs and write the report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2_000, help="the number of broken inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=1, help="worker processes")
    parser.add_argument("--output_dir", type=Path, default=Path("results"))
    options = parser.parse_args()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        inputs = valid_inputs(Path(folder))
    faults: list[Fault] = []
    counts: Counter[tuple[str, bool]] = Counter()
    seeds = list(batches(options.inputs, options.seed))
    with ProcessPoolExecutor(options.num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = pool.map(try_batch, seeds, [inputs] * len(seeds))
        for found, counted in tqdm(results, total=len(seeds), unit="batch"):
            faults += found
            counts += counted
    options.output_dir.mkdir(parents=True, exist_ok=True)
    kept = options.output_dir / "fuzz"
    for number, fault in enumerate(faults[:50]):
        kept.mkdir(exist_ok=True)
        (kept / f"{number}_{fault.call}").write_bytes(fault.content)
    provenance = render_provenance(collect_provenance("fuzz.py", time.time() - started, seed=options.seed))
    text = report(counts, faults, provenance)
    (options.output_dir / "fuzz.md").write_text(text + "\n")
    print(text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
