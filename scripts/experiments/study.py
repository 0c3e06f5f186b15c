"""A study by results/protocol.md: it chooses peaks, records baselines, notes what they promise, and runs the test seeds.

Every finished cell is in results.jsonl, so a killed study continues where it stopped.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_refined_schedule import load_norms, register
from hf_refined_schedule.norms.gradient_norms import OptimizerFamily, UnfinishedRunError
from hf_refined_schedule.schedules.health import PROMISE, Health
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources
from hf_refined_schedule.theory.bounds import rank_by_squared_norms

from .cells import BASELINE, Cell, Result
from .grid import run_missing
from .json_file import read_json, write_json
from .protocol import (
    FROZEN_PROMISE,
    LINEAR,
    LINEAR_SCHEDULES,
    LINEAR_WILL_DO,
    LONGEST_WARMUP,
    NUM_BASELINES,
    OTHER_SCHEDULES,
    REFINED,
    RISING_IGNORED,
    SCHEDULES,
    SELECTION,
    WORTH_A_RUN,
    Choices,
    baseline_file,
    baseline_seeds,
    best_warmup_at,
    choose,
    first_peaks,
    next_peak,
    second_file,
    selection_seeds,
    source_file,
)
from .results_file import ResultsFile
from .rules import ALL_RULES, SECOND_REFINEMENT, write_rules
from .schedules_compared import sample_multipliers
from .statistics import tune_peak
from .study_folder import FORECASTS_FILE, SCHEDULES_FILE


@dataclass(frozen=True)
class StudyOptions:
    """The size of a study.

    Args:
        steps: T, the number of optimizer updates of a run.
        start_peak: the middle of the first grid of peaks.
        num_selection_seeds: seeds that choose peaks and warm-ups.
        num_test_seeds: seeds that are compared.
        num_workers: runs at the same time.
        optimizer: the optimizer's family, for forecasts and rules.
        others: the names of the compared schedules beside linear decay.
        max_grad_norm: the L2 norm to which gradients are clipped; 0 for no clipping. Only some rules use it.
        reduced: whether the study follows the reduced protocol, which tries fewer peaks.
        control_peaks: peaks at which reference 2 trains on the test seeds, too. They show what a finer grid of peaks is worth.
    """

    steps: int
    start_peak: float
    num_selection_seeds: int = 2
    num_test_seeds: int = 5
    num_workers: int = 1
    optimizer: OptimizerFamily = "adam"
    others: Sequence[str] = tuple(OTHER_SCHEDULES)
    max_grad_norm: float = 1.0
    reduced: bool = False
    control_peaks: Sequence[float] = ()


def describe_selection(options: StudyOptions) -> dict[str, object]:
    """What a setting states about the choice of peaks: with other values, a rerun would choose other peaks from the same results."""
    return {"starting peak": options.start_peak, "selection seeds": options.num_selection_seeds}


class Study:
    """One setting, studied by the protocol.

    Args:
        folder: the folder of the results.
        label: the name of the setting in results and reports.
        options: the size of the study.
        train: trains a cell. It can be pickled if there are several workers.
        norms_file: the file that the norms of a baseline cell were recorded to.
        after_each: is called after each cell.

    Raises:
        ValueError: if the folder has results of another setting.
    """

    def __init__(
        self,
        folder: Path,
        label: str,
        options: StudyOptions,
        train: Callable[[Cell], Result],
        norms_file: Callable[[Cell], Path],
        after_each: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = folder
        self.label = label
        self.options = options
        self._train = train
        self._norms_file = norms_file
        self._after_each = after_each
        self._make_optimizer = torch.optim.SGD if options.optimizer == "sgd" else torch.optim.AdamW
        folder.mkdir(parents=True, exist_ok=True)
        self.results = ResultsFile(folder)
        kept = self.results.table()
        for regime, steps in kept[["regime", "steps"]].drop_duplicates().itertuples(index=False):
            if (regime, steps) != (label, options.steps):
                raise ValueError(
                    f"{self.results.path} has runs of {regime!r} over {steps} updates, not of {label!r} over {options.steps}; give the "
                    "label and the updates that the study was started with, or another folder."
                )

    def run(self) -> None:
        """Run the cells that have no result yet."""
        self._select([LINEAR], self.options.start_peak)
        baseline_peak = self.choices().tuned[LINEAR].peak
        self._record_baselines(LINEAR, baseline_peak, baseline_file)
        write_forecasts(self.folder, self.options.optimizer)
        self._make_rules(baseline_peak)
        others = dict.fromkeys([*LINEAR_SCHEDULES, *self.options.others])
        self._select([name for name in others if name != LINEAR], baseline_peak)  # the baselines are at linear's peak
        if self.options.reduced:
            self._try_warmups_beyond(baseline_peak)
        choices = self.choices()
        self._compare(choices)
        self._sample_schedules(choices)

    def choices(self) -> Choices:
        """What the selection seeds have chosen so far."""
        return choose(self.results.table())

    def _select(self, names: Sequence[str], start: float) -> None:
        """Run the selection seeds at the first grid of peaks, and widen it until the best peak of each schedule lies inside."""
        while cells := [cell for name in names for cell in self._missing_selection(name, start)]:
            self._run(cells, "peaks")

    def _try_warmups_beyond(self, peak: float) -> None:
        """Give the warm-up that is best at a peak, and the longest, twice this peak and grids around. Long warm-ups bear higher peaks."""
        best = best_warmup_at(self.results.table(), peak)
        names = list(dict.fromkeys(name for name in (best, LONGEST_WARMUP) if name != LINEAR))
        seeds = selection_seeds(self.options.num_selection_seeds)
        self._run([self._cell(name, 2 * peak, seed, SELECTION) for name in names for seed in seeds], "peaks")
        self._select(names, peak)

    def _missing_selection(self, name: str, start: float) -> list[Cell]:
        table = self.results.table()
        seeds = selection_seeds(self.options.num_selection_seeds)
        rows = table[(table["role"] == SELECTION) & (table["schedule"] == name)]
        peaks = sorted({*first_peaks(name, start, reduced=self.options.reduced), *map(float, rows["peak"])})
        cells = [self._cell(name, peak, seed, SELECTION) for peak in peaks for seed in seeds]
        if missing := [cell for cell in cells if cell not in self.results]:
            return missing
        peak = next_peak(peaks, tune_peak(rows, name))
        return [] if peak is None else [self._cell(name, peak, seed, SELECTION) for seed in seeds]

    def _record_baselines(self, name: str, peak: float, kept_file: Callable[[Path, int], Path]) -> None:
        cells = [self._cell(name, peak, seed, BASELINE) for seed in baseline_seeds()]
        table = self.results.table()
        recorded = table[(table["role"] == BASELINE) & (table["schedule"] == name)]
        for other in recorded["peak"][recorded["peak"] != peak]:
            raise ValueError(
                f"The baselines in {self.folder} were trained at the peak {other:g}, but the selection seeds now choose {peak:g}; give "
                "the options that the study was started with, or another folder."
            )
        self._run([cell for cell in cells if not kept_file(self.folder, cell.seed).exists()], "baselines")
        for cell in cells:
            kept = kept_file(self.folder, cell.seed)
            if kept.exists():
                continue
            recorded = self._norms_file(cell)
            # The folder of the training may be gone, and a kill may have stopped its repetition.
            if not _has_all_norms(recorded, self.options.steps):
                self._train(cell)
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(recorded, kept.with_suffix(".copy"))
            kept.with_suffix(".copy").replace(kept)

    def _make_rules(self, peak: float) -> None:
        """Write the schedules of the rules, of which one needs runs of its own."""
        names = [name for name in self.options.others if name in ALL_RULES]
        seconds = []
        if SECOND_REFINEMENT in names:
            self._record_baselines(RISING_IGNORED, peak, second_file)
            seconds = [second_file(self.folder, seed) for seed in baseline_seeds()]
        baselines = [baseline_file(self.folder, seed) for seed in baseline_seeds()]
        write_rules(self.folder, names, baselines, seconds, self.options.optimizer, self.options.max_grad_norm)

    def _compare(self, choices: Choices) -> None:
        cells = [
            self._cell(name, choices.tuned[name].peak, seed)
            for seed in range(self.options.num_test_seeds)
            for name in choices.compared
            if name in (LINEAR, choices.reference, *self.options.others)
        ]
        cells += [
            self._cell(choices.reference, peak, seed)
            for peak in self.options.control_peaks
            for seed in range(self.options.num_test_seeds)
        ]
        self._run(cells, "test seeds")

    def _cell(self, name: str, peak: float, seed: int, role: str | None = None) -> Cell:
        return Cell(self.label, name, peak, seed, self.options.steps, role)

    def _run(self, cells: Sequence[Cell], part: str) -> None:
        description = f"{self.label}: {part}"
        run_missing(
            cells,
            self._train,
            self.results,
            num_workers=self.options.num_workers,
            description=description,
            after_each=self._after_each,
        )

    def _sample_schedules(self, choices: Choices) -> None:
        """Sample the compared schedules for the report, refined ones from the first baseline."""
        register()
        steps = self.options.steps
        sampled = {
            name: sample_multipliers(SCHEDULES[name], steps, source_file(self.folder, name, 0), self._make_optimizer)
            for name in choices.compared
        }
        path = self.folder / SCHEDULES_FILE
        write_json(path, {**read_json(path), self.label: sampled})


def _has_all_norms(path: Path, steps: int) -> bool:
    """Whether a file has the norms of a run up to its last update."""
    try:
        return path.exists() and bool(load_norms(path).steps[-1] >= steps)
    except UnfinishedRunError:  # it has no norm yet
        return False


def frozen_verdict(health: Health) -> str:
    """The verdict of `check` at the time of the protocol, when a sound schedule was judged by its promise, too.

    Args:
        health: of today's `check`.
    """
    if health.verdict != "sound":
        return health.verdict
    promise = next(finding.value for finding in health.findings if finding.name == PROMISE.name)
    return WORTH_A_RUN if promise >= FROZEN_PROMISE else LINEAR_WILL_DO


def write_forecasts(folder: Path, optimizer: OptimizerFamily) -> None:
    """Note what `check`, by the thresholds of the protocol, and the bound say about each baseline before the outcome is known.

    Args:
        folder: the folder of the study, with its baselines.
        optimizer: the optimizer's family.
    """
    path = folder / FORECASTS_FILE
    if path.exists():
        return
    forecasts = []
    for index in range(NUM_BASELINES):
        for name, options in (
            (REFINED, RefinementOptions(rising_norms="keep", max_grad_norm=0.0)),
            (RISING_IGNORED, RefinementOptions(rising_norms="ignore", max_grad_norm=0.0)),
        ):
            refinement = refine_sources(baseline_file(folder, index), optimizer, options)
            schedule, _, health = refinement
            (rank,) = rank_by_squared_norms({name: schedule.grid[:-1]}, schedule.squared_norms, schedule.clip_factors)
            forecasts.append(
                {
                    "baseline": index,
                    "schedule": name,
                    "verdict": None if health is None else frozen_verdict(health),
                    "reasons": [] if health is None else health.reasons,
                    "promise": 1 - rank.relative_bound,
                    "best_peak_ratio": schedule.best_peak_ratio,
                }
            )
    write_json(path, {"forecasts": forecasts}, indent=1)
