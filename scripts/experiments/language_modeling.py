"""A causal language model, its tokenizer and its text, from the options of `scripts/run_clm.py` and its like.

It needs the extra `scripts` (datasets, tokenizers).
"""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from .builtin_text import builtin_documents

END_OF_TEXT = "<|endoftext|>"


@dataclass
class ModelArguments:
    """The model: one that exists, or a new one of a known architecture."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A model of the Hub or a folder; without it, a new model is trained from scratch."},
    )
    model_type: str = field(
        default="gpt2", metadata={"help": "The architecture of a new model, such as gpt2 or llama."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes to a new model's config, such as n_embd=128,n_layer=4,n_head=4."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "A tokenizer of the Hub or a folder (default: the model's own; for a new model, one is trained)."
        },
    )
    vocab_size: int = field(default=4096, metadata={"help": "The size of a new tokenizer's vocabulary."})
    model_revision: str = field(default="main", metadata={"help": "The branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model's own code from the Hub."})
    dtype: str = field(default="auto", metadata={"help": "The type of the weights: auto, float32, bfloat16, float16."})

    def __post_init__(self) -> None:
        if self.model_name_or_path is not None and self.config_overrides is not None:
            raise ValueError("--config_overrides is for a new model; leave out it or --model_name_or_path.")


@dataclass
class DataArguments:
    """The text: a dataset, files, or what every Python ships."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A dataset of the Hub, or a folder that load_dataset or load_from_disk can read."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The dataset's configuration."})
    train_file: str | None = field(
        default=None, metadata={"help": "Training text: a .txt, .jsonl, .json or .csv file."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Evaluation text, of the same kind."})
    builtin_text: str | None = field(
        default=None,
        metadata={
            "help": "Text that is on every machine: python_source (CPython's library) or english (Python's help topics).",
            "choices": ["python_source", "english"],
        },
    )
    text_column: str | None = field(
        default=None, metadata={"help": "The column of the text (default: text, or the first)."}
    )
    validation_split_percentage: float = field(
        default=5, metadata={"help": "The share of the training blocks set aside where there is no validation text."}
    )
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens in an example (default: the model's context, at most 1024)."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use this many training blocks at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use this many evaluation blocks at most."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes for the tokenization."})

    def __post_init__(self) -> None:
        given = [name for name in ("dataset_name", "train_file", "builtin_text") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Text is given by {' and '.join('--' + name for name in given) or 'no option'}; pass one of --dataset_name, "
                "--train_file and --builtin_text."
            )
        for name in ("train_file", "validation_file"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ValueError(
                    f"There is no file {path!r}; pass --{name} the path of a .txt, .jsonl, .json or .csv file."
                )
            if path is not None and Path(path).suffix not in FILE_READERS:
                raise ValueError(f"--{name} is {path!r}, but must end in one of {', '.join(FILE_READERS)}.")


FILE_READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""Which reader of `load_dataset` a file's ending asks for."""


def load_text(data: DataArguments) -> DatasetDict:
    """The raw text, with a `train` and perhaps a `validation` part."""
    if data.builtin_text is not None:
        return DatasetDict(train=Dataset.from_dict({"text": builtin_documents(data.builtin_text)}))
    if data.train_file is not None:
        files = {"train": data.train_file}
        if data.validation_file is not None:
            files["validation"] = data.validation_file
        reader = FILE_READERS[Path(data.train_file).suffix]
        options = {"keep_linebreaks": True} if reader == "text" else {}
        return load_dataset(reader, data_files=files, **options)
    folder = Path(data.dataset_name)
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        saved = load_from_disk(str(folder))
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    return load_dataset(data.dataset_name, data.dataset_config_name)


def text_column(part: Dataset, data: DataArguments) -> str:
    """The name of the column that holds the text."""
    name = data.text_column or ("text" if "text" in part.column_names else part.column_names[0])
    if name not in part.column_names:
        raise ValueError(f"The data has no column {name!r}; pass --text_column one of {', '.join(part.column_names)}.")
    return name


def load_tokenizer(
    model: ModelArguments, raw: DatasetDict, column: str, training: TrainingArguments
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, or the model's, or a byte-level BPE trained on the text."""
    name = model.tokenizer_name or model.model_name_or_path
    if name is None:
        folder = Path(training.output_dir) / "tokenizer"
        with training.main_process_first(desc="training a tokenizer"):
            if training.should_save:
                bpe = ByteLevelBPETokenizer()
                bpe.train_from_iterator(raw["train"][column], model.vocab_size, special_tokens=[END_OF_TEXT])
                PreTrainedTokenizerFast(
                    tokenizer_object=bpe._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
                ).save_pretrained(folder)
        name = str(folder)
    return AutoTokenizer.from_pretrained(name, revision=model.model_revision, trust_remote_code=model.trust_remote_code)


def load_model(model: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that is named, or a new one with random weights."""
    if model.model_name_or_path is not None:
        loaded = AutoModelForCausalLM.from_pretrained(
            model.model_name_or_path,
            revision=model.model_revision,
            trust_remote_code=model.trust_remote_code,
            dtype=model.dtype,
        )
        if len(tokenizer) > loaded.get_input_embeddings().weight.shape[0]:
            loaded.resize_token_embeddings(len(tokenizer))
        return loaded
    config = AutoConfig.for_model(
        model.model_type,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    if model.config_overrides is not None:
        config.update_from_string(model.config_overrides)
    return AutoModelForCausalLM.from_config(config)


def default_block_size(model: PreTrainedModel, data: DataArguments) -> int:
    """Tokens in an example: as asked for, else the model's context, at most 1024."""
    context = getattr(model.config, "max_position_embeddings", None) or 1024
    if data.block_size is not None and data.block_size > context:
        raise ValueError(
            f"--block_size is {data.block_size}, but the model's context is {context}; pass {context} or less."
        )
    return data.block_size or min(context, 1024)


def group_into_blocks(
    raw: DatasetDict, tokenizer: PreTrainedTokenizerBase, block_size: int, column: str, data: DataArguments
) -> DatasetDict:
    """Tokenize, join all documents, and cut them into blocks of `block_size` tokens; the rest is dropped."""

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": tokenizer(batch[column], verbose=False)["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        tokens = list(chain.from_iterable(batch["input_ids"]))
        blocks = [tokens[start : start + block_size] for start in range(0, len(tokens) - block_size + 1, block_size)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    workers = {"num_proc": data.preprocessing_num_workers}
    columns = raw["train"].column_names
    tokenized = raw.map(tokenize, batched=True, remove_columns=columns, desc="Tokenizing", **workers)
    return tokenized.map(group, batched=True, desc=f"Grouping into blocks of {block_size}", **workers)


def split_blocks(blocks: DatasetDict, data: DataArguments) -> tuple[Dataset, Dataset]:
    """Training and evaluation blocks; evaluation takes evenly spread ones where there is no validation text."""
    train = blocks["train"]
    if "validation" in blocks:
        evaluation = blocks["validation"]
    else:
        count = round(len(train) * data.validation_split_percentage / 100)
        if not 0 < count < len(train):
            raise ValueError(
                f"The text makes {len(train)} blocks, of which {data.validation_split_percentage:g} % are {count}, so no "
                "split is possible; pass more text, a smaller --block_size or --validation_file."
            )
        held_out = {int((index + 0.5) * len(train) / count) for index in range(count)}
        evaluation = train.select(sorted(held_out))
        train = train.select([index for index in range(len(train)) if index not in held_out])
    if data.max_train_samples is not None:
        train = train.select(range(min(data.max_train_samples, len(train))))
    if data.max_eval_samples is not None:
        evaluation = evaluation.select(range(min(data.max_eval_samples, len(evaluation))))
    return train, evaluation
