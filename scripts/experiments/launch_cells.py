"""The cells of `launch_matrix.py`: kinds of launches, what they train, and how close they must come to one process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UPDATES = 12
BATCH = 8
"""Sequences in the batch of one update, over all processes and micro-batches."""
LEARNING_RATE = 5e-3

FLOAT32 = 1e-5
"""Float32 sums in another order: 1e-7 for each sum, and sums follow each other. A wrong norm (of a part of the gradient, of
an average instead of a sum, of a clipped gradient) is off by percents."""
FLOAT16 = 1e-3
"""fp16 rounds to 11 bits, and a CUDA device does not repeat the order of its sums."""
BFLOAT16 = 5e-3
"""bfloat16 rounds to 8 bits, 4e-3 each, and most errors of a gradient's elements cancel in its norm."""
BFLOAT16_PARAMETERS = 1e-2
"""The gradients of the micro-batches are rounded to 8 bits before they are averaged."""


@dataclass(frozen=True)
class TrainingRun:
    """What every process of a launch trains: the input of `launch_worker.py`."""

    loop: str = "Trainer"
    """`"Trainer"`, `"Seq2SeqTrainer"` or `"raw"`, an Accelerate loop; or an unmodified script, a key of `SCRIPTS`."""
    model: str = "gpt2"
    """`"gpt2"`, `"t5"`, `"sparse"`, or `"sparse only"`, which has no dense gradient."""
    optimizer: str | None = None
    """A class of `torch.optim`, or `"steps in backward"`; Trainer's choice if None."""
    lora: bool = False
    dtype: str = "float32"
    """Of the parameters."""
    samples: int = BATCH * UPDATES
    split_batches: bool = False
    """Whether Accelerate splits each batch of a raw loop over the processes."""
    measure: bool = False
    """Whether the process measures its gradients without the recorder."""
    cuda: bool = False
    overflow: bool = False
    """Whether fp16's first loss scale overflows."""
    training: dict[str, Any] = field(default_factory=dict)
    """`TrainingArguments`. `"deepspeed"` holds the config."""


@dataclass(frozen=True)
class Cell:
    """One kind of launch, its expected setup, and how close it must come to one process."""

    name: str
    launch: str = "torchrun"
    """`"alone"`, `"torchrun"`, `"accelerate"`, `"two nodes"`, or `"two networks"`."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """As in `TrainingRun`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The other fields of `TrainingRun`."""
    distributed_type: str = ""
    """The value of Accelerate's `DistributedType`; that of the launch if empty."""
    setup: tuple[str, ...] = ()
    """What every rank must report of its run."""
    tolerance: float = FLOAT32
    """The largest relative difference of norms in the first updates."""
    warnings: tuple[str, ...] = ()
    """The beginning of each warning of the recorder, over all ranks."""
    refused: bool = False
    """Whether the last warning ends the recording."""
    repeats_samples: bool = False
    """Whether the last batch repeats samples, so that its gradient differs by design."""
    requirements: tuple[str, ...] = ()
    """What the machine must have."""

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return 1 if self.launch == "alone" else 2

    @property
    def script(self) -> str | None:
        """The unmodified script, or None if the worker runs."""
        loop = self.options.get("loop")
        return loop if loop in SCRIPTS else None

    def run(self) -> TrainingRun:
        """What each process of the launch trains."""
        accumulation = self.training.get("gradient_accumulation_steps", 1)
        batch_size = BATCH // self.world_size // accumulation
        return TrainingRun(**self.options, training={"per_device_train_batch_size": batch_size, **self.training})

    def reference_run(self) -> TrainingRun:
        """The same training in one process, without the options that must make no difference."""
        options: dict[str, Any] = {}
        training: dict[str, Any] = {"per_device_train_batch_size": BATCH}
        if not self.refused:  # only the learning rates of a refused cell are compared
            options |= self.options
            training |= {key: self.training[key] for key in SAME_IN_ONE_PROCESS if key in self.training}
        if self.script:
            options |= SCRIPTS[self.script]
        return TrainingRun(**{**options, "split_batches": False, "measure": True}, training=training)


SAME_IN_ONE_PROCESS = ("max_grad_norm", "bf16", "fp16", "optim")
"""Arguments that change the training itself, and not only how it is distributed."""

RAW = {"loop": "raw", "optimizer": "AdamW"}
SCRIPTS: dict[str, dict[str, Any]] = {"run_clm_style": {"loop": "Trainer"}, "no_trainer_style": RAW}
"""The scripts in the folder `unmodified`, which do not use this package, and the worker's options for the same training."""

DDP = ("DistributedDataParallel",)
FSDP = {"fsdp": "full_shard auto_wrap"}
BLOCKS = {"transformer_layer_cls_to_wrap": "GPT2Block"}
FSDP1 = {"version": 1, "sync_module_states": False, **BLOCKS}
REFUSED = "Gradient norms are not recorded from update 1 on: "


