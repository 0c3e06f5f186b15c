"""The report of the problem suite, made from the folders of its problems alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from hf_refined_schedule.schedules.refining import refine_sources

from .json_file import read_json
from .markdown_tables import markdown_table
from .problems import CHOOSING, PROBLEMS
from .protocol import CONTROLS, LINEAR, REFINED, RISING_IGNORED, WITHOUT_CAP, baseline_file
from .provenance import render_provenance
from .rules import CLIPPED_RULES, RULES
from .study_folder import FORECASTS_FILE, PROVENANCE_FILE, RESULTS_FILE
from .study_pictures import add_legend, style_of
from .study_report import summary_table, write_study_report
from .study_results import StudyResults, read_study, with_divergence_as_worst
from .thresholds import choose_threshold, figures_of

LINEAR_DECAY = "linear decay"
"""The advice of `check` not to refine."""


def finished_studies(folder: Path) -> dict[str, StudyResults]:
    """The studies of the problems that have all their test seeds, by name, in the order of the suite."""
    studies = {}
    for name in PROBLEMS:
        if (folder / name / RESULTS_FILE).is_file():
            study = read_study(folder / name)
            compared = set(study.losses.columns)
            if not study.is_under_way and set(WITHOUT_CAP) <= compared and not study.losses.isna().to_numpy().any():
                studies[name] = study
    return studies


def relative_difference(study: StudyResults, name: str, reference: str) -> float:
    """The mean difference of a schedule from a reference, as a fraction of the reference's loss."""
    losses = with_divergence_as_worst(study.losses)
    return float((losses[name] - losses[reference]).mean() / losses[reference].mean())


def descriptive_verdict(study: StudyResults, name: str, reference: str) -> str:
    """The verdict on a schedule by its own interval, without correction for several contrasts. The reference is undecided."""
    if name == reference:
        return "undecided"
    row = study.contrasts[reference].set_index("schedule").loc[name]
    return "better" if row["high"] < 0 else "worse" if row["low"] > 0 else "undecided"


def score_rules(studies: Mapping[str, StudyResults], names: Sequence[str]) -> pd.DataFrame:
    """Count how often each rule is better and worse than reference 2.

    Args:
        studies: the studies, by problem.
        names: the rules; one that a study lacks is scored on the others.

    Returns:
        Columns `problems`, `better`, `undecided`, `worse`, `mean` and `largest` (relative differences), indexed by rule. The
        first row is the choice of the protocol.
    """
    rows = {}
    for name in names:
        compared = [study for study in studies.values() if name in study.losses]
        verdicts = [descriptive_verdict(study, name, study.reference) for study in compared]
        differences = [relative_difference(study, name, study.reference) for study in compared]
        if compared:
            rows[name] = {
                "problems": len(compared),
                **{verdict: verdicts.count(verdict) for verdict in ("better", "undecided", "worse")},
                "mean": float(np.mean(differences)),
                "largest": max(differences),
            }
    columns = ["problems", "better", "undecided", "worse", "mean", "largest"]
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return scores.sort_values(["worse", "better", "mean"], ascending=[True, False, True])


def advice_of(forecasts: Sequence[Mapping[str, object]], baseline: int) -> str:
    """What `check` advises for a baseline: refined, rising norms ignored, or linear decay."""
    verdicts = {row["schedule"]: row["verdict"] for row in forecasts if row["baseline"] == baseline}
    if verdicts[REFINED] == "worth a refined run":
        return REFINED
    if verdicts[REFINED] == "doubtful" and verdicts[RISING_IGNORED] not in ("doubtful", "degenerate"):
        return RISING_IGNORED
    return LINEAR_DECAY


def is_right(study: StudyResults, advice: str, reference: str) -> bool:
    """Whether the advice was right, as the protocol defines it."""
    if advice == LINEAR_DECAY:
        return all(descriptive_verdict(study, name, reference) != "better" for name in (REFINED, RISING_IGNORED))
    return descriptive_verdict(study, advice, reference) == "better"


