"""The report of a comparison of schedules, made from its results alone: tables, pictures, and a CSV file."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .json_file import read_json
from .pictures import (
    MAX_LINES,
    Styles,
    draw_differences,
    draw_loss_by_peak,
    draw_schedules,
    draw_training_curves,
    line_styles,
    mean_curves,
    save_picture,
)
from .provenance import render_provenance
from .report_tables import (
    LANGUAGE_MODELS,
    bound_section,
    describe_seeds,
    equal_compute_table,
    main_table,
    regime_tables,
)
from .results_table import read_results, results_table
from .settings import setting_section
from .study_folder import BASELINE_FILE, PROVENANCE_FILE, RESULTS_FILE, SCHEDULES_FILE, SETTING_FILE


def read_cells(folder: Path) -> pd.DataFrame:
    """Read the compared cells of a study. Of a repeated cell the last result counts.

    Args:
        folder: the folder with results.jsonl.

    Returns:
        The columns of `results_table` except `role`.

    Raises:
        ValueError: if there are no results, or results that cannot be compared with linear decay.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder that a comparison has written.")
    results = read_results(path)
    if not results:
        raise ValueError(f"{path} has no finished cell yet; run the comparison again to continue it.")
    cells = results_table(results)
    cells = cells[cells["role"] == ""].drop(columns="role")
    key = ["regime", "schedule", "peak", "seed"]
    cells = cells.drop_duplicates([*key, "steps"], keep="last")
    if cells.duplicated(key).any():
        raise ValueError(f"{path} has a cell with different numbers of steps; compare each in its own folder.")
    without_linear = set(cells["regime"]) - set(cells.loc[cells["schedule"] == "linear", "regime"])
    if cells.empty or without_linear:
        regimes = f" in {', '.join(sorted(without_linear))}" if without_linear else ""
        raise ValueError(f"{path} has no finished cell of linear{regimes}, the reference of every comparison; run it.")
    return cells


def read_schedules(path: Path) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Read schedules.json.

    Returns:
        Multipliers at even progress from 0 to 1, by regime and schedule; empty if the file is missing.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        return {
            regime: {str(name): np.array(grid, dtype=np.float64) for name, grid in grids.items()}
            for regime, grids in read_json(path).items()
        }
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no schedules ({error}); remove it to report without them.") from None


def write_pictures(
    folder: Path,
    regime: str,
    cells: pd.DataFrame,
    table: pd.DataFrame,
    grids: Mapping[str, NDArray[np.float64]],
    styles: Styles,
) -> dict[str, str]:
    """Write the pictures of a regime for which there are data.

    Args:
        folder: the folder of the pictures.
        regime: the regime, for titles and file names.
        cells: the compared cells of the regime.
        table: their `main_table`.
        grids: the schedules, possibly none.
        styles: the lines.

    Returns:
        The captions by file name.
    """
    most = f", with {MAX_LINES} of the schedules drawn" if len({*table["schedule"], *grids}) > MAX_LINES else ""
    pictures = {
        "loss_by_peak": (
            "Final evaluation loss by peak learning rate, as the difference from the best of linear decay. The bands are one standard error. "
            f"Peaks where a seed diverged, much larger losses, and schedules with a single peak are not shown{most}",
            partial(draw_loss_by_peak, cells=cells, table=table, styles=styles),
        ),
        "final_loss": (
            "Difference from linear decay, every schedule at its best peak",
            partial(draw_differences, table=table, styles=styles),
        ),
    }
    if grids:
        pictures["schedules"] = (f"The schedules{most}", partial(draw_schedules, grids=grids, styles=styles))
    if curves := mean_curves(cells, table):
        draw = partial(draw_training_curves, curves=curves, styles=styles)
        pictures["training_curves"] = (f"Training loss, every schedule at its best peak{most}", draw)
    seeds = describe_seeds(cells.groupby("schedule")["seed"].nunique())
    prefix = re.sub(r"[^a-z0-9]+", "_", regime.lower()).strip("_")
    for name, (_, draw) in pictures.items():
        save_picture(folder / f"{prefix}_{name}.png", draw, f"{regime} ({seeds})")
    return {f"{prefix}_{name}.png": caption for name, (caption, _) in pictures.items()}


def write_report(folder: Path, output: Path, title: str) -> str:
    """Write the report, and its pictures and tables.csv into a folder beside it.

    Args:
        folder: the folder of the results.
        output: the Markdown file; the folder has its name without the suffix.
        title: the heading of the report.

    Returns:
        The tables, as Markdown.
    """
    cells = read_cells(folder)
    provenance = read_json(folder / PROVENANCE_FILE)
    schedules = read_schedules(folder / SCHEDULES_FILE)
    styles = line_styles([*cells["schedule"], *(name for grids in schedules.values() for name in grids)])
    pictures_folder = output.with_suffix("")
    pictures_folder.mkdir(parents=True, exist_ok=True)
    report, tables, rows = [f"# {title}"], [], []
    for name, group in cells.groupby("regime", sort=False):
        regime = str(name)
        grids = schedules.get(regime, {})
        table, equal_compute = main_table(group), equal_compute_table(group)
        captions = write_pictures(pictures_folder, regime, group, table, grids, styles)
        tables.append(regime_tables(regime, group, table, equal_compute))
        report.append(tables[-1])
        report += [
            f"![{caption}]({pictures_folder.name}/{file_name})\n\n*{caption}.*"
            for file_name, caption in captions.items()
        ]
        if regime in LANGUAGE_MODELS and len(grids) > 2:
            report.append(bound_section(regime, table, grids, folder / BASELINE_FILE))
        rows += [{"regime": regime, **row} for part in (table, equal_compute) for row in part.to_dict("records")]
    if (folder / SETTING_FILE).exists():
        report.append(setting_section(folder, [folder / BASELINE_FILE]))
    if provenance:
        report.append(render_provenance(provenance))
    output.write_text("\n\n".join(report) + "\n", encoding="utf-8")
    pd.DataFrame(rows).to_csv(pictures_folder / "tables.csv", index=False, float_format="%.12g")
    return "\n\n".join(tables)
