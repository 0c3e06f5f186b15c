"""The comparison of schedules that results/protocol.md fixes: its schedules, its seeds, and the choice of peaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .rules import ALL_RULES, BETWEEN_WARMUPS, rule_file
from .schedules_compared import SCHEDULES as COMPARED
from .schedules_compared import ComparedSchedule
from .statistics import TunedSchedule, tune_peak

LINEAR = "linear"
"""Reference 1, and the schedule of the baselines."""

WARMUPS = (0.02, 0.05, 0.1, 0.2)
"""Reference 2 is linear decay with the best of these warm-ups, or with none."""

REFINED = "refined"
RISING_IGNORED = "rising norms ignored"

PRIMARY = (RISING_IGNORED, REFINED)
"""The schedules whose difference from reference 2 is a primary contrast."""

WORTH_A_RUN, LINEAR_WILL_DO = "worth a refined run", "linear will do"
"""What `check` said of a sound schedule at the time of the protocol: where the bound promised enough, and where it did not."""

FROZEN_PROMISE = 0.01
"""The least gain over linear decay, both with 5 % warm-up, that the bound had to promise."""

SELECTION = "selection"
"""The role of a run that chooses a peak or a warm-up. It is never compared."""

NUM_BASELINES = 3

FIRST_SELECTION_SEED, FIRST_BASELINE_SEED = 1000, 2000
"""Test seeds are 0, 1, 2, ..."""

MAX_PEAKS = 8
"""The grid of a schedule's peaks is not widened beyond this number of peaks."""


def linear_with_warmup(warmup: float) -> str:
    """The name of linear decay after a warm-up over a fraction of the run."""
    return f"linear, {100 * warmup:g} % warm-up" if warmup else LINEAR


LONGEST_WARMUP = linear_with_warmup(max(WARMUPS))

LINEAR_SCHEDULES = {linear_with_warmup(warmup): ComparedSchedule("linear", warmup) for warmup in (0.0, *WARMUPS)}

CLIPPING_KEPT = {"max_grad_norm": 0.0}
"""The rules themselves: with SGD, clipping is left out of account. `CLIPPED_RULES` take it into account."""

OTHER_SCHEDULES = {
    REFINED: ComparedSchedule("refined", refinement=CLIPPING_KEPT),
    f"{REFINED}, warm-up": COMPARED["refined+warmup"],
    RISING_IGNORED: ComparedSchedule("refined", refinement={"rising_norms": "ignore", **CLIPPING_KEPT}),
    f"{RISING_IGNORED}, warm-up": COMPARED["refined_ignore_rising+warmup"],
    "cosine": COMPARED["cosine+warmup"],
    "WSD": COMPARED["wsd"],
}

CONTROLS = [linear_with_warmup(warmup) for warmup in (0.05, 0.1)]
"""Rules that need no norms: linear decay with one warm-up for all problems."""

WITHOUT_CAP = [REFINED, RISING_IGNORED, "cosine", "WSD"]
"""The schedules that the problem suite and the reduced protocol compare with linear decay, beside the rules."""

SUMMARIZED = (BETWEEN_WARMUPS, RISING_IGNORED, REFINED, "cosine", "WSD")
"""The schedules of the summary over studies, and of the pictures that have a line for each schedule, beside the references."""

REDUCED = "reduced"
"""The protocol of a study in its `setting.json`, for models that train for minutes."""

SCHEDULES = {**LINEAR_SCHEDULES, **OTHER_SCHEDULES, **{name: ComparedSchedule("refined") for name in ALL_RULES}}
"""Every schedule of the protocol, by the name that results and reports use."""


def in_todays_words(verdict: str) -> str:
    """A verdict of the time of the protocol in the words of today's `check`."""
    return "sound" if verdict in (WORTH_A_RUN, LINEAR_WILL_DO) else verdict


def selection_seeds(count: int) -> range:
    """The seeds that choose peaks and warm-ups."""
    return range(FIRST_SELECTION_SEED, FIRST_SELECTION_SEED + count)


def baseline_seeds() -> range:
    """The seeds of the runs that refined schedules are made from."""
    return range(FIRST_BASELINE_SEED, FIRST_BASELINE_SEED + NUM_BASELINES)


def baseline_file(folder: Path, seed: int) -> Path:
    """The norms of the baseline that the refined schedules of a seed are made from.

    Args:
        folder: the folder of the study.
        seed: a test seed, a selection seed, or the baseline's own seed.
    """
    return folder / "baseline_norms" / f"baseline_{baseline_index(seed)}.jsonl"