def advice_table(studies: Mapping[str, StudyResults], folders: Mapping[str, Path]) -> pd.DataFrame:
    """The advice of `check` on each baseline of each study, and whether it was right.

    Args:
        studies: the studies, by name.
        folders: the folder of each study.

    Returns:
        Columns `problem`, `half`, `check now` (the verdict of today's thresholds), `verdict` (as recorded beforehand), `advice`, how refined compared with each reference, `promise` and
        `gain` (of refined over reference 1), and whether `check`, `always` (rising norms ignored) and `never` were right against
        each reference.
    """
    rows = []
    for name, study in studies.items():
        forecasts = read_json(folders[name] / FORECASTS_FILE)["forecasts"]
        for baseline in sorted({row["baseline"] for row in forecasts}):
            kept = next(row for row in forecasts if row["baseline"] == baseline and row["schedule"] == REFINED)
            advice = advice_of(forecasts, baseline)
            health = refine_sources(baseline_file(folders[name], baseline)).health
            rows.append(
                {
                    "problem": name,
                    "half": "chooses" if name in CHOOSING else "tests",
                    "check now": None if health is None else health.verdict,
                    "verdict": kept["verdict"],
                    "advice": advice,
                    **{
                        f"refined, reference {number}": descriptive_verdict(study, REFINED, reference)
                        for number, reference in (("1", LINEAR), ("2", study.reference))
                    },
                    "promise": kept["promise"],
                    "gain": -relative_difference(study, REFINED, LINEAR),
                    **{
                        f"{who}, reference {number}": is_right(study, given, reference)
                        for number, reference in (("1", LINEAR), ("2", study.reference))
                        for who, given in (("check", advice), ("always", RISING_IGNORED), ("never", LINEAR_DECAY))
                    },
                }
            )
    return pd.DataFrame(rows)


def hits(advised: pd.DataFrame) -> str:
    """How often each way to advise was right, over baselines, as Markdown."""
    ways = {"check": "what check advises", "always": "always rising norms ignored", "never": "never refine"}
    rows = []
    for way, label in ways.items():
        row = {"advice": label}
        for number in ("1", "2"):
            right = advised[f"{way}, reference {number}"]
            row[f"right against reference {number}"] = f"{right.sum()} of {len(right)}"
        rows.append(row)
    return markdown_table(pd.DataFrame(rows))


def hits_by_verdict(advised: pd.DataFrame) -> str:
    """How often the advice of each verdict was right, as Markdown."""
    rows = [
        {
            "verdict": verdict,
            "advice": advice,
            "baselines": str(len(group)),
            "problems": ", ".join(group["problem"].unique()),
            "right against reference 1": f"{group['check, reference 1'].sum()}",
            "right against reference 2": f"{group['check, reference 2'].sum()}",
        }
        for (verdict, advice), group in advised.groupby(["verdict", "advice"])
    ]
    return markdown_table(pd.DataFrame(rows))


def new_threshold(studies: Mapping[str, StudyResults], folders: Mapping[str, Path]) -> str:
    """A threshold set on the half that chooses and scored on the half that tests, in a sentence for each reference."""
    halves = [[name for name in studies if (name in CHOOSING) == chooses] for chooses in (True, False)]
    if not all(halves):
        return "A new threshold needs problems of both halves."
    figures = [
        pd.concat({name: figures_of(folders[name]) for name in half}, names=["problem"]).reset_index("problem")
        for half in halves
    ]
    sentences = []
    for number in ("1", "2"):
        targets = []
        for rows in figures:
            better = {
                name: not is_right(studies[name], LINEAR_DECAY, LINEAR if number == "1" else studies[name].reference)
                for name in rows["problem"].unique()
            }
            targets.append(rows["problem"].map(better))
        threshold = choose_threshold(figures[0].drop(columns="problem"), targets[0])
        hits = [int((threshold.refines(rows) == target).sum()) for rows, target in zip(figures, targets, strict=True)]
        never = int((~targets[1]).sum())
        sentences.append(
            f"Against reference {number}, the threshold that is right most often on the half that chooses is to refine where *{threshold}*: "
            f"right for {hits[0]} of {len(targets[0])} baselines there, and for {hits[1]} of {len(targets[1])} on the half that "
            f"tests, where never to refine is right for {never}."
        )
    return " ".join(sentences)


