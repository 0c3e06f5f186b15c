"""Tables and pictures of a comparison of schedules. Only reads the results that the comparison left.

    python scripts/report_comparison.py runs/comparison

writes runs/comparison.md, and the pictures and the tables as CSV into the folder runs/comparison.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from hf_refined_schedule import load_norms, smooth_norms
from hf_refined_schedule.plots import COLORS
from hf_refined_schedule.theory.bounds import rank_schedules

LANGUAGE_MODELS = ("finetune", "lora", "scratch")
REFINED = ("refined", "refined+warmup", "refined_ignore_rising", "refined_ignore_rising+warmup")
TWICE_THE_STEPS = "linear, twice the steps"
FINER_PEAKS = "linear, finer peaks"
"""The name that linear cells at in-between peaks get here."""

NONE = "\N{EN DASH}"
EDGE = " (edge)"

Styles = Mapping[str, Mapping[str, Any]]
"""What draws a schedule's line, by its name."""


@dataclass(frozen=True)
class Tuned:
    """A schedule at its best peak; `losses` by seed, empty where no peak can be the best, for the reason `problem`."""

    schedule: str
    peak: float
    on_edge: bool
    losses: pd.Series
    problem: str = ""

    def summary(self) -> dict[str, Any]:
        count, mean = len(self.losses), self.losses.mean()
        return {
            "schedule": self.schedule,
            "peak": self.peak,
            "on_edge": self.on_edge,
            "seeds": count,
            "mean": mean,
            "standard_error": self.losses.std() / math.sqrt(count) if count > 1 else math.nan,
            "perplexity": math.exp(mean) if mean < 700 else math.nan,
            "problem": self.problem,
        }


def cell_of(line: str) -> dict[str, Any]:
    """A line of results.jsonl; a diverged run's loss is infinite."""
    row = json.loads(line)
    loss = math.inf if row["diverged"] or row["eval_loss"] is None else float(row["eval_loss"])
    return {
        "regime": str(row["regime"]),
        "schedule": FINER_PEAKS if row.get("finer") else str(row["schedule"]),
        "peak": float(row["peak"]),
        "seed": int(row["seed"]),
        "steps": int(row["steps"]),
        "baseline": row.get("role") == "baseline",
        "loss": loss if math.isfinite(loss) else math.inf,
        "curve": [
            (int(step), float(value)) for step, value in row.get("curve") or [] if math.isfinite(value or math.nan)
        ],
    }


