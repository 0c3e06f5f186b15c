"""What the main process does for all: it alone reads a file, and every process gets what came of it.

The message goes through the key-value store in which the process group met, not through a collective: a process that
asks alone, such as a preview under `if is_main_process`, leaves nobody waiting in a call that the others never make. The
price: after such a preview, another process may be given the answer of the preview, where the file has changed since. It
looks again once training has brought the processes together (`latest_answer`).
"""

import hashlib
import logging
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar

import torch.distributed as dist

from ..compatibility import process_group_store

logger = logging.getLogger(__name__)

T = TypeVar("T")

PART = 2**20
"""Bytes of a message in one entry of the store; a TCPStore takes up to 8 MB."""

SILENT_WAIT = timedelta(seconds=30)
"""After so long a process that waits for the main process says so."""


class Outcome(NamedTuple, Generic[T]):
    """What came of a function on the main process: a value, or the error that it raised."""

    value: T | None
    error: Exception | None


def is_main_process() -> bool:
    """Whether this process reads and logs for all.

    Returns:
        True for rank 0, and where there is no process group.
    """
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def on_main_process(function: Callable[[], T], what: str) -> Outcome[T]:
    """Call a function on the main process, and give every process that asks what came of it.

    The main process waits for nobody. The others wait until it has asked as often as they have, and take its latest
    answer.

    Args:
        function: called on the main process alone, or here if there is no group of processes.
        what: what is asked for, the same words on every process.

    Returns:
        The function's value or its error, the same on every process.

    Raises:
        TimeoutError: on another process, if the main process has not asked for the same within the group's timeout.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return _outcome(function)
    store, name = process_group_store(), _name(what)
    number = store.add(f"{name}/asked by {dist.get_rank()}", 1)
    if not is_main_process():
        _wait(store, f"{name}/{number}", what)
        return _latest(store, name)
    outcome = _outcome(function)
    try:
        message = pickle.dumps(outcome)
    except Exception as error:  # an error of a kind that cannot be sent still stops all
        outcome = Outcome(None, RuntimeError(f"{outcome.error or error}"))
        message = pickle.dumps(outcome)
    parts = [message[start : start + PART] for start in range(0, len(message), PART)]
    for place, part in enumerate(parts):
        store.set(f"{name}/{number}/{place}", part)
    store.set(f"{name}/latest", f"{number} {len(parts)}")
    store.set(f"{name}/{number}", "")
    return outcome


def latest_answer(what: str) -> Outcome[Any]:
    """What the main process has answered last. For another process that has asked, and has met it in training since.

    Args:
        what: the words in which this process has asked.

    Returns:
        The value or the error.
    """
    return _latest(process_group_store(), _name(what))


def _name(what: str) -> str:
    return f"hf_refined_schedule/{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def _latest(store: dist.Store, name: str) -> Outcome[Any]:
    number, num_parts = map(int, store.get(f"{name}/latest").split())
    return pickle.loads(b"".join(store.get(f"{name}/{number}/{place}") for place in range(num_parts)))


def _outcome(function: Callable[[], T]) -> Outcome[T]:
    try:
        return Outcome(function(), None)
    except Exception as error:  # whatever it is, other processes wait for this message
        return Outcome(None, error)


def _wait(store: dist.Store, key: str, what: str) -> None:
    rank, patience = dist.get_rank(), store.timeout
    remedy = "it has to be asked for by the same words on all processes, or on the main process alone"
    try:
        store.wait([key], min(SILENT_WAIT, patience))
    except dist.DistStoreError:
        logger.warning("Rank %d waits for the main process to give it %s; %s.", rank, what, remedy)
        try:
            store.wait([key], patience)
        except dist.DistStoreError:
            raise TimeoutError(
                f"Rank {rank} has waited {patience.total_seconds():.0f} s for the main process to give it {what}; {remedy}."
            ) from None
