"""Command-line arguments: types that explain what they refuse, and errors of one line."""

import argparse
import math
import sys
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        exit_with_error(self.prog, message)


def exit_with_error(script: str, error: object) -> NoReturn:
    """Report an error of the user in one line, and exit with status 2.

    Args:
        script: the file name of the script.
        error: the message.
    """
    print(f"{script}: error: {error}", file=sys.stderr)
    sys.exit(2)


def positive_integer(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def non_negative_number(text: str) -> float:
    """A finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def peak_learning_rate(text: str) -> float:
    """A learning rate above 0, small enough for float32."""
    value = non_negative_number(text)
    if not 0 < value <= 1e30:
        raise argparse.ArgumentTypeError(f"{text} is not a learning rate above 0 and up to 1e30")
    return value


def fraction_of_run(text: str) -> float:
    """A fraction of a run, above 0 and up to 1."""
    value = non_negative_number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction of the run, above 0 and up to 1")
    return value
