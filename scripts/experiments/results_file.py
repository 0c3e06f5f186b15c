"""The resumable results of a grid: a JSON Lines file with a row for each finished cell."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from accelerate import PartialState

from .cells import BASELINE, Cell, Result

FILE_NAME = "results.jsonl"

FINER_PEAKS = "linear, finer peaks"
"""The schedule that tables show for runs of linear decay at peaks between those of the grid."""


def read_results(path: Path) -> list[Result]:
    """Read the finished cells.

    Args:
        path: the file.

    Returns:
        The results in the order of the file. A last line that a kill cut off is left out.

    Raises:
        ValueError: if another line is not the result of a cell.
    """
    results = []
    lines = path.read_text(encoding="utf-8").strip().split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            results.append(Result.from_row(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number} is not a finished cell ({error!r}); remove the line."
                ) from None
    return results


def results_table(results: Iterable[Result]) -> pd.DataFrame:
    """The results as a table with a row for each cell.

    Returns:
        Columns `regime`, `schedule`, `peak`, `seed`, `steps`, `baseline` (whether the cell is one), `loss` (infinite if the
        run diverged) and `curve`.
    """
    columns = ("regime", "schedule", "peak", "seed", "steps", "baseline", "loss", "curve")
    rows = [
        (
            result.cell.regime,
            FINER_PEAKS if result.cell.finer else result.cell.schedule,
            result.cell.peak,
            result.cell.seed,
            result.cell.steps,
            result.cell.role == BASELINE,
            result.loss,
            result.curve,
        )
        for result in results
    ]
    return pd.DataFrame(rows, columns=columns)


class ResultsFile:
    """Results that grow as cells finish, so that a killed grid continues where it stopped.

    Where several processes train each cell together, all of them hold the results, and the main process writes them.

    Args:
        folder: the folder of results.jsonl. The rows that the file already has are read, and a torn last line is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._results: dict[Cell, Result] = {}
        if self.path.exists():
            finished = read_results(self.path)
            self._results = {result.cell: result for result in finished}
            if PartialState().is_main_process:
                lines = self.path.read_text(encoding="utf-8").strip().split("\n")[: len(finished)]
                self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        PartialState().wait_for_everyone()

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._results

    def append(self, result: Result) -> None:
        """Add the result of a cell."""
        self._results[result.cell] = result
        if PartialState().is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result.to_row(), allow_nan=False) + "\n")

    def table(self) -> pd.DataFrame:
        """The results, as `results_table` gives them."""
        return results_table(self._results.values())

    @property
    def seconds(self) -> float:
        """The time of all cells."""
        return math.fsum(result.seconds for result in self._results.values())