def zero_config(stage: int, **changes: Any) -> dict[str, Any]:
    """The DeepSpeed config of a ZeRO stage."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        **changes,
    }


def zero_cell(name: str, stage: int, *, training: Mapping[str, Any] | None = None, **changes: Any) -> Cell:
    """A cell of a ZeRO stage."""
    options = {
        "distributed_type": "DEEPSPEED", "setup": ("DeepSpeedEngine", f"ZeRO {stage}"), "requirements": ("DeepSpeed",),
    }  # fmt: skip
    return Cell(name, training={"deepspeed": zero_config(stage), **(training or {})}, **{**options, **changes})


DEEPSPEED_ADAMW = {
    "type": "AdamW",
    "params": {
        **dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"),
        "torch_adam": True,
        "adam_w_mode": True,
    },
}

CELLS = [
    Cell("one process", "alone"),
    Cell("DDP, accelerate launch", "accelerate", setup=DDP),
    Cell("DDP, torchrun", setup=DDP),
    Cell("DDP, two nodes", "two nodes", setup=DDP),
    Cell("DDP, two nodes in two network namespaces", "two networks", setup=DDP, requirements=("network namespaces",)),
    Cell(
        "DDP, uneven last batch, even_batches",
        options={"samples": BATCH * UPDATES - 3},
        setup=DDP,
        repeats_samples=True,
    ),
    Cell(
        "DDP, uneven last batch, even_batches false",
        training={"accelerator_config": {"even_batches": False}},
        options={"samples": BATCH * UPDATES - 3},
        setup=DDP,
    ),
    Cell(
        "DDP, gradient accumulation 4",
        training={"gradient_accumulation_steps": 4},
        setup=(*DDP, "4 accumulation steps"),
    ),
    Cell(
        "gradient accumulation 4",
        "alone",
        training={"gradient_accumulation_steps": 4},
        setup=("4 accumulation steps",),
    ),
    Cell("DDP, max_grad_norm 0", training={"max_grad_norm": 0.0}, setup=DDP),
    Cell("DDP, max_grad_norm 1", training={"max_grad_norm": 1.0}, setup=DDP),
    Cell("DDP, max_grad_norm 1e-3", training={"max_grad_norm": 1e-3}, setup=DDP),
    Cell(
        "FSDP2",
        training={**FSDP, "fsdp_config": {"version": 2, **BLOCKS}},
        distributed_type="FSDP",
        setup=("FSDPGPT2LMHeadModel", "DTensor gradients"),
    ),
    Cell(
        "FSDP2, max_grad_norm 0",
        training={**FSDP, "fsdp_config": {"version": 2, **BLOCKS}, "max_grad_norm": 0.0},
        distributed_type="FSDP",
        setup=("FSDPGPT2LMHeadModel", "DTensor gradients"),
    ),
    Cell(
        "FSDP1",
        training={**FSDP, "fsdp_config": FSDP1},
        distributed_type="FSDP",
        setup=("FullyShardedDataParallel",),
    ),
    Cell(
        "FSDP1, use_orig_params false, max_grad_norm 0",
        training={**FSDP, "fsdp_config": {**FSDP1, "use_orig_params": False}, "max_grad_norm": 0.0},
        distributed_type="FSDP",
        setup=("FullyShardedDataParallel", "flat parameters"),
    ),
    zero_cell("ZeRO 0", 0),
    zero_cell("ZeRO 0, max_grad_norm 0", 0, training={"max_grad_norm": 0.0}),
    zero_cell("ZeRO 1", 1),
    zero_cell("ZeRO 2", 2),
    zero_cell("ZeRO 3", 3),
    zero_cell("ZeRO 1, max_grad_norm 0", 1, training={"max_grad_norm": 0.0}),
    zero_cell("ZeRO 3, max_grad_norm 1e-3", 3, training={"max_grad_norm": 1e-3}),
    zero_cell(
        "ZeRO 2, gradient accumulation 4",
        2,
        training={"gradient_accumulation_steps": 4},
        setup=("ZeRO 2", "4 accumulation steps"),
    ),
    zero_cell("ZeRO 1, DeepSpeed's optimizer", 1, training={"deepspeed": zero_config(1, optimizer=DEEPSPEED_ADAMW)}),
    zero_cell(
        "ZeRO 0, DeepSpeed's optimizer, max_grad_norm 0",
        0,
        training={"deepspeed": zero_config(0, optimizer=DEEPSPEED_ADAMW), "max_grad_norm": 0.0},
    ),
    zero_cell(
        "ZeRO 1, bf16 autocast",
        1,
        training={"deepspeed": zero_config(1, bf16={"enabled": "auto"}), "bf16": True},
        tolerance=BFLOAT16,
    ),
    zero_cell(
        "ZeRO 2, raw loop",
        2,
        launch="accelerate",
        options=RAW,
        training={"max_grad_norm": 0.5, "deepspeed": zero_config(2, gradient_clipping=0.5)},
    ),
    zero_cell(
        "ZeRO 1, raw loop that does not clip",
        1,
        launch="accelerate",
        options=RAW,
        training={"max_grad_norm": 0, "deepspeed": zero_config(1, gradient_clipping=0.0)},
    ),
    Cell("DDP, bf16 autocast", training={"bf16": True}, setup=(*DDP, "bf16 autocast"), tolerance=BFLOAT16),
    Cell(
        "DDP, bf16 parameters",
        options={"dtype": "bfloat16"},
        setup=(*DDP, "bfloat16 parameters"),
        tolerance=BFLOAT16_PARAMETERS,
    ),
    *(
        Cell(
            f"fp16 with overflow, {optim}, on {'CUDA' if cuda else 'CPU'}",
            "alone",
            training={"fp16": True, "optim": optim},
            options={"cuda": cuda, "overflow": True},
            setup=("fp16 autocast", *(("fused",) if "fused" in optim else ())),
            tolerance=FLOAT16,
            requirements=("CUDA",) if cuda else (),
        )
        for cuda in (False, True)
        for optim in ("adamw_torch_fused", "adamw_torch")
    ),
    Cell(
        "DDP, gradient checkpointing",
        training={"gradient_checkpointing": True},
        setup=(*DDP, "gradient checkpointing"),
    ),
    Cell(
        "torch.compile",
        "alone",
        training={"torch_compile": True},
        setup=("compiled",),
        requirements=("a C++ compiler",),
    ),
    Cell("DDP, LoRA", options={"lora": True}, setup=(*DDP, "PeftModel"), requirements=("peft",)),
    Cell("DDP, tied weights", setup=(*DDP, "tied weights")),
    Cell("sparse embedding, SGD", "alone", {"max_grad_norm": 0}, {**RAW, "model": "sparse", "optimizer": "SGD"}),
    Cell(
        "DDP, sparse embedding, SGD",
        training={"max_grad_norm": 0},
        options={**RAW, "model": "sparse", "optimizer": "SGD"},
        setup=DDP,
    ),
    Cell(
        "sparse embedding, SparseAdam",
        "alone",
        {"max_grad_norm": 0},
        {**RAW, "model": "sparse only", "optimizer": "SparseAdam"},
    ),
    Cell(
        "optimizer that steps in the backward pass",
        "alone",
        options={"optimizer": "steps in backward"},
        warnings=(REFUSED + "no parameter of the optimizer had a gradient at its step",),
        refused=True,
    ),
    Cell(
        "DDP, Seq2SeqTrainer, T5",
        # T5 ignores the token count that Trainer passes by default, and two processes would train on twice the loss.
        training={"average_tokens_across_devices": False},
        options={"loop": "Seq2SeqTrainer", "model": "t5"},
        setup=DDP,
    ),
    Cell("DDP, raw loop", options=RAW, training={"max_grad_norm": 1.0}, setup=DDP),
    Cell("DDP, raw loop that does not clip", options=RAW, training={"max_grad_norm": 0}, setup=DDP),
    Cell(
        "DDP, raw loop, split_batches",
        options={**RAW, "split_batches": True},
        training={"max_grad_norm": 1.0},
        setup=(*DDP, "split batches"),
    ),
    Cell(
        "DDP, raw loop, gradient accumulation 4",
        options=RAW,
        training={"max_grad_norm": 1.0, "gradient_accumulation_steps": 4},
        setup=(*DDP, "4 accumulation steps"),
    ),
    Cell("unmodified run_clm-style script", "alone", options={"loop": "run_clm_style"}),
    Cell("unmodified run_clm-style script, DDP", "accelerate", options={"loop": "run_clm_style"}),
    Cell("unmodified no_trainer-style script", "alone", {"max_grad_norm": 0}, {"loop": "no_trainer_style"}),
    Cell("unmodified no_trainer-style script, DDP", "torchrun", {"max_grad_norm": 0}, {"loop": "no_trainer_style"}),
]


def known_rates() -> list[float]:
    """The learning rates of a schedule that is refined from norms that halve in the middle, worked out by hand.

    T updates visit T+1 iterates, so the weights are 1/2 six times, then 1 seven times. Each weight times the sum of the
    weights after it is (19 - t) / 4 for t < 6 and 12 - t from then on. The largest product is 6.

    Returns:
        The rates, shape (UPDATES,).

    Reference: arXiv 2310.07831, Algorithm 1.
    """
    return [LEARNING_RATE * ((19 - t) / 24 if t < 6 else (12 - t) / 6) for t in range(UPDATES)]


def write_known_norms(path: Path) -> None:
    """Write the norms file that the schedule of `known_rates` is refined from."""
    header = {"format": "gradient_norms", "version": 1, "optimizer_family": "adam", "num_training_steps": UPDATES}
    # L1 ** -1 and L2 ** -2 are the same weights here, so that SGD has the rates of Adam.
    rows = [{"step": t + 1, "l1": 2.0 if t < 6 else 1.0, "l2": 2.0**0.5 if t < 6 else 1.0} for t in range(UPDATES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]))
