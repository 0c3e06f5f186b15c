"""Provenance of a result: the commands that made it, the machine, the package versions, and the time it took.

A script that runs once calls `collect_provenance` when it ends. A script whose runs add to one folder writes a
`ProvenanceFile`, which keeps the earlier commands and adds up the time. `render_provenance` turns either record into the
last section of a report.
"""

import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .json_file import read_json, write_json
from .study_folder import PROVENANCE_FILE

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "scipy")
"""The packages that decide what a training run computes."""

STUDY_PACKAGES = (*PACKAGES, "datasets", "tokenizers", "peft")
"""Those that also decide its text and its adapter."""


def command_line(script: str) -> str:
    """The command that started this process, with the script's path as seen from the repository.

    Args:
        script: the file name of the script, such as `"benchmark.py"`.
    """
    return shlex.join(["python", f"scripts/{script}", *sys.argv[1:]])


def processor_name() -> str:
    """The model name of the processor, or its architecture where the system does not name the model."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def describe_machine() -> str:
    """The processor, the number of cores, the architecture, and the first CUDA device."""
    import torch  # here, because reports read provenance without training anything

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{processor_name()}, {os.cpu_count()} cores, {platform.machine()}, {device}"


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed version of each package, or `"not installed"`."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def collect_provenance(
    script: str, seconds: float, *, packages: Iterable[str] = PACKAGES, **details: object
) -> dict[str, Any]:
    """Describe how this process made a result.

    Args:
        script: the file name of the script that runs.
        seconds: the time that it took.
        packages: the packages whose versions matter.
        **details: further entries, each a value or a mapping, such as `threads=1`.

    Returns:
        A record that JSON can hold and `render_provenance` can print.
    """
    return {
        "commands": [command_line(script)],
        "machine": describe_machine(),
        "python": platform.python_version(),  # its library is a text to train on
        **details,
        "versions": package_versions(packages),
        "seconds": round(seconds, 1),
    }


def render_provenance(record: Mapping[str, Any]) -> str:
    """The section of a report that holds a record of `collect_provenance` or a `ProvenanceFile`, as Markdown."""
    lines = ["## Provenance", ""]
    if record.get("commands"):
        lines += ["```bash", *map(str, record["commands"]), "```", ""]
    for name, value in record.items():
        if name == "seconds" and isinstance(value, int | float):
            lines.append(f"- duration: {value / 60:.1f} minutes")
        elif isinstance(value, Mapping):
            lines.append(f"- {name}: {', '.join(f'{key} {entry}' for key, entry in value.items())}")
        elif name != "commands":
            lines.append(f"- {name}: {value}")
    return "\n".join(lines)


def merge_provenance(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of several: all commands, all different machines, versions and other entries, and the sum of the times.

    Args:
        records: in the order of their runs; any may be empty.
    """
    return _all_entries(records) | {
        "commands": list(dict.fromkeys(command for record in records for command in record.get("commands", []))),
        "versions": _all_entries([record.get("versions", {}) for record in records]),
        "seconds": round(math.fsum(record.get("seconds", 0.0) for record in records), 1),
    }


class ProvenanceFile:
    """The provenance of a folder that several runs of a script add to.

    The script calls `write` after each result, so that a kill loses little. As a context manager it writes once more when the script
    ends, also by an error or Ctrl-C, unless the script has made no result.

    Args:
        folder: the folder of the results.
        script: the file name of the script that runs.
        packages: the packages whose versions matter.
        **details: further entries of the record.
    """

    def __init__(
        self, folder: str | Path, script: str, *, packages: Iterable[str] = STUDY_PACKAGES, **details: object
    ) -> None:
        self.path = Path(folder) / PROVENANCE_FILE
        self.previous = read_json(self.path)
        self._script = script
        self._packages = tuple(packages)
        self._details = details
        self._started = time.monotonic()
        self._has_results = False

    def write(self, seconds: float | None = None) -> dict[str, Any]:
        """Replace the file.

        Args:
            seconds: the total time of all runs, where the results hold it. By default, the time in the earlier file plus
                the time since this object was created.

        Returns:
            The contents of the file: the earlier commands and this one, the machines, the versions and the time.
        """
        elapsed = time.monotonic() - self._started
        now = collect_provenance(self._script, elapsed, packages=self._packages, **self._details)
        record = merge_provenance([self.previous, now])
        if seconds is not None:
            record["seconds"] = round(seconds, 1)
        write_json(self.path, record, indent=1)
        self._has_results = True
        return record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._has_results:
            self.write()


def _all_entries(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All values of each entry, in the order of the last record that is not empty."""
    names = dict.fromkeys(name for record in reversed(records) for name in record)
    return {name: _all_values(record[name] for record in records if name in record) for name in names}


def _all_values(values: Iterable[object]) -> object:
    """The different values of records, the earliest first; a text may itself hold those of several records."""
    all_values = list(values)
    different = list(dict.fromkeys(part for value in all_values for part in str(value).split("; ")))
    return "; ".join(different) if len(different) > 1 else all_values[-1]
