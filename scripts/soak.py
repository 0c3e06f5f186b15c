"""Kill training at random moments, resume it, and compare it with an uninterrupted run.

    python scripts/soak.py --trials 100 --trials_of_two 20

Each trial trains a tiny model with a refined schedule and with recording. It is killed with SIGKILL one to three times: at a
random moment, while a checkpoint is being written, in the middle of a line of gradient_norms.jsonl, or just before a shortened
file replaces that file. It resumes from the checkpoint that `last_complete_checkpoint` finds, or starts again if there is none.
At the end the norms file, the learning rates and the weights must equal those of the uninterrupted run bit by bit, with
dropout: on a CPU the same arithmetic in the same order gives the same numbers. With two processes (gloo) one rank is killed
first, and the other up to 0.3 s later, as a launcher would do it, so that it may write in between.

The report is printed and written to results/soak.md. The folder of a trial that differs is kept, and the exit status is 1.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from experiments.interruptions import (
    COLUMNS,
    SAVE_STEPS,
    STEPS,
    InterruptedRuns,
    count_differences,
    start_server,
    write_source,
)
from experiments.markdown_tables import markdown_table
from experiments.provenance import collect_provenance, render_provenance


def render_report(totals: Mapping[int, Mapping[str, int]], seed: int, seconds: float) -> str:
    """The report, as Markdown.

    Args:
        totals: the counts of `COLUMNS` for each number of processes.
        seed: for the moments of the kills.
        seconds: the time of all trials.
    """
    rows = [[size, *(total[name] for name in COLUMNS)] for size, total in totals.items()]
    table = pd.DataFrame(rows, columns=["processes", *COLUMNS])
    return f"""# Kills and resumes

Each run of {STEPS} updates saved a checkpoint every {SAVE_STEPS} updates, was killed with SIGKILL one to three times, and resumed from the newest
complete checkpoint. "Unfinished checkpoint", "torn line" and "unfinished replacement" (of the norms file) count what the kills left
behind, "before the first checkpoint" the kills after which a run started again. "Different" counts the runs whose norms file, learning
rates or final weights are not those of the uninterrupted run, bit by bit.

{markdown_table(table)}

{render_provenance(collect_provenance("soak.py", seconds, seed=seed))}
"""


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=100, help="trials with one process")
    parser.add_argument("--trials_of_two", type=int, default=20, help="trials with two processes")
    parser.add_argument("--seed", type=int, default=0, help="for the moments of the kills")
    parser.add_argument("--output", type=Path, default=Path("results/soak.md"))
    options = parser.parse_args()
    for name in ("trials", "trials_of_two"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} is {getattr(options, name)}, but must be at least 0; pass a number of trials")
    return options


def main() -> int:
    """Run the trials and write the report; returns the exit status."""
    options = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    started = time.monotonic()
    source = folder / "source.jsonl"
    write_source(source)
    start_server()
    totals = {
        world_size: InterruptedRuns(folder, source, world_size, options.seed).run_trials(num_trials)
        for world_size, num_trials in {1: options.trials, 2: options.trials_of_two}.items()
        if num_trials
    }
    report = render_report(totals, options.seed, time.monotonic() - started)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report)
    print(report)
    if any(map(count_differences, totals.values())):
        print(f"The runs that differ are in {folder}.", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
