"""The environment of all tests and of the processes that they start."""

import os

collect_ignore_glob = ["scripts/*"]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tests that run at the same time do not compete for the cores
os.environ.pop("HF_REFINED_SCHEDULE_FROM", None)
