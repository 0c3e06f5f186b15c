"""`hf-refined-schedule launch`: run an unmodified training script."""

import argparse
import os

from .source_options import add_refinement_options, option_flags, refinement_options


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "launch",
        help="run an unmodified training script",
        description="Run a training script that has never heard of this package: --lr_scheduler_type refined works in it, "
        "and its Trainer leaves gradient_norms.jsonl in its output_dir. For several processes: "
        "accelerate launch [...] -m hf_refined_schedule launch SCRIPT [...].",
        usage="%(prog)s [-h] [--refined-from SOURCE] [--gradient-norms-file FILE] [OPTION ...] SCRIPT ...",
    )
    parser.add_argument(
        *option_flags("refined_from", training=True),
        metavar="SOURCE",
        help="the run to refine from, for scripts without an option for it",
    )
    parser.add_argument(
        *option_flags("gradient_norms_file", training=True),
        metavar="FILE",
        help="where norms go, a file or a folder; needed to record a raw Accelerate loop",
    )
    parser.add_argument("-m", "--module", action="store_true", help="SCRIPT is the name of a module, as for python -m")
    add_refinement_options(parser, training=True)
    parser.add_argument(
        "script",
        metavar="SCRIPT",
        help="the training script, or the name of a console script; these options come before it",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`."""
    from ..training.registration import LAUNCH_VARIABLE

    os.environ.pop(LAUNCH_VARIABLE, None)  # a launcher in a program that another one has launched records by itself
    from ..training.launch import launch

    launch(
        options.script,
        options.arguments,
        as_module=options.module,
        refined_from=options.refined_from,
        gradient_norms_file=options.gradient_norms_file,
        options=refinement_options(options),
    )
