"""The environment of all tests and of the processes that they start."""

import logging
import os

import pytest

collect_ignore_glob = ["scripts/*"]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tests that run at the same time do not compete for the cores
os.environ.pop("HF_REFINED_SCHEDULE_FROM", None)


@pytest.fixture(autouse=True)
def log_level_of_the_package():
    """Scripts that run in this process lower it."""
    logger = logging.getLogger("hf_refined_schedule")
    level = logger.level
    yield
    logger.setLevel(level)