def promise_and_gain(advised: pd.DataFrame) -> str:
    """How the promise of the bound went with the measured gain, in a sentence."""
    means = advised.groupby("problem")[["promise", "gain"]].mean()
    if len(means) < 3:
        return "Too few problems to compare the promise of the bound with the measured gain."
    rank = spearmanr(means["promise"], means["gain"]).statistic
    return (
        "The gain that the bound promises for refined over linear decay and the measured gain over reference 1 have a rank "
        f"correlation of {rank:+.2f} (Spearman, {len(means)} problems)."
    )


def outcomes_by_verdict(advised: pd.DataFrame) -> str:
    """How refined compared with reference 1 for each verdict of today's thresholds and each half, as Markdown."""
    rows = [
        {
            "verdict": verdict,
            "half": half,
            "baselines": str(len(group)),
            **{
                outcome: str((group["refined, reference 1"] == outcome).sum())
                for outcome in ("better", "undecided", "worse")
            },
        }
        for (verdict, half), group in advised.groupby(["check now", "half"], sort=False)
    ]
    return markdown_table(pd.DataFrame(rows).sort_values(["verdict", "half"], ascending=False))


def rule_table(scores: pd.DataFrame) -> str:
    """The scores of rules as Markdown."""
    table = scores.rename_axis("rule").reset_index()
    for column in ("mean", "largest"):
        table[f"{column} difference"] = table.pop(column).map(lambda value: f"{value:+.2%}")
    return markdown_table(table.astype(str))


