"""Python loads this at its start under `localwhisper run`. It does `install()` as soon as the program imports `openai`.

Before that it loads one small file of ours and no more, so that programs without the SDK start as fast as before. If
this Python has the SDK but not this package, the package is loaded from the folder of this file.

It also watches which programs this one starts. Those that inherit the environment get this file too, even if another
`sitecustomize` was put in front of it. A Python that gets an environment without it is not started, unless the policy
lets audio leave the LAN.
"""  # noqa: INP001 - a folder for PYTHONPATH, not a package

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parents[1]
_PYTHON = re.compile(r"(python|pypy)[\d.]*w?(\.exe)?", re.IGNORECASE)
# Flags that keep a Python from loading this file.
_ISOLATED = re.compile(r"-[a-zA-Z]*[IES]")
# The audit events of a start, with the positions of the program's arguments and environment in the event's values.
_STARTS = {"subprocess.Popen": (1, 3), "os.exec": (1, 2), "os.posix_spawn": (1, 2), "os.spawn": (2, 3)}

_warned: set[str] = set()


def _load(name: str, path: Path, **options: Any) -> Any:
    spec = importlib.util.spec_from_file_location(name, path, **options)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _install(_: Any) -> None:
    try:
        if importlib.util.find_spec(_PACKAGE.name) is None:
            _load(_PACKAGE.name, _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)])
        importlib.import_module(f"{_PACKAGE.name}.patch.installation").install()
    except (ImportError, AttributeError) as missing:
        # Without the patch this program would send audio to the cloud, so it must not go on.
        raise ImportError(
            f"localwhisper run: this program's Python ({sys.executable}) cannot be served. It needs Python 3.11 or "
            f"newer and openai 1.109 or newer: {missing}"
        ) from missing


def _load_hidden() -> None:
    """Load the program's own `sitecustomize`, which this file hides."""
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != _HERE]
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _leads_here(paths: str) -> bool:
    """Whether a PYTHONPATH has this folder at its front."""
    first = paths.partition(os.pathsep)[0]
    return bool(first) and Path(first).resolve() == _HERE


def _is_python(program: str) -> bool:
    """Whether a program is a Python, or a script that names one in its first line."""
    if _PYTHON.fullmatch(Path(program).name) or program == sys.executable:
        return True
    try:
        with Path(shutil.which(program) or program).open("rb") as file:
            first = file.readline(256)
    except (OSError, ValueError):
        return False
    return first.startswith(b"#!") and b"python" in first


def _watch_starts(event: str, values: tuple[Any, ...]) -> None:
    """Check each start of a program. A Python that would not load this file is refused, or a warning is written."""
    if event not in _STARTS:
        return
    at, where = _STARTS[event]
    arguments, environ = values[at], values[where]
    if environ is None or (environ is os.environ and event == "subprocess.Popen"):
        # Some tools, such as `opentelemetry-instrument`, put a `sitecustomize` of their own in front of this one.
        environ = os.environ
        if not _leads_here(paths := environ.get("PYTHONPATH", "")):
            environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_HERE), paths]))
    listed = [arguments] if isinstance(arguments, (str, bytes, os.PathLike)) else list(arguments)
    words = [os.fsdecode(each) for each in listed]
    program = os.fsdecode(values[0]) if event == "subprocess.Popen" and values[0] else "".join(words[:1])
    reached = any(os.fsdecode(name) == "PYTHONPATH" and _leads_here(os.fsdecode(environ[name])) for name in environ)
    flags = itertools.takewhile(lambda each: each.startswith("-") and each not in ("-c", "-m", "-"), words[1:])
    if (reached and not any(map(_ISOLATED.fullmatch, flags))) or not _is_python(program):
        return
    if reached:
        _warn(f"{program} is started with -I, -E or -S: speech that it sends to OpenAI's API goes to the cloud")
    elif os.environ.get("LOCALWHISPER_POLICY", "").strip().lower() == "cloud":
        _warn(f"{program} is started without {_HERE} in front of its PYTHONPATH: its speech goes to the cloud")
    else:
        raise RuntimeError(
            f"localwhisper run: {program} is started without {_HERE} in front of its PYTHONPATH, so its speech would "
            "go to the cloud. Pass PYTHONPATH on as it is, or start that program by `localwhisper run -- ...`."
        )


def _warn(what: str) -> None:
    if what not in _warned and sys.stderr is not None:
        _warned.add(what)
        sys.stderr.write(f"localwhisper run: {what}\n")


# Another `sitecustomize` may load this one a second time, as this one loads the hidden one.
if "_localwhisper_watch" not in sys.modules:
    sys.meta_path.insert(0, _load("_localwhisper_watch", _PACKAGE / "patch" / "watch.py").Watch({"openai"}, _install))
    sys.addaudithook(_watch_starts)
    _load_hidden()
