"""Runs in the folder of a study until it is killed."""

import sys
import time
from pathlib import Path

from experiments.study_folder import only_run_in

with only_run_in(Path(sys.argv[1])):
    print("running", flush=True)
    time.sleep(600)
