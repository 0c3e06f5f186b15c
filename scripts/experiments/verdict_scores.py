"""What the verdicts and the advice of `check` were worth in the studies that followed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from scipy.stats import spearmanr

from hf_refined_schedule.schedules.health import PROMISE, Verdict
from hf_refined_schedule.schedules.refining import refine_sources

from .json_file import read_json
from .markdown_tables import markdown_table
from .problems import CHOOSING
from .protocol import LINEAR, REFINED, RISING_IGNORED, WORTH_A_RUN, baseline_file
from .rule_scores import descriptive_verdict, is_scored, relative_difference
from .study_folder import FORECASTS_FILE
from .study_results import StudyResults
from .thresholds import choose_threshold, figures_of

VERDICTS = get_args(Verdict)

LINEAR_DECAY = "linear decay"
"""The advice of `check` not to refine."""


def advice_of(forecasts: Sequence[Mapping[str, object]], baseline: int) -> str:
    """What `check` advises for a baseline: refined, rising norms ignored, or linear decay."""
    verdicts = {row["schedule"]: row["verdict"] for row in forecasts if row["baseline"] == baseline}
    if verdicts[REFINED] == WORTH_A_RUN:
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
        studies: the studies, by name. One that lacks refined or rising norms ignored is left out.
        folders: the folder of each study.

    Returns:
        Columns `problem`, `half`, `check now` (the verdict of today's thresholds), `verdict` (as recorded beforehand), `advice`, how refined compared with each reference, `promise` (recorded beforehand,
        without warm-up), `promise now` (as `check` prints it, with 5 % warm-up), `gain` (of refined over reference 1), and whether `check`, `always` (rising norms ignored) and `never` were right against
        each reference.
    """
    rows = []
    for name, study in studies.items():
        if not all(is_scored(study, schedule) for schedule in (REFINED, RISING_IGNORED)):
            continue
        forecasts = read_json(folders[name] / FORECASTS_FILE)["forecasts"]
        for baseline in sorted({row["baseline"] for row in forecasts}):
            kept = next(row for row in forecasts if row["baseline"] == baseline and row["schedule"] == REFINED)
            advice = advice_of(forecasts, baseline)
            health = refine_sources(baseline_file(folders[name], baseline)).health
            promises = (
                [] if health is None else [figure.value for figure in health.findings if figure.name == PROMISE.name]
            )
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
                    "promise now": promises[0] if promises else math.nan,
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
        right = [int((threshold.refines(rows) == target).sum()) for rows, target in zip(figures, targets, strict=True)]
        never = int((~targets[1]).sum())
        sentences.append(
            f"Against reference {number}, the threshold that is right most often on the half that chooses is to refine where *{threshold}*: "
            f"right for {right[0]} of {len(targets[0])} baselines there, and for {right[1]} of {len(targets[1])} on the half that "
            f"tests, where never to refine is right for {never}."
        )
    return " ".join(sentences)


def promise_and_gain(advised: pd.DataFrame, promise: str) -> float:
    """Spearman's rank correlation, over problems, of the promise of the bound with the measured gain; NaN below three problems.

    Args:
        advised: the output of `advice_table`.
        promise: its column, `"promise"` or `"promise now"`.
    """
    means = advised.groupby("problem")[[promise, "gain"]].mean().dropna()
    return math.nan if len(means) < 3 else float(spearmanr(means[promise], means["gain"]).statistic)


def describe_promise_and_gain(advised: pd.DataFrame) -> str:
    """How the promise of the bound went with the measured gain, in a sentence."""
    beforehand, now = (promise_and_gain(advised, promise) for promise in ("promise", "promise now"))
    if math.isnan(beforehand):
        return "Too few problems to compare the promise of the bound with the measured gain."
    return (
        "The gain that the bound promises for refined over linear decay and the measured gain over reference 1 have a rank "
        f"correlation of {beforehand:+.2f} (Spearman, {advised['problem'].nunique()} problems). The promise with 5 % warm-up for both, as "
        f"`check` prints it, and the same gain, which is measured without warm-up, have one of {now:+.2f}."
    )


def problems_by_verdict(advised: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The problems that have a baseline with each verdict of today's thresholds.

    A problem counts once for a verdict: its baselines share the outcome.

    Args:
        advised: the output of `advice_table`.

    Returns:
        Rows of `advised`, one for each problem, by verdict.
    """
    problems = advised.drop_duplicates(["check now", "problem"])
    return {str(verdict): group for verdict, group in problems.groupby("check now", sort=False)}


def refined_outcomes(problems: pd.DataFrame) -> dict[str, int]:
    """How often refined was better, undecided and worse against reference 1."""
    outcomes = problems["refined, reference 1"]
    return {outcome: int((outcomes == outcome).sum()) for outcome in ("better", "undecided", "worse")}


def outcomes_by_verdict(advised: pd.DataFrame) -> str:
    """How refined compared with reference 1 for each verdict of today's thresholds and each half, as Markdown."""
    rows = [
        {"verdict": verdict, "half": half, "problems": str(len(group)), **refined_outcomes(group)}
        for verdict, problems in problems_by_verdict(advised).items()
        for half, group in problems.groupby("half", sort=False)
    ]
    return markdown_table(pd.DataFrame(rows).sort_values(["verdict", "half"], ascending=False).astype(str))


def track_record(advised: pd.DataFrame, bounded_warmup: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the package states about its advice: the content of its track_record.json.

    Args:
        advised: the output of `advice_table`.
        bounded_warmup: the row of `score_rules` of the rule that `bounded_warmup` follows, over all problems and studies; None if it was not run.
    """
    record: dict[str, Any] = {}
    if bounded_warmup is not None:
        counts = {outcome: int(bounded_warmup[outcome]) for outcome in ("better", "undecided", "worse")}
        record = {"bounded_warmup": counts, "bounded_warmup_worse_in": list(bounded_warmup["worse in"])}
    problems = problems_by_verdict(advised)
    nothing = advised.iloc[:0]
    record["refined"] = {verdict: refined_outcomes(problems.get(verdict, nothing)) for verdict in VERDICTS}
    record["promise_and_gain"] = round(promise_and_gain(advised, "promise now"), 2)
    return record
