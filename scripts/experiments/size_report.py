"""The report of studies of one setting at several sizes of the model: does the difference between schedules grow with size?"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from .json_file import read_json
from .markdown_tables import NOT_AVAILABLE, markdown_table
from .protocol import LINEAR, SUMMARIZED
from .report_tables import describe_seeds
from .statistics import paired_difference
from .study_folder import SETTING_FILE
from .study_pictures import add_legend, style_of
from .study_results import StudyResults

APART = 1.03
"""The ratio of the places of two schedules at one size, so that their intervals can be told apart."""


def num_parameters(folder: Path) -> int:
    """The number of parameters of the model of a study.

    Raises:
        ValueError: if its setting.json does not state it.
    """
    match = re.search(r"([\d,]+) parameters", str(read_json(folder / SETTING_FILE).get("model")))
    if match is None:
        raise ValueError(f"{folder / SETTING_FILE} does not state the number of parameters; run the study again.")
    return int(match[1].replace(",", ""))


def compare_sizes(studies: Mapping[int, StudyResults], *, best_warmup: bool) -> pd.DataFrame:
    """The differences of all sizes, in per cent of the loss of the reference.

    Args:
        studies: the results, by the number of parameters.
        best_warmup: whether the reference is linear decay with the best warm-up of each size, or linear decay.

    Returns:
        A row for each schedule and size, also where linear decay is the reference itself, with the columns of `paired_difference`, `schedule` and `parameters`.
    """
    rows = []
    for parameters, study in sorted(studies.items()):
        reference = study.reference if best_warmup else LINEAR
        losses = 100 * study.relative_losses(reference)
        for name in (LINEAR, *SUMMARIZED):
            if name in losses and (best_warmup or name != LINEAR):
                difference = paired_difference(losses[name], losses[reference])
                rows.append({"schedule": name, "parameters": parameters, **difference})
    return pd.DataFrame(rows)


def change_with_size(differences: pd.Series) -> tuple[float, float, float]:
    """The slope of a schedule's difference over the logarithm of the size, by least squares.

    Each size is one observation: its test seeds share a choice of peaks, a reference and three baselines.

    Args:
        differences: the mean difference at each size, indexed by the number of parameters.

    Returns:
        The slope for ten times the parameters, NaN with one size, and the ends of its 95 % interval, NaN with two.
    """
    count = len(differences)
    if count < 2:
        return math.nan, math.nan, math.nan
    fit = stats.linregress(np.log10(differences.index.to_numpy(dtype=float)), differences)
    reach = stats.t.ppf(0.975, count - 2) * fit.stderr if count > 2 else math.nan
    return fit.slope, fit.slope - reach, fit.slope + reach


def size_table(studies: Mapping[int, StudyResults], *, best_warmup: bool) -> str:
    """A row for each schedule: its difference at every size, and how that changes with size, as Markdown."""
    compared = compare_sizes(studies, best_warmup=best_warmup)
    rows = []
    for name in dict.fromkeys(compared["schedule"]):
        of_schedule = compared[compared["schedule"] == name].set_index("parameters")
        row = {"schedule": name}
        for parameters in sorted(studies):
            row[f"{parameters:,} parameters"] = (
                _interval(*of_schedule.loc[parameters, ["difference", "low", "high"]])
                if parameters in of_schedule.index
                else NOT_AVAILABLE
            )
        row["change for a tenfold size"] = _interval(*change_with_size(of_schedule["difference"]))
        rows.append(row)
    return markdown_table(pd.DataFrame(rows))


def significant_changes(studies: Mapping[int, StudyResults]) -> str:
    """Which differences grow or shrink with size, in a sentence."""
    changes, tested = [], 0
    for best_warmup in (False, True):
        compared = compare_sizes(studies, best_warmup=best_warmup)
        for name, rows in compared.groupby("schedule", sort=False):
            slope, low, high = change_with_size(rows.set_index("parameters")["difference"])
            tested += 1
            if low > 0 or high < 0:
                reference = "the best warm-up" if best_warmup else "linear decay"
                changes.append(f"*{name}* against {reference} ({_interval(slope, low, high)})")
    return f"Significant changes with size, of {tested} tested and not corrected: {'; '.join(changes) or 'none'}."


def best_peaks_on_the_edge(studies: Mapping[int, StudyResults]) -> str:
    """The schedules whose best peak lies on the edge of its grid, so that another peak may be better, in a sentence; or nothing."""
    edges = {
        size: [name for name in study.losses.columns if study.choices.tuned[name].on_edge]
        for size, study in sorted(studies.items())
    }
    shown = "; ".join(
        f"{size:,} parameters, {', '.join(f'*{name}*' for name in names)}" for size, names in edges.items() if names
    )
    return f"Best peaks on the edge of their grid: {shown}. " if shown else ""


def _interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return NOT_AVAILABLE
    return f"{value:+.2f}" if math.isnan(low) else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _lengths(studies: Mapping[int, StudyResults]) -> str:
    """How long each model trains, in a sentence."""
    updates = {size: int(study.cells["steps"].iloc[0]) for size, study in sorted(studies.items())}
    if len(set(updates.values())) == 1:
        return f"All models train for {next(iter(updates.values())):,} updates."
    each = ", ".join(
        f"{count:,} updates with {len(studies[size].losses)} test seeds" for size, count in updates.items()
    )
    return f"Larger models train longer, about in proportion to their parameters ({each}), so size and length change together."


def draw_sizes(figure: Figure, studies: Mapping[int, StudyResults]) -> None:
    """Draw the differences over the size, from each reference, with 95 % intervals."""
    panels = figure.subplots(1, 2)
    for axes, best_warmup in zip(panels, (False, True), strict=True):
        compared = compare_sizes(studies, best_warmup=best_warmup)
        for index, (name, rows) in enumerate(compared.groupby("schedule", sort=False)):
            beside = rows["parameters"] * APART**index
            reach = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
            axes.errorbar(beside, rows["difference"], reach, label=name, capsize=3, marker="o", **style_of(str(name)))
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks(sorted(studies), [f"{parameters / 1e6:.2g}M" for parameters in sorted(studies)])
        axes.minorticks_off()
        axes.set_xlabel("parameters")
        axes.set_title(f"against {'the best warm-up' if best_warmup else 'linear decay'}", fontsize="medium")
    panels[0].set_ylabel("difference in final loss, % of the reference's")
    add_legend(panels[1])


def write_size_report(studies: Mapping[Path, StudyResults], output: Path) -> None:
    """Write the report of several sizes, and its picture beside it.

    Args:
        studies: the results, by the folder of the study.
        output: the Markdown file; the picture has its name with the suffix `.png`.

    Raises:
        ValueError: if there are fewer than two sizes, or two studies of one.
    """
    by_size = {num_parameters(folder): study for folder, study in studies.items()}
    if len(by_size) < 2 or len(by_size) < len(studies):
        raise ValueError(
            f"The model has {len(by_size)} sizes in {len(studies)} studies; give one study of each of at least two sizes."
        )
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    draw_sizes(figure, by_size)
    seeds = describe_seeds(len(study.losses) for study in by_size.values())
    figure.suptitle(f"Differences over the size of the model ({seeds})")
    figure.savefig(output.with_suffix(".png"), dpi=150)
    diverged = sum(int(np.isinf(study.losses).to_numpy().sum()) for study in by_size.values())
    references = ", ".join(f"{size:,} parameters: {study.reference}" for size, study in sorted(by_size.items()))
    parts = [
        "# Sizes of the model",
        "Differences in final loss in per cent of the loss of the reference, with 95 % intervals over test seeds; a negative one is better. "
        f"{_lengths(by_size)} "
        "The last column is the slope over the logarithm of the size, in percentage points; its 95 % interval takes each size as one "
        f"observation. {significant_changes(by_size)} {best_peaks_on_the_edge(by_size)}{diverged or 'No'} test runs diverged{' and count as the worst of their seed' if diverged else ''}.",
        "Against linear decay:",
        size_table(by_size, best_warmup=False),
        f"Against linear decay after the best of five warm-ups ({references}):",
        size_table(by_size, best_warmup=True),
        f"![Differences over the size of the model]({output.with_suffix('.png').name})",
        "\n".join(f"- [{study.label}]({folder.name}.md)" for folder, study in studies.items()),
    ]
    output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
