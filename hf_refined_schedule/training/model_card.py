"""What the model card of a refined run says about its schedule."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from transformers import Trainer

from ..norms.message_text import shown
from ..plots import DrawnRun
from ..recording.failures import in_one_line
from ..recording.optimizers import optimizer_family
from ..schedules.refinement_options import RefinementOptions
from ..schedules.refining import Refinement, listed_sources, refine_sources
from ..theory.refinement import peak_position, smooth_norms
from .optional_pictures import draw_if_possible
from .scheduler import FOLDER_VARIABLE, OPTIONS_VARIABLE, REFINED_FROM_VARIABLE, RefinedLR
from .scheduler_kwargs import parse_scheduler_kwargs

logger = logging.getLogger(__name__)

HEADING = "### Learning-rate schedule"

PICTURE_NAME = "learning_rate_schedule.png"
"""The picture, beside the card in `output_dir`, from where `push_to_hub` uploads it."""

PARTS_OF_A_PATH = 2
"""The last parts of a source's path that a card shows: the rest may name the user, and a card may be public."""


class _Request(NamedTuple):
    """Where the schedule of a run came from, as its arguments say it."""

    sources: list[str]
    options: RefinementOptions
    folder: str


@dataclass
class _Known:
    """What a card needs of the run that the schedule was refined from.

    Args:
        refinement: the schedule with its verdict; None if the source no longer gives it.
        picture: the file that was drawn, if any.
    """

    refinement: Refinement | None
    picture: Path | None = None


_KNOWN: WeakKeyDictionary[RefinedLR, _Known] = WeakKeyDictionary()
"""Of each training run, which has a scheduler to itself: TRL writes the card at every checkpoint, and drawing takes a second."""


def add_schedule_section(trainer: Trainer) -> None:
    """Add a section about the refined schedule to the model card that a Trainer has written.

    It says which run the schedule was refined from, with which verdict, and how it was capped; a picture shows the norms and the
    schedule if matplotlib is installed. The card of a run with another schedule stays as it is. A section that cannot be written
    costs a warning, because Trainers write the card before a checkpoint.

    Args:
        trainer: the Trainer, after its `create_model_card`.
    """
    try:
        _add_section(trainer)
    except Exception as error:  # a checkpoint must not be lost for it
        logger.warning("The model card says nothing about the refined schedule: %s", in_one_line(error))


def _add_section(trainer: Trainer) -> None:
    scheduler = _refined_scheduler(trainer)
    card = Path(str(trainer.args.output_dir)) / "README.md"
    if scheduler is None or not trainer.is_world_process_zero() or not card.is_file():
        return
    request = _request(trainer)
    known = _known(request, trainer, scheduler)
    section = _section(scheduler, request, known.refinement)
    if known.picture is None or not known.picture.is_file():
        known.picture = _picture(card.parent, scheduler, known.refinement)
    if known.picture is not None:
        section += (
            f"\n![Recorded gradient norms and the learning-rate schedule refined from them]({known.picture.name})\n"
        )
    text = card.read_text(encoding="utf-8")
    before, marker, after = text.partition("\n### Framework versions")
    card.write_text(f"{before.rstrip()}\n\n{section}{marker}{after}", encoding="utf-8")


def _refined_scheduler(trainer: Trainer) -> RefinedLR | None:
    """The schedule of the run, inside the wrappers of Accelerate and DeepSpeed."""
    scheduler: Any = getattr(trainer, "lr_scheduler", None)
    while not isinstance(scheduler, RefinedLR) and hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    return scheduler if isinstance(scheduler, RefinedLR) and scheduler.refined_schedule is not None else None


