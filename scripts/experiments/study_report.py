"""The report of a study by results/protocol.md, made from the files of its folder alone."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hf_refined_schedule.schedules.schedule_file import read_schedule
from hf_refined_schedule.theory.bounded_warmup import SHORTEST_WARMUP, bound_warmup
from hf_refined_schedule.theory.classical import WARMUP

from .json_file import read_json
from .markdown_tables import NOT_AVAILABLE, markdown_table
from .protocol import (
    FROZEN_PROMISE,
    LINEAR,
    LINEAR_SCHEDULES,
    LINEAR_WILL_DO,
    NUM_BASELINES,
    PRIMARY,
    REFINED,
    RISING_IGNORED,
    SCHEDULES,
    SELECTION,
    SUMMARIZED,
    WORTH_A_RUN,
    baseline_file,
    baseline_index,
    compared_rows,
    in_todays_words,
)
from .provenance import render_provenance
from .report import read_schedules
from .report_tables import format_p_value, num_decimals
from .rules import ALL_RULES, BETWEEN_WARMUPS, rule_file
from .settings import setting_section
from .statistics import paired_difference
from .study_folder import FORECASTS_FILE, PROVENANCE_FILE, SCHEDULES_FILE
from .study_pictures import draw_differences, draw_loss_by_peak, draw_schedules, save_picture
from .study_results import MARGIN, StudyResults, with_divergence_as_worst

PROTOCOL_FILE = Path(__file__).resolve().parents[2] / "results" / "protocol.md"

SMALL_PROMISE = (
    f"the bound promises less than {FROZEN_PROMISE:.0%} over linear decay, both after the same warm-up of {WARMUP:.0%}"
)
"""Why `check` advised linear decay at the time of the protocol though the schedule was sound."""

MEANINGS = {
    RISING_IGNORED: f'*{RISING_IGNORED}* is the option `rising_norms="ignore"`',
    BETWEEN_WARMUPS: f"*{BETWEEN_WARMUPS}* is the option `bounded_warmup`",
}
"""The options of the package that give the schedules whose names do not say it."""

OTHER_PEAKS = (
    "The selection seeds did not choose these peaks, and these runs count in no verdict. They are controls at a peak between those of the grid, "
    "or their peak was the best until the grid was widened. Losses are means over the seeds that did not diverge."
)


def link_to_protocol(report: Path) -> str:
    """The Markdown link from a report to the page of the protocol."""
    return f"[the protocol]({Path(os.path.relpath(PROTOCOL_FILE, report.resolve().parent)).as_posix()})"


def comparison_table(study: StudyResults, grids: dict[str, Any]) -> pd.DataFrame:
    """The main table of a study, formatted, with both references in every row."""
    losses = with_divergence_as_worst(study.losses)
    against = {reference: contrasts.set_index("schedule") for reference, contrasts in study.contrasts.items()}
    decimals = num_decimals(losses.mean())
    rows = []
    for name in losses.columns:
        tuned = study.choices.tuned[name]
        row = {
            "schedule": _row_name(study, name),
            "peak": f"{tuned.peak:g}{' (edge)' if tuned.on_edge else ''}",
            "highest rate / peak, first baseline": f"{np.max(grids[name]):.2f}" if name in grids else NOT_AVAILABLE,
            "final loss": f"{losses[name].mean():.{decimals}f}",
        }
        for number, reference in (("1", LINEAR), ("2", study.reference)):
            row[f"vs reference {number} [95 % interval]"] = format_contrast(against[reference], name, decimals)
        contrasts = against[study.reference]
        row["p, Holm"] = NOT_AVAILABLE
        row["verdict vs reference 2"] = NOT_AVAILABLE
        if name in contrasts.index:
            corrected = contrasts.loc[name, "corrected"]
            row["p, Holm"] = NOT_AVAILABLE if math.isnan(corrected) else format_p_value(corrected)
            row["verdict vs reference 2"] = contrasts.loc[name, "verdict"]
        rows.append(row)
    return pd.DataFrame(rows)


def _row_name(study: StudyResults, name: str) -> str:
    """The schedule, the references that it is, and on how many seeds it ran, if not on all."""
    remarks = [f"reference {' and '.join(numbers)}"] if (numbers := reference_numbers(study, name)) else []
    if (ran := study.losses[name].count()) < len(study.losses):
        remarks.append(f"{ran} of {len(study.losses)} seeds")
    return f"{name} ({', '.join(remarks)})" if remarks else name


def reference_numbers(study: StudyResults, name: str) -> list[str]:
    """The references that a schedule is: "1", "2", both or none."""
    return [number for number, reference in (("1", LINEAR), ("2", study.reference)) if name == reference]


def format_contrast(contrasts: pd.DataFrame, name: str, decimals: int) -> str:
    """A difference with its interval."""
    if name not in contrasts.index:
        return NOT_AVAILABLE
    return _difference_text(contrasts.loc[name], decimals)


def _difference_text(row: Mapping[str, Any] | pd.Series, decimals: int) -> str:
    """A difference with its interval, which a single seed does not have."""
    if math.isnan(row["difference"]):
        return NOT_AVAILABLE
    difference, low, high = (f"{row[key]:+.{decimals}f}" for key in ("difference", "low", "high"))
    return difference if math.isnan(row["low"]) else f"{difference} [{low}, {high}]"


def forecast_table(folder: Path) -> str:
    """What `check` and the bound said about each baseline before the outcome, as Markdown."""
    forecasts = read_json(folder / FORECASTS_FILE).get("forecasts", [])
    earlier = [f"*{name}*" for name in (LINEAR_WILL_DO, WORTH_A_RUN) if name in {row["verdict"] for row in forecasts}]
    rows = [
        {
            "baseline": row["baseline"],
            "schedule": row["schedule"],
            "verdict of check": row["verdict"],
            "bound below linear's by": f"{row['promise']:.1%}",
            "best peak / linear's": f"{row['best_peak_ratio']:.2f}",
            "reasons": "; ".join(row["reasons"])
            or (SMALL_PROMISE if row["verdict"] == LINEAR_WILL_DO else NOT_AVAILABLE),
        }
        for row in forecasts
    ]
    if not rows:
        return "No forecasts were recorded."
    note = (
        f"\n\nAn earlier version of `check` said {' and '.join(earlier)} of schedules that are *sound* today."
        if earlier
        else ""
    )
    return markdown_table(pd.DataFrame(rows)) + note


def selection_table(study: StudyResults) -> str:
    """The mean loss of the selection seeds by schedule and peak, as Markdown."""
    rows = study.cells[study.cells["role"] == SELECTION]
    means = rows.pivot_table(index="schedule", columns="peak", values="loss", sort=False, dropna=False)
    means = means.loc[[name for name in SCHEDULES if name in means.index], sorted(means.columns)]
    decimals = num_decimals(rows.loc[np.isfinite(rows["loss"]), "loss"])
    table = means.map(lambda loss: _loss_text(loss, decimals)).reset_index()
    return markdown_table(table.rename(columns={peak: f"{peak:g}" for peak in means.columns}))


def other_peaks_table(study: StudyResults) -> str:
    """The test runs at peaks that the selection seeds did not choose, as Markdown; empty if there are none."""
    tested = compared_rows(study.cells)
    chosen = tested["schedule"].map({name: best.peak for name, best in study.choices.tuned.items()})
    decimals = num_decimals(with_divergence_as_worst(study.losses).mean())
    rows = []
    for (name, peak), runs in tested[tested["peak"] != chosen].groupby(["schedule", "peak"], sort=False):
        losses = runs.groupby("seed")["loss"].last()
        diverged = int(np.isinf(losses).sum())
        row = {
            "schedule": name,
            "peak": f"{peak:g}",
            "seeds": f"{len(losses)}{f', {diverged} diverged' if diverged else ''}",
            "final loss": _loss_text(losses[np.isfinite(losses)].mean(), decimals)
            if diverged < len(losses)
            else "diverged",
        }
        for number, reference in (("1", LINEAR), ("2", study.reference)):
            row[f"vs reference {number} [95 % interval]"] = _paired(losses, study.losses[reference], decimals)
        if BETWEEN_WARMUPS in study.losses:
            row[f"{BETWEEN_WARMUPS} vs it [95 % interval]"] = _paired(study.losses[BETWEEN_WARMUPS], losses, decimals)
        rows.append(row)
    return markdown_table(pd.DataFrame(rows)) if rows else ""


def _paired(losses: pd.Series, others: pd.Series, decimals: int) -> str:
    """The difference on the seeds that neither diverged on."""
    finite = [runs[np.isfinite(runs)] for runs in (losses, others)]
    return _difference_text(paired_difference(*finite), decimals)


def _loss_text(loss: float, decimals: int) -> str:
    if math.isnan(loss):
        return NOT_AVAILABLE
    return "diverged" if math.isinf(loss) else f"{loss:.{decimals}f}"


def write_study_report(
    study: StudyResults,
    folder: Path,
    output: Path,
    *,
    pictures: Sequence[str] = ("differences", "loss_by_peak", "schedules"),
) -> str:
    """Write the report of a study, its pictures, and tables.csv.

    Args:
        study: the results, with test seeds of both references.
        folder: the folder of the study.
        output: the Markdown file; pictures go into the folder that has its name without the suffix.
        pictures: which pictures to draw.

    Returns:
        The main table, as Markdown.
    """
    grids = read_schedules(folder / SCHEDULES_FILE).get(study.label, {})
    place = output.with_suffix("")
    place.mkdir(parents=True, exist_ok=True)
    draw = {
        "differences": partial(draw_differences, study=study),
        "loss_by_peak": partial(draw_loss_by_peak, study=study),
    }
    if grids:
        draw["schedules"] = partial(draw_schedules, grids=grids, reference=study.reference)
    draw = {name: function for name, function in draw.items() if name in pictures}
    seeds = len(study.losses)
    num_selection = study.cells.loc[study.cells["role"] == SELECTION, "seed"].nunique()
    selection = f"{num_selection} selection seed{'s' if num_selection > 1 else ''}"
    shown = {"differences": f"{seeds} test seeds", "loss_by_peak": selection, "schedules": "from the first baseline"}
    for name, function in draw.items():
        save_picture(place / f"{name}.png", function, f"{study.label} ({shown[name]})")
    captions = {
        "differences": "Difference in final loss from each reference, with 95 % intervals",
        "loss_by_peak": "Final loss of the selection seeds by peak, as the difference from the best of reference 2",
        "schedules": "The schedules; refined ones from the first baseline",
    }
    table = markdown_table(comparison_table(study, grids))
    form = " in its reduced form" if study.reduced else ""
    others = other_peaks_table(study)
    other_peaks = ["## Test runs at other peaks", OTHER_PEAKS, others] if others else []
    parts = [
        f"# {study.label}",
        f"By {link_to_protocol(output)}{form}. Reference 1 is linear decay, reference 2 linear decay with the best warm-up of 0, 2, 5, 10 and "
        f"20 % of the run. This warm-up and all peaks are chosen on {selection}, which {'are' if num_selection > 1 else 'is'} not compared. "
        f"Refined schedules come from {NUM_BASELINES} other runs of linear decay, the baselines, one of them for each test seed. "
        f"Test seeds: {seeds}. Differences are paired by seed; a negative one is better.",
        table,
        f"{notes(study)} {note_on_shortest_warmup(folder)}".strip(),
        *(f"![{captions[name]}]({place.name}/{name}.png)\n\n*{captions[name]}.*" for name in draw),
        *other_peaks,
        "## What was forecast",
        f"Recorded from each baseline, linear decay at the peak {study.choices.tuned[LINEAR].peak:g}, before any test seed ran:",
        forecast_table(folder),
        "## Choice of peaks",
        f"Final loss, mean over {selection}:",
        selection_table(study),
        setting_section(folder, [baseline_file(folder, index) for index in range(NUM_BASELINES)]),
        render_provenance(read_json(folder / PROVENANCE_FILE)),
    ]
    output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    tables = pd.concat(study.contrasts, names=["compared with"]).reset_index(level=0)
    tables.to_csv(place / "tables.csv", index=False, float_format="%.12g")
    return table


def notes(study: StudyResults) -> str:
    """The paragraph below the main table."""
    edges = [name for name in study.losses.columns if study.choices.tuned[name].on_edge]
    diverged = int(np.isinf(study.losses).to_numpy().sum())
    tuned = {name: best for name, best in study.choices.tuned.items() if name not in LINEAR_SCHEDULES}
    hopeless = [name for name, best in tuned.items() if best.problem == "diverged"]
    missing = [name for name in tuned if name not in study.losses.columns and name not in hopeless]
    unfinished = sorted({*compared_rows(study.cells)["seed"]} - {*study.losses.index})
    unclear = unclear_over_baselines(study)
    sentences = [
        " ".join(f"{meaning}." for name, meaning in MEANINGS.items() if name in study.losses),
        f'"No worse" means that the interval ends below {100 * MARGIN:g} % of the loss of reference 2.',
        f"The best peak is on the edge of the grid for {', '.join(edges)}." if edges else "",
        "Test seeds that share a baseline share a schedule. Averaged to one value for each baseline, these differences are not significant: "
        f"{'; '.join(unclear)}."
        if unclear
        else "",
        f"{diverged} test runs diverged and count as the worst of their seed." if diverged else "No test run diverged.",
        f"Diverged at every peak: {', '.join(hopeless)}." if hopeless else "",
        f"Not compared yet: {', '.join(missing)}." if missing else "",
        f"Test seeds that are not finished are left out: {', '.join(map(str, unfinished))}." if unfinished else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def has_shortest_warmup(folder: Path) -> list[bool]:
    """Whether `bounded_warmup` gives linear decay after its shortest warm-up, for each baseline that has its schedule.

    Args:
        folder: the folder of the study.
    """
    found = []
    for path in (rule_file(folder, BETWEEN_WARMUPS, index) for index in range(NUM_BASELINES)):
        if path.exists():
            grid = read_schedule(path).grid
            found.append(bool(np.allclose(grid, bound_warmup(np.linspace(1, 0, len(grid))), atol=1e-6)))
    return found


def note_on_shortest_warmup(folder: Path) -> str:
    """From how many baselines the bound, not the norms, decides the warm-up, in a sentence; empty if from none."""
    found = has_shortest_warmup(folder)
    return (
        f"From {sum(found)} of {len(found)} baselines, *{BETWEEN_WARMUPS}* is linear decay after its shortest warm-up, "
        f"{SHORTEST_WARMUP:.0%} of the run: the norms ask for less."
        if any(found)
        else ""
    )


def unclear_over_baselines(study: StudyResults) -> list[str]:
    """Contrasts that are significant over test seeds, but not over the means of the test seeds that share a baseline.

    Only refined schedules come from a baseline. Where every test seed has a baseline of its own, both are the same.
    """
    losses = with_divergence_as_worst(study.losses)
    means = losses.groupby(baseline_index).mean()
    unclear = []
    if len(means) == len(losses):
        return []
    refined = [name for name in losses if name in ALL_RULES or name.startswith((REFINED, RISING_IGNORED))]
    for reference, contrasts in study.contrasts.items():
        verdicts = contrasts.set_index("schedule")["verdict"]
        significant = [name for name in refined if verdicts.get(name, "").startswith(("better", "worse"))]
        unclear += [
            f"*{name}* against *{reference}*"
            for name in significant
            if paired_difference(means[name], means[reference])["verdict"] == "undecided"
        ]
    return unclear


def summary_table(studies: Mapping[Path, StudyResults]) -> str:
    """A row for each study, as Markdown: in each cell the contrast with reference 1, below it that with reference 2.

    Args:
        studies: the results, by the folder of the study.
    """
    rows = []
    for folder, study in studies.items():
        decimals = num_decimals(with_divergence_as_worst(study.losses).mean())
        references = list(study.contrasts)
        row = {
            "setting": f"{study.label} ({len(study.losses)} seeds{', reduced' if study.reduced else ''})",
            "check beforehand": forecast_summary(folder),
            "difference from": references if len(references) > 1 else [f"{LINEAR} (0 % warm-up is best)"],
        }
        for name in SUMMARIZED:
            row[_heading(name)] = [
                f"{format_contrast(contrasts, name, decimals)} {contrasts['verdict'].get(name, without_test(study, name))}"
                for contrasts in (study.contrasts[reference].set_index("schedule") for reference in references)
            ]
        rows.append(row)
    return markdown_table(pd.DataFrame(rows))


def _heading(name: str) -> str:
    if name == BETWEEN_WARMUPS:
        return f"{name} (`bounded_warmup`)"
    return f"{name} (primary)" if name in PRIMARY else name


def without_test(study: StudyResults, name: str) -> str:
    """Why a schedule has no verdict."""
    tuned = study.choices.tuned.get(name)
    return "diverged at every peak" if tuned is not None and tuned.problem == "diverged" else "not run"


def forecast_summary(folder: Path) -> str:
    """The verdicts of `check` on the baselines by the rule of the paper, in today's words, with their counts."""
    forecasts = read_json(folder / FORECASTS_FILE).get("forecasts", [])
    counts = Counter(in_todays_words(row["verdict"]) for row in forecasts if row["schedule"] == REFINED)
    return ", ".join(
        verdict if len(counts) == 1 else f"{verdict} ({count} of {counts.total()})"
        for verdict, count in counts.most_common()
    )
