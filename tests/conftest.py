"""No test asks the Hub for anything, and no test's thread pool fights another's."""

import os

collect_ignore_glob = ["scripts/*"]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("HF_REFINED_SCHEDULE_FROM", None)
