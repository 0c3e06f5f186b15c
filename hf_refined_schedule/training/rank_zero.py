"""Run a function on rank 0 and share its result.

The result travels through the key-value store of the default process group, not through a collective. A rank that asks
alone, such as a preview under `if is_main_process`, leaves no other rank waiting in a call that it never makes.

Rank 0 answers once per key and process group, and every later call with that key returns the same answer on every rank.
Ranks never differ, even if the file that the function reads changes between two calls.

Anyone who can reach the port of the store can write to it. A message is therefore JSON and raw float64 arrays. Nothing in
it is evaluated, and an error is one of a fixed list of classes.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from ..compatibility.libraries import process_group_store
from ..norms.gradient_norms import UnfinishedRunError
from ..norms.sources import MissingSourceError
from ..schedules.health import DegenerateScheduleError

logger = logging.getLogger(__name__)

Message = dict[str, Any]
"""What rank 0 shares: JSON values, and float64 arrays of at least one dimension."""

SHARED_ERRORS: tuple[type[Exception], ...] = (
    MissingSourceError,
    UnfinishedRunError,
    DegenerateScheduleError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    TimeoutError,
    OSError,
    TypeError,
    ValueError,
    RuntimeError,
)
"""The classes in which an error reaches other ranks. Each takes its text as the only argument."""

PART_BYTES = 2**20
"""The size of one entry of the store. A TCPStore accepts up to 8 MB."""

MAX_PARTS = 2**10
"""A message of more parts is malformed. The longest schedule has 400 MB."""

ARRAY_TYPE = "<f8"

SILENT_WAIT = timedelta(seconds=30)
"""A rank that has waited this long for rank 0 logs a warning."""


class Outcome(NamedTuple):
    """The result of a function on rank 0: its value, or the error that it raised."""

    value: Message | None
    error: Exception | None


class MalformedMessageError(ValueError):
    """The store holds something that rank 0 did not write.

    Args:
        key: the key of the message.
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The message from rank 0 about {key} is malformed; only ranks of this run may write to the store of the process "
            "group, so start the run again on a port that no other program can reach."
        )


def is_rank_zero() -> bool:
    """Whether this process reads files and logs for all ranks.

    Returns:
        True on rank 0, and where there is no process group.
    """
    return not _has_process_group() or dist.get_rank() == 0


def on_rank_zero(function: Callable[[], Message], key: str) -> Outcome:
    """Call a function on rank 0 and return its result on every rank that asks.

    Rank 0 calls the function at its first request for a key, and waits for no other rank. Other ranks wait for the answer.

    Args:
        function: called on rank 0 only, or in this process if there is no process group.
        key: what is requested, in words for messages. Equal keys get equal answers.

    Returns:
        The value of the function or its error. On other ranks, and at later calls on rank 0, an error has the nearest class
        of `SHARED_ERRORS` among its bases. One that has none is a `RuntimeError` whose text names its class.

    Raises:
        TimeoutError: on other ranks, if rank 0 does not ask for the same key within the timeout of the process group.
        MalformedMessageError: if the answer in the store was not written by rank 0.
    """
    if not _has_process_group() or dist.get_world_size() == 1:
        return _call(function)[0]
    store = process_group_store()
    name = f"hf_refined_schedule/{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:16]}"
    if is_rank_zero() and not store.check([f"{name}/num_parts"]):
        outcome, message = _call(function)
        _send(store, name, message)
        return outcome
    _wait(store, f"{name}/num_parts", key)
    try:
        return _decode(_receive(store, name))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise MalformedMessageError(key) from None


def _has_process_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _call(function: Callable[[], Message]) -> tuple[Outcome, bytes]:
    try:
        value = function()
        return Outcome(value, None), _encode(value)
    except Exception as error:  # of any class, because other ranks wait for this message
        return Outcome(None, error), _encode_error(error)