def read_cells(folder: Path) -> pd.DataFrame:
    """The compared cells. A last line that was being written is left out, of repeated cells the last counts."""
    path = folder / "results.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder that a comparison has written.")
    lines = path.read_text().strip().split("\n")
    cells = []
    for number, line in enumerate(lines, start=1):
        try:
            cells.append(cell_of(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is no finished cell ({error!r}); remove the line.") from None
    if not cells:
        raise ValueError(f"{path} has no finished cell yet; run the comparison again, it goes on.")
    frame = pd.DataFrame(cells)
    frame = frame[~frame["baseline"]].drop(columns="baseline")
    key = ["regime", "schedule", "peak", "seed"]
    frame = frame.drop_duplicates([*key, "steps"], keep="last")
    if frame.duplicated(key).any():
        raise ValueError(f"{path} has the same cell with different numbers of steps; compare each in its own folder.")
    without_linear = set(frame["regime"]) - set(frame.loc[frame["schedule"] == "linear", "regime"])
    if frame.empty or without_linear:
        where = f" of {', '.join(sorted(without_linear))}" if without_linear else ""
        raise ValueError(f"{path} has no finished cell of linear{where}, which the others are compared with; run it.")
    return frame


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file that may be missing."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content


def read_schedules(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Multipliers at even progress, by regime and schedule."""
    return {
        regime: {str(name): np.array(grid, dtype=float) for name, grid in grids.items()}
        for regime, grids in read_json(path).items()
    }


def readable(read: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    try:
        return read(path)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it, the report does without.") from None


def at_best_peak(cells: pd.DataFrame, schedule: str) -> Tuned:
    """Choose the peak of the least mean loss over the seeds that every peak has, among peaks where no seed diverged."""
    losses = cells.pivot(index="seed", columns="peak", values="loss")
    safe = losses.columns[~np.isinf(losses).any()]
    common = losses.dropna()[safe]
    if common.empty:
        problem = "incomplete" if len(safe) else "diverged"
        return Tuned(schedule, math.nan, False, pd.Series(dtype=float), problem)
    peak = common.mean().idxmin()
    on_edge = losses.shape[1] > 1 and peak in (losses.columns.min(), losses.columns.max())
    return Tuned(schedule, float(peak), on_edge, common[peak])


def tune(cells: pd.DataFrame) -> dict[str, Tuned]:
    return {str(name): at_best_peak(group, str(name)) for name, group in cells.groupby("schedule")}


def paired(losses: pd.Series, reference: pd.Series) -> dict[str, Any]:
    """Mean difference over common seeds, its 95 % t-interval, the p-value of the paired t-test, and what they say."""
    differences = (losses - reference).dropna()
    count, mean = len(differences), differences.mean()
    if count < 2:
        return {"difference": mean, "low": math.nan, "high": math.nan, "p_value": math.nan, "verdict": "undecided"}
    error = differences.std() / math.sqrt(count)
    reach = stats.t.ppf(0.975, count - 1) * error
    p_value = 2 * stats.t.sf(abs(mean) / error, count - 1) if error > 0 else float(mean == 0)
    verdict = "better" if mean + reach < 0 else "worse" if mean - reach > 0 else "undecided"
    return {"difference": mean, "low": mean - reach, "high": mean + reach, "p_value": p_value, "verdict": verdict}


def comparison(schedule: Tuned, reference: Tuned) -> dict[str, Any]:
    """A row of a table."""
    return {
        **schedule.summary(),
        "reference": reference.schedule,
        "reference_peak": reference.peak,
        "reference_on_edge": reference.on_edge,
        **paired(schedule.losses, reference.losses),
    }


def main_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Every schedule at its best peak, against linear."""
    tuned = tune(cells[~cells["schedule"].isin([FINER_PEAKS, TWICE_THE_STEPS])])
    linear = tuned["linear"]
    rows = []
    for schedule in tuned.values():
        row = comparison(schedule, linear)
        if schedule is linear:
            row |= paired(linear.losses[:0], linear.losses)
        rows.append(row | ({"verdict": NONE} if schedule is linear or schedule.problem else {}))
    table = pd.DataFrame(rows).sort_values("mean", kind="stable", ignore_index=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def equal_compute_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Refined schedules against linear decay that has more peaks, or more steps."""
    names = set(cells["schedule"])
    references = []
    if FINER_PEAKS in names:
        linear = cells[cells["schedule"].isin(["linear", FINER_PEAKS])].drop_duplicates(["peak", "seed"])
        references.append(at_best_peak(linear, FINER_PEAKS))
    if TWICE_THE_STEPS in names:
        references.append(at_best_peak(cells[cells["schedule"] == TWICE_THE_STEPS], TWICE_THE_STEPS))
    refined = [at_best_peak(cells[cells["schedule"] == name], name) for name in REFINED if name in names]
    return pd.DataFrame(comparison(schedule, reference) for schedule in refined for reference in references)


def decimals_for(losses: pd.Series) -> int:
    """Four decimals, more for losses below 1."""
    least = losses.min()
    return min(8, 4 - math.floor(math.log10(least))) if 0 < least < 1 else 4


def p_value_in_words(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def written(row: Mapping[str, Any], decimals: int) -> dict[str, str]:
    """A row of a table as text, by heading."""
    loss, error = (f"{row[name]:.{decimals}f}" for name in ("mean", "standard_error"))
    difference, low, high = (f"{row[name]:+.{decimals}f}" for name in ("difference", "low", "high"))
    text = {
        "rank": NONE if row["problem"] else f"{row.get('rank', 0)}",
        "schedule": row["schedule"],
        "best peak": f"{row['peak']:g}{EDGE if row['on_edge'] else ''}",
        "compared with": row["reference"],
        "at peak": f"{row['reference_peak']:g}{EDGE if row['reference_on_edge'] else ''}",
        "seeds": f"{row['seeds']}",
        "final eval loss": row["problem"] or (f"{loss} ± {error}" if error != "nan" else loss),
        "perplexity": f"{row['perplexity']:.2f}",
        "difference to linear [95 % interval]": f"{difference} [{low}, {high}]" if low != "+nan" else difference,
        "p": p_value_in_words(row["p_value"]),
        "verdict": row["verdict"],
    }
    return {heading: NONE if value in ("nan", "+nan") else value for heading, value in text.items()}


def markdown(table: pd.DataFrame, decimals: int, without: Iterable[str]) -> str:
    rows = pd.DataFrame(written(row, decimals) for row in table.to_dict("records")).drop(columns=list(without))
    return aligned(rows)


def aligned(rows: pd.DataFrame) -> str:
    """A table of strings as markdown."""
    lines = [list(rows.columns), *rows.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def bound_table(
    table: pd.DataFrame, grids: Mapping[str, np.ndarray], smoothed: np.ndarray | None
) -> tuple[pd.DataFrame, list[str]]:
    """What the last-iterate bound says of the schedules, beside their measured losses and best peaks.

    Args:
        table: the rows of `main_table`.
        grids: multipliers at even progress from 0 to 1, by schedule; those without are left out.
        smoothed: L1 norms of the baseline at each update, or None.

    Returns:
        The table, and a sentence on how often bound and loss agree for each kind of norms.
    """
    measured = table[(table["problem"] == "") & table["schedule"].isin(list(grids))].set_index("schedule")
    steps = 1000 if smoothed is None else len(smoothed)
    progress = np.arange(steps) / steps
    schedules = {name: np.interp(progress, np.linspace(0, 1, len(grids[name])), grids[name]) for name in measured.index}
    norms = {"constant norms": np.ones(steps), **({} if smoothed is None else {"the baseline's norms": smoothed})}
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
            f"With {kind}, bound and loss put {(1 + agreement.statistic) / 2:.0%} of the pairs of schedules into the same order "
            f"(Kendall's tau {agreement.statistic:+.2f}, p {p_value_in_words(agreement.pvalue)})."
        )
    columns["best peak, measured"] = (measured["peak"] / measured["peak"]["linear"]).map("{:g}".format)
    return pd.DataFrame(columns, index=measured.index).reset_index(), sentences


def bound_section(regime: str, table: pd.DataFrame, grids: Mapping[str, np.ndarray], baseline: Path) -> str:
    """The table of the bound, as markdown, with its sentences."""
    norms = load_norms(baseline) if baseline.exists() else None
    smoothed = None if norms is None or norms.l1 is None else smooth_norms(norms.at_every_step("l1"))
    rows, sentences = bound_table(table, grids, smoothed)
    return "\n\n".join(
        [
            f"### What the bound says ({regime})",
            "The last-iterate bound of every schedule over linear decay's, each at its own best peak, and its best peak over "
            "linear decay's; best loss first. Schedules whose multipliers are not known beforehand are left out.",
            aligned(rows),
            " ".join(sentences),
        ]
    )


def notes(cells: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    edges = [f"{row['schedule']} ({row['peak']:g})" for row in table[table["on_edge"]].to_dict("records")]
    diverged = cells.loc[np.isinf(cells["loss"]), "schedule"].value_counts()
    by_schedule = ", ".join(f"{name} {count}" for name, count in diverged.items())
    return [
        "The loss is a mean over seeds ± its standard error. The difference to linear is paired by seed, each schedule "
        "at its own best peak; below 0 is better. Undecided: the interval holds 0, or there are fewer than 2 common "
        "seeds.",
        f"The best peak lies on the edge of the grid, and a better one may lie beyond it, for {', '.join(edges)}."
        if edges
        else "No best peak lies on the edge of the grid.",
        f"{len(cells[np.isinf(cells['loss'])])} of {len(cells)} runs diverged"
        + (f" ({by_schedule}); a peak where any seed diverged cannot be the best." if by_schedule else "."),
        "The best peak is chosen on the same seeds that are compared, so the differences are slightly optimistic for "
        "every schedule alike. P-values are not corrected for the number of schedules.",
    ]


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A color for each schedule; with warmup it is dashed. Refined lies on top."""
    names = sorted(set(names))
    bases = dict.fromkeys(name.removesuffix("+warmup") for name in names)
    palette = [colormaps["tab20"](index) for index in [2, *range(8, 20, 2), *range(1, 20, 2)]]
    others = [base for base in bases if base not in COLORS]
    colors = {**COLORS, **{base: palette[index % len(palette)] for index, base in enumerate(others)}}
    return {
        name: {
            "color": colors[name.removesuffix("+warmup")],
            "linestyle": "--" if name.endswith("+warmup") else "-",
            "zorder": 3 if name in REFINED else 2,
        }
        for name in names
    }


def limit_heights(axes: Axes, values: pd.Series, quantile: float) -> None:
    """Cut off what is far above, so that it does not squash the rest."""
    if values.notna().any():
        low, high = values.min(), values.quantile(quantile)
        margin = 0.08 * (high - low) or 0.05
        axes.set_ylim(low - margin, high + margin)


def draw_loss_by_peak(axes: Axes, cells: pd.DataFrame, table: pd.DataFrame, styles: Styles) -> None:
    losses = cells[cells["schedule"].isin(table["schedule"])].groupby(["schedule", "peak"])["loss"]
    num_peaks = cells.groupby("schedule")["peak"].nunique()
    names = [name for name in table["schedule"] if num_peaks[name] > 1 or num_peaks.max() == 1]
    means = losses.mean().replace(math.inf, math.nan)
    errors = losses.apply(lambda group: group.std() / math.sqrt(len(group)) if np.isfinite(group).all() else 0)
    for name in names:
        mean, error = means[name], errors[name].fillna(0)
        axes.plot(mean.index, mean, marker="o", markersize=4, label=name, **styles[name])
        axes.fill_between(mean.index, mean - error, mean + error, color=styles[name]["color"], alpha=0.12, linewidth=0)
    limit_heights(axes, means, 0.75)
    axes.set_xscale("log")
    ticks = sorted(cells.loc[cells["schedule"] == "linear", "peak"].unique())
    ticks = ticks[:: math.ceil(len(ticks) / 6)]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="peak learning rate", ylabel="final evaluation loss")


def draw_final_loss(axes: Axes, table: pd.DataFrame, styles: Styles) -> None:
    shown = table[(table["schedule"] == "linear") | table["difference"].notna()]
    reach = (shown["high"] - shown["difference"]).fillna(0)
    limit = 3 * (shown["difference"].abs() + reach).median()
    for place, (row, error) in enumerate(zip(shown.fillna({"difference": 0}).to_dict("records"), reach, strict=True)):
        color = styles[row["schedule"]]["color"]
        if row["difference"] > limit:
            axes.text(
                0.98 * limit, place, f"{row['difference']:+.3g} ± {error:.2g} →", color=color, ha="right", va="center"
            )
        else:
            axes.errorbar(row["difference"], place, xerr=error, fmt="o", color=color, capsize=3)
    if (shown["difference"] > limit).any():
        axes.set_xlim(right=limit)
    axes.axvline(0, color=COLORS["linear"], linewidth=1)
    axes.set_yticks(range(len(shown)), shown["schedule"])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("final evaluation loss minus linear's, paired by seed, with 95 % interval")


def draw_schedules(axes: Axes, grids: Mapping[str, np.ndarray], styles: Styles) -> None:
    for name, grid in grids.items():
        axes.plot(np.linspace(0, 1, len(grid)), grid, label=name, **styles[name])
    axes.set(xlabel="progress of the run", ylabel="fraction of the peak learning rate", ylim=(0, 1.05))


def mean_curves(cells: pd.DataFrame, table: pd.DataFrame) -> dict[str, pd.Series]:
    """The loss while training at each schedule's best peak, a mean over seeds; of long curves a running mean."""
    curves = {}
    for row in table.to_dict("records"):
        chosen = cells[(cells["schedule"] == row["schedule"]) & (cells["peak"] == row["peak"])]
        points = [point for curve in chosen["curve"] for point in curve]
        if points:
            curve = pd.DataFrame(points, columns=["step", "loss"]).groupby("step")["loss"].mean()
            window = max(1, len(curve) // 25)
            curves[row["schedule"]] = curve.rolling(window, center=True, min_periods=1).mean()
    return curves


def draw_training_curves(axes: Axes, curves: Mapping[str, pd.Series], styles: Styles) -> None:
    for name, curve in curves.items():
        axes.plot(curve.index, curve, label=name, linewidth=1.2, **styles[name])
    limit_heights(axes, pd.concat(list(curves.values())), 0.9)
    axes.set(xlabel="optimizer update", ylabel="loss while training, mean over seeds")


def save_picture(path: Path, draw: Callable[[Axes], None], title: str) -> None:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title(title)
    labels = axes.get_legend_handles_labels()[1]
    num_rows = max(len(labels), len(axes.get_yticks()))
    figure.set_figheight(max(4.5, 0.6 + 0.22 * num_rows))
    if len(labels) > 6:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    elif labels:
        axes.legend()
    figure.savefig(path, dpi=150)


def how_it_was_made(about: Mapping[str, Any]) -> str:
    """The entries of grid.json."""
    lines = ["## How it was made", ""]
    if about.get("commands"):
        lines += ["```bash", *map(str, about["commands"]), "```", ""]
    for name, value in about.items():
        if name == "seconds" and isinstance(value, int | float):
            lines.append(f"- duration: {value / 60:.1f} minutes")
        elif isinstance(value, dict):
            lines.append(f"- {name}: {', '.join(f'{key} {entry}' for key, entry in value.items())}")
        elif name != "commands":
            lines.append(f"- {name}: {value}")
    return "\n".join(lines)


def write_pictures(
    output: Path,
    regime: str,
    cells: pd.DataFrame,
    table: pd.DataFrame,
    grids: Mapping[str, np.ndarray],
    styles: Styles,
) -> dict[str, str]:
    """Write what there are data for; returns captions by file name."""
    pictures = {
        "loss_by_peak": (
            "Final loss by peak, with a band of one standard error. Diverged peaks, losses far above, and schedules at one peak alone are left out",
            partial(draw_loss_by_peak, cells=cells, table=table, styles=styles),
        ),
        "final_loss": ("Difference to linear at the best peaks", partial(draw_final_loss, table=table, styles=styles)),
    }
    if grids:
        pictures["schedules"] = ("The schedules", partial(draw_schedules, grids=grids, styles=styles))
    if curves := mean_curves(cells, table):
        draw = partial(draw_training_curves, curves=curves, styles=styles)
        pictures["training_curves"] = ("Loss while training, each schedule at its best peak", draw)
    slug = re.sub(r"[^a-z0-9]+", "_", regime.lower()).strip("_")
    for name, (_, draw) in pictures.items():
        save_picture(output / f"{slug}_{name}.png", draw, regime)
    return {f"{slug}_{name}.png": caption for name, (caption, _) in pictures.items()}


def regime_tables(regime: str, cells: pd.DataFrame, table: pd.DataFrame, equal: pd.DataFrame) -> str:
    """The tables of a regime, as markdown."""
    decimals = decimals_for(table["mean"])
    without = ["compared with", "at peak"]
    if regime.partition(",")[0] not in LANGUAGE_MODELS:
        without.append("perplexity")
    parts = [f"## {regime}", markdown(table, decimals, without), *notes(cells, table)]
    if len(equal):
        parts += [
            f"### At equal compute ({regime})",
            "The refined schedule costs the run that it was made from, too: so each refined schedule is compared with "
            "what linear decay does with such compute, a finer grid of peaks or twice the steps, paired by seed, all "
            "at their best peaks.",
            markdown(equal, decimals, ["rank", "final eval loss", "perplexity"]),
        ]
    return "\n\n".join(parts)


def write_report(folder: Path, output: Path, title: str) -> str:
    """Write the report, and the pictures and the CSV into the folder of its name; returns the tables."""
    cells = read_cells(folder)
    about = readable(read_json, folder / "grid.json")
    schedules = readable(read_schedules, folder / "schedules.json")
    styles = line_styles([*cells["schedule"], *(name for grids in schedules.values() for name in grids)])
    beside = output.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    report, tables, rows = [f"# {title}"], [], []
    for regime, group in cells.groupby("regime", sort=False):
        table, equal = main_table(group), equal_compute_table(group)
        captions = write_pictures(beside, str(regime), group, table, schedules.get(str(regime), {}), styles)
        tables.append(regime_tables(str(regime), group, table, equal))
        pictures = [f"![{caption}]({beside.name}/{name})\n\n*{caption}.*" for name, caption in captions.items()]
        report += [tables[-1], *pictures]
        if str(regime) in LANGUAGE_MODELS and len(schedules.get(str(regime), {})) > 2:
            report.append(bound_section(str(regime), table, schedules[str(regime)], folder / "baseline.jsonl"))
        rows += [{"regime": regime, **row} for part in (table, equal) for row in part.to_dict("records")]
    if about:
        report.append(how_it_was_made(about))
    output.write_text("\n\n".join(report) + "\n", encoding="utf-8")
    pd.DataFrame(rows).to_csv(beside / "tables.csv", index=False)
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with results.jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="the report; FOLDER.md unless given")
    parser.add_argument("--title", default="Comparison of learning-rate schedules")
    options = parser.parse_args()
    whole = options.folder.resolve()
    output = options.output or whole.with_name(f"{whole.name}.md")
    try:
        if output.suffix != ".md":
            raise ValueError(f"--output is {output}, but must be the report's file, ending in .md.")
        print(write_report(options.folder, output, options.title))
    except (ValueError, OSError) as error:
        parser.exit(2, f"report_comparison.py: error: {error}\n")
    print(f"\nThe report: {output}")


if __name__ == "__main__":
    main()
