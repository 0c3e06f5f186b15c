"""Cells of the language-model studies: the start model and the text that they share, and the training of one cell."""

import gc
import hashlib
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset, load_from_disk
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, default_data_collator, set_seed

from hf_refined_schedule import RefinedScheduleArguments, RefinedScheduleTrainer
from hf_refined_schedule.norms.norms_file import NORMS_FILE_NAME

from .cells import Cell, Result
from .json_file import read_json, write_json
from .language_modeling import DataArguments, ModelArguments, load_model_and_blocks
from .quiet_trainer import QuietTrainer
from .schedules_compared import ComparedSchedule
from .settings import describe_dropout, describe_optimizer
from .study_folder import SETTING_FILE, differing_names, refuse_another_setting
from .variants import schedule_and_source

REGIMES = ("finetune", "lora", "scratch")

PRETRAINING_PEAK = 3e-3
"""The peak learning rate of the built-in model's pretraining."""

BUILTIN_CONFIG = "n_embd=96,n_layer=2,n_head=4,n_positions=64"
BUILTIN_VOCABULARY = 1024
BUILTIN_BLOCK_SIZE = 64

MAX_EVALUATION_BLOCKS = 512
"""Unless `--max_eval_samples` is given."""

LORA_RANK, LORA_ALPHA = 8, 16

ADAPTER = f"LoRA on all linear layers, rank {LORA_RANK}, alpha {LORA_ALPHA}"

NUM_CURVE_POINTS = 30

START_FINGERPRINT = "fingerprint of the start model and the text"
"""The entry of setting.json by which a resumed study knows them."""

START_OPTIONS_FILE = "options.json"
"""What the start model and the text were made with; the last file that their preparation writes."""


def default_num_workers() -> int:
    """Two cells at the same time on a CPU with several cores, one on a device or if several processes train each cell."""
    one = torch.cuda.is_available() or PartialState().num_processes > 1 or os.cpu_count() == 1
    return 1 if one else 2


@dataclass
class TrainingOptions:
    """How every cell trains."""

    output_dir: str = field(metadata={"help": "The folder of results.jsonl; a rerun skips the cells in it."})
    regime: str = field(
        default="finetune",
        metadata={"help": "What is trained: finetune, lora, or scratch.", "choices": list(REGIMES)},
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "The number of blocks in a batch of one process."}
    )
    bf16: bool = field(default=False, metadata={"help": "Train with bfloat16 autocast."})
    pretrain_steps: int = field(
        default=400, metadata={"help": "The number of updates of the built-in model's pretraining."}
    )
    num_workers: int = field(
        default_factory=default_num_workers,
        metadata={
            "help": "The number of cells that run at the same time and share the cores; by default 2 on a CPU, else 1."
        },
    )

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "num_workers", "pretrain_steps"):
            check_positive(self, name)


def check_positive(options: object, name: str) -> None:
    """Refuse an option below 1.

    Raises:
        ValueError: if the option `name` of `options` is below 1.
    """
    value = getattr(options, name)
    if value < 1:
        raise ValueError(f"--{name} is {value}, but must be at least 1.")


def parse_options(*classes: type) -> tuple[Any, ...]:
    """Read the command line of a study, in which the text options are optional as a group.

    Args:
        *classes: dataclasses of the other options.

    Returns:
        An object of each class, and `DataArguments` or None.

    Raises:
        ValueError: if an option is unknown, or an object refuses its value.
    """
    given: Any = classes
    *parsed, rest = HfArgumentParser(given).parse_args_into_dataclasses(return_remaining_strings=True)
    text_options: Any = HfArgumentParser(DataArguments)  # type: ignore[arg-type]
    if unknown := text_options.parse_known_args(rest)[1]:
        raise ValueError(f"There is no option {unknown[0]}; see --help, and the text options of scripts/run_clm.py.")
    data = text_options.parse_args_into_dataclasses(rest)[0] if rest else None
    return (*parsed, data)


@dataclass(frozen=True)
class Setting:
    """What all cells of a grid share. It holds paths instead of models, so that it can be sent to another process.

    Args:
        regime: `"finetune"`, `"lora"` or `"scratch"`.
        label: the regime in results and reports, with the size of the model if there are several.
        start: the folder of the start model.
        blocks: the folder of the tokenized text.
        folder: the folder of the results.
        batch_size: blocks in a batch of one process.
        bf16: whether to train with bfloat16 autocast.
        num_threads: torch's threads for a cell.
        trust_remote_code: whether to run the model's own code.
    """

    regime: str
    label: str
    start: str
    blocks: str
    folder: str
    batch_size: int
    bf16: bool
    num_threads: int
    trust_remote_code: bool = False

    def cell_folder(self, cell: Cell) -> Path:
        """The folder that a cell writes to while it trains."""
        schedule = cell.schedule.replace(", ", "_").replace(" ", "_")
        return Path(self.folder) / "cells" / f"{schedule}_{cell.peak:g}_{cell.seed}_{cell.steps}_steps"

    def norms_file(self, cell: Cell) -> Path:
        """The norms of a cell that records them."""
        return self.cell_folder(cell) / NORMS_FILE_NAME


