"""Calls a function when a module is loaded. It imports nothing of ours, since it is loaded at Python's start."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from importlib.machinery import ModuleSpec


class Watch(MetaPathFinder):
    """Finds the named modules through the finders after it, and calls `loaded` with each module after it is loaded."""

    def __init__(self, names: Collection[str], loaded: Callable[[Any], None]) -> None:
        self.names, self._loaded = names, loaded

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return what the finders after this one find, with a loader that calls `loaded` at its end."""
        if fullname not in self.names:
            return None
        # Not those before it: another of this class among them would ask this one again, without end.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                self._wrap(spec.loader)
                return spec
        return None

    def _wrap(self, loader: Any) -> None:
        load = loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            self._loaded(module)

        loader.exec_module = exec_module
