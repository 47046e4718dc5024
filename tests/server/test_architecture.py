from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SERVER = sorted((ROOT / "localwhisper_server").rglob("*.py"))
OTHERS = sorted([*(ROOT / "localwhisper").rglob("*.py"), *(ROOT / "localwhisper_client").rglob("*.py")])

# Who alone may import what; design.md draws the arrows.
ONLY = {
    "faster_whisper": {"engine"},
    "ctranslate2": {"engine"},
    "av": {"audio"},
    "fastapi": {"api"},
    "starlette": {"api", "formdata"},
    "uvicorn": {"server", "lifecycle", "protocol"},
    "huggingface_hub": {"models"},
    "platformdirs": {"models", "observe"},
    "pydantic_settings": {"config", "cli"},
    "localwhisper_server.api": {"server"},
    "localwhisper_server.server": {"cli"},
    "localwhisper_server.cli": {"entry"},
    "localwhisper_server.entry": {"__main__"},
    "localwhisper_server.service": {"server"},
    "localwhisper_server.scheduler": {"hearing", "service", "server"},
    "localwhisper_server.hearing": {"service"},
    "localwhisper_server.turns": {"scheduler", "calibration"},
    "localwhisper_server.form": {"api", "openapi"},
    "localwhisper_server.formdata": {"api"},
    "localwhisper_server.formats": {"api"},
}
# These compute: what they know comes in as arguments.
PURE = {
    "gate",
    "window",
    "reading",
    "formats",
    "form",
    "transcript",
    "options",
    "chunks",
    "steps",
    "errors",
    "openapi",
}
DOES_IO = {"os", "io", "socket", "asyncio", "anyio", "threading", "time", "random", "pathlib", "tempfile", "logging"}


def _imports(path: Path) -> set[str]:
    """Return everything a module imports, at its top or inside, as full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: say where from"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _reaches(imports: set[str], package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imports)


def test_the_modules_are_found() -> None:
    """Else nothing below would be held."""
    assert {"api", "service", "scheduler", "engine", "audio", "models", "formats", "guard"} <= {
        path.stem for path in SERVER
    }
    assert len(OTHERS) > 5


@pytest.mark.parametrize("package", ONLY)
def test_only_some_import(package: str) -> None:
    """Arrows point one way, and each big dependency has one door; the door is used."""
    importers = {path.stem for path in SERVER if _reaches(_imports(path), package)}
    assert importers - {package.rpartition(".")[2]} <= ONLY[package]
    assert importers


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_do_no_io(module: str) -> None:
    """Neither themselves nor through what they import of ours."""
    seen, queue = set(), [module]
    while queue:
        name = queue.pop()
        seen.add(name)
        imports = _imports(ROOT / "localwhisper_server" / f"{name}.py")
        assert not {full.partition(".")[0] for full in imports} & DOES_IO, name
        assert {full.partition(".")[0] for full in imports} <= set(sys.stdlib_module_names) | {
            "localwhisper_server",
            "localwhisper_client",  # its table of languages alone; see below
            "numpy",
        }
        assert not _reaches(imports, "localwhisper_client._http")
        ours = {full.split(".")[1] for full in imports if full.startswith("localwhisper_server.")}
        queue += sorted(ours - seen)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_the_client_does_not_import_the_server(path: Path) -> None:
    """It is installed without it, and starts a server by its command."""
    assert not _reaches(_imports(path), "localwhisper_server")


@pytest.mark.parametrize("path", SERVER, ids=lambda path: path.stem)
def test_the_server_takes_little_from_the_client(path: Path) -> None:
    """They share version, languages, file endings, what counts as the LAN, and the SDK's HTTP library."""
    ours = {name for name in _imports(path) if name.startswith(("localwhisper_client", "localwhisper."))}
    shared = {f"localwhisper_client.{module}" for module in ("_version", "_http", "languages", "endings", "lan")}
    assert {name for name in ours if not name.startswith(tuple(shared))} <= {"localwhisper_client"}


def _runs_at_import(tree: ast.Module) -> list[ast.AST]:
    """Return all nodes that run when the module is imported: everything but the insides of functions."""
    found: list[ast.AST] = []
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        found.append(node)
        if isinstance(node, ast.Lambda):
            continue
        inside = ast.iter_child_nodes(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = iter([*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)])
        queue.extend(inside)
    return found


@pytest.mark.parametrize("path", [*SERVER, *OTHERS], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_importing_reads_and_opens_nothing(path: Path) -> None:
    """No environment, no file, no clock: what a module needs comes in as arguments."""
    nodes = _runs_at_import(ast.parse(path.read_text()))
    assert not _names(nodes) & {"environ", "getenv"}
    called = _names([node.func for node in nodes if isinstance(node, ast.Call)])
    assert not called & {"open", "read_text", "read_bytes", "monotonic", "time", "now", "urandom", "token_hex"}


def _names(nodes: list[Any]) -> set[str]:
    """Name what is used; a field that is merely declared (`environ: Mapping`) is not."""
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("path", SERVER, ids=lambda path: path.stem)
def test_modules_are_small_and_say_what_they_know(path: Path) -> None:
    """A stranger reads one at a sitting; its docstring says what it alone knows."""
    source = path.read_text()
    assert len(source.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(source))


LONGEST = 460  # engine.py is the longest; what it grows by should go elsewhere


@pytest.mark.parametrize("path", [*SERVER, *OTHERS], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_nothing_is_left_to_do(path: Path) -> None:
    """A note to oneself belongs in the tracker."""
    source = path.read_text()
    assert not any(word in source for word in ("TO" + "DO", "FIX" + "ME", "X" * 3))


def test_the_reading_itself(tmp_path: Path) -> None:
    """The reading of imports and of what runs at import sees what it should."""
    module = tmp_path / "module.py"
    module.write_text("import os\nfrom a.b import c\nX = os.environ\ndef f(y=open('z')):\n    return os.getenv('q')\n")
    assert _imports(module) == {"os", "a.b", "a.b.c"}
    names = _names(_runs_at_import(ast.parse(module.read_text())))
    assert {"environ", "open"} < names
    assert "getenv" not in names