def draw_suite(figure: Figure, studies: Mapping[str, StudyResults], rule: str) -> None:
    """Draw the relative difference of some schedules from reference 2, a row for each problem."""
    axes = figure.subplots()
    names = list(studies)
    shown = dict.fromkeys([REFINED, RISING_IGNORED, rule, LINEAR, "cosine", "WSD"])
    for offset, name in enumerate(shown):
        points = [
            (100 * relative_difference(study, name, study.reference), row + 0.1 * (offset - len(shown) / 2))
            for row, study in enumerate(studies.values())
            if name in study.losses
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", markersize=5, label=name, color=style_of(name)["color"])
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("difference in final loss from linear decay with the best warm-up, per cent of its loss")
    add_legend(axes)


def write_suite_report(folder: Path, others: Sequence[Path] = ()) -> str:
    """Write the report of the suite beside its folder, and that of each finished problem into it.

    Args:
        folder: the folder of the results.
        others: folders of other studies by the protocol, on which the rule and the verdict are tested, too.

    Returns:
        The summary table, as Markdown.

    Raises:
        ValueError: if no problem is finished.
    """
    studies = finished_studies(folder)
    if not studies:
        raise ValueError(f"No problem in {folder} is finished yet; run the suite again to continue it.")
    for name, study in studies.items():
        write_study_report(study, folder / name, folder / f"{name}.md", pictures=("differences",))
    choosing = {name: study for name, study in studies.items() if name in CHOOSING}
    testing = {name: study for name, study in studies.items() if name not in CHOOSING}
    candidates = [RISING_IGNORED, *RULES]
    chosen_scores = score_rules(choosing, candidates)
    rule = RISING_IGNORED if chosen_scores.empty else str(chosen_scores.index[0])
    figure = Figure(figsize=(10, 1.5 + 0.55 * len(studies)), layout="constrained")
    draw_suite(figure, studies, rule)
    figure.savefig(folder / "differences.png", dpi=130)
    summary = summary_table({folder / name: study for name, study in studies.items()})
    tested = {study.label: study for study in map(read_study, others)}
    everything = {**studies, **tested}
    folders = {**{name: folder / name for name in studies}, **dict(zip(tested, others, strict=True))}
    advised = advice_table(everything, folders)
    advised.to_csv(folder / "advice.csv", index=False, float_format="%.6g")
    chosen_rule = score_rules(everything, [rule])
    chosen_rule.to_csv(folder / "rule.csv", index_label="rule", float_format="%.6g")
    missing = [name for name in PROBLEMS if name not in studies]
    parts = [
        "# The problem suite",
        "Small problems of the kinds that arXiv 2310.07831 evaluates on, each studied by [the protocol](protocol.md). A negative difference is "
        "better. Each problem has a page with its setting and its peaks.",
        f"Not finished: {', '.join(missing)}." if missing else f"All {len(studies)} problems are finished.",
        problem_table(studies, folder),
        summary,
        f"![Differences]({folder.name}/differences.png)\n\n*Differences from reference 2, per cent of its loss; linear between -1 and "
        "1, logarithmic beyond.*",
        "## The rule",
        f"On the half of the problems that chooses ({', '.join(choosing) or 'none is finished'}), against reference 2:",
        rule_table(chosen_scores),
        "The controls need no norms: linear decay with one warm-up for all problems. On the same half:",
        rule_table(score_rules(choosing, CONTROLS)),
        f"The choice is *{rule}*. On the half that tests ({', '.join(testing) or 'none is finished'}), once:",
        rule_table(score_rules(testing, [*candidates, *CONTROLS, *CLIPPED_RULES])),
        *(
            [
                f"On other studies ({', '.join(tested)}):",
                rule_table(score_rules(tested, [RISING_IGNORED, rule, *CONTROLS])),
            ]
            if tested
            else []
        ),
        "## The verdict",
        f"What `check` said and advised by the thresholds that it had before the suite, for {len(advised)} baselines of "
        f"{len(everything)} problems and studies:",
        hits(advised),
        hits_by_verdict(advised),
        new_threshold(everything, folders),
        "The verdicts of today: a low promise of the bound is no verdict any more. How refined, by the rule of the paper, compared with "
        "linear decay without warm-up (reference 1):",
        outcomes_by_verdict(advised),
        promise_and_gain(advised),
        render_provenance(merged_provenance([read_json(folder / name / PROVENANCE_FILE) for name in studies])),
    ]
    folder.resolve().with_name(f"{folder.resolve().name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return summary


def problem_table(studies: Mapping[str, StudyResults], folder: Path) -> str:
    """What each problem is, as Markdown."""
    rows = [
        {
            "problem": f"[{name}]({folder.name}/{name}.md)",
            "stands for": PROBLEMS[name].counterpart,
            "optimizer": PROBLEMS[name].optimizer,
            "updates": str(PROBLEMS[name].steps),
            "half": "chooses" if name in CHOOSING else "tests",
            "loss of linear decay": f"{with_divergence_as_worst(study.losses)[LINEAR].mean():.4g}",
            "best warm-up": study.reference.partition(", ")[2].removesuffix(" warm-up") or "none",
        }
        for name, study in studies.items()
    ]
    return markdown_table(pd.DataFrame(rows))


def merged_provenance(records: Sequence[dict[str, object]]) -> dict[str, object]:
    """One record of several: all commands, and the sum of the times."""
    commands = dict.fromkeys(command for record in records for command in record.get("commands", []))  # type: ignore[attr-defined]
    seconds = sum(float(record.get("seconds", 0.0)) for record in records)  # type: ignore[arg-type]
    return {**records[-1], "commands": list(commands), "seconds": seconds}
