"""Is the schedule of an ordinary log, with L2 norms of some updates, that of a full recording?

    python scripts/log_survey.py

Every baseline of the studies in results/ was recorded with the L1 and L2 norms of all updates. The script keeps what a Trainer
would have logged of it, the L2 norms of every k-th update, refines both, and measures how far their schedules are apart. Nothing is trained.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from experiments.arguments import exit_with_error
from experiments.json_file import replace_text
from experiments.markdown_tables import NOT_AVAILABLE, markdown_table
from experiments.protocol import NUM_BASELINES, baseline_file
from experiments.provenance import command_line
from numpy.typing import NDArray

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.norms.log_rows import MIN_LOGGED_NORMS
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources
from hf_refined_schedule.theory.classical import rmse

SCRIPT = "log_survey.py"

RESULTS = Path(__file__).resolve().parent.parent / "results"

SCHEDULES = {"bounded_warmup": RefinementOptions(bounded_warmup=True), "refined": RefinementOptions()}


@dataclass(frozen=True)
class Log:
    """What a Trainer logs of a run.

    Args:
        logging_steps: the L2 norm of every k-th update is logged.
        first_step: whether that of the first update is logged, too.
    """

    logging_steps: int
    first_step: bool = False

    @property
    def name(self) -> str:
        """The column of the table."""
        if self.logging_steps == 1:
            return "L2 norms of all updates"
        return f"L2 norms of {'the first and ' if self.first_step else ''}every {self.logging_steps}th update"

    def of(self, norms: GradientNorms) -> GradientNorms:
        """The log of a run whose updates all have an L2 norm."""
        kept = (norms.steps % self.logging_steps == 0) | (self.first_step & (norms.steps == 1))
        return replace(norms, steps=norms.steps[kept], l1=None, l2=None if norms.l2 is None else norms.l2[kept])


LOGS = (Log(1), Log(10), Log(10, first_step=True), Log(25))

ANOTHER_RUN = "another recorded run"


def refine(norms: GradientNorms, options: RefinementOptions) -> NDArray[np.float64]:
    """The multipliers at the updates of the run, shape (T + 1,)."""
    return refine_sources(norms, None, options).schedule.grid


@dataclass(frozen=True)
class Distances:
    """How far schedules of one study are from those of the full recordings, as RMSE in fractions of the peak, by what they are made from."""

    study: str
    steps: int
    values: Mapping[str, float]

    def to_row(self) -> dict[str, str]:
        """The row of the table."""
        values = {name: NOT_AVAILABLE if np.isnan(value) else f"{value:.3f}" for name, value in self.values.items()}
        return {"study": self.study, "updates": str(self.steps), **values}


def measure(study: str, baselines: Sequence[GradientNorms], options: RefinementOptions) -> Distances:
    """Compare the schedules of logs, and of the other baselines, with those of the full recordings, on average over the baselines.

    Args:
        study: its name.
        baselines: recordings of all updates.
        options: of the schedules.
    """
    recorded = [refine(norms, options) for norms in baselines]
    others = [rmse(one, other) for one in recorded for other in recorded if one is not other]
    values = {ANOTHER_RUN: float(np.mean(others))}
    for log in LOGS:
        logged = [log.of(norms) for norms in baselines]
        values[log.name] = math.nan
        if min(len(norms.steps) for norms in logged) >= MIN_LOGGED_NORMS:
            distances = [rmse(refine(norms, options), full) for norms, full in zip(logged, recorded, strict=True)]
            values[log.name] = float(np.mean(distances))
    return Distances(study, len(recorded[0]) - 1, values)


def find_baselines(results: Path) -> dict[str, list[GradientNorms]]:
    """The recorded baselines of each study with AdamW, whose rule asks for L1 norms.

    Raises:
        ValueError: if there is no study with all its baselines.
    """
    found = {}
    for folder in sorted(path.parent for path in results.glob("**/baseline_norms")):
        paths = [baseline_file(folder, index) for index in range(NUM_BASELINES)]
        if all(path.is_file() for path in paths):
            baselines = [load_norms(path) for path in paths]
            if baselines[0].optimizer == "adam":
                found[folder.name] = baselines
    if not found:
        raise ValueError(f"{results} has no study with {NUM_BASELINES} baselines; give the folder of several studies.")
    return found


def summarize(measured: Sequence[Distances]) -> str:
    """A list with a line for each kind of log, as Markdown."""
    lines = []
    for log in LOGS:
        pairs = [(row.values[log.name], row.values[ANOTHER_RUN]) for row in measured]
        pairs = [(own, other) for own, other in pairs if not np.isnan(own)]
        if pairs:
            own_distances = [own for own, _ in pairs]
            nearer = sum(own <= other for own, other in pairs)
            lines.append(
                f"- {log.name}: {np.median(own_distances):.3f} in the median and {max(own_distances):.3f} at most; "
                f"in {nearer} of {len(pairs)} studies no more than {ANOTHER_RUN}."
            )
    return "\n".join(lines)


def write_report(results: Path, output: Path) -> str:
    """Measure all studies and write the report; returns it."""
    studies = find_baselines(results)
    parts = [
        "# Ordinary logs",
        "Is the schedule of an ordinary log that of a full recording? Each baseline of the studies with AdamW was recorded with L1 and L2 norms of all "
        "updates. A log keeps the L2 norms of every k-th update, as a Trainer with `logging_steps` k does. The tables have the root mean square difference between the "
        f"schedules of log and recording, as a fraction of the peak, on average over {NUM_BASELINES} baselines, beside the difference between the schedules of two recorded runs that "
        f"differ only in their seed. Logs of fewer than {MIN_LOGGED_NORMS} norms are left out.",
    ]
    for name, options in SCHEDULES.items():
        measured = [measure(study, baselines, options) for study, baselines in studies.items()]
        parts += [
            f"## {name}",
            summarize(measured),
            markdown_table(pd.DataFrame(row.to_row() for row in measured)),
        ]
    parts.append(f"```bash\n{command_line(SCRIPT)}\n```")
    report = "\n\n".join(parts) + "\n"
    replace_text(output, report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="the folder of the studies")
    parser.add_argument("--output", type=Path, default=Path("results/ordinary_logs.md"), help="the report")
    options = parser.parse_args()
    try:
        print(write_report(options.results_dir, options.output))
    except (ValueError, OSError) as error:
        exit_with_error(SCRIPT, error)


if __name__ == "__main__":
    main()
