"""Processes with a time limit: start them, wait for them, and kill them with all of their descendants."""

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil

SCRIPTS = Path(__file__).parent.parent
PYTHONPATH = os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS)])
"""The environment variable with which a process imports this repository's package and `experiments`."""

MARK = "HF_REFINED_SCHEDULE_PROCESS_TREES"
"""An environment variable: the ids of the process trees that a process belongs to.

A child inherits it even if it starts a session, as torchrun's workers do, and keeps it when its parent dies.
"""

POLL_INTERVAL = 0.05
"""Seconds between two looks at the processes."""

KILL_LIMIT = 10.0
"""Seconds for the processes of a tree to disappear once they are killed."""


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ProcessTree:
    """Processes and their descendants, which are killed when the `with` block ends.

    with ProcessTree() as tree:
        process = tree.start(["torchrun", "train.py"], environment=os.environ, folder=folder, output=log)
        in_time = tree.wait(60.0)
    """

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        output: IO[Any],
        errors: IO[Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process of the tree.

        Args:
            command: the program and its arguments.
            environment: all environment variables of the process.
            folder: the working directory.
            output: the file for standard output.
            errors: the file for standard error; `output` by default.

        Returns:
            The process.
        """
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT if errors is None else errors,
            cwd=folder,
            env={**environment, MARK: f"{os.environ.get(MARK, '')} {self._id}"},
        )
        self._started.append(process)
        return process

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the processes that `start` started.

        Args:
            seconds: how long at most.
            until: a condition that ends the waiting.

        Returns:
            True if the processes ended or the condition held, False at the time limit.
        """
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in self._started) and not until():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_INTERVAL)
        return True

    def kill(self) -> None:
        """Kill all processes of the tree, including those that they start in the meantime."""
        deadline = time.monotonic() + KILL_LIMIT
        while (members := self._running()) and time.monotonic() < deadline:
            for member in members:
                with suppress(psutil.Error):
                    member.kill()
            time.sleep(POLL_INTERVAL)
        for process in self._started:
            process.wait()

    def _running(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._id in _tree_ids(process)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


def _tree_ids(process: psutil.Process) -> list[str]:
    """The ids of the trees that a process belongs to; none if it is dead or another user's."""
    try:
        return process.environ().get(MARK, "").split()
    except psutil.Error:
        return []
