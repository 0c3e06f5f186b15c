"""The environment of all tests and of the processes that they start."""

import os
from pathlib import Path

collect_ignore_glob = ["scripts/*"]

REPOSITORY = Path(__file__).parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # several tests at once would otherwise compete for the cores
os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "scripts")])
os.environ.pop("HF_REFINED_SCHEDULE_FROM", None)
