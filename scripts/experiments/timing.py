"""The time of a call, and processes in which nothing else has run before."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def timed(work: Callable[[], object]) -> float:
    """The seconds that a call takes, with the garbage collector off."""
    gc.disable()
    started = time.perf_counter()
    work()
    elapsed = time.perf_counter() - started
    gc.enable()
    return elapsed


def fresh_process() -> ProcessPoolExecutor:
    """A pool of one new process, which has not loaded anything yet, for calls that must not share state with this one."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def run_isolated(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function in a new process.

    Args:
        function: of a module.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        What the function returns.
    """
    with fresh_process() as pool:
        return pool.submit(function, *args, **kwargs).result()
