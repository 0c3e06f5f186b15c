"""JSON files that hold one object."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Read an object.

    Args:
        path: the file; a missing file holds an empty object.

    Raises:
        ValueError: if the file does not hold a JSON object.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove the file.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object; remove the file.")
    return content


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Replace a file as `replace_text` does."""
    replace_text(path, json.dumps(content, indent=indent) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one operation, so that a kill leaves either the old file or the new one."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
