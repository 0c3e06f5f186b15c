"""Compare learning-rate schedules for language models: schedule x peak learning rate x seed, in pairs.

    python scripts/compare_finetuning.py --output_dir runs/comparison
    python scripts/report_comparison.py runs/comparison

The default is a small grid of fine-tuning, on a model pretrained here on CPython's source and text that is on every machine;
it takes less than ten minutes on two cores. The one of results/finetune.md, with its time, is given there.
`--regime lora` (needs peft) and `--regime scratch` train otherwise; `--model_name_or_path` and the text options of
scripts/run_clm.py take real models and data. Every cell is one run of `RefinedScheduleTrainer`. Cells with the same seed begin
with the same weights and see the same batches, so that schedules can be compared in pairs.

The refined schedule is made from one more run: linear decay with a seed that is not compared (seed 0), at that seed's best peak.
A schedule that the package calls doubtful or degenerate is compared, too; `hf-refined-schedule check` says so of the baseline.jsonl
that the grid leaves.

Results are appended to results.jsonl as each cell ends. A rerun skips what is there, so the grid survives a kill.
`accelerate launch` runs each cell on many processes.
"""

import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset, load_from_disk
from experiments.language_modeling import (
    DataArguments,
    ModelArguments,
    default_block_size,
    group_into_blocks,
    load_model,
    load_text,
    load_tokenizer,
    split_blocks,
    text_column,
)
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    HfArgumentParser,
    default_data_collator,
    get_scheduler,
    set_seed,
)

from hf_refined_schedule import (
    RefinedScheduleArguments,
    RefinedScheduleTrainer,
    load_norms,
    smooth_norms,
)
from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.schedules.refined_schedule import RefinedSchedule
from hf_refined_schedule.schedules.schedule_file import write_schedule

WARMUP = 0.05
"""The share of the run that "+warmup" warms up for."""

BASELINE_SEED = 0
"""The seed of the run that the refined schedule is made from; it is not compared."""

PRETRAINING_PEAK = 3e-3

LORA_MODULES = "all-linear"

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"lr_scheduler_type": "constant"},
    "constant+warmup": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": WARMUP},
    "cosine": {"lr_scheduler_type": "cosine"},
    "cosine+warmup": {"lr_scheduler_type": "cosine", "warmup_steps": WARMUP},
    "linear": {"lr_scheduler_type": "linear"},
    "linear+warmup": {"lr_scheduler_type": "linear", "warmup_steps": WARMUP},
    "inverse_sqrt": {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": WARMUP},
    "wsd": {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": WARMUP, "decay": 0.2},
    "greedy": {"lr_scheduler_type": "greedy"},
    "schedule_free": {"lr_scheduler_type": "constant", "optim": "schedule_free_adamw", "warmup_steps": WARMUP},
    "refined": {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {}},
    "refined+warmup": {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {}, "warmup_steps": WARMUP},
    "refined_ignore_rising": {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {"rising_norms": "ignore"}},
    "refined_ignore_rising+warmup": {
        "lr_scheduler_type": "refined",
        "lr_scheduler_kwargs": {"rising_norms": "ignore"},
        "warmup_steps": WARMUP,
    },
    "refined_l2": {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {"norm": "l2"}},
}
"""What a schedule sets in the training arguments; `warmup_steps` and `decay` as fractions of the run."""

DEFAULT_SCHEDULES = ("linear", "linear+warmup", "cosine+warmup", "wsd", "refined", "refined+warmup")

TWICE_THE_STEPS = "linear, twice the steps"
"""What linear decay does with the compute that the refined schedule spends on its baseline."""


def capped(smoothed: np.ndarray) -> np.ndarray:
    """Norms that do not exceed the upper quartile."""
    return np.minimum(smoothed, np.quantile(smoothed, 0.75))


def as_they_are(smoothed: np.ndarray) -> np.ndarray:
    """Norms as they are."""
    return smoothed


VARIANTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float]] = {
    "refined, capped": (capped, 0.1, 1.0),
    "refined, smoothing 0.3": (as_they_are, 0.3, 1.0),
    "refined, half linear": (as_they_are, 0.1, 0.5),
}
"""What could make refinement safe: a change of the smoothed norms, the smoothing, the share of refined beside linear decay."""

