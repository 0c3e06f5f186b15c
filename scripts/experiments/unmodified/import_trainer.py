"""A training script that ends when it has loaded transformers. It does not use hf_refined_schedule."""

from transformers import Trainer, TrainingArguments

if __name__ == "__main__":
    print(Trainer.__name__, TrainingArguments.__name__)
