"""The refined schedule as a PyTorch learning-rate scheduler, with the signature of transformers' `get_*_schedule`."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..norms.gradient_norms import GradientNorms, OptimizerFamily
from ..norms.message_text import quoted, shown
from ..norms.sources import EXPECTED_SOURCE
from ..recording.optimizers import optimizer_family, stand_in_note
from ..schedules.refined_schedule import Extension, RefinedSchedule
from ..schedules.refinement_options import RefinementOptions
from ..schedules.refining import Source, listed_sources, refine_sources
from ..schedules.schedule_file import schedule_fields, schedule_from_fields
from ..theory.refinement import multiplier_at
from .rank_zero import MalformedMessageError, Message, is_rank_zero, on_rank_zero
from .scheduler_kwargs import NEEDS_SOURCE

logger = logging.getLogger(__name__)

REFINED_FROM_VARIABLE = "HF_REFINED_SCHEDULE_FROM"
"""The environment variable that replaces `refined_from` where a script cannot pass it."""

FOLDER_VARIABLE = "HF_REFINED_SCHEDULE_FOLDER"
"""The environment variable with the folder from which that source is meant, if its path is relative.

A run on several nodes asks for the source by the path as it was given, which is the same on every node; the folder may differ.
"""

OPTIONS_VARIABLE = "HF_REFINED_SCHEDULE_OPTIONS"
"""The environment variable with the options for that source, as a JSON object."""


def get_refined_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | None,
    num_training_steps: int | None,
    *,
    refined_from: Source | Sequence[Source] | None = None,
    min_lr_ratio: float = 0.0,
    last_epoch: int = -1,
    **options: Any,
) -> LambdaLR:
    """Create the schedule that the gradient norms of an earlier run ask for.

        learning_rate(t) = initial_lr * min(r + (1 - r) * multiplier(t / T), t / num_warmup_steps)

    The multiplier is a function of progress: the earlier run may have another length, and a loop that steps the scheduler
    N times an update over N * T steps gets the rates of a loop that steps it once.

    Args:
        optimizer: The optimizer for which to schedule the learning rate. `torch.optim.SGD` and its subclasses weight by
            L2 ** -2, all others by L1 ** -1 (by L2 ** -1 where the source has no L1 norms). For an optimizer that is
            neither coordinate-wise nor SGD, such as Muon, L1 ** -1 is a stand-in, and a warning says so.
        num_warmup_steps: The length of a linear ramp that caps the schedule, in steps. The warm-up that the norms ask for
            is already part of the schedule; 0 adds no ramp. The schedule of `hf-refined-schedule extend` is not capped.
        num_training_steps: T, the total number of training steps.
        refined_from: The earlier run: its `gradient_norms.jsonl` or `trainer_state.json`, the folder that holds one of
            them, another log as `load_norms` takes it, a schedule file written by `hf-refined-schedule refine`, or
            `GradientNorms`; or a list of several runs, to average. By default the environment variable
            HF_REFINED_SCHEDULE_FROM names it. Of several processes, rank 0 reads it, once for the life of the process group.
        min_lr_ratio: r, the floor of the learning rate as a fraction of its peak, from 0 to 1.
        last_epoch: The index of the last epoch when resuming training.
        **options: The fields of `RefinementOptions`: `column`, `norm`, `power`, `smoothing`, `rising_norms`, `bounded_warmup`, `max_grad_norm`, `pilot`,
            `pilot_num_training_steps` (its `num_training_steps`) and `allow_degenerate`.

    Returns:
        `torch.optim.lr_scheduler.LambdaLR` with the refined schedule. Its `state_dict` holds the schedule, not the
        horizon or the warm-up: a resumed run continues the schedule it began with, even if the source no longer exists. A
        schedule file of `hf-refined-schedule extend` is the exception: it replaces that schedule, and a warning says so.

    Raises:
        ValueError: if an argument is missing, unknown or out of range, or `refined_from` is not a source. A source on disk
            that cannot be used raises at the first step, unless a saved state is loaded before that: the resumed run
            then continues with a warning.

    Reference: arXiv 2310.07831, Algorithm 1.
    """
    folder = ""
    if refined_from is None:
        refined_from = os.environ.get(REFINED_FROM_VARIABLE)
        folder = os.environ.get(FOLDER_VARIABLE, "")
        options = {**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")), **options}
    if refined_from is None:
        raise ValueError(f"The schedule 'refined' {NEEDS_SOURCE}; {EXPECTED_SOURCE}.")
    sources = listed_sources(refined_from)
    refinement_options = RefinementOptions.from_keywords(options)
    if num_training_steps is None or num_training_steps < 1:
        raise ValueError(
            f"num_training_steps is {num_training_steps!r}, but the schedule 'refined' needs the number of training steps; "
            "pass a positive integer."
        )
    num_warmup_steps = num_warmup_steps or 0
    if num_warmup_steps < 0:
        raise ValueError(f"num_warmup_steps is {num_warmup_steps!r}, but must not be negative; pass 0 for no warm-up.")
    if not isinstance(min_lr_ratio, int | float) or not 0 <= min_lr_ratio <= 1:
        raise ValueError(f"min_lr_ratio is {quoted(min_lr_ratio)}, but must be a fraction of the peak between 0 and 1.")
    family = optimizer_family(optimizer)

    def load() -> RefinedSchedule:
        located = [one if isinstance(one, GradientNorms) else os.path.join(folder, one) for one in sources]
        return refine_sources(located, family, refinement_options).trainable_schedule(refinement_options)

    schedule: RefinedSchedule | None
    error: Exception | None
    if _in_memory(sources):
        schedule, error = load(), None
    else:
        key = _request_key(sources, family, refinement_options)
        message, error = on_rank_zero(lambda: _schedule_to_message(load()), key)
        if error is not None and (isinstance(error, MalformedMessageError) or not isinstance(error, DEFERRED_ERRORS)):
            raise error
        schedule = None if message is None else _schedule_from_message(message, key)
    if schedule is not None and schedule.extension is not None:
        _check_extension(schedule, schedule.extension, num_training_steps, min_lr_ratio)
        num_warmup_steps = 0
    if schedule is not None and is_rank_zero():
        _log_schedule(schedule, stand_in_note(optimizer))
    return RefinedLR(
        optimizer,
        schedule,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        min_lr_ratio=min_lr_ratio,
        last_epoch=last_epoch,
        error=error,
    )


def _check_extension(
    schedule: RefinedSchedule, extension: Extension, num_training_steps: int, min_lr_ratio: float
) -> None:
    """Refuse what would break the continuity of an extended run: another length, or a floor under its rates."""
    if min_lr_ratio:
        raise ValueError(
            f"min_lr_ratio is {min_lr_ratio:g}, but the schedule extends {shown(schedule.source)} and holds its rates as they "
            "are; leave it out."
        )
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    total = extension.num_training_steps
    # A raw Accelerate loop steps once for every process, over a horizon that is rounded.
    if not any(abs(num_training_steps - factor * total) < factor for factor in {1, processes}):
        raise ValueError(
            f"num_training_steps is {num_training_steps}, but the schedule extends {shown(schedule.source)} to {total} updates; "
            f"train with max_steps={total}, or extend the run again to another length."
        )


def _log_schedule(schedule: RefinedSchedule, stand_in: str | None) -> None:
    """Say where the schedule comes from.

    As warnings, because the user has to act on them, by changing the peak learning rate, and because most scripts do not show
    INFO. Showing INFO in spite of the script's configuration would be the greater surprise.
    """
    source = shown(schedule.source)
    if schedule.weights is not None:
        logger.warning(
            "Refined schedule from %s (%s): its best peak learning rate is %.2f times linear decay's, by the last-iterate bound.",
            source,
            schedule.fingerprint,
            schedule.best_peak_ratio,
        )
    notes = schedule.notes if stand_in is None or schedule.weights is None else (stand_in, *schedule.notes)
    for note in notes:
        logger.warning("Refined schedule from %s: %s", source, note)


DEFERRED_ERRORS = (ValueError, OSError)
"""Errors of a source that wait until the first step: a source that was lost, replaced or damaged after a run began must
not stop its resumption."""


SAME_RATE = 1e-3
"""The relative difference up to which two learning rates are the same; a log rounds, and interpolates what it lacks."""


class SavedSchedule(TypedDict):
    """What a checkpoint holds of a refined schedule.

    Args:
        grid: the schedule at progress t / T for t = 0 .. T, float64, shape (T+1,).
        min_lr_ratio: r, the floor as a fraction of the peak.
        fingerprint: that of the `RefinedSchedule`.
    """

    grid: torch.Tensor
    min_lr_ratio: float
    fingerprint: str


class RefinedLR(LambdaLR):
    """A `LambdaLR` that saves its schedule in checkpoints, and neither horizon nor warm-up.

    A loaded state has the say over its schedule, unless this one extends the run.

    Args:
        optimizer: the optimizer.
        schedule: the schedule, or None if the source gave the error below.
        num_warmup_steps: the steps of the ramp that caps the schedule.
        num_training_steps: T, the steps from progress 0 to 1.
        min_lr_ratio: r, the floor as a fraction of the peak.
        last_epoch: as in every PyTorch scheduler.
        error: raised at the first step unless a saved state is loaded before it.
    """

    # What a checkpoint stores. Resuming needs the step (`last_epoch`, and `_step_count`, which accelerate changes under
    # gradient accumulation), the peak rates (`base_lrs`), the rates of this step, which the loop logs before the next one
    # (`_last_lr`), and the schedule, because a run continues with the one it began with even if its source is gone. That is
    # enough: every rate follows from these, the horizon and the warm-up, and the last two come from the new call, as in
    # transformers' own schedules, whose functions are not saved. `lr_lambdas` holds nothing here, but every `LambdaLR` that
    # loads this state requires it. PyTorch's other attributes are flags that are False between two steps.
    _SAVED = ("base_lrs", "last_epoch", "_step_count", "_last_lr", "lr_lambdas", "refined_schedule")

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: RefinedSchedule | None,
        *,
        num_warmup_steps: int,
        num_training_steps: int,
        min_lr_ratio: float = 0.0,
        last_epoch: int = -1,
        error: Exception | None = None,
    ) -> None:
        self.error = error
        self._extension = None if schedule is None else schedule.extension
        self.refined_schedule: SavedSchedule | None = None
        if schedule is not None:
            self.refined_schedule = SavedSchedule(
                # A tensor, because torch.load(weights_only=True) refuses a NumPy array.
                grid=torch.tensor(schedule.grid),
                min_lr_ratio=min_lr_ratio,
                fingerprint=schedule.fingerprint,
            )
        self._horizon = _Horizon(num_warmup_steps, num_training_steps)
        super().__init__(optimizer, self._multiplier, last_epoch)

    @property
    def num_training_steps(self) -> int:
        """T, the steps from progress 0 to 1."""
        return self._horizon.num_training_steps

    @property
    def num_warmup_steps(self) -> int:
        """The steps of the ramp that caps the schedule."""
        return self._horizon.num_warmup_steps

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the schedule, None if there is no schedule."""
        return None if self.refined_schedule is None else self.refined_schedule["fingerprint"]

    def raise_if_unavailable(self) -> None:
        """Raise the error of the source if no saved state has been loaded.

        Raises:
            ValueError: what is wrong with the source.
        """
        if self.error is not None:
            raise self.error

    def step(self, epoch: int | None = None) -> None:
        """Advance by one step, as every PyTorch scheduler.

        Args:
            epoch: as in every PyTorch scheduler.

        Raises:
            ValueError: if the source could not be used and no state was loaded.
        """
        constructing = self.last_epoch < 0
        if not constructing:
            self.raise_if_unavailable()
        super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint.

        Returns:
            PyTorch's own entries that resuming needs, and under `refined_schedule` a `SavedSchedule`, or None if the source
            gave an error.
        """
        state = super().state_dict()
        return {name: state[name] for name in self._SAVED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the schedule of a saved state, at its step; warn once if the source now gives another schedule.

        Args:
            state_dict: the state of a `RefinedLR`. The state of another scheduler sets the step and the rates only, and so
                does every state where this schedule extends the run.
        """
        state = {name: state_dict[name] for name in self._SAVED if name in state_dict}
        saved: SavedSchedule | None = state.pop("refined_schedule", None)
        super().load_state_dict({**state, "lr_lambdas": []})
        if self._extension is not None:
            if (saved is None or saved["fingerprint"] != self.fingerprint) and is_rank_zero():
                logger.warning(self._extension_message(self._extension))
            return
        if saved is None:
            return
        if self.fingerprint not in (None, saved["fingerprint"]) and is_rank_zero():
            logger.warning(
                "The run goes on with the refined schedule it began with (%s), although refined_from now gives another (%s).",
                saved["fingerprint"],
                self.fingerprint,
            )
        self.refined_schedule = SavedSchedule(
            grid=saved["grid"].cpu(),  # a loop may load checkpoints to its device
            min_lr_ratio=saved["min_lr_ratio"],
            fingerprint=saved["fingerprint"],
        )
        if self.error is not None and is_rank_zero():
            logger.warning(
                "The run continues the refined schedule it began with (%s): %s", saved["fingerprint"], self.error
            )
        self.error = None

    def _extension_message(self, extension: Extension) -> str:
        """What becomes of the run that this schedule extends; called once its state is loaded."""
        step = round(self.last_epoch * extension.num_training_steps / self.num_training_steps)
        before, now = float(self._last_lr[0]), float(self.base_lrs[0]) * self._multiplier(self.last_epoch)
        message = (
            f"From update {step} on, the run follows the extension to {extension.num_training_steps} updates ({self.fingerprint}) "
            "instead of the schedule it began with"
        )
        if abs(now - before) > SAME_RATE * max(now, before):
            return (
                f"{message}: the learning rate jumps from {before:.3g} to {now:.3g}, because the extension was made from the "
                f"checkpoint at update {extension.start_step} with a peak of {extension.learning_rate:.3g}; extend this one."
            )
        return f"{message}, at a learning rate of {now:.3g}."

    def _multiplier(self, current_step: int) -> float:
        if self.refined_schedule is None:  # nothing may move before the first step raises the error
            return 0.0
        return _refined_lr_lambda(
            current_step,
            grid=self.refined_schedule["grid"].numpy(),
            min_lr_ratio=self.refined_schedule["min_lr_ratio"],
            num_warmup_steps=self._horizon.num_warmup_steps,
            num_training_steps=self._horizon.num_training_steps,
        )