def run_cell(setting: Setting, cell: Cell) -> Result:
    """Train and evaluate one cell of a grid. The norms of a cell with a role are recorded."""
    schedule, source = schedule_and_source(cell.schedule, Path(setting.folder))
    return train_cell(setting, cell, schedule, source, record_norms=cell.role is not None)


def train_cell(setting: Setting, cell: Cell, schedule: ComparedSchedule, source: Path, *, record_norms: bool) -> Result:
    """Train and evaluate one cell.

    Args:
        setting: what all cells share.
        cell: the cell.
        schedule: its schedule.
        source: what a refined schedule is made from.
        record_norms: whether to record the gradient norms, into the folder of the cell.
    """
    torch.set_num_threads(setting.num_threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    arguments = RefinedScheduleArguments(
        output_dir=str(setting.cell_folder(cell)),
        max_steps=cell.steps,
        learning_rate=cell.peak,
        per_device_train_batch_size=setting.batch_size,
        per_device_eval_batch_size=setting.batch_size,
        seed=cell.seed,
        bf16=setting.bf16,
        use_cpu=not torch.cuda.is_available(),
        record_gradient_norms=record_norms,
        logging_steps=max(1, cell.steps // NUM_CURVE_POINTS),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **schedule.training_arguments(cell.steps, cell.peak, source),
    )
    set_seed(cell.seed)
    train, evaluation = load_from_disk(f"{setting.blocks}/train"), load_from_disk(f"{setting.blocks}/evaluation")
    trainer = QuietTrainer(
        make_model(setting),
        arguments,
        train_dataset=train.with_format("torch"),
        eval_dataset=evaluation.with_format("torch"),
        data_collator=default_data_collator,
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    curve = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()  # autocast makes the model part of a cycle; the next cell needs its memory
    torch.cuda.empty_cache()
    seconds = round(time.monotonic() - started, 2)
    return Result(cell, loss if math.isfinite(loss) else math.inf, curve, seconds)


def describe_study(
    setting: Setting,
    steps: int,
    model_arguments: ModelArguments,
    data: DataArguments | None,
    options: TrainingOptions,
) -> dict[str, Any]:
    """What a report states about runs of `steps` updates.

    Args:
        setting: what `prepare_setting` has made.
        steps: T, the number of optimizer updates of a run.
        model_arguments: as `prepare_setting` took them.
        data: as `model_arguments`.
        options: as `model_arguments`.
    """
    return {**_describe_start(model_arguments, data, options), **describe_setting(setting, steps)}


def _describe_start(
    model_arguments: ModelArguments, data: DataArguments | None, options: TrainingOptions
) -> dict[str, str]:
    """What a report states about the start model and the text."""
    start, text = model_arguments.model_name_or_path, "CPython's source"
    if start is None:
        config = model_arguments.config_overrides or (BUILTIN_CONFIG if data is None else "its default configuration")
        start = f"new {model_arguments.model_type}, {config}"
    if data is not None:
        files = (data.train_file, data.validation_file)
        names = (data.dataset_name, data.dataset_config_name, *files, data.builtin_text)
        text = " ".join(name for name in names if name is not None)
    elif options.regime != "scratch":
        start += f", pretrained for {options.pretrain_steps:,} updates on CPython's source"
        text = "Python's help texts"
    return {"regime": options.regime, "start": start, "text": text}


def describe_setting(setting: Setting, steps: int) -> dict[str, Any]:
    """What a report states about the model, the data and the optimizer of a run of `steps` updates."""
    set_seed(0)
    model = make_model(setting)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    train, evaluation = load_from_disk(f"{setting.blocks}/train"), load_from_disk(f"{setting.blocks}/evaluation")
    block_size = len(train[0]["input_ids"])
    arguments = RefinedScheduleArguments(
        output_dir=setting.folder,
        per_device_train_batch_size=setting.batch_size,
        use_cpu=not torch.cuda.is_available(),
    )
    blocks_per_update = arguments.train_batch_size * arguments.world_size
    dtype = next(model.parameters()).dtype
    return {
        "model": f"{model.config.model_type}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters, "
        f"{trainable:,} trainable",
        "tokens per update": blocks_per_update * block_size,
        "epochs": round(steps * blocks_per_update / len(train), 2),
        "evaluation blocks": f"{len(evaluation)} of {block_size} tokens",
        "optimizer": describe_optimizer(arguments),
        "dropout": describe_dropout(model),
        "bf16 autocast": setting.bf16,
        **({"weights": str(dtype).removeprefix("torch.")} if dtype != torch.float32 else {}),
        **({"adapter": ADAPTER} if setting.regime == "lora" else {}),
    }


def refuse_another_start(setting: Setting) -> dict[str, str]:
    """Compare the start model and the text with those of the results that the folder has, if they are known.

    A start that was removed and made again need not be the same: pretraining gives other weights on another machine, and the
    texts of another Python differ.

    Returns:
        What setting.json keeps of them.

    Raises:
        ValueError: if they differ.
    """
    digest = hashlib.sha256()
    for name in ("train", "evaluation"):
        blocks = load_from_disk(f"{setting.blocks}/{name}").with_format("numpy")
        for batch in blocks.iter(1000):
            digest.update(batch["input_ids"].tobytes())
    if setting.regime != "scratch":  # there, the weights depend on the seed
        for path in sorted(Path(setting.start).glob("*.safetensors")):
            with safe_open(path, "pt") as tensors:
                for name in sorted(tensors.keys()):
                    digest.update(
                        name.encode() + tensors.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes()
                    )
    fingerprint = digest.hexdigest()[:16]
    kept = read_json(Path(setting.folder) / SETTING_FILE).get(START_FINGERPRINT, fingerprint)
    if kept != fingerprint:
        raise ValueError(
            f"{setting.start} was made again and is not the model, or its text not the text, of the results in {setting.folder}; "
            "copy the folder start of the study, or give another --output_dir."
        )
    return {START_FINGERPRINT: fingerprint}


def make_model(setting: Setting) -> torch.nn.Module:
    """The model that a cell starts with. New weights depend on the seed that is set."""
    if setting.regime == "scratch":
        config = AutoConfig.from_pretrained(setting.start, trust_remote_code=setting.trust_remote_code)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=setting.trust_remote_code)
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        setting.start, trust_remote_code=setting.trust_remote_code
    )
    if setting.regime == "lora":
        try:
            import peft
        except ImportError:
            raise ValueError("--regime lora needs peft; pip install peft.") from None
        config = peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    return model


def prepare_setting(
    model_arguments: ModelArguments, data: DataArguments | None, options: TrainingOptions, size: str | None = None
) -> Setting:
    """Make the start model and the blocks of text, unless the folder has them, and collect what the cells share.

    Args:
        model_arguments: the model; the built-in one if it names none and there is no `data`.
        data: the text, or None for the built-in model's.
        options: how every cell trains.
        size: the config overrides of a new model, if several sizes are compared.

    Raises:
        ValueError: if the model has a name and there is no text, a new model is to be fine-tuned on a text, an option would have no
            effect, or the folder has a start or a setting.json of other options.
    """
    _refuse_options_without_effect(model_arguments, data, options, size)
    folder = Path(options.output_dir)
    prepared = folder / "start" / (size or "model").replace("=", "").replace(",", "_")
    made_with = _options_of_start(model_arguments, data, options)  # the name of the folder says the size
    if size is not None:
        model_arguments = replace(model_arguments, config_overrides=size)
    refuse_another_setting(folder / (size or ""), _describe_start(model_arguments, data, options))
    kept = read_json(prepared / START_OPTIONS_FILE)
    for name in differing_names(kept, made_with) if kept else []:
        raise ValueError(
            f"{prepared} was made with --{name} {kept.get(name)}, not {made_with.get(name)}; give the options that the "
            "study was started with, or another folder."
        )
    if not kept:
        if data is None and model_arguments.model_name_or_path is not None:
            raise ValueError("Text is missing; pass --dataset_name, --train_file or --builtin_text.")
        if data is None:
            overrides = model_arguments.config_overrides or BUILTIN_CONFIG
            blocks = _make_builtin_start(replace(model_arguments, config_overrides=overrides), prepared, options)
        else:
            blocks = _make_start(model_arguments, data, prepared, options)
        if PartialState().is_main_process:
            for name, part in blocks.items():
                part.save_to_disk(str(prepared / "blocks" / name))
            write_json(prepared / START_OPTIONS_FILE, made_with, indent=1)
        PartialState().wait_for_everyone()
    return Setting(
        regime=options.regime,
        label=options.regime if size is None else f"{options.regime}, {size}",
        start=str(prepared / "model"),
        blocks=str(prepared / "blocks"),
        folder=str(folder / (size or "")),
        batch_size=options.per_device_train_batch_size,
        bf16=options.bf16,
        num_threads=max(1, torch.get_num_threads() // options.num_workers),
        trust_remote_code=model_arguments.trust_remote_code,
    )


def _refuse_options_without_effect(
    model_arguments: ModelArguments, data: DataArguments | None, options: TrainingOptions, size: str | None
) -> None:
    """Refuse options that a start with these others would not use."""
    if size is not None:
        for name in ("model_name_or_path", "config_overrides"):
            if getattr(model_arguments, name) is not None:
                raise ValueError(f"--sizes are those of new models; leave out --{name}.")
    if data is not None and model_arguments.model_name_or_path is None and options.regime != "scratch":
        raise ValueError(
            f"--regime {options.regime} with a text of your own needs a trained model; pass --model_name_or_path, or --regime scratch."
        )
    if (data is not None or options.regime == "scratch") and options.pretrain_steps != TrainingOptions.pretrain_steps:
        raise ValueError("Only the built-in model is pretrained, to be fine-tuned; leave out --pretrain_steps.")
    if data is None and model_arguments.vocab_size != ModelArguments.vocab_size:
        raise ValueError(f"The built-in model has {BUILTIN_VOCABULARY} tokens; leave out --vocab_size, or pass a text.")


def _options_of_start(
    model_arguments: ModelArguments, data: DataArguments | None, options: TrainingOptions
) -> dict[str, Any]:
    """The options that decide the start model and the text, by name."""
    chosen = {**asdict(model_arguments), **({} if data is None else asdict(data))}
    chosen.pop("preprocessing_num_workers", None)
    chosen["regime"] = options.regime
    if data is None and options.regime != "scratch":
        chosen["pretrain_steps"] = options.pretrain_steps
        chosen["per_device_train_batch_size"] = options.per_device_train_batch_size
    return {name: value for name, value in chosen.items() if value is not None}


def _make_builtin_start(
    model_arguments: ModelArguments, prepared: Path, options: TrainingOptions
) -> dict[str, Dataset]:
    """A new model: for `scratch` on CPython's source, else pretrained on it, with Python's help texts to fine-tune on."""
    new = replace(model_arguments, vocab_size=BUILTIN_VOCABULARY)
    source = DataArguments(builtin_text="python_source", block_size=BUILTIN_BLOCK_SIZE)
    if options.regime == "scratch":
        return _make_start(new, source, prepared, options)
    _make_start(new, source, prepared, options, pretrain=True)
    trained = replace(new, config_overrides=None, model_name_or_path=str(prepared / "model"))
    english = DataArguments(builtin_text="english", block_size=BUILTIN_BLOCK_SIZE, validation_split_percentage=10)
    return _make_start(trained, english, prepared, options)


def _make_start(
    model_arguments: ModelArguments,
    data: DataArguments,
    prepared: Path,
    options: TrainingOptions,
    *,
    pretrain: bool = False,
) -> dict[str, Dataset]:
    """Save a model, pretrained if asked for, and return the blocks of the text."""
    set_seed(0)
    arguments = RefinedScheduleArguments(
        output_dir=str(prepared / "model"),
        max_steps=options.pretrain_steps,
        learning_rate=PRETRAINING_PEAK,
        warmup_steps=max(1, options.pretrain_steps // 20),
        per_device_train_batch_size=options.per_device_train_batch_size,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        record_gradient_norms=False,
    )
    model, tokenizer, train, evaluation = load_model_and_blocks(model_arguments, data, arguments)
    if data.max_eval_samples is None:
        evaluation = evaluation.select(range(min(MAX_EVALUATION_BLOCKS, len(evaluation))))
    if model_arguments.dtype == "auto" and options.regime != "lora":
        # Small updates of bfloat16 weights are rounded away, first those at the end of a schedule.
        model = model.float()
    if pretrain:
        print("Pretraining the model that all cells start with", file=sys.stderr)
        RefinedScheduleTrainer(model, arguments, train_dataset=train, data_collator=default_data_collator).train()
    if PartialState().is_main_process:
        model.save_pretrained(prepared / "model")
        tokenizer.save_pretrained(prepared / "model")
    PartialState().wait_for_everyone()
    return {"train": train, "evaluation": evaluation}
