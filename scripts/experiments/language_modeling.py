"""A causal language model, its tokenizer and its text, from the options of `scripts/run_clm.py`.

This module needs the extra `scripts` (datasets, tokenizers).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from .builtin_text import BuiltinText, builtin_documents

END_OF_TEXT = "<|endoftext|>"


@dataclass
class ModelArguments:
    """The model: a saved one, or a new one of a known architecture."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A model on the Hub or in a folder; by default a new model is trained from scratch."},
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
            "help": "A tokenizer on the Hub or in a folder (default: the model's; for a new model, one is trained)."
        },
    )
    vocab_size: int = field(default=4096, metadata={"help": "The size of a new tokenizer's vocabulary."})
    model_revision: str = field(default="main", metadata={"help": "The branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model's own code from the Hub."})
    dtype: str = field(default="auto", metadata={"help": "The type of the weights: auto, float32, bfloat16, float16."})

    def __post_init__(self) -> None:
        if self.model_name_or_path is not None and self.config_overrides is not None:
            raise ValueError(
                "--config_overrides is given with --model_name_or_path, but is for a new model; leave out one of them."
            )


@dataclass
class DataArguments:
    """The text: a dataset, files, or text that ships with Python."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A dataset on the Hub, or a folder that load_dataset or load_from_disk can read."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The dataset's configuration."})
    train_file: str | None = field(
        default=None, metadata={"help": "Training text: a .txt, .jsonl, .json or .csv file."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Evaluation text, in a file of the same type."})
    builtin_text: BuiltinText | None = field(
        default=None,
        metadata={
            "help": "Text that ships with Python: python_source (CPython's library) or english (Python's help topics)."
        },
    )
    text_column: str | None = field(
        default=None, metadata={"help": "The column that holds the text (default: text, or the first column)."}
    )
    validation_split_percentage: float = field(
        default=5,
        metadata={"help": "The percentage of the training blocks to evaluate on if there is no validation text."},
    )
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens in an example (default: the model's context, at most 1024)."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "The largest number of training blocks."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The largest number of evaluation blocks."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "The number of processes that tokenize."}
    )

    def __post_init__(self) -> None:
        given = [name for name in ("dataset_name", "train_file", "builtin_text") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"The text is given by {' and '.join('--' + name for name in given) or 'no option'}; pass one of --dataset_name, "
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
        readers = {FILE_READERS[Path(path).suffix] for path in (self.train_file, self.validation_file) if path}
        if self.train_file is not None and len(readers) > 1:
            raise ValueError(
                f"--train_file is {self.train_file!r} and --validation_file {self.validation_file!r}; give files of one type."
            )
        for name in ("block_size", "max_train_samples", "max_eval_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} is {value}, but must be at least 1.")


FILE_READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""The reader of `load_dataset` for each file suffix."""


def load_text(data: DataArguments) -> DatasetDict:
    """Load the raw text, a `train` part and an optional `validation` part."""
    if data.builtin_text is not None:
        return DatasetDict(train=Dataset.from_dict({"text": builtin_documents(data.builtin_text)}))
    if data.train_file is not None:
        files = {"train": data.train_file}
        if data.validation_file is not None:
            files["validation"] = data.validation_file
        reader = FILE_READERS[Path(data.train_file).suffix]
        options = {"keep_linebreaks": True} if reader == "text" else {}
        return load_dataset(reader, data_files=files, **options)
    folder = Path(str(data.dataset_name))  # `DataArguments` has checked that it is given
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        saved = load_from_disk(str(folder))
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    loaded = load_dataset(data.dataset_name, data.dataset_config_name)
    if "train" not in loaded:
        raise ValueError(f"{data.dataset_name} has no split train, but {', '.join(loaded)}; name another dataset.")
    return loaded


def text_column(part: Dataset, data: DataArguments) -> str:
    """The name of the column that holds the text."""
    name = data.text_column or ("text" if "text" in part.column_names else part.column_names[0])
    if name not in part.column_names:
        raise ValueError(f"The data has no column {name!r}; pass --text_column one of {', '.join(part.column_names)}.")
    if (kind := getattr(part.features[name], "dtype", None)) not in ("string", "large_string"):
        raise ValueError(
            f"The column {name!r} holds {kind or type(part.features[name]).__name__}, not text; pass --text_column one of "
            f"{', '.join(part.column_names)}."
        )
    return name


