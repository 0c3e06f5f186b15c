"""The how-to pages of the documentation, run as a reader would: in one folder, from top to bottom."""

import os
import re
from itertools import groupby
from pathlib import Path

from .tiny import BIN, REPOSITORY, run_command

PAGES = REPOSITORY / "docs" / "how-to"
BLOCK = re.compile(r"(<!-- not run by the tests: [^>]+ -->\n)?```(\w+)\n(.*?)```", re.S)
FILE_NAME = re.compile(r"# (\S+\.(?:yaml|yml|json|py))\n")


def blocks(page: str, section: str = "") -> list[tuple[str, str]]:
    """Language and code of each block of a page, or of its section with this heading, that is not marked as not run."""
    text = (PAGES / f"{page}.md").read_text()
    if section:
        (text,) = (part for part in text.split("\n## ") if part.partition("\n")[0] == section)
    return [(language, code) for mark, language, code in BLOCK.findall(text) if not mark]


def run_page(
    page: str,
    folder: Path,
    *,
    section: str = "",
    languages: tuple[str, ...] = ("python", "bash"),
    before: str = "",
    more: dict[str, str] | None = None,
    **environment,
) -> str:
    """Run the blocks of a page or of one section in a folder, or those in some languages, and return what they have printed.

    A block that begins with a comment that is a file's name becomes that file. Python blocks that follow each other are one
    program. `before` is Python code that runs before each program. `more` is added to
    the files, by their language.
    """
    programs = []
    for language, code in blocks(page, section):
        name = FILE_NAME.match(code)
        if name:
            (folder / name[1]).write_text(code + (more or {}).get(language, ""))
        elif language in languages:
            programs.append((language, code))
    assert programs, f"{page}.md has no block in {languages}"
    printed = []
    for language, group in groupby(programs, key=lambda program: program[0]):
        code = "\n".join(code for _, code in group)
        printed.append(run_code(before + code if language == "python" else code, language, folder, **environment))
    return "".join(printed)


def run_code(code: str, language: str, folder: Path, **environment) -> str:
    """Run Python or shell code in a folder and return what it has printed."""
    file = folder / f"block.{language}"
    file.write_text(f"set -e\n{code}" if language == "bash" else code)
    done = run_command(
        "bash" if language == "bash" else BIN / "python", file, folder=folder,
        **{"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "ACCELERATE_USE_CPU": "true", **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr
