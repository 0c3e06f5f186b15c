"""The tables of a comparison of schedules, and their Markdown."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from hf_refined_schedule import load_norms, smooth_norms
from hf_refined_schedule.theory.bounds import rank_schedules

from .cells import FINER_PEAKS, TWICE_THE_STEPS
from .markdown_tables import NOT_AVAILABLE, markdown_table
from .pictures import REFINED
from .statistics import compare, paired_difference, tune_peak, tune_schedules

LANGUAGE_MODELS = ("finetune", "lora", "scratch")
"""The regimes whose loss is a cross entropy per token, so that its exponential is a perplexity."""

EDGE = " (edge)"
"""Marks a best peak at the edge of the grid."""

NUM_BOUND_STEPS = 1000
"""The length of the run that the bound assumes if no norms are recorded."""


def main_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Every schedule of a regime at its best peak, compared with linear decay; the smallest loss first."""
    tuned = tune_schedules(cells[~cells["schedule"].isin([FINER_PEAKS, TWICE_THE_STEPS])])
    linear = tuned["linear"]
    rows = []
    for schedule in tuned.values():
        row = compare(schedule, linear)
        if schedule is linear:
            row |= paired_difference(linear.losses[:0], linear.losses)
        rows.append(row | ({"verdict": NOT_AVAILABLE} if schedule is linear or schedule.problem else {}))
    table = pd.DataFrame(rows).sort_values("mean", kind="stable", ignore_index=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def equal_compute_table(cells: pd.DataFrame) -> pd.DataFrame:
    """The refined schedules of a regime, compared with linear decay that has more peaks or more steps."""
    names = set(cells["schedule"])
    references = []
    if FINER_PEAKS in names:
        linear = cells[cells["schedule"].isin(["linear", FINER_PEAKS])].drop_duplicates(["peak", "seed"])
        references.append(tune_peak(linear, FINER_PEAKS))
    if TWICE_THE_STEPS in names:
        references.append(tune_peak(cells[cells["schedule"] == TWICE_THE_STEPS], TWICE_THE_STEPS))
    refined = [tune_peak(cells[cells["schedule"] == name], name) for name in REFINED if name in names]
    return pd.DataFrame(compare(schedule, reference) for schedule in refined for reference in references)


def describe_seeds(counts: Iterable[int]) -> str:
    """The numbers of seeds, such as "5 seeds" or "3 to 5 seeds"."""
    smallest, largest = min(numbers := set(counts)), max(numbers)
    return f"{smallest} to {largest} seeds" if smallest < largest else f"{largest} seed{'' if largest == 1 else 's'}"


def num_decimals(losses: pd.Series) -> int:
    """Four decimals; for losses below 1, five significant digits."""
    smallest = losses.min()
    return min(8, 4 - math.floor(math.log10(smallest))) if 0 < smallest < 1 else 4


def format_p_value(p_value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_row(row: Mapping[str, Any], decimals: int) -> dict[str, str]:
    """A row of a table as text, by heading."""
    loss, error = (f"{row[name]:.{decimals}f}" for name in ("mean", "standard_error"))
    difference, low, high = (f"{row[name]:+.{decimals}f}" for name in ("difference", "low", "high"))
    text = {
        "rank": NOT_AVAILABLE if row["problem"] else f"{row.get('rank', 0)}",
        "schedule": row["schedule"],
        "best peak": f"{row['peak']:g}{EDGE if row['on_edge'] else ''}",
        "compared with": row["reference"],
        "at peak": f"{row['reference_peak']:g}{EDGE if row['reference_on_edge'] else ''}",
        "seeds": f"{row['seeds']}",
        "final eval loss": row["problem"] or (f"{loss} ± {error}" if error != "nan" else loss),
        "perplexity": f"{row['perplexity']:.2f}",
        "difference from linear decay [95 % interval]": f"{difference} [{low}, {high}]"
        if low != "+nan"
        else difference,
        "p": format_p_value(row["p_value"]),
        "verdict": row["verdict"],
    }
    return {heading: NOT_AVAILABLE if value in ("nan", "+nan") else value for heading, value in text.items()}


def format_table(table: pd.DataFrame, decimals: int, without: Iterable[str]) -> str:
    """A table as Markdown, without some headings."""
    rows = pd.DataFrame(format_row(row, decimals) for row in table.to_dict("records"))
    return markdown_table(rows.drop(columns=list(without)))


def regime_tables(regime: str, cells: pd.DataFrame, table: pd.DataFrame, equal_compute: pd.DataFrame) -> str:
    """The tables of a regime with their notes, as Markdown.

    Args:
        regime: the regime.
        cells: its compared cells.
        table: their `main_table`.
        equal_compute: their `equal_compute_table`.
    """
    decimals = num_decimals(table["mean"])
    without = ["compared with", "at peak"]
    if regime.partition(",")[0] not in LANGUAGE_MODELS:
        without.append("perplexity")
    parts = [f"## {regime}", format_table(table, decimals, without), *notes(cells, table)]
    if len(equal_compute):
        parts += [
            f"### At equal compute ({regime})",
            "A refined schedule also costs the run that it is made from. Each one is therefore compared with linear decay "
            "that spends the same compute on a finer grid of peaks or on twice the steps. Differences are paired by seed, "
            "with every schedule at its best peak.",
            format_table(equal_compute, decimals, ["rank", "final eval loss", "perplexity"]),
        ]
    return "\n\n".join(parts)


def notes(cells: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """The paragraphs below the table of a regime."""
    edges = [f"{row['schedule']} ({row['peak']:g})" for row in table[table["on_edge"]].to_dict("records")]
    diverged = cells.loc[np.isinf(cells["loss"]), "schedule"].value_counts()
    by_schedule = ", ".join(f"{name} {count}" for name, count in diverged.items())
    return [
        "The loss is the mean over seeds ± its standard error. The difference from linear decay is paired by seed, with each "
        "schedule at its own best peak; a negative one is better. A comparison is undecided if the interval contains 0 or "
        "there are fewer than two common seeds.",
        f"The best peak is on the edge of the grid, so that a better one may lie beyond it, for {', '.join(edges)}."
        if edges
        else "No best peak is on the edge of the grid.",
        f"{len(cells[np.isinf(cells['loss'])])} of {len(cells)} runs diverged"
        + (f" ({by_schedule}); a peak where any seed diverged cannot be the best." if by_schedule else "."),
        "The best peak is chosen on the seeds that are compared, which makes every schedule look slightly better than it is. "
        "The p-values are not corrected for the number of schedules.",
    ]


def bound_table(
    table: pd.DataFrame, grids: Mapping[str, NDArray[np.float64]], smoothed: NDArray[np.float64] | None
) -> tuple[pd.DataFrame, list[str]]:
    """The last-iterate bound of the schedules beside their measured losses and best peaks.

    Args:
        table: the rows of `main_table`.
        grids: multipliers at even progress from 0 to 1, by schedule. Schedules without multipliers are left out.
        smoothed: the smoothed L1 norm of the baseline at each update, shape (T,), or None.

    Returns:
        The table, and for each kind of norms a sentence on how often bound and loss agree.
    """
    measured = table[(table["problem"] == "") & table["schedule"].isin(list(grids))].set_index("schedule")
    steps = NUM_BOUND_STEPS if smoothed is None else len(smoothed)
    progress = np.arange(steps) / steps
    schedules = {name: np.interp(progress, np.linspace(0, 1, len(grids[name])), grids[name]) for name in measured.index}
    norms = {"constant norms": np.ones(steps)} | ({} if smoothed is None else {"the baseline's norms": smoothed})
    columns, sentences = {"final eval loss": measured["mean"].map("{:.4f}".format)}, []
    for kind, values in norms.items():
        ranked = {row.name: row for row in rank_schedules(schedules, values)}
        bounds = pd.Series({name: row.relative_bound for name, row in ranked.items()})[measured.index]
        columns[f"bound, {kind}"] = bounds.map("{:.3f}".format)
        columns[f"best peak, {kind}"] = pd.Series(
            {name: f"{ranked[name].best_peak_ratio:.2f}" for name in bounds.index}
        )
        agreement = stats.kendalltau(bounds, measured["mean"])
        sentences.append(
            f"With {kind}, bound and loss agree on the order of {(1 + agreement.statistic) / 2:.0%} of the pairs of schedules "
            f"(Kendall's tau {agreement.statistic:+.2f}, p {format_p_value(agreement.pvalue)})."
        )
    columns["best peak, measured"] = (measured["peak"] / measured["peak"]["linear"]).map("{:g}".format)
    return pd.DataFrame(columns, index=measured.index).reset_index(), sentences


def bound_section(regime: str, table: pd.DataFrame, grids: Mapping[str, NDArray[np.float64]], baseline: Path) -> str:
    """The `bound_table` of a regime with its sentences, as Markdown.

    Args:
        regime: the regime.
        table: its `main_table`.
        grids: as in `bound_table`.
        baseline: the file of the baseline's norms, which may be missing.
    """
    norms = load_norms(baseline) if baseline.exists() else None
    smoothed = None if norms is None or norms.l1 is None else smooth_norms(norms.at_every_step("l1"))
    rows, sentences = bound_table(table, grids, smoothed)
    return "\n\n".join(
        [
            f"### The bound ({regime})",
            "The last-iterate bound of each schedule at its own best peak, and that best peak, both relative to linear decay. "
            "The schedule with the smallest loss comes first. Schedules whose multipliers are not known in advance are left out.",
            markdown_table(rows),
            " ".join(sentences),
        ]
    )
