"""What a report states about the model, the data and the optimizer of its runs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedConfig, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_refined_schedule.norms.norms_file import read_norms_file

from .json_file import read_json
from .study_folder import NOTES_FILE, SETTING_FILE


def describe_optimizer(arguments: TrainingArguments) -> str:
    """The optimizer and its options other than the learning rate."""
    name = OptimizerNames(arguments.optim).value
    options = arguments.optim_args or f"betas {arguments.adam_beta1:g} and {arguments.adam_beta2:g}"
    clipping = f"max_grad_norm {arguments.max_grad_norm:g}" if arguments.max_grad_norm else "no clipping"
    return f"{name}, weight decay {arguments.weight_decay:g}, {options}, {clipping}"


def describe_dropout(model: torch.nn.Module) -> str:
    """The probabilities of the dropout layers, and of the dropout that a transformers config asks for."""
    probabilities = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):  # some models drop out without a layer
        options = config.to_dict().items()
        probabilities |= {value for name, value in options if _is_dropout(name) and isinstance(value, float)}
    probabilities -= {0.0}
    return ", ".join(f"{probability:g}" for probability in sorted(probabilities)) or "none"


def _is_dropout(name: str) -> bool:
    """Whether an option of a config is the dropout of a language model, not of a head for classification or summaries."""
    return ("dropout" in name or "pdrop" in name) and not name.startswith(("classifier", "summary"))


def setting_section(folder: Path, baselines: Sequence[Path]) -> str:
    """The section of a report about its setting, as Markdown.

    Args:
        folder: the folder of the study.
        baselines: the norms of its baselines, whose clipped updates are counted.
    """
    described = read_json(folder / SETTING_FILE)
    shares = [read_norms_file(path).clipped_share for path in baselines if path.exists()]
    known = [share for share in shares if share is not None]
    if known:
        described["clipped updates of the baselines"] = f"{fmean(known):.0%}"
    lines = "\n".join(f"- {name}: {value}" for name, value in described.items())
    notes = folder / NOTES_FILE
    return "\n\n".join(["## Setting", lines, *([notes.read_text(encoding="utf-8").strip()] if notes.exists() else [])])
