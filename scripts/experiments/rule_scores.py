"""How often a schedule is better and worse than the references of its studies."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .markdown_tables import NOT_AVAILABLE, markdown_table
from .statistics import paired_difference
from .study_results import StudyResults, with_divergence_as_worst


def relative_difference(study: StudyResults, name: str, reference: str) -> float:
    """The mean difference of a schedule from a reference, as a fraction of the reference's loss; NaN if it diverged at every peak."""
    if study.diverged_everywhere(name):
        return math.nan
    return float(study.relative_losses(reference)[name].mean())


def descriptive_verdict(study: StudyResults, name: str, reference: str) -> str:
    """The verdict on a schedule by its own interval, without correction for several contrasts.

    The reference itself is undecided, as is a schedule whose best peak lies on the edge, or one that would be better, but diverged
    on a test seed. One that diverged at every peak is worse.
    """
    if study.diverged_everywhere(name):
        return "worse"
    if study.choices.tuned[name].on_edge or study.choices.tuned[reference].on_edge:
        return "undecided"
    losses = with_divergence_as_worst(study.losses)
    verdict = str(paired_difference(losses[name], losses[reference])["verdict"])
    return "undecided" if verdict == "better" and study.num_divergences(name, reference) else verdict


def is_scored(study: StudyResults, name: str) -> bool:
    """Whether a study has an outcome of a schedule."""
    return name in study.losses or study.diverged_everywhere(name)


def score_rules(studies: Mapping[str, StudyResults], names: Sequence[str]) -> pd.DataFrame:
    """Count how often each rule is better and worse than reference 2.

    Args:
        studies: the studies, by problem.
        names: the rules; one that a study lacks is scored on the others, and one that no study compares with another reference on none.

    Returns:
        Columns `problems`, `better`, `undecided`, `worse`, `mean` and `largest` (relative differences), `worse in`, indexed by rule. The
        first row is the choice of the protocol.
    """
    rows = {}
    for name in names:
        compared = [study for study in studies.values() if is_scored(study, name)]
        verdicts = [descriptive_verdict(study, name, study.reference) for study in compared]
        differences = [relative_difference(study, name, study.reference) for study in compared]
        if any(study.reference != name for study in compared):
            rows[name] = {
                "problems": len(compared),
                **{verdict: verdicts.count(verdict) for verdict in ("better", "undecided", "worse")},
                "mean": float(np.nanmean(differences)),
                "largest": float(np.nanmax(differences)),
                "worse in": [
                    study.label for study, verdict in zip(compared, verdicts, strict=True) if verdict == "worse"
                ],
            }
    columns = ["problems", "better", "undecided", "worse", "mean", "largest", "worse in"]
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return scores.sort_values(["worse", "better", "mean"], ascending=[True, False, True])


def rule_table(scores: pd.DataFrame) -> str:
    """The scores of rules as Markdown."""
    table = scores.rename_axis("rule").reset_index()
    for column in ("mean", "largest"):
        table[f"{column} difference"] = table.pop(column).map(lambda value: f"{value:+.2%}")
    table["worse in"] = table.pop("worse in").map("; ".join).replace("", NOT_AVAILABLE)
    return markdown_table(table.astype(str))
