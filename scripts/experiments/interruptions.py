"""Train a tiny model, kill it at random moments, resume it, and compare it with an uninterrupted run.

Training processes are forked from a server that has loaded all libraries, so that an attempt takes less than a second.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from tqdm import tqdm

from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME, NormsFileWriter
from hf_refined_schedule.training.checkpoints import last_complete_checkpoint

from .processes import free_port

STEPS, SAVE_STEPS = 40, 4

TIME_LIMIT = 60.0
"""Seconds for one attempt. gloo may hang at exit after a good run."""

CHECKPOINT_SECONDS = 0.03
"""About the time that writing a checkpoint takes."""

PRELOADED = ["pandas", "tqdm", "transformers.models.gpt2.modeling_gpt2", "hf_refined_schedule.training.trainer"]
"""The modules that take long to import. The server of Python 3.11 finds installed ones only."""

_forkserver = multiprocessing.get_context("forkserver")


class Moment(StrEnum):
    """When a run is killed."""

    RANDOM = "at a random moment"
    CHECKPOINT = "while a checkpoint is being written"
    LINE = "in the middle of a line of the norms file"
    REPLACEMENT = "before the norms file is replaced"


COLUMNS = (
    "trials", "kills", "unfinished checkpoint", "torn line", "unfinished replacement", "before the first checkpoint",
    "different norms file", "different rates", "different weights",
)  # fmt: skip
"""What is counted: trials, kills, what the kills left behind, and the runs that differ in the end."""


def count_differences(counts: Mapping[str, int]) -> int:
    """The number of differences in a count of `COLUMNS`."""
    return sum(count for name, count in counts.items() if name.startswith("different"))


@dataclass(frozen=True)
class Attempt:
    """One start of a run: from its beginning or a checkpoint, to its end or a kill."""

    folder: Path
    """Of the run."""
    source: Path
    """The norms that the schedule is refined from."""
    resume: bool
    """Whether to resume from the newest complete checkpoint, if there is one."""
    world_size: int
    port: int
    moment: Moment | None = None
    """When rank 0 kills itself, if it is `LINE` or `REPLACEMENT`."""
    torn_append: int = 1
    """Which append to the norms file `LINE` interrupts, counted from 1."""

    def finished_file(self, rank: int) -> Path:
        """The file that a rank writes when it has saved everything."""
        return self.folder / f"finished.{rank}"

    def is_finished(self) -> bool:
        """Whether all ranks have saved everything."""
        return all(self.finished_file(rank).exists() for rank in range(self.world_size))


def run_rank(attempt: Attempt, rank: int) -> None:
    """Run one rank of an attempt; the target of a new process."""
    tqdm.set_lock(threading.RLock())  # a killed process would leak the semaphore that tqdm makes by default
    with (attempt.folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if attempt.world_size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(attempt.world_size),
            LOCAL_WORLD_SIZE=str(attempt.world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(attempt.port),
        )  # fmt: skip
    with _kill_of_rank_zero(attempt) if rank == 0 else nullcontext():
        train(attempt)


def train(attempt: Attempt) -> None:
    """Train to the end, and save the rates and the model."""
    import transformers

    from hf_refined_schedule import RefinedScheduleArguments, RefinedScheduleTrainer

    from .tiny_models import tiny_data, tiny_model, tiny_options

    transformers.utils.logging.set_verbosity_error()
    options = tiny_options(
        attempt.folder, max_steps=STEPS, lr_scheduler_type="refined", refined_from=str(attempt.source),
        save_strategy="steps", save_steps=SAVE_STEPS, save_total_limit=3,
    )  # fmt: skip
    arguments = RefinedScheduleArguments(**options)
    # With dropout, a run that resumes with another random state differs.
    model = tiny_model(embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    trainer = RefinedScheduleTrainer(model, arguments, train_dataset=tiny_data())
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(attempt.folder) if attempt.resume else None)
    trainer.save_model(str(attempt.folder / "final"))
    # A Trainer that resumes from its last checkpoint makes one more update, with a learning rate of 0.
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry][:STEPS]
    rank = arguments.process_index
    (attempt.folder / f"rates.{rank}.json").write_text(json.dumps(rates))
    attempt.finished_file(rank).touch()


def _kill_of_rank_zero(attempt: Attempt) -> AbstractContextManager[Any]:
    if attempt.moment is Moment.LINE:
        return _kill_in_a_line(attempt.torn_append)
    if attempt.moment is Moment.REPLACEMENT:  # the writer syncs the new file before it replaces the old one
        return mock.patch.object(os, "fsync", lambda file: os.kill(os.getpid(), signal.SIGKILL))
    return nullcontext()


@contextmanager
def _kill_in_a_line(torn_append: int) -> Iterator[None]:
    """Let this process die in an append to its norms file, with the last line cut off."""
    append, num_appends = NormsFileWriter.append, 0

    def torn(self: NormsFileWriter, rows: Iterable[Mapping[str, Any]]) -> None:
        nonlocal num_appends
        num_appends += 1
        append(self, rows)
        if num_appends == torn_append:
            os.truncate(self.path, self.path.stat().st_size - 30)
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(NormsFileWriter, "append", torn):
        yield


def start_server() -> None:
    """Start the server that training processes are forked from, and wait until it has loaded all libraries."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of its parent's threads
    os.environ["HF_HUB_OFFLINE"] = "1"
    _forkserver.set_forkserver_preload(PRELOADED)
    process = _forkserver.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


