"""The report of the problem suite, made from the folders of its problems alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hf_refined_schedule.theory.bounded_warmup import SHORTEST_WARMUP

from .json_file import read_json, write_json
from .markdown_tables import markdown_table
from .problems import CHOOSING, PROBLEMS
from .protocol import CONTROLS, LINEAR, REFINED, RISING_IGNORED
from .provenance import merge_provenance, render_provenance
from .report_tables import describe_seeds
from .rule_scores import descriptive_verdict, is_scored, relative_difference, rule_table, score_rules
from .rules import BETWEEN_WARMUPS, CLIPPED_RULES, RULES
from .study_folder import PROVENANCE_FILE, SCHEDULES_FILE, report_file
from .study_pictures import add_legend, style_of
from .study_report import has_shortest_warmup, link_to_protocol, summary_table, write_study_report
from .study_results import StudyResults, read_studies, read_study, with_divergence_as_worst
from .verdict_scores import (
    advice_table,
    describe_promise_and_gain,
    hits,
    hits_by_verdict,
    new_threshold,
    outcomes_by_verdict,
    problems_by_verdict,
    refined_outcomes,
    track_record,
)

TICKS = (-30, -10, -3, -1, 0, 1, 3, 10, 30)
"""Per cent."""


def finished_studies(folder: Path) -> dict[str, StudyResults]:
    """The studies of the problems that have ended, by name, in the order of the suite."""
    return {name: read_study(folder / name) for name in PROBLEMS if (folder / name / SCHEDULES_FILE).is_file()}


def in_short(rule: str, groups: Mapping[str, Mapping[str, StudyResults]], advised: pd.DataFrame) -> str:
    """The results in a few lines, as Markdown.

    Args:
        rule: the rule that was chosen.
        groups: studies, by the words that say where they count. A schedule that only some of them ran is not counted there.
        advised: of `advice_table`.
    """
    scores = {where: score_rules(studies, [rule, *CONTROLS]).to_dict("index") for where, studies in groups.items()}
    lines = []
    for name in (rule, *CONTROLS):
        counts = [
            f"{score['better']} better, {score['worse']} worse of {score['problems']} {where}"
            for where, score in ((where, of_group.get(name)) for where, of_group in scores.items())
            if score and score["problems"] == len(groups[where])
        ]
        option = " (`bounded_warmup`)" if name == BETWEEN_WARMUPS else ""
        lines.append(f"- *{name}*{option}: {'; '.join(counts) or 'not run'}.")
    lines.append(f"- {aim(rule, {name: study for studies in groups.values() for name, study in studies.items()})}")
    outcomes = []
    for verdict, problems in problems_by_verdict(advised).items():
        counts = refined_outcomes(problems)
        outcomes.append(f"*{verdict}* {counts['better']} better, {counts['worse']} worse of {len(problems)}")
    lines.append(
        "- The rule of the paper against plain linear decay, by the verdict of `check` on the baselines (a problem with several verdicts "
        f"counts under each): {'; '.join(sorted(outcomes, reverse=True))}."
    )
    return "\n".join(lines)


def draw_suite(figure: Figure, studies: Mapping[str, StudyResults], rule: str) -> None:
    """Draw the relative difference of some schedules from both references, a row for each problem."""
    names = list(studies)
    panels = figure.subplots(1, 2, sharey=True)
    shown = dict.fromkeys([REFINED, RISING_IGNORED, rule, LINEAR, "cosine", "WSD"])
    for axes, best_warmup in zip(panels, (False, True), strict=True):
        for offset, name in enumerate(shown):
            points = [
                (
                    100 * relative_difference(study, name, study.reference if best_warmup else LINEAR),
                    row + 0.1 * (offset - len(shown) / 2),
                )
                for row, study in enumerate(studies.values())
                if name in study.losses
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o", markersize=5, label=name, color=style_of(name)["color"])
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS])
        axes.set_title(f"against linear decay{' with the best warm-up' if best_warmup else ''}", fontsize="medium")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("difference in final loss, % of the reference's")
    seeds = describe_seeds(len(study.losses) for study in studies.values())
    figure.suptitle(f"{len(names)} problems, each schedule at its best peak ({seeds})")
    add_legend(panels[1])


def write_suite_report(folder: Path, others: Sequence[Path] = ()) -> str:
    """Write the report of the suite beside its folder, and that of each finished problem into it.

    Args:
        folder: the folder of the results.
        others: folders of other studies by the protocol, on which the rule and the verdict are tested, too, unless they are
            under way.

    Returns:
        The summary table, as Markdown.

    Raises:
        ValueError: if no problem is finished, or two of the other studies have one label.
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
    figure = Figure(figsize=(14, 1.5 + 0.55 * len(studies)), layout="constrained")
    draw_suite(figure, studies, rule)
    figure.savefig(folder / "differences.png", dpi=130)
    summary = summary_table({folder / name: study for name, study in studies.items()})
    read = read_studies(others)
    tested = {study.label: study for study in read.values()}
    if len(tested) < len(read):
        raise ValueError("Two of the studies have the same label; give each its own --label.")
    everything = {**studies, **tested}
    folders = {name: folder / name for name in studies} | {study.label: other for other, study in read.items()}
    advised = advice_table(everything, folders)
    advised.to_csv(folder / "advice.csv", index=False, float_format="%.6g")
    bounded_warmup = score_rules(everything, [BETWEEN_WARMUPS]).to_dict("index").get(BETWEEN_WARMUPS)
    write_json(folder / "track_record.json", track_record(advised, bounded_warmup), indent=1)
    missing = [name for name in PROBLEMS if name not in studies]
    output = report_file(folder)
    parts = [
        "# The problem suite",
        f"Small problems of the kinds that arXiv 2310.07831 evaluates on, each studied by {link_to_protocol(output)}. A negative difference is "
        "better. Each problem has a page with its setting and its peaks.",
        f"Not finished: {', '.join(missing)}." if missing else f"All {len(studies)} problems are finished.",
        "Against linear decay after the best of five warm-ups, with 95 % intervals:",
        in_short(
            rule,
            {
                "where the rule was chosen": choosing,
                "where it was tested": testing,
                "in the studies of fine-tuning and from scratch": tested,
            },
            advised,
        )
        + shortest_warmups([folders[name] for name in everything]),
        problem_table(studies, folder),
        summary,
        f"![Differences]({folder.name}/differences.png)\n\n*Differences from both references, per cent of their loss; linear between -1 "
        "and 1, logarithmic beyond. The tables have the intervals.*",
        "## The rule",
        f"On the half of the problems that chooses ({', '.join(choosing) or 'none is finished'}), against reference 2:",
        rule_table(chosen_scores),
        "The controls need no norms: linear decay with one warm-up for all problems; where that is reference 2, it counts as undecided. "
        "On the same half:",
        rule_table(score_rules(choosing, CONTROLS)),
        f"The choice is *{rule}*. On the half that tests ({', '.join(testing) or 'none is finished'}), once:",
        rule_table(score_rules(testing, [*candidates, *CONTROLS, *CLIPPED_RULES])),
        *(
            [
                f"On the studies of fine-tuning and from scratch ({'; '.join(f'*{label}*' for label in tested)}):",
                rule_table(score_rules(tested, [RISING_IGNORED, rule, *CONTROLS])),
            ]
            if tested
            else []
        ),
        "## The verdict",
        f"What `check` said and advised by the thresholds that it had before the suite, for {len(advised)} baselines of "
        f"{advised['problem'].nunique()} problems and studies:",
        hits(advised),
        hits_by_verdict(advised),
        new_threshold({name: everything[name] for name in advised["problem"].unique()}, folders),
        "By today's verdicts, in which a low promise of the bound plays no part: refined, by the rule of the paper, against linear decay "
        "without warm-up (reference 1):",
        outcomes_by_verdict(advised),
        describe_promise_and_gain(advised),
        render_provenance(suite_provenance([read_json(folder / name / PROVENANCE_FILE) for name in studies])),
    ]
    output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return summary


