"""The grid of a study: schedule x peak learning rate x seed, and how its cells run."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TypeVar

import torch
from accelerate import PartialState
from tqdm import tqdm

from .cells import BASELINE, TWICE_THE_STEPS, Cell, Result
from .json_file import read_json, write_json
from .results_file import ResultsFile
from .statistics import TunedSchedule, tune_peak
from .study_folder import SCHEDULES_FILE

Item = TypeVar("Item")
Output = TypeVar("Output")

BASELINE_SEED = 0
"""The seed of the runs that the refined schedule is made from. Compared seeds start at 1."""


def compared_seeds(num_seeds: int) -> range:
    """The seeds 1 to `num_seeds`."""
    return range(BASELINE_SEED + 1, BASELINE_SEED + 1 + num_seeds)


def refuse_several_processes() -> None:
    """Refuse a launch of several processes, for scripts that train each run in one.

    Raises:
        ValueError: under `accelerate launch` or torchrun with more than one process.
    """
    count = PartialState(cpu=not torch.cuda.is_available()).num_processes
    if count > 1:
        raise ValueError(f"{count} processes were launched, but each run trains in one; start the script with python.")


def baseline_cells(regime: str, peaks: Iterable[float], steps: int) -> list[Cell]:
    """Linear decay at every peak, with the seed that is not compared."""
    return [Cell(regime, "linear", peak, BASELINE_SEED, steps, role=BASELINE) for peak in peaks]


def compared_cells(
    regime: str, schedules: Sequence[str], peaks: Sequence[float], num_seeds: int, steps: int
) -> list[Cell]:
    """Every schedule at every peak with every compared seed."""
    return [
        Cell(regime, schedule, peak, seed, steps)
        for seed in compared_seeds(num_seeds)
        for peak in peaks
        for schedule in schedules
    ]


def equal_compute_cells(regime: str, peaks: Sequence[float], num_seeds: int, steps: int) -> list[Cell]:
    """Two ways for linear decay to use the compute of a baseline: peaks between those of the grid, and twice the steps."""
    seeds = compared_seeds(num_seeds)
    return [
        *(Cell(regime, "linear", peak, seed, steps, finer=True) for seed in seeds for peak in finer_peaks(peaks)),
        *(Cell(regime, TWICE_THE_STEPS, peak, seed, 2 * steps) for seed in seeds for peak in peaks),
    ]


def finer_peaks(peaks: Iterable[float]) -> list[float]:
    """The geometric mean of each pair of neighbouring peaks."""
    return [float(f"{math.sqrt(low * high):.3g}") for low, high in pairwise(sorted(peaks))]


def run_each(function: Callable[[Item], Output], items: Sequence[Item], num_workers: int = 1) -> Iterator[Output]:
    """Call a function on each item, and yield the outputs as they arrive.

    Args:
        function: a function that can be pickled if there are several workers.
        items: its arguments.
        num_workers: the number of processes; 1 calls the function in this process.

    Raises:
        Exception: the first one that the function raised in a worker, after the outputs of the calls that ran beside it.
    """
    if num_workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    # Forked processes would inherit the locks and threads of torch.
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_end_with_parent) as pool:
        futures = [pool.submit(function, item) for item in items]
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if (raised := future.exception()) is None:
                    yield future.result()
                elif failure is None:
                    failure = raised
                    for waiting in futures:
                        waiting.cancel()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        if failure is not None:
            raise failure


def _end_with_parent() -> None:
    """End this worker when the process that started it dies. It would train on otherwise, with nobody to keep the result."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def run_missing(
    cells: Sequence[Cell],
    run: Callable[[Cell], Result],
    results: ResultsFile,
    *,
    num_workers: int = 1,
    description: str = "",
    after_each: Callable[[], object] = lambda: None,
) -> None:
    """Run the cells that have no result yet, and append the results as they arrive.

    Args:
        cells: the cells of the grid.
        run: trains a cell. It can be pickled if there are several workers.
        results: the results so far.
        num_workers: the number of processes.
        description: the label of the progress bar.
        after_each: is called after each result.
    """
    cells = list(dict.fromkeys(cells))
    missing = [cell for cell in cells if cell not in results]
    hidden = not cells or not PartialState().is_main_process
    finished = len(cells) - len(missing)
    with tqdm(total=len(cells), initial=finished, desc=description, unit="run", disable=hidden) as progress:
        for result in run_each(run, missing, num_workers):
            results.append(result)
            after_each()
            progress.update()


def best_baseline(results: ResultsFile, regime: str) -> float:
    """The best peak of linear decay with the baseline's seed.

    Raises:
        ValueError: if every baseline run has diverged.
    """
    cells = results.table()
    chosen = (cells["regime"] == regime) & (cells["schedule"] == "linear") & (cells["role"] == BASELINE)
    tuned = tune_peak(cells[chosen], "linear")
    if tuned.problem:
        raise ValueError(f"Every baseline run of {regime} has diverged; pass lower --peaks.")
    return tuned.peak


def keep_baseline(
    results: ResultsFile, regime: str, steps: int, norms_file: Path, record: Callable[[Cell, Path], None]
) -> Cell | None:
    """Keep the norms of the best baseline run, once for a folder of results.

    Args:
        results: the results, with the baseline's.
        regime: the regime.
        steps: T, the number of optimizer updates of the baseline.
        norms_file: where the norms are kept.
        record: writes the norms of a cell to a path, on the main process. All processes call it.

    Returns:
        The best cell, or None if `norms_file` was there.

    Raises:
        ValueError: as `best_baseline`.
    """
    is_kept = norms_file.exists()
    PartialState().wait_for_everyone()  # every process has looked before the main process writes
    if is_kept:
        return None
    best = Cell(regime, "linear", best_baseline(results, regime), BASELINE_SEED, steps, role=BASELINE)
    unfinished = norms_file.with_name("unfinished.jsonl")
    if PartialState().is_main_process:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
    record(best, unfinished)
    if PartialState().is_main_process:
        unfinished.replace(norms_file)
    PartialState().wait_for_everyone()
    return best


def tune_compared(results: ResultsFile, regime: str, schedule: str, num_seeds: int) -> TunedSchedule:
    """A schedule at its best peak over the compared seeds of a study that is under way."""
    cells = results.table()
    chosen = (cells["regime"] == regime) & (cells["schedule"] == schedule) & (cells["role"] == "")
    return tune_peak(cells[chosen & cells["seed"].isin(compared_seeds(num_seeds))], schedule)


def add_sampled_schedules(folder: Path, regime: str, multipliers: dict[str, list[float]]) -> None:
    """Add the sampled schedules of a regime to schedules.json, for the report.

    Args:
        folder: the folder of the results.
        regime: the regime.
        multipliers: multipliers at even progress from 0 to 1, by schedule.
    """
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        path = folder / SCHEDULES_FILE
        sampled = read_json(path)
        sampled[regime] = {**sampled.get(regime, {}), **multipliers}
        write_json(path, sampled)