def load_tokenizer(
    model: ModelArguments, raw: DatasetDict, column: str, training: TrainingArguments
) -> PreTrainedTokenizerBase:
    """Load the named tokenizer or the model's, or train a byte-level BPE on the text."""
    name = model.tokenizer_name or model.model_name_or_path
    if name is None:
        folder = Path(str(training.output_dir)) / "tokenizer"
        with training.main_process_first(desc="training a tokenizer"):
            if training.should_save:
                PreTrainedTokenizerFast(
                    tokenizer_object=train_byte_level_bpe(filter(None, raw["train"][column]), model.vocab_size),
                    bos_token=END_OF_TEXT,
                    eos_token=END_OF_TEXT,
                    unk_token=END_OF_TEXT,
                ).save_pretrained(folder)
        name = str(folder)
    return AutoTokenizer.from_pretrained(name, revision=model.model_revision, trust_remote_code=model.trust_remote_code)


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer, as GPT-2's.

    Args:
        texts: the training text.
        vocab_size: the number of tokens, with `END_OF_TEXT`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def load_model(model: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the named model, or make a new one with random weights."""
    if model.model_name_or_path is not None:
        loaded = AutoModelForCausalLM.from_pretrained(
            model.model_name_or_path,
            revision=model.model_revision,
            trust_remote_code=model.trust_remote_code,
            dtype=model.dtype,
        )
        if len(tokenizer) > next(loaded.get_input_embeddings().parameters()).shape[0]:
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
    """The number of tokens in an example: `--block_size`, or the model's context up to 1024."""
    context = getattr(model.config, "max_position_embeddings", None) or 1024
    if data.block_size is not None and data.block_size > context:
        raise ValueError(
            f"--block_size is {data.block_size}, but the model's context is {context}; pass {context} or less."
        )
    return data.block_size or min(context, 1024)


def group_into_blocks(
    raw: DatasetDict, tokenizer: PreTrainedTokenizerBase, block_size: int, column: str, data: DataArguments
) -> DatasetDict:
    """Tokenize and join the documents, and cut them into blocks of `block_size` tokens; a shorter last block is dropped."""

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [text or "" for text in batch[column]]  # an empty cell of a CSV file is None
        return {"input_ids": tokenizer(texts, verbose=False)["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        tokens = list(chain.from_iterable(batch["input_ids"]))
        blocks = [tokens[start : start + block_size] for start in range(0, len(tokens) - block_size + 1, block_size)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    workers = {"num_proc": data.preprocessing_num_workers}
    columns = raw["train"].column_names
    tokenized = raw.map(tokenize, batched=True, remove_columns=columns, desc="Tokenizing", **workers)
    return tokenized.map(group, batched=True, desc=f"Grouping into blocks of {block_size}", **workers)


def split_blocks(blocks: DatasetDict, data: DataArguments) -> tuple[Dataset, Dataset]:
    """Split into training and evaluation blocks. Without validation text, every k-th block is for evaluation."""
    train = blocks["train"]
    if "validation" in blocks:
        evaluation = blocks["validation"]
    else:
        count = round(len(train) * data.validation_split_percentage / 100)
        if not 0 < count < len(train):
            raise ValueError(
                f"The text has {len(train)} blocks and --validation_split_percentage {data.validation_split_percentage:g} takes "
                f"{count} of them, but both parts need a block; pass more text, a smaller --block_size or --validation_file."
            )
        held_out = {int((index + 0.5) * len(train) / count) for index in range(count)}
        evaluation = train.select(sorted(held_out))
        train = train.select([index for index in range(len(train)) if index not in held_out])
    for option, part in (("train_file", train), ("validation_file", evaluation)):
        if len(part) == 0:
            raise ValueError(
                f"The text of --{option} is shorter than a block; pass more text or a smaller --block_size."
            )
    if data.max_train_samples is not None:
        train = train.select(range(min(data.max_train_samples, len(train))))
    if data.max_eval_samples is not None:
        evaluation = evaluation.select(range(min(data.max_eval_samples, len(evaluation))))
    return train, evaluation


@contextmanager
def _named_failure(what: str) -> Iterator[None]:
    """Turn a misspelt name, a missing connection, a gated repository or an empty file into a `ValueError` of one line."""
    try:
        yield
    except (OSError, DatasetsError, ImportError, RuntimeError) as error:  # RuntimeError: a dataset that is a script
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise ValueError(f"Cannot load {what}: {reason}") from error


def load_model_and_blocks(
    model_arguments: ModelArguments, data: DataArguments, training: TrainingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Dataset, Dataset]:
    """Load everything that a training run needs. With several processes, the main one fills the caches first.

    Returns:
        The model, its tokenizer, the training blocks and the evaluation blocks.

    Raises:
        ValueError: if the text or the model cannot be loaded, or do not suit each other.
    """
    with _named_failure(f"the text {data.dataset_name or data.train_file or data.builtin_text}"):
        with training.main_process_first(desc="loading the text"):
            raw = load_text(data)
        column = text_column(raw["train"], data)
    with _named_failure(f"the model {model_arguments.model_name_or_path or model_arguments.model_type}"):
        tokenizer = load_tokenizer(model_arguments, raw, column, training)
        model = load_model(model_arguments, tokenizer)
    with training.main_process_first(desc="tokenizing"):
        blocks = group_into_blocks(raw, tokenizer, default_block_size(model, data), column, data)
    return model, tokenizer, *split_blocks(blocks, data)
