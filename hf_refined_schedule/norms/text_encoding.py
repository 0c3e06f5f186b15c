"""Text files that tools or users have written, read within limits; and files that are replaced as a whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from .message_text import shown
from .size_limits import MAX_LINE


def encoding_of(beginning: bytes) -> str:
    """The encoding of a text, from its byte-order mark.

    Args:
        beginning: the first bytes of the text.

    Returns:
        UTF-16 with a mark, as a redirection in PowerShell writes it; otherwise UTF-8, with or without a mark.
    """
    return "utf-16" if beginning.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def open_text(path: Path) -> TextIO:
    """Open a text file for reading; a byte-order mark is skipped, and invalid bytes become replacement characters.

    Args:
        path: the file.

    Returns:
        The open file.
    """
    with path.open("rb") as file:
        encoding = encoding_of(file.read(2))
    return path.open(encoding=encoding, errors="replace")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, each with its line feed, one at a time.

    Args:
        path: the file.

    Yields:
        A line.

    Raises:
        ValueError: for a line of more than `MAX_LINE` characters, as a sparse or a binary file has.
    """
    with open_text(path) as file:
        while line := file.readline(MAX_LINE):
            if len(line) == MAX_LINE and not line.endswith("\n"):
                raise ValueError(
                    f"{shown(path)} has a line of more than {MAX_LINE:,} characters, which no log has; cut it there, or "
                    "pass another file."
                )
            yield line


@contextmanager
def replace_file(path: Path) -> Iterator[IO[str]]:
    """Open a new text file that replaces `path` at the end of the block; after an error, `path` is as it was.

    Args:
        path: the file to replace; its folder must exist.

    Yields:
        The new file, in the same folder under a random name, so that a symbolic link cannot lie in wait there.
    """
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            yield file.file
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "fchmod"):  # Windows has none, and gives new files the rights of their folder
                os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
