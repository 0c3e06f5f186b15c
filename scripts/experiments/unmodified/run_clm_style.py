"""A Trainer script in the style of transformers' run_clm.py. It does not use hf_refined_schedule."""

from pathlib import Path

from experiments.rank_reports import end_run
from experiments.tiny_models import tiny_data, tiny_model
from transformers import HfArgumentParser, Trainer, TrainingArguments

if __name__ == "__main__":
    parser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]  # its type excludes TrainingArguments
    (arguments,) = parser.parse_args_into_dataclasses()
    trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data(96))
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    end_run(trainer.accelerator, Path(arguments.output_dir), rates)
