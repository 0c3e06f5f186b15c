"""`hf-refined-schedule extend`: how a run goes on after a checkpoint."""

import argparse
import json
import shlex
from typing import get_args

from ..norms.message_text import shown
from ..schedules.extension import Decay
from ..schedules.predicting import predict_extension
from .schedule_output import write_output


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "extend",
        help="make a schedule with which a run goes on after a checkpoint",
        description="Make a schedule file with which a run goes on after a checkpoint: train longer, cool down now, or warm up "
        "again for new data. The rate stays at that of the checkpoint and falls to 0 at the end. Resume from the "
        "checkpoint with --lr_scheduler_type refined and the file as refined_from.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint-N of a Trainer, or the output_dir with its checkpoints"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the schedule file (JSON)")
    parser.add_argument(
        "--num-training-steps",
        type=int,
        metavar="T",
        help="the updates of the whole run (default: those made, and the cool-down)",
    )
    parser.add_argument(
        "--cooldown",
        type=int,
        metavar="K",
        help="the last updates, in which the rate falls to 0; 0 for none (default: 20 %% of T, or what is left)",
    )
    parser.add_argument("--decay", choices=get_args(Decay), default="linear", help="the shape of the cool-down")
    parser.add_argument(
        "--rewarm", type=int, default=0, metavar="K", help="updates over which the rate goes to --learning-rate first"
    )
    parser.add_argument(
        "--learning-rate", type=float, metavar="RATE", help="the rate after --rewarm (default: the peak of the run)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`."""
    from ..training.extending import extend_run

    schedule, (start, total, peak) = extend_run(
        options.checkpoint,
        options.num_training_steps,
        cooldown=options.cooldown,
        decay=options.decay,
        rewarm=options.rewarm,
        learning_rate=options.learning_rate,
    )
    write_output(schedule, options.output)
    ahead = schedule.grid[start:]
    print(
        f"{shown(schedule.source)}: {start} updates made, {total - start} to come, at a learning rate of {peak * ahead[0]:.3g} "
        f"({ahead[0]:.0%} of the peak)"
    )
    print(f"highest rate to come {peak * ahead.max():.3g}, last rate {peak * ahead[-2]:.3g}")
    for note in schedule.notes:
        print(f"note: {note}")
    try:
        loss, before = predict_extension(schedule)
    except ValueError as error:
        print(f"no predicted loss: {error}")
    else:
        print(
            f"predicted loss after update {total}: {loss.loss:.4f} [{loss.low:.4f}, {loss.high:.4f}], now {before:.4f}"
        )
    print(f"wrote {options.output} ({schedule.fingerprint})")
    kwargs = shlex.quote(json.dumps({"refined_from": options.output}))
    print(
        f"next run: --max_steps {total} --lr_scheduler_type refined --lr_scheduler_kwargs {kwargs} "
        f"--resume_from_checkpoint {shlex.quote(schedule.source)}"
    )
