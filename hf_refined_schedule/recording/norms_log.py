"""From the norms of one update to lines of `gradient_norms.jsonl`: rows that wait, the header, and the file.

Norms are scalars on the device, and reading one makes the host wait for the device. So rows wait here, and many updates are
copied to the host at once.
"""

import functools
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..norms.norms_file import NORMS_FILE_NAME, NormsFileWriter, parse_header
from .failures import report_failure
from .optimizers import is_main_process, optimizer_family, unwrap_optimizer

logger = logging.getLogger(__name__)

FLUSH_EVERY = 50
"""Updates that wait between two writes."""


def norms_path(path: str | os.PathLike[str]) -> Path:
    """Get the absolute path of the norms file, so that it stays the same if the program changes its working directory.

    Args:
        path: a file, or the folder for `gradient_norms.jsonl`. A name that does not exist yet is a file if it has a suffix
            that begins with a letter, and a folder otherwise, as `runs/baseline`, `runs/llama-3.1` or `norms.d/` are.

    Returns:
        The path of the file.
    """
    text = os.fspath(path)
    absolute = Path(os.path.abspath(os.path.expanduser(text)))
    looks_like_file = re.fullmatch(r"\.[A-Za-z]\w*", absolute.suffix) and not text.endswith(("/", os.sep))
    if absolute.is_dir() or not (looks_like_file or absolute.is_file()):
        return absolute / NORMS_FILE_NAME
    return absolute


class RecordedUpdate(NamedTuple):
    """One optimizer update. Tensors are scalars on the device.

    Attributes:
        step: the number of the update, 1-based.
        l1: the L1 norm before clipping; None if it is not known.
        l2: the L2 norm before clipping; not finite if the update was not taken.
        clip_factor: the factor that clipping applied; None if nothing was clipped.
        learning_rate: the learning rate of the first parameter group; None if the optimizer sets it by itself.
    """

    step: int
    l1: torch.Tensor | None
    l2: torch.Tensor | float
    clip_factor: torch.Tensor | None
    learning_rate: float | torch.Tensor | None


