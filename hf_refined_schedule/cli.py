"""The command line `hf-refined-schedule`. Each command is a module of `commands/`."""

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import check, diagnose, extend, launch, plot, predict, preview, rank, refine

COMMANDS = (refine, check, rank, predict, extend, plot, preview, diagnose, launch)

FOR_A_SCRIPT = ("preview", "diagnose")
"""Commands for which `--` begins the arguments of a training script, as often as it occurs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name, by default those of this process.

    Returns:
        The exit status: 0, or 2 for bad usage or input.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    script_arguments: list[list[str]] = []
    if words and words[0] in FOR_A_SCRIPT:
        words, *script_arguments = _split(words)
    options = _parser().parse_args(words, argparse.Namespace(script_arguments=script_arguments))
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"hf-refined-schedule {options.command}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _split(words: Sequence[str]) -> list[list[str]]:
    """The words before the first `--`, and those after each."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-refined-schedule",
        description="Learning-rate schedules refined from the gradient norms of your own run (arXiv 2310.07831).",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
