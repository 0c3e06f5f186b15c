"""`hf-refined-schedule predict`: what schedules will cost before they run."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..norms.message_text import shown
from ..schedules.predicting import (
    LONGEST,
    FittedLaw,
    PredictedLoss,
    Prediction,
    best_predicted_schedule,
    predict_losses,
)
from ..schedules.refined_schedule import RefinedSchedule
from .schedule_output import write_output

DRAWN = 6
"""Schedules in a picture, the best first."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "predict",
        help="predict the final losses of schedules from the loss of a run",
        description="Predict what schedules will cost before they run: their final losses, by a law that is fitted to the "
        "learning rates and losses that a run logged (arXiv 2408.11029, 2503.12811). Where the log does not support that, "
        "the reason is printed instead.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a run, or several of one recipe: its output_dir, a trainer_state.json or the checkpoint that holds one, "
        "TensorBoard events, a W&B export or another CSV table, JSON Lines, or console output, with loss and learning rate",
    )
    parser.add_argument(
        "--num-training-steps",
        type=int,
        metavar="T",
        help=f"the updates to predict (default: those of the run, and up to {LONGEST} times as many)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="PEAK",
        help="the peak learning rate (default: the highest logged one, and half of it)",
    )
    parser.add_argument(
        "--schedule",
        dest="schedules",
        action="append",
        default=[],
        metavar="FILE|NAME",
        help="a schedule file, refined, or a name such as cosine or 'wsd 20%% 1-sqrt' (may be repeated; default: several)",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="the loss in the log, such as eval_loss (default: the training loss)"
    )
    parser.add_argument(
        "--warmup-steps", type=int, metavar="N", help="the updates of the warm-up, where the log begins after it"
    )
    parser.add_argument("--json", action="store_true", help="print the predictions as JSON")
    parser.add_argument("-o", "--output", metavar="FILE", help="a picture of the losses; its ending names the format")
    parser.add_argument(
        "--optimize", metavar="FILE", help="write the schedule with the least predicted loss to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; `options` are those of `add_parser`."""
    prediction = predict_losses(
        options.sources,
        num_training_steps=options.num_training_steps,
        learning_rate=options.learning_rate,
        schedules=options.schedules,
        column=options.column,
        warmup_steps=options.warmup_steps,
    )
    best, optimized = None, None
    if options.optimize and not prediction.refusals:
        best = best_predicted_schedule(
            prediction.fitted, num_training_steps=options.num_training_steps, learning_rate=options.learning_rate
        )
        write_output(best, options.optimize)
        first = prediction.rows[0]
        multipliers = best.grid[:-1]
        optimized = prediction.fitted.final_loss("optimized", multipliers, first.peak)
    if options.json:
        print(json.dumps(_report(prediction, optimized), indent=1))
    else:
        _print_logs(prediction.fitted)
        _print_predictions(prediction)
        if best is not None and optimized is not None:
            _print_best(prediction, best, optimized)
            print(f"wrote {options.optimize} ({best.fingerprint})")
    if options.output and not prediction.refusals:
        _draw(options, prediction, best)


def _report(prediction: Prediction, optimized: PredictedLoss | None) -> dict[str, Any]:
    law = prediction.fitted.law
    return {
        "sources": [log.source for log in prediction.fitted.logs],
        "refusals": law.refusals,
        "law": {"form": law.form, "parameters": dict(law.parameters), "held_out_error": law.held_out_error},
        "warmup_steps": prediction.fitted.warmup_steps,
        "predictions": [row._asdict() for row in prediction.rows],
        **({} if optimized is None else {"optimized": optimized._asdict()}),
        "notes": prediction.notes,
    }


def _print_logs(fitted: FittedLaw) -> None:
    for log in fitted.logs:
        print(log.description)
    print(
        f"law: {fitted.law.form}; the last fifth of the log, predicted from the rest: error {fitted.law.held_out_error:.3g}"
    )


def _print_predictions(prediction: Prediction) -> None:
    for reason in prediction.refusals:
        print(f"no prediction: {reason}")
    for note in prediction.notes:
        print(f"note: {note}")
    if prediction.refusals:
        return
    first = prediction.rows[0]
    others = list(dict.fromkeys((row.num_training_steps, row.peak) for row in prediction.rows))[1:]
    losses = {(row.schedule, row.num_training_steps, row.peak): row.loss for row in prediction.rows}
    width = max(map(len, prediction.schedules))
    warmup_steps = prediction.fitted.warmup_steps
    print(
        f"Predicted loss after {first.num_training_steps} updates with a peak learning rate of {first.peak:.3g}"
        + (f" and a warm-up of {warmup_steps}" if warmup_steps else "")
        + (", and after other updates or with other peaks" if others else "")
    )
    print(f"{'':{width}}    loss  95 % interval   " + "".join(f"  {_label(one, first):>13}" for one in others))
    for name in prediction.schedules:
        row = next(row for row in prediction.rows if row.schedule == name)
        print(
            f"{name:{width}}  {row.loss:.4f}  {_interval(row)}"
            + "".join(f"  {losses[(name, *one)]:13.4f}" for one in others)
        )


def _label(one: tuple[int, float], first: PredictedLoss) -> str:
    """What differs from the first column."""
    steps, peak = one
    return f"peak {peak:.3g}" if steps == first.num_training_steps else f"{steps} updates"


def _interval(row: PredictedLoss) -> str:
    return f"[{row.low:.4f}, {row.high:.4f}]"


def _print_best(prediction: Prediction, best: RefinedSchedule, optimized: PredictedLoss) -> None:
    first = prediction.rows[0]
    low, high = prediction.fitted.law.difference_interval(
        first.peak * best.grid[:-1], first.peak * prediction.schedules[first.schedule]
    )
    print(
        f"optimized: {optimized.loss:.4f} {_interval(optimized)}, difference to {first.schedule}: "
        f"{optimized.loss - first.loss:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
    for note in best.notes:
        print(f"note: {note}")


def _draw(options: argparse.Namespace, prediction: Prediction, best: RefinedSchedule | None) -> None:
    from ..plots import LoggedRun, predicted_losses_figure

    fitted, peak = prediction.fitted, prediction.rows[0].peak
    schedules = dict(list(prediction.schedules.items())[:DRAWN])
    if best is not None:
        schedules = {"optimized": best.grid[:-1], **schedules}
    written = predicted_losses_figure(
        options.output,
        [LoggedRun(log.steps, log.losses, fitted.law.predict(log.learning_rates)) for log in fitted.logs],
        {name: (peak * multipliers, fitted.law.predict(peak * multipliers)) for name, multipliers in schedules.items()},
        title=_title(options.sources),
    )
    if not options.json:
        print(f"wrote {written}")


def _title(sources: Sequence[str]) -> str:
    return shown(sources[0]) if len(sources) == 1 else f"{len(sources)} runs"
