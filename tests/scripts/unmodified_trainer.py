"""A run_clm-style script that has never heard of this package."""

import os
import sys
from pathlib import Path

import torch
from beside_the_script import VOCABULARY
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments

if __name__ == "__main__":
    arguments = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()[0]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.randint(0, VOCABULARY, (64, 16), generator=torch.Generator().manual_seed(1))
    trainer = Trainer(
        GPT2LMHeadModel(config), arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens]
    )
    trainer.train()
    report = Path(arguments.output_dir) / f"rank{arguments.process_index}.txt"
    report.parent.mkdir(exist_ok=True)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    report.write_text(f"{arguments.world_size} {rates}")
    print("argv", sys.argv[1], "main", sys.modules["__main__"].__file__)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if "FAIL" in os.environ:
        raise KeyError("the script's own error")
    sys.exit(int(os.environ.get("STATUS", "0")))
