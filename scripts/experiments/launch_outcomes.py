"""Judge a cell: compare the reports of its ranks, and the norms file that they leave, with one process."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from .launch_cells import REFUSED, UPDATES, Cell, known_rates
from .rank_reports import RankReport

STRICT_UPDATES = 3
"""Updates whose norms must agree to the cell's tolerance. Each step on rounded gradients moves two runs further apart."""
LATER_FACTOR = 10
"""The factor by which the differences of all updates may exceed the tolerance."""

Row = dict[str, Any]
"""A line of the norms file."""


class Outcome(NamedTuple):
    """The row of a cell in the report."""

    environment: str
    """Accelerate's distributed type and the number of processes."""
    l1: str
    l2: str
    result: str
    failed: bool

    @classmethod
    def skipped(cls, reason: str) -> Self:
        """The outcome of a cell that this machine cannot run."""
        return cls("", "", "", f"not run: {reason}", False)

    @classmethod
    def failed_with(cls, reason: str) -> Self:
        """The outcome of a cell whose ranks did not report."""
        return cls("", "", "", f"FAILED: {reason}", True)

    @property
    def ran(self) -> bool:
        """Whether this machine could run the cell."""
        return not self.result.startswith("not run")


class Comparison:
    """What a cell's norms file shows beside one process: the columns of the report, and the problems."""

    def __init__(self) -> None:
        self.l1 = ""
        self.l2 = ""
        self.result = "recorded"
        self.problems: list[str] = []


def judge(cell: Cell, reports: Sequence[RankReport], reference: RankReport, output_dir: Path) -> Outcome:
    """Compare the reports of the ranks, and the file that they leave, with one process.

    Args:
        cell: what ran.
        reports: one for each rank.
        reference: the report of one process that trained the same.
        output_dir: the folder of the run.
    """
    problems = mismatches(cell, reports) + wrong_rates(cell, reports, reference)
    files = sorted(output_dir.rglob("gradient_norms*"))
    comparison = Comparison()
    if cell.refused:
        comparison.result = f"refused: {cell.warnings[-1].removeprefix(REFUSED)}"
        if files:
            problems.append(f"there are norms files: {[str(path) for path in files]}")
    elif len(files) != 1 or (not cell.script and files[0].parent.name != "rank0"):
        problems.append(f"rank 0 alone should have written a norms file: {[str(path) for path in files]}")
    else:
        header, *rows = [json.loads(line) for line in files[0].read_text().splitlines()]
        comparison = compare(cell, header, rows, reference)
        problems += comparison.problems
    result = f"FAILED: {'; '.join(problems)}" if problems else comparison.result
    environment = f"{reports[0].distributed_type}, {reports[0].world_size}"
    return Outcome(environment, comparison.l1, comparison.l2, result, bool(problems))


def mismatches(cell: Cell, reports: Sequence[RankReport]) -> list[str]:
    """The differences between the setup that a cell names and the setup that its ranks report."""
    problems = []
    distributed_type = cell.distributed_type or ("NO" if cell.world_size == 1 else "MULTI_CPU")
    for rank, report in enumerate(reports):
        if (report.world_size, report.distributed_type) != (cell.world_size, distributed_type):
            problems.append(f"rank {rank} is one of {report.world_size} under {report.distributed_type}")
        missing = set() if cell.script else set(cell.setup) - set(report.setup)
        if missing:
            problems.append(f"rank {rank} reports {report.setup} without {', '.join(sorted(missing))}")
    if cell.launch == "two networks" and len({report.network for report in reports}) != 2:
        problems.append("the ranks share a network")
    warnings = [warning for report in reports for warning in report.warnings if not warning.startswith("Refined")]
    if len(warnings) != len(cell.warnings) or not all(map(str.startswith, warnings, cell.warnings)):
        problems.append(f"the recorder warned {warnings}")
    return problems


