"""Import a module in a new process, and print the seconds that it took and whether torch is loaded then.

    python -m experiments.import_time MODULE [MODULE_THAT_IS_LOADED_BEFORE ...]

This file imports nothing that would be missing from the measured time.
"""

import importlib
import sys
import time

if __name__ == "__main__":
    module, *loaded_before = sys.argv[1:]
    for name in loaded_before:
        importlib.import_module(name)
    started = time.perf_counter()
    importlib.import_module(module)
    print(time.perf_counter() - started, "torch" in sys.modules)
