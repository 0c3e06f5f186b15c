"""The wheel and the source distribution: they hold the package, and its command line needs numpy and scipy alone."""

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy

from .records import write_norms
from .tiny import REPOSITORY
from .tolerances import BUILD_SECONDS

PACKAGE = "hf_refined_schedule"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the tracked files, as a release is: files that lie around in a working tree stay out."""
    return build_wheel(source_tree(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist"))


def source_tree(folder):
    """The tracked files that a build may read."""
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", PACKAGE, "scripts", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def build_wheel(source, folder):
    run_python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def run_python(*words, folder=None):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=BUILD_SECONDS, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_package_alone(wheel):
    expected = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / PACKAGE).rglob("*.py")}
    expected |= {f"{PACKAGE}/py.typed", f"{PACKAGE}/schedules/track_record.json"}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_check_runs_from_the_wheel_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([python, *install], check=True, capture_output=True, timeout=BUILD_SECONDS)
    (packages,) = (tmp_path / "empty").glob("lib/python*/site-packages")
    for module in (np, scipy):
        folder = Path(module.__file__).parent
        for needed in (folder, folder.with_name(f"{folder.name}.libs")):
            if needed.exists():
                (packages / needed.name).symlink_to(needed)
    write_norms(tmp_path / "run" / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    command = [tmp_path / "empty" / "bin" / "hf-refined-schedule", "check", "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={}, timeout=BUILD_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verdict: sound" in done.stdout


def test_the_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    """`pip install` of the sdist builds this wheel. Links would be left out of the archive, so the tree is a copy."""
    for folder in ("tree", "sdist", "dist"):
        (tmp_path / folder).mkdir()
    for path in source_tree(tmp_path / "tree").iterdir():
        target = path.resolve()
        path.unlink()
        if target.is_dir():
            shutil.copytree(target, path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(target, path)
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run_python("-c", code, tmp_path / "sdist", folder=tmp_path / "tree")
    (archive,) = (tmp_path / "sdist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", f"{PACKAGE}/py.typed"} <= names
    assert not any(name.startswith("tests/") for name in names)
    rebuilt = build_wheel(archive, tmp_path / "dist")
    files, again = (
        {name: archive.read(name) for name in archive.namelist() if not name.endswith(".dist-info/RECORD")}
        for archive in (zipfile.ZipFile(wheel), zipfile.ZipFile(rebuilt))
    )
    assert again == files