class NormsLog:
    """The rows of a run that wait to be written, and the file that they go to. Only the main process writes.

    Args:
        path: the file.
        optimizer: the optimizer as `Accelerator.prepare` returned it.
        num_training_steps: T, the planned number of updates; None if it is known only at the end.
        on_failure: what to do if the file cannot be written: `"raise"` or `"warn"`.
        estimate_updates: as in `GradientNormRecorder`.
    """

    def __init__(
        self,
        path: Path,
        optimizer: Any,
        num_training_steps: int | None,
        on_failure: str,
        estimate_updates: Callable[[int], int | None] | None = None,
    ) -> None:
        self.path = path
        self.num_training_steps = num_training_steps
        self.max_grad_norm: float | None = None
        """The limit that the loop clips to, for the header; None until it has clipped."""
        self._optimizer = optimizer
        self._on_failure = on_failure
        self._estimate_updates = estimate_updates
        self._writes = is_main_process(optimizer)
        self._waiting: list[RecordedUpdate] = []
        self._writer: NormsFileWriter | None = None
        self._written_horizon: int | None = None
        """`num_training_steps` in the header of the file."""

    @property
    def is_due(self) -> bool:
        """Whether enough rows wait for a write."""
        return len(self._waiting) >= FLUSH_EVERY

    def append(self, update: RecordedUpdate) -> None:
        """Let an update wait for the next write, unless the run has made all updates that it planned.

        Args:
            update: the update.
        """
        if not self._writes:
            return
        excess = 0 if self.num_training_steps is None else update.step - self.num_training_steps
        if excess <= 0:
            self._waiting.append(update)
        elif excess == 2:  # a Trainer that resumes a finished run makes one more update, at a learning rate of 0
            logger.warning(
                "The run makes more updates than num_training_steps=%d; their gradient norms are not recorded.",
                self.num_training_steps,
            )

    def make_folder(self, step: int) -> None:
        """Create the folder of the file, so that a program that saves its model into it finds a folder.

        Args:
            step: the next update, 1-based.

        Raises:
            RecordingError: if the folder cannot be created and `on_failure` is `"raise"`.
        """
        if not self._writes:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._fail(error, step)

    def flush(self) -> None:
        """Write the rows that wait. This makes the host wait for the device.

        Raises:
            RecordingError: if the file cannot be written and `on_failure` is `"raise"`.
        """
        if not self._waiting:
            return
        updates, self._waiting = self._waiting, []
        rows = _to_rows(updates)
        header = self._header(self._horizon(updates[-1].step))
        try:
            if self._writer is None:
                self._writer = self._open(header, start_step=updates[0].step - 1)
            elif header["num_training_steps"] != self._written_horizon:
                self._rewrite_header(self._writer, header)
            self._writer.append(rows)
        except (OSError, ValueError) as error:
            self._fail(error, updates[0].step)

    def finish(self, num_updates: int) -> None:
        """End the file of a run that went to its end.

        A run that was resumed and made no update has written nothing yet: its file is cut back here, and its header stays.
        The number of updates goes into the header if it was not known before.

        Args:
            num_updates: the updates that the run made.

        Raises:
            RecordingError: if the file cannot be written and `on_failure` is `"raise"`.
        """
        if not self._writes:
            return
        horizon = num_updates if self.num_training_steps is None else self.num_training_steps
        try:
            if self._writer is None and num_updates and self.path.exists():
                # This run has not trained, so that it does not know what the file says about the training.
                self._writer = self._open(self._stored_header() | {"num_training_steps": horizon}, num_updates)
            elif self._writer is not None and horizon != self._written_horizon:
                self._rewrite_header(self._writer, self._header(horizon))
            if self.num_training_steps is None:
                self._writer = None  # a block that is entered again continues the file
        except (OSError, ValueError) as error:
            self._fail(error, num_updates + 1)

    def finish_if_complete(self, num_updates: int) -> None:
        """End the file of a run that stopped with an error, if it had made all the updates that it planned by then.

        Args:
            num_updates: the updates that the run made.

        Raises:
            RecordingError: as `finish`.
        """
        if self.num_training_steps is not None or self._writer is None or self._estimate_updates is None:
            return
        planned = self._estimate_updates(num_updates)
        if planned is not None and num_updates >= planned:
            self.finish(num_updates)

    def discard(self) -> None:
        """Drop the rows that wait."""
        self._waiting = []

    def resume(self) -> None:
        """Drop the rows that wait, and cut the file back at the next write to the update before its first row."""
        self.discard()
        self._writer = None

    def _open(self, header: dict[str, Any], start_step: int) -> NormsFileWriter:
        writer = NormsFileWriter(self.path, header, start_step=start_step)
        self._written_horizon = header["num_training_steps"]
        if writer.missing_steps:
            logger.warning(
                "%s lacks %d updates from before this run was resumed; they are left out.",
                self.path,
                writer.missing_steps,
            )
        return writer

    def _rewrite_header(self, writer: NormsFileWriter, header: dict[str, Any]) -> None:
        writer.rewrite_header(header)
        self._written_horizon = header["num_training_steps"]

    def _horizon(self, num_updates: int) -> int | None:
        """The planned number of updates, None if it is unknown or turned out to be too small."""
        if self.num_training_steps is not None or self._estimate_updates is None:
            return self.num_training_steps
        planned = self._estimate_updates(num_updates)
        return planned if planned is not None and num_updates <= planned else None

    def _header(self, horizon: int | None) -> dict[str, Any]:
        return {
            "optimizer": type(unwrap_optimizer(self._optimizer)).__name__,
            "optimizer_family": optimizer_family(self._optimizer),
            "world_size": self._optimizer.accelerator_state.num_processes,
            "max_grad_norm": self.max_grad_norm,
            "num_training_steps": horizon,
        }

    def _stored_header(self) -> dict[str, Any]:
        with self.path.open(encoding="utf-8", errors="replace") as file:
            header = parse_header(file.readline(), self.path)
        return {name: value for name, value in header.items() if name not in ("format", "version")}

    def _fail(self, error: Exception, step: int) -> None:
        """Write no more. The recorder goes on measuring: other ranks do, and the norm of a sharded gradient takes them all."""
        self._writes = False
        reason = f"{self.path} cannot be written ({error})"
        report_failure(reason, step, on_failure=self._on_failure, is_main_process=True)


def _to_rows(updates: Sequence[RecordedUpdate]) -> list[dict[str, float | int | None]]:
    """Lines of the file, with one copy from the device for all of them. An update that was not taken has no norm."""
    values = iter(_copy_to_host([value for update in updates for value in update[1:]]))
    rows: list[dict[str, float | int | None]] = []
    for update in updates:
        l1, l2, clip_factor, learning_rate = (next(values) for _ in update[1:])
        taken = all(norm is None or math.isfinite(norm) for norm in (l1, l2))
        factor = 1.0 if clip_factor is None else clip_factor
        rows.append(
            {
                "step": update.step,
                "l1": l1 if taken else None,
                "l2": l2 if taken else None,
                "clip_factor": factor if taken else None,
                "learning_rate": learning_rate,
            }
        )
    return rows


def _copy_to_host(values: Sequence[torch.Tensor | float | None]) -> list[float | None]:
    """The values as numbers, with one copy from the device for all tensors among them."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    numbers: Iterator[float] = iter(())
    if tensors:
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        scalars = [tensor.to(tensors[0].device, dtype).reshape(()) for tensor in tensors]
        numbers = iter(torch.stack(scalars).tolist())
    return [
        next(numbers) if isinstance(value, torch.Tensor) else None if value is None else float(value)
        for value in values
    ]