def _send(store: dist.Store, name: str, message: bytes) -> None:
    parts = [message[start : start + PART_BYTES] for start in range(0, len(message), PART_BYTES)]
    for number, part in enumerate(parts):
        store.set(f"{name}/{number}", part)  # type: ignore[arg-type]  # torch's stub omits bytes
    store.set(f"{name}/num_parts", str(len(parts)))  # last, because other ranks wait for it


def _receive(store: dist.Store, name: str) -> bytes:
    num_parts = int(store.get(f"{name}/num_parts"))
    if not 0 < num_parts <= MAX_PARTS:
        raise ValueError(f"a message has from 1 to {MAX_PARTS} parts")
    parts = [f"{name}/{number}" for number in range(num_parts)]
    if not store.check(parts):  # `get` would wait for a part that is not there
        raise ValueError("a part of the message is missing")
    return b"".join(map(store.get, parts))


def _encode(value: Message) -> bytes:
    """One line of JSON, then the bytes of the arrays in the order in which that line lists them."""
    arrays = {name: item for name, item in value.items() if isinstance(item, np.ndarray)}
    for name, array in arrays.items():
        if array.dtype != np.float64 or array.ndim == 0:
            raise TypeError(
                f"{name} is a {array.ndim}-dimensional array of {array.dtype}, but only float64 arrays of at least one dimension "
                "can be shared; convert it."
            )
    header = {
        "values": {name: item for name, item in value.items() if name not in arrays},
        "arrays": {name: {"shape": array.shape, "dtype": ARRAY_TYPE} for name, array in arrays.items()},
        "error": None,
    }
    raw = b"".join(array.astype(ARRAY_TYPE, copy=False).tobytes() for array in arrays.values())
    return json.dumps(header).encode("ascii") + b"\n" + raw


def _encode_error(error: Exception) -> bytes:
    nearest = next((base for base in type(error).__mro__ if base in SHARED_ERRORS), None)
    text = str(error) if nearest else f"{type(error).__name__}: {error}"
    header = {"error": {"class": (nearest or RuntimeError).__name__, "text": text}}
    return json.dumps(header).encode("ascii") + b"\n"


def _decode(message: bytes) -> Outcome:
    line, _, raw = message.partition(b"\n")
    header = json.loads(line.decode("ascii"))
    if header["error"] is not None:
        classes = {shared.__name__: shared for shared in SHARED_ERRORS}
        return Outcome(None, classes[header["error"]["class"]](str(header["error"]["text"])))
    return Outcome({**header["values"], **_decode_arrays(header["arrays"], raw)}, None)


def _decode_arrays(specifications: dict[str, Any], raw: bytes) -> dict[str, NDArray[np.float64]]:
    arrays, start = {}, 0
    for name, specification in specifications.items():
        shape = specification["shape"]
        if specification["dtype"] != ARRAY_TYPE or not shape or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"an array has dtype {ARRAY_TYPE} and a shape")
        end = start + 8 * math.prod(shape)
        flat = np.frombuffer(raw[start:end], dtype=ARRAY_TYPE).astype(np.float64)
        arrays[name] = flat.reshape(shape)  # raises if the bytes end too early
        start = end
    if start != len(raw):
        raise ValueError("there are bytes after the last array")
    return arrays


def _wait(store: dist.Store, entry: str, key: str) -> None:
    patience: timedelta = store.timeout  # type: ignore[attr-defined]  # torch's stub omits it
    rank, remedy = dist.get_rank(), "make the same call on every rank, or on rank 0 alone"
    try:
        store.wait([entry], min(SILENT_WAIT, patience))
    except dist.DistStoreError:
        logger.warning("Rank %d waits for rank 0 to share %s; %s.", rank, key, remedy)
        try:
            store.wait([entry], patience)
        except dist.DistStoreError:
            raise TimeoutError(
                f"Rank {rank} waited {patience.total_seconds():.0f} s for rank 0 to share {key}; {remedy}."
            ) from None
