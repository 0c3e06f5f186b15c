"""One rank of a launch of `launch_matrix.py`: trains a tiny model and reports what it observed.

    python -m experiments.launch_worker RUN.json OUTPUT_DIR KNOWN_NORMS.jsonl

RUN.json holds a `launch_cells.TrainingRun`. The rank observes its rates and norms without the package: rates by a hook on the
optimizer's step and, if the run says `measure`, norms by a hook on each parameter's gradient, in float64 and before clipping.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DataLoaderConfiguration, DeepSpeedPlugin, DistributedType
from torch.distributed.fsdp import FlatParameter
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from experiments.launch_cells import LEARNING_RATE, UPDATES, TrainingRun
from experiments.rank_reports import Rate, end_run
from experiments.sharding import sharded_on_cpu
from experiments.tiny_models import SparseModel, tiny_data, tiny_model, tiny_options, tiny_t5
from hf_refined_schedule import GradientNormCallback, GradientNormRecorder


class Observer:
    """Observes the updates of one rank."""

    def __init__(self) -> None:
        self.rates: list[Rate] = []
        self.norms: list[list[float] | None] = []
        self.warnings: list[str] = []
        self.gradient_type = "no"
        self._rates_of_update: set[float] = set()
        self._sums: dict[int, tuple[float, float]] = {}
        logging.getLogger("hf_refined_schedule").addHandler(_ListHandler(self.warnings))
        register_optimizer_step_pre_hook(self._before_step)

    def measure(self, model: torch.nn.Module, scale: Callable[[], float] = lambda: 1.0) -> None:
        """Measure each gradient of a single process as soon as it is accumulated.

        Args:
            model: the model.
            scale: returns the factor that the gradients are multiplied by.
        """

        def keep_sums(parameter: torch.nn.Parameter) -> None:
            gradient = parameter.grad
            assert gradient is not None  # torch calls the hook after it has accumulated one
            values = (gradient.coalesce().values() if gradient.is_sparse else gradient).double() / scale()
            self._sums[id(parameter)] = (values.abs().sum().item(), values.square().sum().item())

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(keep_sums)

    def end_update(self) -> None:
        """Note the rates and norms of an update."""
        rates, self._rates_of_update = sorted(self._rates_of_update), set()
        self.rates.append(None if not rates else rates[0] if len(rates) == 1 else rates)
        if self._sums:
            l1, squares = (math.fsum(sums) for sums in zip(*self._sums.values(), strict=True))
            self.norms.append([l1, math.sqrt(squares)] if math.isfinite(squares) else None)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._rates_of_update |= {float(group["lr"]) for group in optimizer.param_groups}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.gradient_type = type(parameter.grad).__name__


class _ListHandler(logging.Handler):
    """Appends warnings to a list."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


class ObserverCallback(TrainerCallback):
    """Ends an observer's update when Trainer ends it."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._observer.end_update()


class StepsInBackward(torch.optim.Optimizer):
    """SGD that updates each parameter in the backward pass and frees its gradient, as LOMO and layer-wise GaLore do."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        for parameter in self.param_groups[0]["params"]:
            parameter.register_post_accumulate_grad_hook(self._update)

    @torch.no_grad()
    def _update(self, parameter: torch.nn.Parameter) -> None:
        assert parameter.grad is not None
        parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
        parameter.grad = None

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's returns the closure's loss
        """Do nothing: the parameters are updated already."""


def build_model(run: TrainingRun) -> torch.nn.Module:
    """The model of a run, with the same weights in every process."""
    builders: dict[str, Callable[[], torch.nn.Module]] = {
        "gpt2": tiny_model,
        "t5": tiny_t5,
        "sparse": SparseModel,
        "sparse only": lambda: SparseModel(train_head=False),
    }
    model = builders[run.model]()
    if run.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    return model.to(getattr(torch, run.dtype))


