"""Records of a run, written as each tool writes them, and the schedules that the package makes from them."""

import json

import numpy as np

from hf_refined_schedule import GradientNorms
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources


def entry(step, grad_norm=1.0, **more):
    """An entry of a Trainer's log."""
    return {"step": step, "epoch": step / 100, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": grad_norm, **more}


def entries(count, grad_norm=1.0):
    return [entry(step, grad_norm) for step in range(1, count + 1)]


def write_state(path, log_history, max_steps=100):
    """A `trainer_state.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"best_metric": None, "max_steps": max_steps, "log_history": log_history}, indent=2))
    return path


def json_lines(path, rows):
    """A log with one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_norms(path, l1, l2=None, planned=None, family="adam"):
    """A `gradient_norms.jsonl`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "gradient_norms", "version": 1, "optimizer_family": family}
    lines = [{**header, "num_training_steps": len(l1) if planned is None else planned}]
    for step, (first, second) in enumerate(zip(l1, l1 if l2 is None else l2, strict=True), start=1):
        lines.append({"step": step, "l1": first, "l2": second, "clip_factor": 1.0, "learning_rate": 0.1})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def norms_of(l1=None, l2=None, steps=None, planned=None, **fields):
    """Norms in memory."""
    known = l1 if l1 is not None else l2
    steps = range(1, len(known) + 1) if steps is None else steps
    return GradientNorms(
        steps=np.array(list(steps)), l1=l1, l2=l2, num_training_steps=planned, **{"source": "the run", **fields}
    )


def schedule_of(norms, optimizer="adam", **options):
    """The schedule of norms in memory."""
    return RefinedSchedule.from_norms(norms, optimizer, RefinementOptions(**options))


def load_schedule(source, optimizer="adam", **options):
    """The schedule of a source, as training uses it."""
    options = RefinementOptions(**options)
    return refine_sources(source, optimizer, options).trainable_schedule(options)
