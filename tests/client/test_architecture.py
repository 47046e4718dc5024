from __future__ import annotations

import ast
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "localwhisper_client"
IO = {"openai", "httpx", "httpx2", "anyio", "asyncio", "socket", "ssl", "os", "time", "random", "tempfile", "io"}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    "module",
    [
        *("routing", "steps", "circuit", "pace", "policy", "events"),
        *("adapt", "cloud_models", "prices", "budget", "languages"),
    ],
)
def test_the_core_does_no_io(module: str) -> None:
    """Neither itself nor through what it imports."""
    seen, queue = set(), [module]
    while queue:
        name = queue.pop()
        seen.add(name)
        imports = _imports(CLIENT / f"{name}.py")
        assert not {full.partition(".")[0] for full in imports} & IO
        ours = {full.split(".")[1] for full in imports if full.startswith("localwhisper_client.")}
        queue += [other for other in ours - seen if (CLIENT / f"{other}.py").exists()]


@pytest.mark.parametrize("path", sorted(CLIENT.glob("*.py")), ids=lambda path: path.stem)
def test_only_one_module_knows_the_http_library(path: Path) -> None:
    """It changed once, and may again."""
    assert not _imports(path) & {"httpx", "httpx2"}


@pytest.mark.parametrize("path", sorted(CLIENT.glob("*.py")), ids=lambda path: path.stem)
def test_modules_are_small_and_say_what_they_know(path: Path) -> None:
    """Under 400 lines, with a docstring."""
    source = path.read_text()
    assert len(source.splitlines()) < 400
    assert ast.get_docstring(ast.parse(source))
