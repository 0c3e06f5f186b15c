"""A script with a parser of its own, which leaves what it does not know, and two trainers. It has never heard of this package."""

import argparse

from experiments.tiny_models import tiny_data, tiny_model
from transformers import HfArgumentParser, Trainer, TrainingArguments

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--phases", nargs="+")
    parser.add_argument("--run")
    options, rest = parser.parse_known_args()
    model = tiny_model()
    for phase in options.phases:
        words = [*rest, "--output_dir", f"{options.run}/{phase}"]
        arguments, *unknown = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
            words, return_remaining_strings=True
        )
        assert unknown == [["--theirs", "1"]], unknown
        Trainer(model, arguments, train_dataset=tiny_data()).train()
