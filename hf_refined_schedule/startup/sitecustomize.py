"""Calls `autoregister` in a child process of a launched program, then runs the `sitecustomize` that this one hides.

Python imports a module of this name when it starts. The child may be of another Python, which lacks this package.
"""

import os
import sys
from importlib.util import find_spec

if __name__ == "sitecustomize":
    if find_spec("hf_refined_schedule") is not None:
        from hf_refined_schedule.autoregister import autoregister

        autoregister()
    _folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _folder]
    _this = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401 - imported for its effects
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    sys.modules.setdefault("sitecustomize", _this)
