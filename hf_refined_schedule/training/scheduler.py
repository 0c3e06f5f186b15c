"""The refined schedule as a PyTorch learning-rate scheduler, with the signature of transformers' `get_*_schedule`."""

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..norms.gradient_norms import GradientNorms, OptimizerFamily, UnfinishedRunError
from ..norms.sources import EXPECTED_SOURCE, MissingSourceError
from ..recording.optimizers import optimizer_family, unwrap_optimizer
from ..schedules.health import DegenerateScheduleError
from ..schedules.refined_schedule import RefinedSchedule
from ..schedules.refinement_options import RefinementOptions
from ..schedules.refining import Source, listed_sources, refine_sources
from ..theory.refinement import multiplier_at
from .rank_zero import Outcome, is_main_process, latest_answer, on_main_process

logger = logging.getLogger(__name__)

REFINED_FROM_VARIABLE = "HF_REFINED_SCHEDULE_FROM"
"""The environment variable that replaces `refined_from` where a script cannot pass it."""

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
            L2 ** -2, all others by L1 ** -1 (by L2 ** -1 where the source has no L1 norms).
        num_warmup_steps: The length of a linear ramp that caps the schedule, in steps. The warm-up that the norms ask for
            is already part of the schedule; 0 adds no ramp.
        num_training_steps: T, the total number of training steps.
        refined_from: The earlier run: its `gradient_norms.jsonl` or `trainer_state.json`, the folder that holds one of
            them, another log as `load_norms` takes it, a schedule file written by `hf-refined-schedule refine`, or
            `GradientNorms`; or a list of several runs, to average. By default the environment variable
            HF_REFINED_SCHEDULE_FROM names it.
        min_lr_ratio: r, the floor of the learning rate as a fraction of its peak, from 0 to 1.
        last_epoch: The index of the last epoch when resuming training.
        **options: The fields of `RefinementOptions`: `column`, `norm`, `power`, `smoothing`, `rising_norms`, `pilot`,
            `pilot_num_training_steps` (its `num_training_steps`) and `allow_degenerate`.

    Returns:
        `torch.optim.lr_scheduler.LambdaLR` with the refined schedule. Its `state_dict` holds the schedule, not the
        horizon or the warm-up: a resumed run continues the schedule it began with, even if the source no longer exists.

    Raises:
        ValueError: if an argument is missing, unknown or out of range, or `refined_from` is not a source. A missing
            source, an unfinished run or a degenerate schedule raises at the first step, unless a saved state is loaded
            before that.

    Reference: arXiv 2310.07831, Algorithm 1.
    """
    if refined_from is None:
        refined_from = os.environ.get(REFINED_FROM_VARIABLE)
        options = {**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")), **options}
    if refined_from is None:
        raise ValueError(f"The schedule 'refined' needs refined_from, the run to refine it from: {EXPECTED_SOURCE}.")
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
    if not 0 <= min_lr_ratio <= 1:
        raise ValueError(f"min_lr_ratio is {min_lr_ratio!r}, but must be a fraction of the peak between 0 and 1.")
    family = optimizer_family(optimizer)

    def load() -> RefinedSchedule:
        return refine_sources(sources, family, refinement_options).trainable_schedule(refinement_options)

    look_again = None
    if _in_memory(sources):
        loaded = Outcome(load(), None)
    else:
        words = _in_words(sources, family, refinement_options.as_keywords())
        loaded = on_main_process(load, words)
        look_again = None if is_main_process() else functools.partial(latest_answer, words)
        if loaded.error is not None and not isinstance(loaded.error, _WAITING):
            raise loaded.error
    if loaded.value is not None and is_main_process():
        logger.info(
            "Refined schedule %s from %s: its best peak learning rate is %.2f times linear decay's, by the last-iterate bound.",
            loaded.value.fingerprint,
            loaded.value.source,
            loaded.value.best_peak_ratio,
        )
        for note in loaded.value.notes:
            logger.warning("Refined schedule from %s: %s", loaded.value.source, note)
    return RefinedLR(
        optimizer,
        loaded.value,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        min_lr_ratio=min_lr_ratio,
        last_epoch=last_epoch,
        error=loaded.error,
        look_again=look_again,
    )


class RefinedLR(LambdaLR):
    """A `LambdaLR` whose saved state is its schedule, and nothing of the new call's horizon or warm-up.

    The state holds the grid, `min_lr_ratio` and the fingerprint, so that a run goes on with the schedule it began with
    whatever has become of the source. T and the warm-up come from the new call, as with transformers' own schedulers,
    whose functions are not saved at all. The grid is a tensor, which `torch.load(weights_only=True)` accepts.

    Args:
        optimizer: the optimizer.
        schedule: the schedule, or None if it could not be had, for the reason in `error`.
        num_warmup_steps: the steps of the ramp that caps the schedule.
        num_training_steps: T, the steps from progress 0 to 1.
        min_lr_ratio: r, the floor as a fraction of the peak.
        last_epoch: as in every PyTorch scheduler.
        error: what to raise at the first step if no state has been loaded by then.
        look_again: on a process that was given the schedule by the main one: what that has made of the source last. It is
            asked just before the first update, when the processes have met, unless a state has been loaded by then.
    """

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
        look_again: Callable[[], Outcome[RefinedSchedule]] | None = None,
    ) -> None:
        self.error = error
        self._look_again = look_again
        self.fingerprint = schedule.fingerprint if schedule else None
        self._of_this_call = _Call(num_warmup_steps, num_training_steps)
        # Until a state is loaded, a schedule that could not be had is zero: nothing moves before the error is raised.
        self._grid = schedule.grid if schedule else np.zeros(2)
        self._min_lr_ratio = min_lr_ratio
        super().__init__(optimizer, self._multiplier, last_epoch)
        before_step = getattr(unwrap_optimizer(optimizer), "register_step_pre_hook", None)
        if look_again is not None and before_step is not None:
            before_step(lambda *_: self._take_latest())

    def _take_latest(self) -> None:
        """Have the schedule of the main process, also where the first answer was that of a preview it had made alone."""
        look_again, self._look_again = self._look_again, None
        latest = None if look_again is None else look_again().value
        if latest is None or latest.fingerprint == self.fingerprint:
            return
        self._grid, self.fingerprint, self.error = latest.grid, latest.fingerprint, None
        self._last_lr = [base * self._multiplier(self.last_epoch) for base in self.base_lrs]
        for group, learning_rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    def raise_if_unavailable(self) -> None:
        """Raise the error that the source gave, if no state has been loaded since.

        Raises:
            ValueError: what was wrong with the source.
        """
        if self.error is not None:
            self._take_latest()
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
        """The state for a checkpoint.

        Returns:
            PyTorch's own entries, and under `refined_schedule` the grid (a tensor), `min_lr_ratio` and the fingerprint.
        """
        state = {key: value for key, value in super().state_dict().items() if key not in _NOT_SAVED}
        if self.error is None:
            state["refined_schedule"] = {
                "grid": torch.from_numpy(np.array(self._grid)),
                "min_lr_ratio": self._min_lr_ratio,
                "fingerprint": self.fingerprint,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the schedule of a saved state, at its step; one warning if the source now gives another.

        Args:
            state_dict: the state of a `RefinedLR`. That of another scheduler sets the step alone.
        """
        state = dict(state_dict)
        saved = state.pop("refined_schedule", None)
        super().load_state_dict({key: value for key, value in state.items() if key not in _NOT_SAVED})
        if saved is None:
            return
        if self.fingerprint not in (None, saved["fingerprint"]) and is_main_process():
            logger.warning(
                "The run goes on with the refined schedule it began with (%s), although refined_from now gives another (%s).",
                saved["fingerprint"],
                self.fingerprint,
            )
        self._grid = saved["grid"].numpy(force=True)
        self._min_lr_ratio = saved["min_lr_ratio"]
        self.fingerprint = saved["fingerprint"]
        self.error = self._look_again = None

    def _multiplier(self, current_step: int) -> float:
        return _refined_lr_lambda(
            current_step, grid=self._grid, min_lr_ratio=self._min_lr_ratio, **self._of_this_call._asdict()
        )


_NOT_SAVED = frozenset({"error", "fingerprint", "_of_this_call", "_grid", "_look_again", "_min_lr_ratio"})


_WAITING = (MissingSourceError, UnfinishedRunError, DegenerateScheduleError)
"""What may have become of a source since the run began, so that a resumed run must not be stopped by it."""


class _Call(NamedTuple):
    """What always comes from the new call and never from a checkpoint."""

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


def _in_words(sources: Sequence[Source], family: OptimizerFamily, making: Mapping[str, Any]) -> str:
    """A schedule in words that are the same on every process."""
    names = [one.source if isinstance(one, GradientNorms) else os.fspath(one) for one in sources]
    given = [f"{name}={value!r}" for name, value in making.items() if value]
    return f"the schedule refined from {', '.join(names)} for {family}{' with ' if given else ''}{', '.join(given)}"
