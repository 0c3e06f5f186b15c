"""A script that reads its arguments from a JSON or YAML file. It has never heard of this package."""

import sys

from experiments.tiny_models import tiny_data, tiny_model
from transformers import HfArgumentParser, Trainer, TrainingArguments

if __name__ == "__main__":
    parser = HfArgumentParser(TrainingArguments)
    (arguments,) = (
        parser.parse_json_file(sys.argv[1]) if sys.argv[1].endswith(".json") else parser.parse_yaml_file(sys.argv[1])
    )
    Trainer(tiny_model(), arguments, train_dataset=tiny_data()).train()