REFINED_TWICE = "refined, of a refined run"


@dataclass
class ComparisonArguments:
    """The grid."""

    output_dir: str = field(metadata={"help": "The folder of results.jsonl; a rerun skips the cells in it."})
    regime: str = field(
        default="finetune",
        metadata={"help": "What is trained: finetune, lora, or scratch.", "choices": ["finetune", "lora", "scratch"]},
    )
    schedules: list[str] = field(
        default_factory=lambda: list(DEFAULT_SCHEDULES),
        metadata={"help": f"Of {', '.join(SCHEDULES)}; or variants, which run at linear's and refined's best peak."},
    )
    peaks: list[float] = field(
        default_factory=lambda: [5e-3, 1e-2, 2e-2],
        metadata={"help": "Peak learning rates; up to 4 times linear's best."},
    )
    num_seeds: int = field(
        default=3, metadata={"help": "Compared seeds: 1, 2, .. (seed 0 makes the refined schedule)."}
    )
    max_steps: int = field(default=300, metadata={"help": "Optimizer updates of a cell."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Blocks in a batch of one process."})
    bf16: bool = field(default=False, metadata={"help": "Train with bfloat16 autocast."})
    equal_compute: bool = field(
        default=False, metadata={"help": "Also run linear decay with twice the steps, and on a finer grid of peaks."}
    )
    sizes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Sizes of the built-in model to compare at, each as config overrides: n_embd=64,n_layer=2,n_head=2."
        },
    )
    pretrain_steps: int = field(default=400, metadata={"help": "Updates of the built-in model's pretraining."})
    num_workers: int | None = field(
        default=None,
        metadata={"help": "Cells that run at a time, on shares of the cores; 2 on a CPU unless given, else 1."},
    )

    def __post_init__(self) -> None:
        known = [*SCHEDULES, "variants"]
        for name in self.schedules:
            if name not in known:
                raise ValueError(f"--schedules has {name!r}, but must be of {', '.join(known)}.")
        if (
            any(name.startswith("refined") or name == "variants" for name in self.schedules)
            and "linear" not in self.schedules
        ):
            raise ValueError("Refined schedules are made from a run of linear decay; add linear to --schedules.")
        if self.num_workers is None:
            one = torch.cuda.is_available() or PartialState().num_processes > 1 or os.cpu_count() == 1
            self.num_workers = 1 if one else 2
        for name in ("num_seeds", "max_steps", "per_device_train_batch_size", "num_workers", "pretrain_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, but must be at least 1.")
        if not self.peaks or min(self.peaks) <= 0:
            raise ValueError(f"--peaks is {self.peaks}, but must be positive learning rates.")


@dataclass(frozen=True)
class Setting:
    """What all cells of a grid share; folders, so that it can be sent to another process."""

    regime: str
    label: str
    start: str
    blocks: str
    folder: str
    batch_size: int
    bf16: bool
    num_threads: int


@dataclass(frozen=True)
class Cell:
    """One run."""

    schedule: str
    peak: float
    seed: int
    steps: int
    role: str | None = None
    finer: bool = False

    def key(self, label: str) -> tuple[Any, ...]:
        return (label, *asdict(self).values())


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """The key of the cell that a line of results.jsonl is of."""
    cell = Cell(row["schedule"], row["peak"], row["seed"], row["steps"], row.get("role"), row.get("finer", False))
    return cell.key(row["regime"])


