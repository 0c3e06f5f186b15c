"""Processes that write into one folder take turns."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes that call this function out of a folder during the block. It leaves no file behind.

    A file system without locks, as some network file systems are, grants every process the lock at once. What the block does
    must then still be right unless two processes do it in the same millisecond.

    Args:
        folder: the folder, which must exist.

    Yields:
        Nothing.

    Raises:
        OSError: if the folder does not exist or cannot be read.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # no locks here
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which gives the lock back
