"""Train or fine-tune a causal language model and record its gradient norms; `--lr_scheduler_type refined` uses them.

Fine-tune GPT-2 on WikiText-2, then again with the schedule that is refined from the recorded norms:

    python scripts/run_clm.py --model_name_or_path gpt2 --dataset_name wikitext \
        --dataset_config_name wikitext-2-raw-v1 --do_train --do_eval --output_dir runs/linear
    python scripts/run_clm.py --model_name_or_path gpt2 --dataset_name wikitext \
        --dataset_config_name wikitext-2-raw-v1 --do_train --do_eval --output_dir runs/refined \
        --lr_scheduler_type refined --refined_from runs/linear

The script takes every option of `TrainingArguments`. `accelerate launch` and `torchrun` run it on several processes.
"""

import logging
import math
import sys
from typing import Any

import datasets
import transformers
from experiments.arguments import exit_with_error
from experiments.language_modeling import DataArguments, ModelArguments, default_block_size, load_model_and_blocks
from transformers import HfArgumentParser, default_data_collator, set_seed

from hf_refined_schedule import RefinedScheduleArguments, RefinedScheduleTrainer
from hf_refined_schedule.training.checkpoints import last_complete_checkpoint

logger = logging.getLogger(__name__)


def checkpoint_to_resume(training: RefinedScheduleArguments) -> str | None:
    """Resolve `--resume_from_checkpoint`: a path, or `True` for the newest complete checkpoint in `output_dir`."""
    requested = training.resume_from_checkpoint
    if requested is None or str(requested).lower() == "false":
        return None
    if str(requested).lower() != "true":
        return requested
    checkpoint = last_complete_checkpoint(training.output_dir, save_on_each_node=training.save_on_each_node)
    if checkpoint is None:
        logger.warning("%s has no complete checkpoint; training starts from the beginning.", training.output_dir)
    return checkpoint


def make_trainer(
    model_arguments: ModelArguments, data: DataArguments, training: RefinedScheduleArguments
) -> RefinedScheduleTrainer:
    model, tokenizer, train_blocks, eval_blocks = load_model_and_blocks(model_arguments, data, training)
    logger.info(
        "%.2f million parameters, %d training and %d evaluation blocks of %d tokens",
        model.num_parameters() / 1e6, len(train_blocks), len(eval_blocks), default_block_size(model, data),
    )  # fmt: skip
    return RefinedScheduleTrainer(
        model=model,
        args=training,
        train_dataset=train_blocks if training.do_train else None,
        eval_dataset=eval_blocks if training.do_eval else None,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )


def main() -> None:
    classes: Any = (ModelArguments, DataArguments, RefinedScheduleArguments)
    parser = HfArgumentParser(classes)
    try:
        if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
            model_arguments, data, training = parser.parse_json_file(sys.argv[1])
        else:
            model_arguments, data, training = parser.parse_args_into_dataclasses()
        logging.basicConfig(
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            level=logging.INFO if training.should_log else logging.ERROR,
        )
        for library in (datasets, transformers):
            verbosity = library.utils.logging.WARNING if training.should_log else library.utils.logging.ERROR
            library.utils.logging.set_verbosity(verbosity)
        set_seed(training.seed)
        trainer = make_trainer(model_arguments, data, training)
    except ValueError as error:
        exit_with_error("run_clm.py", error)

    if training.do_train:
        result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(training))
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training.do_eval:
        metrics = trainer.evaluate()
        try:
            metrics["perplexity"] = math.exp(metrics["eval_loss"])
        except OverflowError:
            metrics["perplexity"] = math.inf
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.accelerator.wait_for_everyone()  # a process that ends early can leave gloo hanging in the others
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
