"""One rank of one launch of scripts/launch_matrix.py, which starts it: trains a tiny model, and writes what it saw.

    python scripts/launch_matrix_worker.py OPTIONS.json

What a rank reports of norms and rates is seen without the package: rates by a hook on the optimizer's own step, and, where
the options say `measure`, norms by a hook on every parameter's gradient, in float64 and before anybody clips.
"""

import copy
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration, DeepSpeedPlugin, DistributedType
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from hf_refined_schedule import GradientNormCallback, GradientNormRecorder

VOCABULARY = 64
LENGTH = 16


class Watch:
    """What one rank does, update by update."""

    def __init__(self) -> None:
        self.rates: list[float | list[float] | None] = []
        """The rate of each update, None if the optimizer did not step; several where its calls differ."""
        self.norms: list[list[float] | None] = []
        """L1 and L2 of each update, if `measure` was called; None if they are not finite."""
        self.gradient = "gone"
        self.warnings: list[str] = []
        self._applied: set[float] = set()
        self._sums: dict[int, tuple[float, float]] = {}
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.warnings.append(record.getMessage())
        logging.getLogger("hf_refined_schedule").addHandler(handler)
        register_optimizer_step_pre_hook(self._before_step)

    def measure(self, model: torch.nn.Module, scale: Callable[[], float] = lambda: 1.0) -> None:
        """Measure every gradient of a single process as soon as it is accumulated."""

        def keep(parameter: torch.nn.Parameter) -> None:
            gradient = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
            values = gradient.double() / scale()
            self._sums[id(parameter)] = (values.abs().sum().item(), values.square().sum().item())

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(keep)

    def end_update(self) -> None:
        applied, self._applied = sorted(self._applied), set()
        self.rates.append(None if not applied else applied[0] if len(applied) == 1 else applied)
        if self._sums:
            l1, squares = (math.fsum(sums) for sums in zip(*self._sums.values(), strict=True))
            self.norms.append([l1, math.sqrt(squares)] if math.isfinite(squares) else None)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._applied |= {float(group["lr"]) for group in optimizer.param_groups}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.gradient = type(parameter.grad).__name__


class WatchCallback(TrainerCallback):
    """Ends an update of a Trainer."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.watch.end_update()


class ConsumesGradients(torch.optim.Optimizer):
    """SGD that steps in the backward pass, parameter by parameter, and frees each gradient there, as LOMO and layer-wise GaLore do."""

    def __init__(self, parameters: Iterator[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        for parameter in self.param_groups[0]["params"]:
            parameter.register_post_accumulate_grad_hook(self._update)

    @torch.no_grad()
    def _update(self, parameter: torch.nn.Parameter) -> None:
        parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
        parameter.grad = None

    def step(self, closure: None = None) -> None:
        """The step has been made."""


class SparseModel(torch.nn.Module):
    """Predicts the next token from the last one; the embedding's gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 32, sparse=True)
        self.head = torch.nn.Linear(32, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.embedding(input_ids[:, :-1]))
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())}


