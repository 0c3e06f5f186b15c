"""Run every kind of launch, and compare the norms that each records with those of one process.

    python scripts/launch_matrix.py
    python scripts/launch_matrix.py --cells 'DDP*' 'one process'
    python scripts/launch_matrix.py --cells 'FSDP1*' --keep

Each cell trains a tiny model for 12 updates with a refined schedule that is known in closed form, while its gradient norms are
recorded. The reports of its ranks are compared with one process that trains on the same batches without a recorder and
measures each gradient in float64 as soon as it is accumulated. The report says why this machine cannot run a cell.

The report is printed and written to OUTPUT_DIR/launch_matrix.md. With `--keep`, the rows of the cells that do not run stay as they
are in that file, if it is from the same machine with the same versions. All cells take 9 to 15 minutes on two cores. The exit status
is 1 if a cell fails.
"""

import argparse
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd
from experiments.launch_cells import BATCH, BFLOAT16, BFLOAT16_PARAMETERS, CELLS, FLOAT16, FLOAT32, UPDATES, Cell
from experiments.launch_outcomes import LATER_FACTOR, STRICT_UPDATES, Outcome
from experiments.launches import CellRunner
from experiments.markdown_tables import markdown_table
from experiments.provenance import PACKAGES, collect_provenance, render_provenance
from tqdm import tqdm


class Row(NamedTuple):
    """What a cell has shown, and the seconds that it took."""

    outcome: Outcome
    seconds: float


class Report(NamedTuple):
    """The part of a report that another run may keep."""

    rows: dict[str, Row]
    """By the names of the cells."""
    commands: list[str]
    provenance: dict[str, str]
    """The entries under the commands, such as the versions."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report that `render_report` wrote."""
        text = path.read_text()
        rows = {}
        for line in re.findall(r"^\| (.*) \|$", text, re.M)[2:]:
            name, _, environment, l1, l2, result, seconds = (cell.strip() for cell in line.split(" | "))
            rows[name] = Row(Outcome(environment, l1, l2, result, result.startswith("FAILED")), float(seconds))
        commands = re.findall(r"```bash\n(.*?)\n```", text, re.S)[-1].splitlines()
        return cls(rows, commands, dict(re.findall(r"^- (machine|python|system|versions): (.*)$", text, re.M)))


def provenance_of(seconds: float) -> dict[str, Any]:
    """Where this process runs, and with which versions."""
    packages = [*PACKAGES, "deepspeed", "peft"]
    return collect_provenance("launch_matrix.py", seconds, packages=packages, system=platform.system())


def render_report(
    cells: Sequence[Cell], outcomes: Sequence[Outcome], seconds: Sequence[float], commands: Sequence[str] = ()
) -> str:
    """The report, as Markdown.

    Args:
        cells: what ran, and what is kept.
        outcomes: of the cells.
        seconds: the time of each cell.
        commands: those that made the rows that are kept.
    """
    table = pd.DataFrame(
        {
            "cell": [cell.name for cell in cells],
            "launch": [cell.launch for cell in cells],
            "distributed type, processes": [outcome.environment for outcome in outcomes],
            "L1": [outcome.l1 for outcome in outcomes],
            "L2": [outcome.l2 for outcome in outcomes],
            "result": [outcome.result for outcome in outcomes],
            "seconds": [f"{duration:.0f}" for duration in seconds],
        }
    )
    provenance = provenance_of(sum(seconds))
    provenance["commands"] = [*dict.fromkeys([*commands, *provenance["commands"]])]
    return f"""# Every kind of launch, compared with one process

{sum(outcome.ran for outcome in outcomes)} of {len(cells)} cells ran on this machine, and {sum(outcome.failed for outcome in outcomes)} failed. Each trains a tiny model for {UPDATES} updates of {BATCH} sequences with a refined
schedule that is known in closed form.

- distributed type, processes: as Accelerate reports them. The model of each rank also had to be wrapped, sharded and configured as the
  name of the cell says. The FSDP cells ran on CPUs, which pass for GPUs while Accelerate is built. fp16 on a CPU is torch's autocast
  and loss scale, switched on without Accelerate, which refuses fp16 there.
- L1, L2: the largest relative difference between the recorded norms and those of one process on the same batches, which measures them
  in float64 without the recorder; first over {STRICT_UPDATES} updates, then over all. The tolerances over {STRICT_UPDATES} updates are {FLOAT32:g} in float32 (sums in another
  order), {FLOAT16:g} with fp16 (11 bits), {BFLOAT16:g} with bfloat16 autocast (8 bits), and {BFLOAT16_PARAMETERS:g} with bfloat16 parameters (gradients are
  rounded before they are averaged). Over all updates they are {LATER_FACTOR} times larger, because the rounding of one update changes the next.
- recorded: the norms are within the tolerance, every rank applied exactly the learning rates of the single process, which are the
  known ones, the file holds these rates, its clip factors follow from its L2 norms, and rank 0 alone wrote it.
- refused: training finished with the right learning rates, one warning gave the reason, and there is no file.

{markdown_table(table)}

{render_provenance(provenance)}
"""


def parse_arguments() -> argparse.Namespace:
    """The options; an unknown cell is an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cells", nargs="+", metavar="PATTERN", help="run only the cells with these names; * is any text"
    )
    parser.add_argument("--keep", action="store_true", help="keep the other rows of the report in the output folder")
    parser.add_argument("--list", action="store_true", help="print the names of the cells and exit")
    parser.add_argument("--output_dir", type=Path, default=Path("results"), help="the folder of launch_matrix.md")
    options = parser.parse_args()
    for pattern in options.cells or []:
        if not any(fnmatch(cell.name, pattern) for cell in CELLS):
            parser.exit(2, f"launch_matrix.py: error: No cell is named {pattern!r}; --list prints the names.\n")
    return options


def kept_report(options: argparse.Namespace) -> Report:
    """The report whose rows are kept; none without `--keep`. Exits if rows of it and of this process do not go together."""
    if not options.keep:
        return Report({}, [], {})
    path = options.output_dir / "launch_matrix.md"
    if not path.exists():
        sys.exit(_usage_error(f"{path} does not exist; --keep needs a report, so leave it out."))
    report = Report.read(path)
    own = re.findall(r"^- (\w+): (.*)$", render_provenance(provenance_of(0)), re.M)
    different = [f"{name}: {value}" for name, value in own if report.provenance.get(name, value) != value]
    if different:
        sys.exit(_usage_error(f"{path} differs from {'; '.join(different)}; run all cells, without --keep."))
    return report


def _usage_error(message: str) -> int:
    print(f"launch_matrix.py: error: {message}", file=sys.stderr)
    return 2


def main() -> int:
    """Run the cells and write the report; returns the exit status."""
    options = parse_arguments()
    if options.list:
        print("\n".join(cell.name for cell in CELLS))
        return 0
    patterns = options.cells or ["*"]
    cells = [cell for cell in CELLS if any(fnmatch(cell.name, pattern) for pattern in patterns)]
    kept = kept_report(options)
    rows = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(cells, unit="cell") as progress:
        runner = CellRunner(Path(folder))
        for cell in progress:
            progress.set_postfix_str(cell.name)
            started = time.monotonic()
            rows[cell.name] = Row(runner.run(cell), time.monotonic() - started)
    shown = kept.rows | rows
    order = [cell for cell in CELLS if cell.name in shown]
    outcomes, seconds = zip(*(shown[cell.name] for cell in order), strict=True)
    report = render_report(order, outcomes, seconds, kept.commands)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "launch_matrix.md").write_text(report)
    print(report)
    return int(any(row.outcome.failed for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
