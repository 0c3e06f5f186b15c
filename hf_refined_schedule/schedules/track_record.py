"""What the advice and the verdicts of `check` were worth where the outcome was measured: results/problem_suite.md.

The counts are in track_record.json, which scripts/publish_results.py writes from the results.
"""

import functools
import json
from importlib.resources import files
from typing import Any, NamedTuple, get_args

from .health import Verdict

REPORT = "results/problem_suite.md"


class Outcomes(NamedTuple):
    """How often a schedule was better and worse than the one it was compared with, by 95 % intervals over seeds."""

    better: int
    undecided: int
    worse: int

    @property
    def total(self) -> int:
        """The number of comparisons."""
        return sum(self)


class TrackRecord(NamedTuple):
    """Measured outcomes, over problems and studies.

    Args:
        bounded_warmup: `bounded_warmup` against linear decay with the best of five warm-ups.
        bounded_warmup_worse_in: the problems and studies in which it was worse.
        refined: the rule of the paper against linear decay without warm-up where a baseline had a verdict, by verdict.
        promise_and_gain: the rank correlation between the promise of the bound and the measured gain.
    """

    bounded_warmup: Outcomes
    bounded_warmup_worse_in: tuple[str, ...]
    refined: dict[Verdict, Outcomes]
    promise_and_gain: float


@functools.cache
def read_track_record() -> TrackRecord:
    """The track record that the package carries."""
    return parse_track_record(files(__package__).joinpath("track_record.json").read_text(encoding="utf-8"))


def parse_track_record(text: str) -> TrackRecord:
    """Read a track record.

    Args:
        text: the content of a track_record.json.

    Raises:
        ValueError: if it lacks a count, as that of a suite without the rule of `bounded_warmup` does.
    """
    record = json.loads(text)
    try:
        return _track_record(record)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The track record is incomplete: {error}; write it again from a suite that has every rule."
        ) from None


def _track_record(record: dict[str, Any]) -> TrackRecord:
    return TrackRecord(
        bounded_warmup=Outcomes(**record["bounded_warmup"]),
        bounded_warmup_worse_in=tuple(record["bounded_warmup_worse_in"]),
        refined={verdict: Outcomes(**record["refined"][verdict]) for verdict in get_args(Verdict)},
        promise_and_gain=record["promise_and_gain"],
    )


RECORD_OF_RISING_NORMS = (
    "norms rise from scratch and with LoRA; from scratch over 300 and 1,200 updates, linear decay after a warm-up of 20 % was better than "
    "all refined schedules, and with LoRA plain linear decay was as good (results/studies.md)"
)
"""What to know before a run is refined whose norms rise."""


def record_of_advice() -> str:
    """What the advised schedule was worth, in a sentence."""
    record = read_track_record()
    outcomes = record.bounded_warmup
    where = f" ({'; '.join(record.bounded_warmup_worse_in)})" if record.bounded_warmup_worse_in else ""
    return (
        f"bounded_warmup was worse than linear decay with the best of five warm-ups in {outcomes.worse} of {outcomes.total} problems and "
        f"studies{where}, and better in {outcomes.better} ({REPORT}; sizes of a model from scratch count apart: results/sizes.md)"
    )


def record_of_verdict(verdict: Verdict) -> str:
    """What the rule of the paper was worth where a baseline had a verdict, in a sentence."""
    outcomes = read_track_record().refined[verdict]
    return (
        f"of {outcomes.total} problems and studies with this verdict, the rule of the paper was better than linear decay in {outcomes.better}, "
        f"worse in {outcomes.worse}, undecided in {outcomes.undecided} ({REPORT})"
    )


def record_of_promise() -> str:
    """What promises were worth, in a clause."""
    return f"rank correlation with the gain measured without warm-up: {read_track_record().promise_and_gain:+.2f}, {REPORT}"
