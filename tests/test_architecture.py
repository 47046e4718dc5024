"""Which folder may import which. Every module is found by itself, so that a new file cannot escape."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMON = {"errors", "types", "observer", "models", "settings"}
# A folder, or a module at the top of a package, and what it may import of its own package beside itself.
ARROWS = {
    "localwhisper_server": {
        "__init__": set(),
        "__main__": {"cli"},
        "cli": {"cluster", "server", "operations", "whisper", *COMMON},
        "cluster": {
            "server", "runtime", "served_model", "api", "transcription", "whisper", "operations", *COMMON,
        },
        "server": {"runtime", "api", "wyoming", "operations", *COMMON},
        "runtime": {"served_model", "diarization", "whisper", "audio", *COMMON},
        "served_model": {"transcription", "diarization", "whisper", "audio", *COMMON},
        "transcription": {"diarization", "whisper", "audio", *COMMON},
        "diarization": {"types", "errors"},
        "api": {"realtime", *COMMON},
        "realtime": COMMON,
        "wyoming": COMMON,
        "audio": COMMON,
        "whisper": COMMON,
        "operations": {"whisper", "audio", *COMMON},
        "settings": {"errors", "types"},
        "observer": {"types"},
        "models": {"types", "observer"},
        "types": set(),
        "errors": set(),
    },
    "localwhisper_client": {
        "__init__": {"client", "errors", "events", "routing"},
        "__main__": {"cli"},
        "cli": {
            "client", "patch", "settings", "errors", "events", "lan", "cloud", "routing", "shared", "server_process",
        },
        "patch": {"client", "realtime", "request", "settings", "lan"},
        "client": {"call", "realtime", "request", "settings", "lan", "errors", "events", "routing", "_background"},
        "call": {
            "request", "lan", "cloud", "settings", "errors", "events", "routing", "shared", "_http", "_background",
        },
        "realtime": {
            "call", "lan", "settings", "errors", "events", "routing", "shared", "_http", "_background",
        },
        "lan": {"settings", "errors", "events", "routing", "shared", "_http", "_background"},
        "cloud": {"errors", "events", "routing", "shared", "_http", "_background"},
        "settings": {"errors", "events", "cloud", "routing", "shared"},
        "server_process": {"shared"},
        "errors": {"routing", "_http"},
        "request": set(),
        "routing": {"events"},
        "events": set(),
        "shared": set(),
        "_background": set(),
        "_http": set(),
    },
}  # fmt: skip
# What the server may import of the client: tables, the version, the SDK's HTTP library, and how to start a server.
FROM_CLIENT = {"__version__", "shared", "_http", "server_process"}
# The only folders or modules that may import a library.
ONLY = {
    "faster_whisper": {"whisper"}, "ctranslate2": {"whisper"}, "av": {"audio", "cloud"},
    "fastapi": {"api"}, "starlette": {"api"}, "uvicorn": {"api", "server"},
    "onnxruntime": {"diarization"}, "sherpa_onnx": {"diarization"},
    "websockets": {"api", "realtime"}, "ray": {"cluster"},
}  # fmt: skip
PURE = {
    "localwhisper_client": ("routing", "shared", "events", "cloud/models"),
    "localwhisper_server": (
        "types", "errors", "api/formats", "api/form", "api/known_speakers", "diarization/clustering",
        "diarization/timeline", "diarization/assignment", "diarization/windows", "whisper/acceptance",
        "whisper/alignment", "whisper/chunks", "transcription/queue", "transcription/segmentation", "realtime",
        "cluster/messages", "cluster/loads", "cluster/exposition", "cluster/shape",
    ),
}  # fmt: skip
IO = {
    "openai", "httpx", "httpx2", "anyio", "asyncio", "socket", "ssl", "os", "time", "random", "tempfile", "io",
    "pathlib",
}  # fmt: skip
DATA = ("skill_data", "run_hook")


def modules(package: Path) -> list[Path]:
    """Return every module of a package."""
    return sorted(path for path in package.rglob("*.py") if not set(path.parts) & set(DATA))


def place(package: Path, path: Path) -> str:
    """Return the folder that a module is in, or its own name where it is at the top."""
    return path.relative_to(package).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Return everything that a module imports, at its top or inside of functions, as full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong(package: Path) -> list[str]:
    """Return the imports of a package that go against the arrows."""
    name, arrows, faults = package.name, ARROWS[package.name], []
    for path in modules(package):
        here = place(package, path)
        for full in imports(path):
            top, *rest = full.split(".")
            if top == name and rest and (package / rest[0]).with_suffix(".py").exists() | (package / rest[0]).is_dir():
                if rest[0] != here and rest[0] not in arrows.get(here, ()):
                    faults.append(f"{path.relative_to(package)} imports {full}")
            elif (
                (name == "localwhisper_client" and top == "localwhisper_server")
                or (
                    name == "localwhisper_server"
                    and top == "localwhisper_client"
                    and rest
                    and rest[0] not in FROM_CLIENT
                )
                or here not in ONLY.get(top, {here})
            ):
                faults.append(f"{path.relative_to(package)} imports {full}")
        if here not in arrows:
            faults.append(f"{path.relative_to(package)} is in no folder that has arrows")
    return faults


@pytest.mark.parametrize("package", ARROWS)
def test_arrows_between_folders_go_one_way(package: str) -> None:
    """A folder imports what the table says, and nothing else."""
    assert wrong(ROOT / package) == []


def test_a_module_anywhere_is_found(tmp_path: Path) -> None:
    """One that is planted in a folder of a folder does not escape, and neither does one in a new folder."""
    package = tmp_path / "localwhisper_server"
    for folder, text in (
        ("operations/doctor", "from localwhisper_server.api import form"),
        ("extra", "import fastapi"),
    ):
        (package / folder).mkdir(parents=True)
        (package / folder / "planted.py").write_text(text)
    (package / "api").mkdir()
    assert sorted(wrong(package)) == [
        "extra/planted.py imports fastapi",
        "extra/planted.py is in no folder that has arrows",
        "operations/doctor/planted.py imports localwhisper_server.api.form",
    ]


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in PURE.items() for name in names])
def test_what_decides_does_no_io(package: str, name: str) -> None:
    """What it knows comes in as arguments, the time among them."""
    target = ROOT / package / name
    paths = sorted(target.rglob("*.py")) if target.is_dir() else [target.with_suffix(".py")]
    assert paths
    for path in paths:
        assert not {full.partition(".")[0] for full in imports(path)} & IO, path


@pytest.mark.parametrize("package", [*ARROWS, "localwhisper"])
def test_folders_and_modules_are_small(package: str) -> None:
    """Twelve modules in a folder and 400 lines in a module at most; each module says what it knows."""
    for path in modules(ROOT / package):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 400, path
        assert ast.get_docstring(ast.parse(source)), path
        assert len([other for other in path.parent.glob("*.py") if other.stem != "__init__"]) <= 12, path.parent


@pytest.mark.parametrize("package", [*ARROWS, "localwhisper"])
def test_no_private_module_is_imported_from_outside_its_folder(package: str) -> None:
    """A module whose name begins with `_` is its folder's own."""
    for path in modules(ROOT / package):
        for full in imports(path):
            parts = full.split(".")
            for at, part in enumerate(parts[1:-1], 1):
                if part.startswith("_") and not part.startswith("__") and parts[0] in ARROWS and at > 1:
                    assert path.parent == ROOT.joinpath(*parts[:at]), f"{path} imports {full}"
