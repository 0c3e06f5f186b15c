"""Every how-to page is run by a test, says what was tried, and its links lead somewhere."""

import re

import pytest

from .pages import PAGES, blocks
from .tiny import REPOSITORY

NAMES = sorted(path.stem for path in PAGES.glob("*.md"))
TESTS = "".join(path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py"))


@pytest.mark.parametrize("page", NAMES)
def test_a_page(page):
    text = (PAGES / f"{page}.md").read_text()
    assert blocks(page), "there is something to copy"
    assert re.search(rf'(run_page|blocks)\(\s*"{page}"', TESTS), "a test runs it"
    assert re.search(r"^Tried with ", text, re.M) or "tried with" in text
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (PAGES / target).exists(), target


def test_the_pages_are_there():
    assert {"trl", "peft", "axolotl", "lightning", "llamafactory", "torchtitan", "trackers", "optuna"} <= set(NAMES)