def write_source(path: Path) -> None:
    """Write the norms that all runs refine their schedule from: they fall fast, then slowly."""
    writer = NormsFileWriter(path, {"optimizer_family": "adam", "num_training_steps": STEPS})
    writer.append({"step": step, "l1": 1 + 3 * 0.8**step, "l2": 1.0} for step in range(1, STEPS + 1))


class InterruptedRuns:
    """Runs of one number of processes that are killed and resumed, beside one that is not.

    Args:
        folder: where all runs go.
        source: the norms that the schedule is refined from.
        world_size: processes of a run.
        seed: for the moments of the kills.

    Raises:
        RuntimeError: if a run that is not killed does not finish; also from `run_trials`.
    """

    def __init__(self, folder: Path, source: Path, world_size: int, seed: int) -> None:
        self._folder = folder
        self._source = source
        self._world_size = world_size
        self._seed = seed
        self._duration = 0.0
        """Seconds of an uninterrupted run."""
        self._uninterrupted = folder / f"uninterrupted_{world_size}"
        self._uninterrupted.mkdir()
        started = time.monotonic()
        self._attempt(self._uninterrupted, False, None, random.Random(seed))
        self._duration = time.monotonic() - started

    def run_trials(self, num_trials: int) -> Counter[str]:
        """Run trials, and keep the folders of those that differ.

        Args:
            num_trials: how many.

        Returns:
            The counts of `COLUMNS`.
        """
        total: Counter[str] = Counter()
        description = f"{self._world_size} process{'es' * (self._world_size > 1)}"
        for number in tqdm(range(num_trials), desc=description, unit="trial"):
            folder = self._folder / f"{self._world_size}_{number}"
            counts = self._run_trial(folder, random.Random(f"{self._seed} {self._world_size} {number}"))
            total += counts
            if count_differences(counts):
                tqdm.write(f"differs: {folder}: {dict(counts)}")
            else:
                shutil.rmtree(folder)
        return total

    def _run_trial(self, folder: Path, chance: random.Random) -> Counter[str]:
        """Train with one to three kills, and compare the result."""
        counts: Counter[str] = Counter(trials=1)
        folder.mkdir()
        num_kills = chance.randint(1, 3)
        finished = False
        while counts["kills"] < num_kills:
            resume = counts["kills"] > 0
            finished = self._attempt(folder, resume, chance.choice(list(Moment)), chance)
            if finished and resume:
                break
            if finished:  # the first kill came too late: start again, so that each trial has one
                shutil.rmtree(folder)
                folder.mkdir()
                continue
            norms = folder / NORMS_FILE_NAME
            counts["kills"] += 1
            counts["unfinished checkpoint"] += unfinished_checkpoint(folder) is not None
            counts["torn line"] += norms.exists() and not norms.read_bytes().endswith(b"\n")
            counts["unfinished replacement"] += any(folder.glob(f".{NORMS_FILE_NAME}.*"))
            counts["before the first checkpoint"] += last_complete_checkpoint(folder) is None
        if not finished:
            self._attempt(folder, True, None, chance)
        counts["different norms file"] += self._differs(folder, NORMS_FILE_NAME)
        counts["different weights"] += self._differs(folder, "final/model.safetensors")
        for rank in range(self._world_size):
            counts["different rates"] += self._differs(folder, f"rates.{rank}.json")
        return counts

    def _differs(self, folder: Path, name: str) -> bool:
        return (folder / name).read_bytes() != (self._uninterrupted / name).read_bytes()

    def _attempt(self, folder: Path, resume: bool, moment: Moment | None, chance: random.Random) -> bool:
        """Train to the end or to a kill; returns whether the run finished."""
        attempt = Attempt(
            folder, self._source, resume, self._world_size, free_port(), moment, torn_append=chance.randint(1, 6)
        )
        ranks = range(self._world_size)
        for rank in ranks:  # one rank may have finished while the other was killed
            attempt.finished_file(rank).unlink(missing_ok=True)
        processes = [_forkserver.Process(target=run_rank, args=(attempt, rank), daemon=True) for rank in ranks]
        for process in processes:
            process.start()
        deadline = time.monotonic() + TIME_LIMIT
        kill_is_due = kill_condition(moment, folder, chance, self._duration)
        try:
            while (
                not attempt.is_finished()
                and not kill_is_due()
                and all(process.is_alive() for process in processes)
                and time.monotonic() < deadline
            ):
                time.sleep(0.001)
            finished = attempt.is_finished()
        finally:
            chance.shuffle(processes)
            kill_one_by_one(processes, pause=0.0 if moment is None else chance.uniform(0, 0.3))
        if moment is None and not finished:
            raise RuntimeError(f"A run that nothing killed did not finish; its output is in {folder / 'log.txt'}.")
        return finished


