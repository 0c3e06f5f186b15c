"""Registers the schedule in programs that give no place for code, if an environment variable asks for it."""

import logging
import os

from .compatibility.import_hook import call_once_imported

logger = logging.getLogger(__name__)

AUTOREGISTER_VARIABLE = "HF_REFINED_SCHEDULE_AUTOREGISTER"
"""The environment variable with which a user asks for `register` in every program."""

LAUNCH_VARIABLE = "HF_REFINED_SCHEDULE_LAUNCH"
"""The environment variable with which `launch` asks child processes of the program to record, too."""


def autoregister() -> None:
    """Have `register` called as soon as the program has imported transformers, if the environment asks for it.

    For the `sitecustomize.py` of an environment whose programs are driven by configuration files alone:

        from hf_refined_schedule.autoregister import autoregister; autoregister()

    The environment asks with HF_REFINED_SCHEDULE_AUTOREGISTER=1, or because the program is a child of one that
    `hf-refined-schedule launch` runs. Otherwise this does nothing. It imports neither torch nor transformers. If `register`
    fails, the program goes on with a warning.
    """
    if is_asked_for() or LAUNCH_VARIABLE in os.environ:
        call_once_imported("transformers", "transformers.trainer_utils", _register)


def is_asked_for() -> bool:
    """Decide whether the user has asked for this package in every program.

    Returns:
        True if HF_REFINED_SCHEDULE_AUTOREGISTER is set, and not to 0.
    """
    return os.environ.get(AUTOREGISTER_VARIABLE, "") not in ("", "0")


def _register() -> None:
    try:
        import hf_refined_schedule

        hf_refined_schedule.register()
    except Exception as error:  # the program did not ask for this package, and does not know how to go on without it
        logger.warning(
            "The schedule 'refined' is not registered, because hf_refined_schedule cannot be loaded: %r", error
        )
