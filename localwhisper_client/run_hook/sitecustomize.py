"""What Python loads at its start under `localwhisper run`: it waits for `import openai` and sends speech-to-text home.

It imports nothing of ours before that, so that programs without the SDK start as fast as ever; and it works for a
Python that has the SDK but not this package, which is then loaded from where this file is.
"""  # noqa: INP001 - a folder for PYTHONPATH, not a package

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parent


class _Watch(MetaPathFinder):
    """Finds `openai` through the other finders, and has it patched when it is loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "openai":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                _patch_when_loaded(spec.loader)
                return spec
        return None


def _patch_when_loaded(loader: Any) -> None:
    load = loader.exec_module

    def exec_module(module: Any) -> None:
        load(module)
        _install()

    loader.exec_module = exec_module


def _install() -> None:
    try:
        if importlib.util.find_spec(_PACKAGE.name) is None:
            spec = importlib.util.spec_from_file_location(
                _PACKAGE.name, _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
            )
            if spec is None or spec.loader is None:
                raise ImportError(f"cannot load {_PACKAGE}")  # noqa: TRY301 - as any other failure to load
            sys.modules[_PACKAGE.name] = package = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(package)
        importlib.import_module(f"{_PACKAGE.name}.patch").install()
    except (ImportError, AttributeError) as missing:
        # Better no program than one that sends audio to the cloud which was meant to stay in the house.
        raise ImportError(
            f"localwhisper run: this program's Python ({sys.executable}) cannot be served. It needs Python 3.11 or "
            f"newer and openai 1.109 or newer: {missing}"
        ) from missing


def _load_the_other() -> None:
    """Load the `sitecustomize` that this one hides."""
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != _HERE]
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _Watch())
_load_the_other()
