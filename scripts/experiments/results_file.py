"""The resumable results of a grid: a JSON Lines file with a row for each finished cell."""

import json
import math
from pathlib import Path

import pandas as pd
from accelerate import PartialState

from .cells import Cell, Result
from .json_file import replace_text
from .results_table import read_results, results_table
from .study_folder import RESULTS_FILE


class ResultsFile:
    """Results that grow as cells finish, so that a killed grid continues where it stopped.

    Where several processes train each cell together, all of them hold the results, and the main process writes them.

    Args:
        folder: the folder of results.jsonl. The rows that the file already has are read, and a torn last line is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS_FILE
        self._results: dict[Cell, Result] = {}
        if self.path.exists():
            finished = read_results(self.path)
            self._results = {result.cell: result for result in finished}
            if PartialState().is_main_process:
                text = self.path.read_text(encoding="utf-8")
                whole = "".join(f"{line}\n" for line in text.strip().split("\n")[: len(finished)])
                if whole != text:
                    replace_text(self.path, whole)
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