class SparseAdamOnly(SparseModel):
    """All of its gradients are sparse, as `torch.optim.SparseAdam` wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.head.requires_grad_(False)


def build_model(options: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    kind = options["model"]
    # Dropout off: the same batch gives the same gradient, however it is cut into micro-batches or over processes.
    if kind == "t5":
        config = T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    elif kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=LENGTH, bos_token_id=0, eos_token_id=0,
            embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, loss_type="ForCausalLM",
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    else:
        model = {"sparse": SparseModel, "sparse only": SparseAdamOnly}[kind]()
    if options.get("lora"):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    return model.to(getattr(torch, options.get("dtype", "float32")))


def build_data(count: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens[:, 1::2] = tokens[:, ::2]  # something to learn: every token comes twice
    return [{"input_ids": row, "labels": row} for row in tokens]


def build_optimizer(name: str, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "consumes gradients":
        return ConsumesGradients(parameters, lr)
    return getattr(torch.optim, name)(parameters, lr=lr)


@contextmanager
def sharded_on_cpu() -> Iterator[None]:
    """Let an Accelerator that is built in this block shard over gloo processes.

    On a CPU, Accelerate quietly turns FSDP into DDP. So the processes pass for GPUs until it is built, and go back to the
    CPU before it is given a model.
    """
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    yield
    for state in (PartialState, AcceleratorState):
        state._shared_state["device"] = torch.device("cpu")


def use_fp16_on_cpu(accelerator: Accelerator) -> None:
    """Autocast to fp16 with a loss scale, which torch has for CPUs too, and Accelerate refuses there."""
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True


def run_trainer(options: dict[str, Any], watch: Watch, output_dir: Path) -> tuple[Accelerator, list[str]]:
    trainer_class, arguments_class = {
        "Trainer": (Trainer, TrainingArguments),
        "Seq2SeqTrainer": (Seq2SeqTrainer, Seq2SeqTrainingArguments),
    }[options["loop"]]
    defaults = {
        "output_dir": str(output_dir), "max_steps": options["updates"], "learning_rate": options["learning_rate"],
        "lr_scheduler_type": "refined", "lr_scheduler_kwargs": {"refined_from": options["refined_from"]},
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": not options["cuda"],
        "dataloader_pin_memory": False,
    }  # fmt: skip
    fp16_on_cpu = options["training"].get("fp16") and not options["cuda"]
    arguments = arguments_class(**{**defaults, **options["training"], **({"fp16": False} if fp16_on_cpu else {})})
    model = build_model(options)
    callbacks: list[TrainerCallback] = [] if options["measure"] else [GradientNormCallback()]
    optimizers = (None, None)
    if options["optimizer"]:
        optimizers = (build_optimizer(options["optimizer"], model, options["learning_rate"]), None)
    with sharded_on_cpu() if "fsdp" in options["training"] else nullcontext():
        trainer = trainer_class(
            model, arguments, train_dataset=build_data(options["samples"]),
            callbacks=[*callbacks, WatchCallback(watch)], optimizers=optimizers,
        )  # fmt: skip
    if fp16_on_cpu:
        use_fp16_on_cpu(trainer.accelerator)
    if options["overflow"]:  # a first scale that overflows, and falls to one that does not at once
        trainer.accelerator.scaler = torch.amp.GradScaler(
            trainer.accelerator.device.type, init_scale=2.0**40, backoff_factor=2.0**-30
        )
    if options["measure"]:
        scaler = trainer.accelerator.scaler
        watch.measure(model, scaler.get_scale if scaler is not None else lambda: 1.0)
    trainer.train()
    accelerator = trainer.accelerator
    facts = [type(trainer.model_wrapped).__name__, type(trainer.model).__name__]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        facts.append(f"ZeRO {accelerator.deepspeed_plugin.zero_stage}")
    if getattr(model, "is_gradient_checkpointing", False):
        facts.append("gradient checkpointing")
    if any("OptimizedModule" in type(module).__name__ for module in (trainer.model, trainer.model_wrapped)):
        facts.append("compiled")
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    if embeddings is not None and embeddings.weight is model.get_input_embeddings().weight:
        facts.append("tied")
    facts.append(f"accumulates {arguments.gradient_accumulation_steps}")
    facts.append(f"{accelerator.mixed_precision} autocast")
    facts.append(f"{options.get('dtype', 'float32')} parameters")
    if any(group.get("fused") for group in trainer.optimizer.param_groups):
        facts.append("fused")
    return accelerator, facts


def run_raw_loop(options: dict[str, Any], watch: Watch, output_dir: Path) -> tuple[Accelerator, list[str]]:
    accumulation, split = options["training"].get("gradient_accumulation_steps", 1), options["split_batches"]
    config = options["training"].get("deepspeed")
    if config:  # as TrainingArguments does it: an Accelerator with cpu=True turns DeepSpeed off
        PartialState(cpu=True)
    accelerator = Accelerator(
        cpu=not config,
        gradient_accumulation_steps=accumulation,
        dataloader_config=DataLoaderConfiguration(split_batches=split),
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config) if config else None,
    )
    model = build_model(options)
    if options["measure"]:
        watch.measure(model)
    batch_size = options["training"]["per_device_train_batch_size"] * (accelerator.num_processes if split else 1)
    loader = torch.utils.data.DataLoader(build_data(options["samples"]), batch_size=batch_size)
    optimizer = build_optimizer(options["optimizer"], model, options["learning_rate"])
    scheduler = get_scheduler(
        "refined", optimizer, 0, options["updates"] * (1 if split else accelerator.num_processes),
        scheduler_specific_kwargs={"refined_from": options["refined_from"]},
    )  # fmt: skip
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    recorder = nullcontext()
    if not options["measure"]:
        recorder = GradientNormRecorder(
            optimizer, output_dir=output_dir, num_training_steps=options["updates"], on_failure="warn"
        )
    max_grad_norm = options["training"]["max_grad_norm"] * (2 if config else 1)  # DeepSpeed goes by its config alone
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
                watch.end_update()
    facts = [type(model).__name__, f"accumulates {accumulation}", *(["splits batches"] if split else [])]
    return accelerator, facts + ([f"ZeRO {accelerator.deepspeed_plugin.zero_stage}"] if config else [])


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text())
    output_dir = Path(options["output_dir"]) / f"rank{os.environ.get('RANK', 0)}"
    watch = Watch()
    run = run_raw_loop if options["loop"] == "raw" else run_trainer
    accelerator, facts = run(copy.deepcopy(options), watch, output_dir)
    report = {
        "world_size": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "facts": [*facts, f"{watch.gradient} gradients"],
        "network": os.readlink("/proc/self/ns/net") if os.path.exists("/proc/self/ns/net") else "",
        "rates": watch.rates,
        "norms": watch.norms,
        "warnings": watch.warnings,
    }
    unfinished = output_dir.with_suffix(".part")
    unfinished.write_text(json.dumps(report))
    unfinished.rename(output_dir.with_suffix(".json"))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
