"""Every how-to page about another tool is run by a test of its own, and says what was tried. test_docs runs the others."""

import re

import pytest

from .pages import PAGES, blocks
from .test_docs import PAGES as PAGES_OF_THE_PACKAGE
from .tiny import REPOSITORY

NAMES = sorted({path.stem for path in PAGES.glob("*.md")} - {page.split("/")[-1][:-3] for page in PAGES_OF_THE_PACKAGE})
TESTS = "".join(path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py"))


@pytest.mark.parametrize("page", NAMES)
def test_a_page(page):
    text = (PAGES / f"{page}.md").read_text()
    assert blocks(page), "there is something to copy"
    assert re.search(rf'(run_page|blocks)\(\s*"{page}"', TESTS), "a test runs it"
    assert re.search(r"^Tried with ", text, re.M) or "tried with" in text


def test_the_pages_are_there():
    assert {"trl", "peft", "axolotl", "lightning", "llamafactory", "torchtitan", "trackers", "optuna"} <= set(NAMES)
