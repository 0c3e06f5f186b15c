"""Logs in TensorBoard event files."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .columns import NoColumnError, Wanted
from .log_rows import RunLog
from .message_text import listed, shown
from .size_limits import MAX_EVENT_BYTES


def open_tensorboard(path: Path, wanted: Wanted) -> RunLog:
    """Open an event file, as `--report_to tensorboard` leaves it. A damaged file is read up to the damage.

    Args:
        path: the event file.
        wanted: the quantity to read.

    Returns:
        The log.

    Raises:
        NoColumnError: if no tag is named like the quantity.
        ValueError: if tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto import event_pb2
    except ImportError:
        raise ValueError(f"{shown(path)} is of TensorBoard, which reading it needs; pip install tensorboard.") from None
    rows: list[dict[str, Any]] = []
    tags: dict[str, None] = {}
    for record in _records(path):
        try:
            event = event_pb2.Event.FromString(record)
        except Exception:  # whatever protobuf makes of a damaged record
            break
        for value in event.summary.value:
            tags[value.tag] = None
            if not wanted.includes(value.tag) or (number := _scalar(value)) is None:
                continue
            # A Trainer writes all values of a step one after another.
            if not rows or rows[-1]["step"] != event.step or value.tag in rows[-1]:
                rows.append({"step": event.step})
            rows[-1][value.tag] = number
    names = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
    if len(names) == 1 and wanted.column is None:
        raise NoColumnError(f"{shown(path)} has no scalar that is named as a {wanted.what} (it has {listed(tags)})")
    return RunLog(path, "TensorBoard's log", lambda: rows, names, "step")


def _scalar(value: Any) -> Any:
    """The number in a summary value, None where there is none.

    The shape is checked before the tensor is decoded: a few bytes can declare one that fills the memory.
    """
    from tensorboard.util import tensor_util

    if value.HasField("simple_value"):
        return value.simple_value
    if not value.HasField("tensor") or any(dimension.size != 1 for dimension in value.tensor.tensor_shape.dim):
        return None
    try:
        return tensor_util.make_ndarray(value.tensor).item()
    except (TypeError, ValueError):  # of an unknown type, or with more elements than the shape says
        return None


def _records(path: Path) -> Iterator[bytes]:
    """The records of an event file up to the first that is damaged, without those too large for a scalar."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    size = path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            length, header_checksum = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != header_checksum or file.tell() + length > size:
                return
            if length > MAX_EVENT_BYTES:
                file.seek(length + 4, 1)
                continue
            record, checksum = file.read(length), file.read(4)
            if len(checksum) < 4 or masked_crc32c(record) != struct.unpack("<I", checksum)[0]:
                return
            yield record
