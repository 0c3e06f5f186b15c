"""What is said about the package in several places is the same in all of them."""

import configparser
import re

import yaml

import hf_refined_schedule
from hf_refined_schedule.cli import COMMANDS

from .tiny import REPOSITORY

VERSION = hf_refined_schedule.__version__

SETUP = configparser.ConfigParser()
SETUP.read(REPOSITORY / "setup.cfg")


def workflow(name):
    """A workflow; YAML 1.1 reads its key `on` as true."""
    return yaml.safe_load((REPOSITORY / ".github" / "workflows" / name).read_text())


def test_the_pythons_of_the_classifiers_are_tested():
    named = re.findall(r"Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.M)
    tested = [row["python"] for row in workflow("tests.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]]
    assert sorted(set(tested)) == named
    assert SETUP["options"]["python_requires"] == f">={named[0]}"


def test_the_oldest_transformers_is_tested_and_so_are_the_newest_packages():
    (lowest,) = re.findall(r"transformers>=([\d.]+)", SETUP["options"]["install_requires"])
    rows = workflow("tests.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    (oldest,) = [row["packages"] for row in rows if row["versions"] == "oldest"]
    assert f"transformers=={lowest}.0" in oldest.split()
    assert f"transformers=={lowest}.0" in (REPOSITORY / "README.md").read_text()
    assert any("--upgrade" in row["packages"] for row in rows if row["versions"] == "newest")


def test_a_release_is_published_without_a_token():
    job = workflow("release.yml")["jobs"]["publish"]
    assert job["permissions"] == {"id-token": "write"}
    (step,) = [step for step in job["steps"] if "pypi-publish" in step["uses"]]
    assert "with" not in step


def test_commands_of_workflows_exist():
    text = "".join(path.read_text() for path in (REPOSITORY / ".github" / "workflows").glob("*.yml"))
    for path in re.findall(r"(?:scripts|tests)/[\w.]+", text):
        assert (REPOSITORY / path).is_file()
    extras = {name for names in re.findall(r"'\.\[([\w,]+)\]'", text) for name in names.split(",")}
    assert extras <= set(SETUP["options.extras_require"])


def test_the_citation():
    """The required keys of Citation File Format 1.2.0, the version, and the papers that the README cites."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], str(citation["version"])) == ("1.2.0", VERSION)
    assert citation["license"] == SETUP["metadata"]["license_expression"] == "Apache-2.0"
    papers = [citation["preferred-citation"], *citation["references"]]
    readme = (REPOSITORY / "README.md").read_text()
    for paper in papers:
        assert paper["journal"] in readme
        assert f"title   = {{{paper['title']}}}" in readme


def test_the_changes_begin_with_this_version():
    changes = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.search(r"^## ([\d.]+)", changes, re.M)[1] == VERSION
    (commands,) = re.findall(r"The commands (.*?)\.$", changes, re.M | re.S)
    assert sorted(re.findall(r"`(\w+)`", commands)) == sorted(module.__name__.split(".")[-1] for module in COMMANDS)