def suite_provenance(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The merged provenance of problems, of which several ran at the same time."""
    merged = merge_provenance(records)
    seconds = merged.pop("seconds")
    return {**merged, "time of all problems": f"{seconds / 60:.1f} minutes"}


def aim(rule: str, studies: Mapping[str, StudyResults]) -> str:
    """Whether the rule reached the aim of the protocol over all problems and studies, and where it failed."""
    compared = [study for study in studies.values() if is_scored(study, rule)]
    verdicts = [descriptive_verdict(study, rule, study.reference) for study in compared]
    worse = [
        f"{study.label}, "
        + (
            "diverged at every peak"
            if study.diverged_everywhere(rule)
            else f"by {relative_difference(study, rule, study.reference):.1%} of the loss"
        )
        for study, verdict in zip(compared, verdicts, strict=True)
        if verdict == "worse"
    ]
    better = verdicts.count("better")
    reached = not worse and 3 * better >= len(compared)
    return (
        f"Over all {len(compared)} problems and studies, *{rule}* is better than linear decay with the best warm-up in {better}, undecided in "
        f"{verdicts.count('undecided')}, and worse in {len(worse)}{' (' + '; '.join(worse) + ')' if worse else ''}. The aim, never "
        f"worse and better in a third, is {'reached' if reached else 'missed'}."
    )


def shortest_warmups(folders: Sequence[Path]) -> str:
    """In how many studies the bound, not the norms, decides the warm-up, as the last item of a list; empty if none has the rule."""
    found = [flags for folder in folders if (flags := has_shortest_warmup(folder))]
    return (
        f"\n- In {sum(map(all, found))} of {len(found)}, *{BETWEEN_WARMUPS}* is linear decay after its shortest warm-up, "
        f"{SHORTEST_WARMUP:.0%} of the run, from every baseline: the norms ask for less."
        if found
        else ""
    )


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