def _request(trainer: Trainer) -> _Request | None:
    """The source and the options, from the arguments or from the environment."""
    keywords = parse_scheduler_kwargs(trainer.args.lr_scheduler_kwargs)
    source, folder = keywords.pop("refined_from", None), ""
    keywords.pop("min_lr_ratio", None)
    if source is None and REFINED_FROM_VARIABLE in os.environ:
        source, folder = os.environ[REFINED_FROM_VARIABLE], os.environ.get(FOLDER_VARIABLE, "")
        keywords = {**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")), **keywords}
    return (
        None
        if source is None
        else _Request([str(one) for one in listed_sources(source)], RefinementOptions.from_keywords(keywords), folder)
    )


def _known(request: _Request | None, trainer: Trainer, scheduler: RefinedLR) -> _Known:
    """Refine once for each run. A source that cannot be used is tried again at the next card."""
    known = _KNOWN.get(scheduler, _Known(None))
    # The fingerprint differs if the state of another schedule was loaded since.
    if known.refinement is None or known.refinement.schedule.fingerprint != scheduler.fingerprint:
        known = _Known(None if request is None else _refinement(request, trainer, scheduler))
        _KNOWN[scheduler] = known
    return known


def _refinement(request: _Request, trainer: Trainer, scheduler: RefinedLR) -> Refinement | None:
    """The schedule again, with its verdict; None if the source no longer gives the schedule of this run."""
    located = [os.path.join(request.folder, one) for one in request.sources]
    family = None if trainer.optimizer is None else optimizer_family(trainer.optimizer)
    try:
        refinement = refine_sources(located, family, request.options)
    except (ValueError, OSError):
        return None
    return refinement if refinement.schedule.fingerprint == scheduler.fingerprint else None


def _section(scheduler: RefinedLR, request: _Request | None, refinement: Refinement | None) -> str:
    grid = _grid(scheduler)
    names = "an earlier run" if request is None else _names(request.sources)
    by = "by [hf-refined-schedule](https://pypi.org/project/hf-refined-schedule/)"
    if refinement is not None and refinement.schedule.extension is not None:
        origin = f"The learning rate followed a schedule that extends the run after {_names([refinement.schedule.source])}, {by}."
    else:
        origin = (
            f"The learning rate followed a schedule refined from the gradient norms of {names}, {by}, after "
            "[arXiv 2310.07831](https://arxiv.org/abs/2310.07831)."
        )
    lines = [
        HEADING,
        "",
        origin,
        "",
        f"- Fingerprint: `{scheduler.fingerprint}`",
        f"- Peak at {peak_position(grid):.0%} of {scheduler.num_training_steps} updates, mean multiplier {grid[:-1].mean():.2f} "
        "(linear decay: 0.50)",
    ]
    if scheduler.num_warmup_steps:
        lines.append(f"- Capped by a linear warm-up of {scheduler.num_warmup_steps} updates")
    if refinement is None:
        lines.append("- Verdict: not known, because the source no longer gives this schedule")
    elif refinement.schedule.extension is not None:
        lines.append(f"- Extended after update {refinement.schedule.extension.start_step}")
    elif refinement.health is None:
        lines.append("- Verdict: not known, because the source is a schedule file")
    else:
        reasons = f": {'; '.join(refinement.health.reasons)}" if refinement.health.reasons else ""
        lines.append(f"- Verdict on that run: {refinement.health.verdict}{reasons}")
    if refinement is not None:
        schedule = refinement.schedule
        if schedule.weights is not None:
            lines.append(
                f"- Weights: {schedule.norm.upper()} ** {schedule.power:g}, smoothing {schedule.smoothing:.3g}"
            )
        lines += [f"- {note}" for note in schedule.notes]
    return "\n".join(lines) + "\n"


def _names(sources: Sequence[str]) -> str:
    return ", ".join(f"`{shown('/'.join(Path(source).parts[-PARTS_OF_A_PATH:]))}`" for source in sources)


def _picture(folder: Path, scheduler: RefinedLR, refinement: Refinement | None) -> Path | None:
    """Draw the norms and the schedule; None as `draw_if_possible`."""
    runs = [] if refinement is None else refinement.runs
    raw = smoothed = None
    if refinement is not None and len(runs) == 1:
        raw = runs[0].at_every_step(refinement.schedule.norm)
        smoothed = smooth_norms(raw, refinement.schedule.smoothing)
    kind = "" if refinement is None or refinement.schedule.weights is None else f" {refinement.schedule.norm.upper()}"
    drawn = DrawnRun("refined", _grid(scheduler), raw, smoothed)
    return draw_if_possible(folder / PICTURE_NAME, [drawn], label=f"gradient{kind} norm, before clipping")


def _grid(scheduler: RefinedLR) -> np.ndarray[Any, np.dtype[np.float64]]:
    saved = scheduler.refined_schedule
    if saved is None:
        raise ValueError("The scheduler has no schedule; train before writing a card.")
    return saved["grid"].numpy()