def baseline_index(seed: int) -> int:
    """The number of the baseline that the refined schedules of a seed are made from; of a baseline's seed, its own."""
    return (seed - (FIRST_BASELINE_SEED if seed >= FIRST_BASELINE_SEED else 0)) % NUM_BASELINES


def second_file(folder: Path, seed: int) -> Path:
    """The norms of the run that was refined from a baseline.

    Args:
        folder: the folder of the study.
        seed: as in `baseline_file`.
    """
    return folder / "baseline_norms" / f"second_{baseline_index(seed)}.jsonl"


def source_file(folder: Path, name: str, seed: int) -> Path:
    """What the schedule of a cell is refined from.

    Args:
        folder: the folder of the study.
        name: of the schedule.
        seed: of the cell.
    """
    return rule_file(folder, name, baseline_index(seed)) if name in ALL_RULES else baseline_file(folder, seed)


def first_peaks(name: str, start: float, *, reduced: bool = False) -> list[float]:
    """The grid of peaks that a schedule starts with.

    Args:
        name: of the schedule.
        start: the middle of the grid; for all schedules but linear decay the best peak of linear decay.
        reduced: whether the grid is that of the reduced protocol.
    """
    if name == LINEAR or not reduced:
        return [start / 2, start, 2 * start]
    if name in LINEAR_SCHEDULES:
        return [start]
    return [start / 2, start] if name == "WSD" else [start, 2 * start]


def next_peak(peaks: Sequence[float], tuned: TunedSchedule) -> float | None:
    """The peak to try next: one beyond the edge on which the best peak lies.

    Args:
        peaks: the peaks that were tried.
        tuned: the schedule at its best peak so far.

    Returns:
        A peak, or None if the best peak lies inside the grid or the grid has `MAX_PEAKS`.
    """
    if len(peaks) >= MAX_PEAKS:
        return None
    if tuned.problem:
        return min(peaks) / 2
    if not tuned.on_edge:
        return None
    return min(peaks) / 2 if tuned.peak == min(peaks) else 2 * max(peaks)


@dataclass(frozen=True)
class Choices:
    """What the selection seeds chose.

    Args:
        tuned: every schedule at its best peak over the selection seeds, by name.
        reference: the name of reference 2, linear decay with the best warm-up.
    """

    tuned: dict[str, TunedSchedule]
    reference: str

    @property
    def compared(self) -> list[str]:
        """The names of the compared schedules that have a peak: both references first."""
        names = dict.fromkeys([LINEAR, self.reference, *OTHER_SCHEDULES, *ALL_RULES, *CONTROLS])
        return [name for name in names if name in self.tuned and not self.tuned[name].problem]


def best_warmup_at(cells: pd.DataFrame, peak: float) -> str:
    """The name of linear decay with the warm-up whose mean loss over the selection seeds is smallest at one peak.

    Args:
        cells: rows of `results_table`, of one study.
        peak: the best peak of linear decay.
    """
    at_peak = cells[(cells["role"] == SELECTION) & (cells["peak"] == peak) & cells["schedule"].isin(LINEAR_SCHEDULES)]
    return str(at_peak.groupby("schedule")["loss"].mean().idxmin())


def choose(cells: pd.DataFrame) -> Choices:
    """Choose peaks and the warm-up of reference 2.

    Args:
        cells: rows of `results_table`, of one study. Only those of selection seeds count.

    Raises:
        ValueError: if linear decay has no run, or no peak that all selection seeds have finished without divergence.
    """
    selection = cells[cells["role"] == SELECTION]
    tuned = {str(name): tune_peak(group, str(name)) for name, group in selection.groupby("schedule", sort=False)}
    linear = {name: tuned[name].losses.mean() for name in LINEAR_SCHEDULES if name in tuned and not tuned[name].problem}
    if LINEAR in tuned and tuned[LINEAR].problem == "incomplete":
        raise ValueError("No peak of linear decay has all selection seeds yet; run the study again to continue it.")
    if LINEAR not in tuned:
        raise ValueError(
            "There is no selection run of linear decay; give the folder of a study by results/protocol.md."
        )
    if LINEAR not in linear:
        raise ValueError("Linear decay diverged at every peak; start from a lower --start_peak.")
    return Choices(tuned, min(linear, key=linear.__getitem__))


def compared_rows(cells: pd.DataFrame) -> pd.DataFrame:
    """The compared rows of `results_table`: those of test seeds."""
    return cells[cells["role"] == ""]