def build_optimizer(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run, over the parameters that are trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "steps in backward":
        return StepsInBackward(parameters, LEARNING_RATE)
    return getattr(torch.optim, name)(parameters, lr=LEARNING_RATE)


def use_fp16_on_cpu(accelerator: Accelerator) -> None:
    """Autocast to fp16 with a loss scale. torch does that on a CPU, too, but Accelerate refuses it there."""
    accelerator.state._mixed_precision = "fp16"  # a property without a setter is its public face
    accelerator.native_amp = True


def build_trainer(run: TrainingRun, observer: Observer, output_dir: Path, known_norms: Path) -> Trainer:
    """The trainer of a run, with the recorder's callback unless the run measures by itself."""
    trainer_class, arguments_class = {
        "Trainer": (Trainer, TrainingArguments),
        "Seq2SeqTrainer": (Seq2SeqTrainer, Seq2SeqTrainingArguments),
    }[run.loop]
    options = tiny_options(
        output_dir, max_steps=UPDATES, learning_rate=LEARNING_RATE, lr_scheduler_type="refined",
        lr_scheduler_kwargs={"refined_from": str(known_norms)}, use_cpu=not run.cuda,
    ) | run.training  # fmt: skip
    fp16_on_cpu = run.training.get("fp16") and not run.cuda
    if fp16_on_cpu:
        options["fp16"] = False
    arguments = arguments_class(**options)
    model = build_model(run)
    optimizer = build_optimizer(run.optimizer, model) if run.optimizer else None
    callbacks = [ObserverCallback(observer)] if run.measure else [GradientNormCallback(), ObserverCallback(observer)]
    with sharded_on_cpu() if "fsdp" in run.training else nullcontext():
        trainer = trainer_class(
            model, arguments, train_dataset=tiny_data(run.samples), callbacks=callbacks, optimizers=(optimizer, None)
        )
    if fp16_on_cpu:
        use_fp16_on_cpu(trainer.accelerator)
    if run.overflow:  # the first scale overflows, and the second does not
        trainer.accelerator.scaler = torch.amp.GradScaler(
            trainer.accelerator.device.type, init_scale=2.0**40, backoff_factor=2.0**-30
        )
    if run.measure:
        scaler = trainer.accelerator.scaler
        observer.measure(model, scaler.get_scale if scaler is not None else lambda: 1.0)
    return trainer


def run_trainer(
    run: TrainingRun, observer: Observer, output_dir: Path, known_norms: Path
) -> tuple[Accelerator, list[str]]:
    """Train with a Trainer; returns its Accelerator and its setup."""
    trainer = build_trainer(run, observer, output_dir, known_norms)
    model = trainer.model  # before training wraps it
    trainer.train()
    accelerator = trainer.accelerator
    setup = [type(trainer.model_wrapped).__name__, type(trainer.model).__name__]
    setup.append(f"{trainer.args.gradient_accumulation_steps} accumulation steps")
    setup.append(f"{accelerator.mixed_precision} autocast")
    setup.append(f"{run.dtype} parameters")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        setup.append(f"ZeRO {accelerator.deepspeed_plugin.zero_stage}")
    if getattr(model, "is_gradient_checkpointing", False):
        setup.append("gradient checkpointing")
    if any("OptimizedModule" in type(module).__name__ for module in (trainer.model, trainer.model_wrapped)):
        setup.append("compiled")
    if any(isinstance(parameter, FlatParameter) for parameter in trainer.model.parameters()):
        setup.append("flat parameters")
    if has_tied_weights(model):
        setup.append("tied weights")
    if trainer.optimizer is not None and any(group.get("fused") for group in trainer.optimizer.param_groups):
        setup.append("fused")
    return accelerator, setup


def has_tied_weights(model: Any) -> bool:
    """Whether the input and the output embeddings are one parameter."""
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    return embeddings is not None and embeddings.weight is model.get_input_embeddings().weight


def run_raw_loop(
    run: TrainingRun, observer: Observer, output_dir: Path, known_norms: Path
) -> tuple[Accelerator, list[str]]:
    """Train with an Accelerate loop; returns its Accelerator and its setup."""
    accumulation = run.training.get("gradient_accumulation_steps", 1)
    deepspeed = run.training.get("deepspeed")
    if deepspeed:  # as TrainingArguments does it: an Accelerator with cpu=True turns DeepSpeed off
        PartialState(cpu=True)
    accelerator = Accelerator(
        cpu=not deepspeed,
        gradient_accumulation_steps=accumulation,
        dataloader_config=DataLoaderConfiguration(split_batches=run.split_batches),
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=deepspeed) if deepspeed else None,
    )
    model = build_model(run)
    if run.measure:
        observer.measure(model)
    split = accelerator.num_processes if run.split_batches else 1
    batch_size = run.training["per_device_train_batch_size"] * split
    data: Any = tiny_data(run.samples)
    loader: Any = torch.utils.data.DataLoader(data, batch_size=batch_size)
    optimizer = build_optimizer(run.optimizer or "AdamW", model)
    scheduler_steps = UPDATES * (1 if run.split_batches else accelerator.num_processes)
    scheduler = get_scheduler(
        "refined", optimizer, 0, scheduler_steps, scheduler_specific_kwargs={"refined_from": str(known_norms)}
    )
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    recorder: AbstractContextManager[Any] = nullcontext()
    if not run.measure:
        recorder = GradientNormRecorder(optimizer, output_dir=output_dir, num_training_steps=UPDATES, on_failure="warn")
    # DeepSpeed clips to the limit of its config. Another limit here shows that the recorder uses that of the config, too.
    max_grad_norm = run.training["max_grad_norm"] * (2 if deepspeed else 1)
    with recorder:
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if accelerator.sync_gradients and max_grad_norm:
                    accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                observer.end_update()
    setup = [type(model).__name__, f"{accumulation} accumulation steps"]
    if run.split_batches:
        setup.append("split batches")
    if deepspeed:
        setup.append(f"ZeRO {accelerator.deepspeed_plugin.zero_stage}")
    return accelerator, setup


def main() -> None:
    """Train as the file says, and report."""
    run_file, output_dir, known_norms = map(Path, sys.argv[1:])
    run = TrainingRun(**json.loads(run_file.read_text()))
    observer = Observer()
    train = run_raw_loop if run.loop == "raw" else run_trainer
    rank_dir = output_dir / f"rank{os.environ.get('RANK', 0)}"
    accelerator, setup = train(run, observer, rank_dir, known_norms)
    setup.append(f"{observer.gradient_type} gradients")
    end_run(accelerator, output_dir, observer.rates, observer.norms, observer.warnings, setup)


if __name__ == "__main__":
    main()