def wrong_rates(cell: Cell, reports: Sequence[RankReport], reference: RankReport) -> list[str]:
    """The learning rates that differ from those of one process, or there from the known ones."""
    problems = [
        f"rank {rank} applied {report.rates}, one process {reference.rates}"
        for rank, report in enumerate(reports)
        if report.rates != reference.rates
    ]
    # An overflow skips an update, and Trainer decides whether its rate is used again.
    if not cell.options.get("overflow") and not all(
        isinstance(rate, float) and math.isclose(rate, known, rel_tol=1e-12)
        for rate, known in zip(reference.rates, known_rates(), strict=True)
    ):
        problems.append(f"one process applied {reference.rates} instead of the known rates {known_rates()}")
    return problems


def compare(cell: Cell, header: Row, rows: Sequence[Row], reference: RankReport) -> Comparison:
    """Compare a norms file with one process.

    Args:
        cell: what ran.
        header: the first line of the file.
        rows: its other lines.
        reference: the report of one process that trained the same.
    """
    comparison = Comparison()
    problems = comparison.problems
    if header["world_size"] != cell.world_size:
        problems.append(f"the norms file names {header['world_size']} processes")
    steps = [row["step"] for row in rows]
    if steps != list(range(1, UPDATES + 1)):
        problems.append(f"the norms file has the updates {steps}")
        return comparison
    problems += _wrong_rates_and_clip_factors(cell, rows, reference)
    comparison.l1 = _compare_norms(cell, "l1", rows, reference, problems)
    comparison.l2 = _compare_norms(cell, "l2", rows, reference, problems)
    if cell.repeats_samples:
        last = reference.norms[-1]
        difference = rows[-1]["l2"] / last[1] - 1 if last is not None else math.nan
        comparison.result += f"; L2 of the last update differs by {difference:+.1%}, by design"
        if abs(difference) < LATER_FACTOR * cell.tolerance:
            problems.append("the last update has the same norm, although its batch repeats samples")
    if cell.options.get("overflow"):
        skipped = [row["step"] for row in rows if row["l2"] is None]
        comparison.result += f"; overflow at update {', '.join(map(str, skipped))}"
        if not skipped:
            problems.append("no update overflowed")
    return comparison


def _wrong_rates_and_clip_factors(cell: Cell, rows: Sequence[Row], reference: RankReport) -> list[str]:
    problems = []
    max_grad_norm = cell.training.get("max_grad_norm", 1.0)
    for row, rate in zip(rows, reference.rates, strict=True):
        if rate is not None and row["learning_rate"] != rate:
            problems.append(f"update {row['step']} has the learning rate {row['learning_rate']} instead of {rate}")
        if row["l2"] is not None:
            factor = min(1.0, max_grad_norm / (row["l2"] + 1e-6)) if max_grad_norm else 1.0
            if not math.isclose(row["clip_factor"], factor, rel_tol=cell.tolerance):
                problems.append(f"update {row['step']} has the clip factor {row['clip_factor']} instead of {factor}")
    return problems


def _compare_norms(cell: Cell, name: str, rows: Sequence[Row], reference: RankReport, problems: list[str]) -> str:
    """The largest relative differences of one norm, over the first updates and over all."""
    differences = []
    for row, norms in zip(rows, reference.norms, strict=True):
        expected = None if norms is None else norms[("l1", "l2").index(name)]
        recorded = row[name]
        if (recorded is None) != (expected is None):
            problems.append(f"update {row['step']} has the {name} {recorded} instead of {expected}")
        differences.append(0.0 if recorded is None or expected is None else abs(recorded / expected - 1))
    comparable = differences[: UPDATES - cell.repeats_samples]
    strict, later = max(differences[:STRICT_UPDATES]), max(comparable)
    if strict > cell.tolerance or later > LATER_FACTOR * cell.tolerance:
        problems.append(f"{name.upper()} differs by {strict:.1e}, later by {later:.1e}")
    return f"{strict:.0e}, {later:.0e}"
