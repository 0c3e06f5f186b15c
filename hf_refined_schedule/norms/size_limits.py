"""Limits that no record of a training run exceeds. A file beyond one of them is damaged, or would fill the memory."""

from typing import Any

MAX_STEPS = 5 * 10**7
"""The largest number of an optimizer update, and the longest planned run."""

MAX_UPDATES_PER_NORM = 10_000
"""The length of a long run over the number of its norms. Norms are interpolated to every update, so that a few norms with
huge step numbers would fill the memory, and they would say nothing about the run."""

ANY_NUMBER_OF_NORMS = 10**6
"""Updates of a run that may have fewer norms than that: its arrays take 8 MB each."""

MAX_LINE = 10**6
"""Characters in a line of a text file. A longer line is no row of a log; a sparse file is one line of null bytes."""

MAX_JSON_BYTES = 200 * 10**6
"""Size of a JSON document, which is read as a whole and takes about ten times its size in memory."""

MAX_EVENT_BYTES = 2**20
"""Size of a TensorBoard event. Larger ones hold pictures or whole tensors, not a norm, and are passed over."""

MAX_CONSOLE_CHARACTERS = 10_000
"""Characters of a line of console output in which values are looked for."""

MAX_NESTING = 8
"""Objects inside each other in a row of a JSON log."""


def is_step_number(value: Any) -> bool:
    """Whether a value read from a file, or given as an option, is a valid number of an optimizer update.

    Args:
        value: anything.

    Returns:
        True for an integer from 1 to `MAX_STEPS`.
    """
    return type(value) is int and 0 < value <= MAX_STEPS
