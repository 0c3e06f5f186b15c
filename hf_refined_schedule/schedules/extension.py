"""How a run goes on after a checkpoint: hold the rate, cool down, or warm up again, as multipliers."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Decay = Literal["linear", "1-sqrt"]
"""The shape of a cool-down."""

COOLDOWN = 0.2
"""The length of the cool-down where none is given, as a fraction of the extended run; arXiv 2405.18392 finds 10 to 20 % enough."""

SMALLEST_START = 0.01
"""A checkpoint with a smaller fraction of the peak rate has cooled down: holding its rate would train nothing."""


def extended_multipliers(
    past: NDArray[np.float64],
    start: float,
    num_training_steps: int,
    *,
    cooldown: int | None = None,
    decay: Decay = "linear",
    rewarm: int = 0,
    level: float | None = None,
) -> NDArray[np.float64]:
    """The multipliers of a run that goes on after a checkpoint, from its first update to its new end.

    After the checkpoint the multiplier rises (or falls) linearly from `start` to `level` over `rewarm` updates, stays there,
    and decays to 0 over the last `cooldown` updates: as 1 - v, or as 1 - sqrt(v), v the progress of the cool-down.

    Args:
        past: multipliers of the updates up to the checkpoint, shape (t0,).
        start: the multiplier of the next update, as the checkpoint holds it.
        num_training_steps: T, the updates of the extended run.
        cooldown: updates of the cool-down, 0 for none; by default 20 % of T, or what is left.
        decay: its shape. Linear decay is continuous; 1 - sqrt falls by 1 / sqrt(cooldown) at its first update.
        rewarm: updates of the ramp, 0 for none.
        level: the multiplier after the ramp; only with `rewarm`.

    Returns:
        Multipliers at updates 0 .. T, shape (T+1,): the one at t0 is `start`, unless a cool-down of no length begins there.

    Raises:
        ValueError: if the updates that are left do not suffice.

    Example:
        >>> extended_multipliers(np.array([0.5, 1.0]), 1.0, 8, cooldown=4)
        array([0.5 , 1.  , 1.  , 1.  , 1.  , 0.75, 0.5 , 0.25, 0.  ])

    Reference: arXiv 2405.18392, section 3.
    """
    if decay not in get_args(Decay):
        raise ValueError(f'decay is {decay!r:.40}, but must be "linear" or "1-sqrt".')
    remaining = num_training_steps - len(past)
    if remaining < 1:
        raise ValueError(
            f"--num-training-steps (num_training_steps) is {num_training_steps}, but the checkpoint has made {len(past)} updates already; pass more."
        )
    if cooldown is None:
        cooldown = max(0, min(round(COOLDOWN * num_training_steps), remaining - rewarm))
    if rewarm + cooldown > remaining:
        raise ValueError(
            f"--rewarm and --cooldown (rewarm, cooldown) take {rewarm + cooldown} updates together, but {remaining} are left after "
            "the checkpoint; shorten them, or pass a larger --num-training-steps (num_training_steps)."
        )
    updates = np.arange(remaining + 1)
    reached = start if level is None or not rewarm else level
    ahead = np.full(remaining + 1, reached)
    if rewarm:
        ahead = start + (reached - start) * np.minimum(updates / rewarm, 1.0)
    if cooldown:
        progress = np.maximum(0.0, (updates - (remaining - cooldown)) / cooldown)
        ahead = ahead * (1 - progress if decay == "linear" else 1 - np.sqrt(progress))
    return np.concatenate([past, ahead])