def schedule_options(name: str, steps: int, peak: float, folder: str) -> dict[str, Any]:
    """The training arguments of a schedule."""
    base, _, suffix = name.partition("+")
    if name == TWICE_THE_STEPS:
        options = dict(SCHEDULES["linear"])
    elif name in SCHEDULES:
        options = dict(SCHEDULES[name])
    else:
        options = {
            "lr_scheduler_type": "refined",
            "lr_scheduler_kwargs": {"refined_from": str(variant_file(folder, base))},
        }
        options |= {"warmup_steps": WARMUP} if suffix else {}
    if options["lr_scheduler_type"] == "refined":
        norms_file = str(Path(folder) / "baseline.jsonl")
        defaults = {"refined_from": norms_file, "allow_degenerate": True}
        options["lr_scheduler_kwargs"] = defaults | options["lr_scheduler_kwargs"]
    if "warmup_steps" in options:
        options["warmup_steps"] = max(1, round(options["warmup_steps"] * steps))
    if "decay" in options:
        decay_steps = round(options.pop("decay") * steps)
        options["lr_scheduler_kwargs"] = {"num_decay_steps": decay_steps, "decay_type": "linear"}
    if options["lr_scheduler_type"] == "greedy":
        # It acts on evaluations, and never goes below min_lr, whose default lies above many peaks.
        options["lr_scheduler_kwargs"] = {"min_lr": peak / 100, "max_lr": peak, "patience": 1, "smooth": False}
        options |= {"eval_strategy": "steps", "eval_steps": max(1, steps // 30), "metric_for_best_model": "loss"}
    return options


def variant_file(folder: str, name: str) -> Path:
    return Path(folder) / "variants" / f"{name.replace(', ', '_').replace(' ', '_')}.json"


def run_cell(setting: Setting, cell: Cell) -> dict[str, Any]:
    """Train and evaluate one cell; what it gives is a line of results.jsonl."""
    torch.set_num_threads(setting.num_threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    folder = (
        Path(setting.folder)
        / "cells"
        / f"{cell.schedule}_{cell.peak:g}_{cell.seed}".replace(", ", "_").replace(" ", "_")
    )
    arguments = RefinedScheduleArguments(
        output_dir=str(folder),
        max_steps=cell.steps,
        learning_rate=cell.peak,
        per_device_train_batch_size=setting.batch_size,
        per_device_eval_batch_size=32,
        seed=cell.seed,
        bf16=setting.bf16,
        use_cpu=not torch.cuda.is_available(),
        record_gradient_norms=cell.role is not None,
        logging_steps=max(1, cell.steps // 30),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **schedule_options(cell.schedule, cell.steps, cell.peak, setting.folder),
    )
    set_seed(cell.seed)
    train, evaluation = load_from_disk(f"{setting.blocks}/train"), load_from_disk(f"{setting.blocks}/evaluation")
    trainer = QuietTrainer(
        start_model(setting),
        arguments,
        train_dataset=train.with_format("torch"),
        eval_dataset=evaluation.with_format("torch"),
        data_collator=default_data_collator,
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.accelerator.free_memory()
    curve = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    diverged = not math.isfinite(loss)
    row = {
        "regime": setting.label,
        "schedule": cell.schedule,
        "peak": cell.peak,
        "seed": cell.seed,
        "steps": cell.steps,
    }
    row |= {"role": cell.role} if cell.role else {}
    row |= {"finer": True} if cell.finer else {}
    return row | {
        "eval_loss": None if diverged else loss,
        "diverged": diverged,
        "curve": [] if diverged else curve,
        "seconds": round(time.monotonic() - started, 2),
    }


class QuietTrainer(RefinedScheduleTrainer):
    """Keeps its log to itself: the grid has its own progress."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.state.log_history.append({**logs, "step": self.state.global_step})


def start_model(setting: Setting) -> torch.nn.Module:
    """The weights that a cell begins with; new ones come from the seed that is set."""
    if setting.regime == "scratch":
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(setting.start))
    model = AutoModelForCausalLM.from_pretrained(setting.start)
    if setting.regime == "lora":
        try:
            import peft
        except ImportError:
            raise ValueError("--regime lora needs peft; pip install peft.") from None
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=LORA_MODULES, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    return model


class Results:
    """results.jsonl: read once, then appended to by the main process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            rows = [json.loads(line) for line in lines]
            self.rows = {key_of(row): row for row in rows}
            if PartialState().is_main_process:
                self.path.write_text("".join(lines))
        PartialState().wait_for_everyone()

    def add(self, row: dict[str, Any]) -> None:
        self.rows[key_of(row)] = row
        if PartialState().is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def best_peak(self, label: str, schedule: str, seed: int) -> float:
        """The peak with the least evaluation loss of a seed."""
        rows = [
            row
            for row in self.rows.values()
            if (row["regime"], row["schedule"], row["seed"]) == (label, schedule, seed)
        ]
        rows = [row for row in rows if not row["diverged"] and not row.get("finer")]
        if not rows:
            raise ValueError(f"Every run of {schedule} with seed {seed} has diverged; pass lower --peaks.")
        return min(rows, key=lambda row: row["eval_loss"])["peak"]


def run_cells(setting: Setting, cells: list[Cell], results: Results, num_workers: int, what: str) -> None:
    """Run the cells that have no result yet."""
    missing = [cell for cell in cells if cell.key(setting.label) not in results.rows]
    progress = tqdm(
        total=len(cells),
        initial=len(cells) - len(missing),
        desc=what,
        unit="run",
        disable=not PartialState().is_main_process,
    )
    with progress:
        for row in finished(setting, missing, num_workers):
            results.add(row)
            progress.update()


def finished(setting: Setting, cells: list[Cell], num_workers: int) -> Iterator[dict[str, Any]]:
    """Rows as they come, one or several cells at a time."""
    if num_workers == 1 or len(cells) < 2:
        for cell in cells:
            yield run_cell(setting, cell)
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_cell, setting, cell) for cell in cells]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def finer_peaks(peaks: list[float]) -> list[float]:
    """The geometric means of neighbours: with them, linear decay has nearly twice the peaks."""
    ordered = sorted(peaks)
    return [float(f"{math.sqrt(low * high):.3g}") for low, high in pairwise(ordered)]


def compare(setting: Setting, options: ComparisonArguments, results: Results) -> None:
    """One grid: the baseline, the schedules, the equal-compute runs of linear decay, the variants."""
    steps, seeds = options.max_steps, range(1, options.num_seeds + 1)
    workers, label = options.num_workers, setting.label
    names = [name for name in options.schedules if name != "variants"]

    if any(name.startswith("refined") or name == "variants" for name in options.schedules):
        cells = [Cell("linear", peak, BASELINE_SEED, steps, role="baseline") for peak in options.peaks]
        run_cells(setting, cells, results, workers, f"{label}: baseline")
        peak = results.best_peak(label, "linear", BASELINE_SEED)
        recorded = Path(setting.folder) / "cells" / f"linear_{peak:g}_{BASELINE_SEED}" / "gradient_norms.jsonl"
        keep(recorded, Path(setting.folder) / "baseline.jsonl")

    cells = [Cell(name, peak, seed, steps) for seed in seeds for peak in options.peaks for name in names]
    if options.equal_compute:
        cells += [
            Cell("linear", peak, seed, steps, finer=True) for seed in seeds for peak in finer_peaks(options.peaks)
        ]
        cells += [Cell(TWICE_THE_STEPS, peak, seed, 2 * steps) for seed in seeds for peak in options.peaks]
    run_cells(setting, cells, results, workers, f"{label}: grid")

    if "variants" in options.schedules:
        write_variants(setting)
        peak = results.best_peak(label, "linear", BASELINE_SEED)
        run_cells(
            setting,
            [Cell("refined", peak, BASELINE_SEED, steps, role="baseline")],
            results,
            1,
            f"{label}: refined baseline",
        )
        recorded = Path(setting.folder) / "cells" / f"refined_{peak:g}_{BASELINE_SEED}" / "gradient_norms.jsonl"
        again = RefinedSchedule.from_norms(load_norms(recorded), "adam")
        write_once(replace(again, source="a refined run"), variant_file(setting.folder, REFINED_TWICE))
        variants = [*VARIANTS, REFINED_TWICE]
        peaks = sorted({mean_best_peak(results, label, name, seeds) for name in ("linear", "refined") if name in names})
        variants += [f"{name}+warmup" for name in variants]
        cells = [Cell(name, peak, seed, steps) for seed in seeds for peak in peaks for name in variants]
        run_cells(setting, cells, results, workers, f"{label}: variants")
        names = [*names, *variants]
    write_sampled_schedules(setting, names, steps, options.peaks[0])


def mean_best_peak(results: Results, label: str, schedule: str, seeds: range) -> float:
    """The peak with the least mean evaluation loss over the seeds."""
    means: dict[float, list[float]] = {}
    for row in results.rows.values():
        if (row["regime"], row["schedule"]) == (label, schedule) and row["seed"] in seeds and not row.get("finer"):
            means.setdefault(row["peak"], []).append(math.inf if row["diverged"] else row["eval_loss"])
    return min(means, key=lambda peak: float(np.mean(means[peak])))


def write_variants(setting: Setting) -> None:
    """Schedule files of the variants, from the baseline's norms."""
    norms = load_norms(Path(setting.folder) / "baseline.jsonl")
    for name, (change, smoothing, share) in VARIANTS.items():
        smoothed = change(smooth_norms(norms.at_every_step("l1"), smoothing))
        changed = GradientNorms(steps=np.arange(1, len(smoothed) + 1), l1=smoothed, num_training_steps=len(smoothed))
        schedule = RefinedSchedule.from_norms(changed, "adam", smoothing=0.0)
        linear = 1 - np.linspace(0, 1, len(schedule.multipliers))
        mixed = share * schedule.multipliers + (1 - share) * linear
        schedule = replace(schedule, multipliers=mixed / mixed.max(), source=f"the baseline, {name}")
        write_once(schedule, variant_file(setting.folder, name))


def write_once(schedule: RefinedSchedule, path: Path) -> None:
    if PartialState().is_main_process and not path.exists():
        write_schedule(schedule, path)
    PartialState().wait_for_everyone()


def keep(recorded: Path, kept: Path) -> None:
    """Keep the norms that the refined schedule is made from beside the results."""
    if PartialState().is_main_process and not kept.exists():
        kept.write_bytes(recorded.read_bytes())
    PartialState().wait_for_everyone()


def write_sampled_schedules(setting: Setting, names: list[str], steps: int, peak: float) -> None:
    """schedules.json: multipliers at 201 points of progress, for the report's picture.

    Every process builds the schedules, since they read the refined one's source together; the main one writes.
    """
    path = Path(setting.folder) / "schedules.json"
    sampled = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        options = schedule_options(name, steps, peak, setting.folder)
        if options["lr_scheduler_type"] == "greedy" or "optim" in options:
            continue
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        kwargs = options.get("lr_scheduler_kwargs")
        scheduler = get_scheduler(
            options["lr_scheduler_type"], optimizer, options.get("warmup_steps", 0), steps, kwargs
        )
        multipliers = []
        for _ in range(steps + 1):
            multipliers.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        points = np.interp(np.linspace(0, 1, 201), np.linspace(0, 1, steps + 1), multipliers)
        sampled.setdefault(setting.label, {})[name] = [round(float(point), 5) for point in points]
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        path.write_text(json.dumps(sampled) + "\n")


def prepare(
    model_options: ModelArguments, data: DataArguments | None, options: ComparisonArguments, size: str | None
) -> Setting:
    """Make the start weights and the blocks of text, once; cells of every process read them from the folder."""
    folder = Path(options.output_dir)
    label = options.regime if size is None else f"{options.regime}, {size}"
    prepared = folder / "start" / (size or "model").replace("=", "").replace(",", "_")
    overrides = size or model_options.config_overrides or "n_embd=96,n_layer=2,n_head=4,n_positions=64"
    builtin = data is None and model_options.model_name_or_path is None
    if not (prepared / "done").exists():
        if builtin:
            new = replace(model_options, config_overrides=overrides, vocab_size=1024)
            pretrain = options.regime != "scratch"
            source = DataArguments(builtin_text="python_source", block_size=64)
            blocks = make_start(new, source, prepared, options, pretrain)
            if pretrain:
                trained = replace(new, config_overrides=None, model_name_or_path=str(prepared / "model"))
                english = DataArguments(builtin_text="english", block_size=64, validation_split_percentage=10)
                blocks = make_start(trained, english, prepared, options, pretrain=False)
        elif data is None:
            raise ValueError("Text is missing; pass --dataset_name, --train_file or --builtin_text.")
        else:
            blocks = make_start(model_options, data, prepared, options, pretrain=False)
        if PartialState().is_main_process:
            for name, part in blocks.items():
                part.save_to_disk(str(prepared / "blocks" / name))
            (prepared / "done").touch()
        PartialState().wait_for_everyone()
    return Setting(
        regime=options.regime,
        label=label,
        start=str(prepared / "model"),
        blocks=str(prepared / "blocks"),
        folder=str(folder / (size or "")),
        batch_size=options.per_device_train_batch_size,
        bf16=options.bf16,
        num_threads=max(1, torch.get_num_threads() // options.num_workers),
    )


def make_start(
    model_options: ModelArguments, data: DataArguments, prepared: Path, options: ComparisonArguments, pretrain: bool
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
    raw = load_text(data)
    column = text_column(raw["train"], data)
    tokenizer = load_tokenizer(model_options, raw, column, arguments)
    model = load_model(model_options, tokenizer)
    blocks = group_into_blocks(raw, tokenizer, default_block_size(model, data), column, data)
    train, evaluation = split_blocks(blocks, data)
    evaluation = evaluation.select(range(min(512, len(evaluation))))
    if pretrain:
        print("Pretraining the start of all cells", file=sys.stderr)
        RefinedScheduleTrainer(model, arguments, train_dataset=train, data_collator=default_data_collator).train()
    if PartialState().is_main_process:
        model.save_pretrained(prepared / "model")
        tokenizer.save_pretrained(prepared / "model")
    PartialState().wait_for_everyone()
    return {"train": train, "evaluation": evaluation}


def account(folder: str | Path, script: str, seconds: float, **more: object) -> dict[str, Any]:
    """Write grid.json: the commands, the machine, the versions, and the seconds spent, added up over reruns.

    Args:
        folder: where it is written.
        script: the name of the script that runs.
        seconds: that this run has taken.
        **more: entries of the script's own.

    Returns:
        Its contents.
    """
    path = Path(folder) / "grid.json"
    before = json.loads(path.read_text()) if path.exists() else {"commands": [], "seconds": 0.0}
    command = shlex.join(["python", f"scripts/{script}", *sys.argv[1:]])
    about = {
        "commands": list(dict.fromkeys([*before["commands"], command])),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        **more,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "numpy", "scipy")},
        "seconds": round(before["seconds"] + seconds, 1),
    }
    path.write_text(json.dumps(about, indent=1) + "\n")
    return about


@contextmanager
def accounted(options: ComparisonArguments) -> Iterator[None]:
    """Write grid.json at the end, also of an interrupted run."""
    started = time.monotonic()
    try:
        yield
    finally:
        if PartialState().is_main_process:
            seconds = time.monotonic() - started
            account(options.output_dir, "compare_finetuning.py", seconds, processes=PartialState().num_processes)


def main() -> None:
    parser = HfArgumentParser((ModelArguments, ComparisonArguments))
    data_parser = HfArgumentParser(DataArguments)
    try:
        model_options, options, rest = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        data = data_parser.parse_args_into_dataclasses(rest)[0] if rest else None
        if PartialState().num_processes > 1 and options.num_workers > 1:
            raise ValueError(
                "--num_workers runs cells beside each other, accelerate launch runs each on many; use one."
            )
        Path(options.output_dir).mkdir(parents=True, exist_ok=True)
        with accounted(options):
            for size in options.sizes or [None]:
                setting = prepare(model_options, data, options, size)
                Path(setting.folder).mkdir(parents=True, exist_ok=True)
                compare(setting, options, Results(Path(setting.folder)))
    except ValueError as error:
        parser.exit(2, f"compare_finetuning.py: error: {error}\n")
    for size in options.sizes or [""]:
        print(f"Finished; the report: python scripts/report_comparison.py {Path(options.output_dir) / size}")
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
