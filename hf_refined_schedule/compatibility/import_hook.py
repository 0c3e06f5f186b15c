"""Runs a function once a program has imported a module, for programs that do not import this package."""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def call_once_imported(package: str, module: str, function: Callable[[], None]) -> None:
    """Call a function once, as soon as a module has been imported, or now if it has been.

    A finder on `sys.meta_path`, which is Python's documented place for it (Python 3.11 to 3.14), and a wrap of
    `Loader.exec_module`. It can go when transformers loads plugins by entry points.

    The function is called when no module of the package is half imported: at that time it can import from the package
    whatever it needs.

    Args:
        package: the package of the module.
        module: the module, with the package's name and a dot.
        function: called without arguments, in the thread that imports.
    """
    if module in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _ImportWatcher(package, module, function))


class _ImportWatcher:
    """A finder that lets Python's own find each module of the package, and counts those that are being imported."""

    def __init__(self, package: str, module: str, function: Callable[[], None]) -> None:
        self._prefix = f"{package}."
        self._module = module
        self._function = function
        self._importing = threading.local()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module of the package, as Python calls finders."""
        if not name.startswith(self._prefix):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._execute(execute, module)  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        depth = getattr(self._importing, "depth", 0)
        self._importing.depth = depth + 1
        try:
            execute(module)
        finally:
            self._importing.depth = depth
        if depth == 0 and self._module in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            self._function()