def kill_condition(moment: Moment | None, folder: Path, chance: random.Random, duration: float) -> Callable[[], bool]:
    """Draw when a run is to be killed from outside.

    Args:
        moment: the kind of moment.
        folder: of the run.
        chance: random numbers.
        duration: seconds of an uninterrupted run.

    Returns:
        A function that is True once the moment has come. It is never True for a run that kills itself or is not killed.
    """
    if moment is Moment.RANDOM:
        due = time.monotonic() + chance.uniform(0.05, max(0.05, duration))
        return lambda: time.monotonic() > due
    if moment is not Moment.CHECKPOINT:
        return lambda: False
    number, delay = chance.randint(1, STEPS // SAVE_STEPS), chance.uniform(0, CHECKPOINT_SECONDS)
    seen: set[str] = set()

    def is_due() -> bool:
        checkpoint = unfinished_checkpoint(folder)
        if checkpoint is not None:
            seen.add(checkpoint.name)
        if len(seen) < number:
            return False
        time.sleep(delay)
        return True

    return is_due


def unfinished_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint if it is still being written, or None."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None)
    return newest if newest is not None and not (newest / "trainer_state.json").exists() else None


def kill_one_by_one(processes: Iterable[BaseProcess], pause: float) -> None:
    """Kill the first process, and the others a while later, as a launcher does when a rank dies.

    Args:
        processes: of one attempt.
        pause: seconds in which the others run on.
    """
    first, *others = processes
    first.kill()
    if others:
        time.sleep(pause)
    for process in others:
        process.kill()
    for process in (first, *others):
        process.join()