class _Horizon(NamedTuple):
    """What comes from the call that creates the scheduler, never from a checkpoint."""

    num_warmup_steps: int
    num_training_steps: int


def _refined_lr_lambda(
    current_step: int,
    *,
    grid: NDArray[np.float64],
    num_warmup_steps: int,
    num_training_steps: int,
    min_lr_ratio: float,
) -> float:
    multiplier = min_lr_ratio + (1.0 - min_lr_ratio) * multiplier_at(grid, current_step / num_training_steps)
    if current_step < num_warmup_steps:
        return min(multiplier, current_step / num_warmup_steps)
    return multiplier


def _in_memory(sources: Sequence[Source]) -> bool:
    """Whether every process holds the norms themselves, so that no message is needed."""
    return all(isinstance(one, GradientNorms) for one in sources)


def _request_key(sources: Sequence[Source], family: OptimizerFamily, options: RefinementOptions) -> str:
    """Name a schedule in words that are the same on every rank, and differ for every other schedule."""
    names = [f"{one.source} ({_digest(one)})" if isinstance(one, GradientNorms) else os.fspath(one) for one in sources]
    given = [f"{name}={value!r}" for name, value in options.as_keywords().items()]
    return f"the schedule refined from {', '.join(names)} for {family}{' with ' if given else ''}{', '.join(given)}"


def _digest(norms: GradientNorms) -> str:
    """Tell norms in memory apart, which may all have the same name."""
    arrays = [None if array is None else array.tobytes() for array in (norms.steps, norms.l1, norms.l2)]
    return hashlib.sha256(repr((norms.num_training_steps, arrays)).encode()).hexdigest()[:12]


def _schedule_to_message(schedule: RefinedSchedule) -> Message:
    """Convert a schedule for `on_rank_zero`, without its norms, which the scheduler does not use."""
    return {"grid": schedule.grid, **schedule_fields(schedule)}


def _schedule_from_message(message: Message, key: str) -> RefinedSchedule:
    """Convert back; raise `MalformedMessageError` if rank 0 cannot have written the message."""
    grid = message.get("grid")
    if not isinstance(grid, np.ndarray):
        raise MalformedMessageError(key)
    try:
        return schedule_from_fields(message, grid)
    except ValueError:
        raise MalformedMessageError(key) from None
