"""Start a child with its own session, report that, and sleep; the child sleeps too."""

import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) == 2:
        subprocess.Popen([sys.executable, __file__], start_new_session=True)
        print("started a child", flush=True)
        Path(sys.argv[1]).touch()
    time.sleep(600)
