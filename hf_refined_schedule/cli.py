"""The command line `hf-refined-schedule`. Each command is a module of `commands/`."""

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import check, extend, launch, plot, predict, rank, refine

COMMANDS = (refine, check, rank, predict, extend, plot, launch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name, by default those of this process.

    Returns:
        The exit status: 0, or 2 for bad usage or input.
    """
    options = _parser().parse_args(arguments)
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
