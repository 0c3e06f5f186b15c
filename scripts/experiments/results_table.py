"""The results of a study, read from results.jsonl."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from .cells import FINER_PEAKS, Result


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
        Columns `regime`, `schedule`, `peak`, `seed`, `steps`, `role` (empty if the cell is compared), `loss` (infinite if the
        run diverged) and `curve`.
    """
    columns = ("regime", "schedule", "peak", "seed", "steps", "role", "loss", "curve")
    rows = [
        (
            result.cell.regime,
            FINER_PEAKS if result.cell.finer else result.cell.schedule,
            result.cell.peak,
            result.cell.seed,
            result.cell.steps,
            result.cell.role or "",
            result.loss,
            result.curve,
        )
        for result in results
    ]
    return pd.DataFrame(rows, columns=columns)
