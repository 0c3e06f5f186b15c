"""Trains in each of many folders, at the same moment as another process of this script.

Arguments: this process's name, the other's, the learning rate that its rows show, and the folder that holds the numbered
folders.
"""

import json
import logging
import sys
from pathlib import Path

import torch
from experiments.tiny_models import tiny_data, tiny_options
from norms_writer import wait_for
from transformers import TrainerCallback, TrainingArguments

from hf_refined_schedule import RefinedScheduleTrainer

UPDATES = 120


class OneParameter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, input_ids, labels):
        return {"loss": (self.weight * input_ids.float().mean()).square()}


class StartTogether(TrainerCallback):
    def __init__(self, me, other):
        self.me, self.other = me, other

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (1, 49, 119):  # the file is begun after 50 updates and ended after 120
            folder = Path(args.output_dir)
            wait_for(folder / f"step{state.global_step}.{self.other}", folder / f"step{state.global_step}.{self.me}")


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    me, other, rate, root = sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])
    outcomes = []
    for folder in sorted(root.iterdir()):
        warnings = Warnings()
        logging.getLogger("hf_refined_schedule").addHandler(warnings)
        options = tiny_options(
            folder, max_steps=UPDATES, learning_rate=rate, lr_scheduler_type="constant", logging_steps=UPDATES
        )
        RefinedScheduleTrainer(
            OneParameter(),
            TrainingArguments(**options),
            train_dataset=tiny_data(16),
            callbacks=[StartTogether(me, other)],
        ).train()
        logging.getLogger("hf_refined_schedule").removeHandler(warnings)
        outcomes.append(warnings.messages)
    (root.parent / f"{me}.json").write_text(json.dumps(outcomes))
