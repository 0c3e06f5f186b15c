"""What the advice and the verdicts of `check` were worth where the outcome was measured: results/problem_suite.md."""

from typing import NamedTuple

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


BOUNDED_WARMUP = Outcomes(better=3, undecided=14, worse=2)
"""`bounded_warmup` against linear decay with the best of five warm-ups, over problems and studies."""

BOUNDED_WARMUP_WORSE_IN = ("from scratch, 300 updates", "from scratch, 1,200 updates")
"""The problems and studies in which `bounded_warmup` was worse."""

REFINED: dict[Verdict, Outcomes] = {
    "sound": Outcomes(better=3, undecided=7, worse=2),
    "doubtful": Outcomes(better=0, undecided=5, worse=3),
    "degenerate": Outcomes(better=0, undecided=1, worse=2),
}
"""The rule of the paper against linear decay without warm-up, over problems and studies that have a baseline with the verdict."""

PROMISE_AND_GAIN = -0.54
"""The rank correlation between the promise of the bound and the measured gain, over problems and studies."""

RECORD_OF_RISING_NORMS = (
    "norms rise from scratch and with LoRA; from scratch, linear decay after a warm-up of 20 % was better than all refined "
    "schedules, and with LoRA plain linear decay was as good (results/studies.md)"
)
"""What to know before a run is refined whose norms rise."""


def record_of_advice() -> str:
    """What the advised schedule was worth, in a sentence."""
    better, _, worse = BOUNDED_WARMUP
    where = f" ({'; '.join(BOUNDED_WARMUP_WORSE_IN)})" if BOUNDED_WARMUP_WORSE_IN else ""
    return (
        f"bounded_warmup was worse than linear decay with the best of five warm-ups in {worse} of {BOUNDED_WARMUP.total} problems{where}, "
        f"and better in {better} ({REPORT})"
    )


def record_of_verdict(verdict: Verdict) -> str:
    """What the rule of the paper was worth where a baseline had a verdict, in a sentence."""
    better, undecided, worse = REFINED[verdict]
    return (
        f"of {REFINED[verdict].total} problems with this verdict, the rule of the paper was better than linear decay in {better}, "
        f"worse in {worse}, undecided in {undecided} ({REPORT})"
    )


def record_of_promise() -> str:
    """What promises were worth, in a clause."""
    return f"rank correlation with the measured gain: {PROMISE_AND_GAIN:+.2f}, {REPORT}"
