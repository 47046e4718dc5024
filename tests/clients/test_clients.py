"""Clients of other projects, each in an environment of its own: `nox -s clients`.

Each script uses its client as that client's documentation says, and prints the transcripts as one line of JSON. It gets
the recording as Ogg and as WAV. The server's address and key reach it in one of three ways.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from localwhisper_client.server_process import ServerProcess, serving
from tests.clients.recordings import ENGLISH, as_wav

FOLDER = os.environ.get("LOCALWHISPER_CLIENTS", "")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORDS = "bread on the way home"
KEY = "the-servers-key"

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(900),  # the first time, packages are downloaded
    pytest.mark.skipif(not FOLDER, reason="installs packages of other projects: nox -s clients"),
]


@dataclass(frozen=True)
class Client:
    """A client: a name, its packages, and the script in `scripts/`; `ways` are keys of what `settings` returns."""

    name: str
    packages: tuple[str, ...]
    script: str
    ways: tuple[str, ...] = ("url",)
    python: str = ">=3.11"
    environment: tuple[tuple[str, str], ...] = ()


PYTHON = ("url", "run", "import")
SEGMENTS = (("SEGMENTS", "1"),)
NO_PRICES = (("LITELLM_LOCAL_MODEL_COST_MAP", "True"),)  # else it downloads them at import
CLIENTS = (
    Client("openai-python-1", ("openai==1.109.*",), "openai_python.py", PYTHON),
    Client("openai-python-2", ("openai==2.*",), "openai_python.py", PYTHON),
    Client("openai-python-3", ("openai==3.*",), "openai_python.py", PYTHON),
    Client("openai-npm-5", ("openai@5",), "openai_npm.mjs"),
    Client("openai-npm-6", ("openai@6",), "openai_npm.mjs"),
    Client("openai-npm-7", ("openai@7",), "openai_npm.mjs"),
    Client("ai-sdk-4", ("ai@4", "@ai-sdk/openai@1", "zod@3"), "ai_sdk.mjs"),
    Client("ai-sdk-5", ("ai@5", "@ai-sdk/openai@2", "zod@4"), "ai_sdk.mjs", environment=SEGMENTS),
    Client("ai-sdk-6", ("ai@6", "@ai-sdk/openai@3", "zod@4"), "ai_sdk.mjs", environment=SEGMENTS),
    Client("ai-sdk-7", ("ai@7", "@ai-sdk/openai@4", "zod@4"), "ai_sdk.mjs", environment=SEGMENTS),
    Client("litellm-sdk", ("litellm",), "litellm_sdk.py", PYTHON, environment=NO_PRICES),
    Client("litellm-proxy", ("litellm[proxy]",), "litellm_proxy.py", environment=NO_PRICES),
    Client(
        "langchain-python",
        ("langchain-community", "openai", "pydub", "audioop-lts; python_version >= '3.13'"),
        "langchain_parser.py",
        ("url", "run"),
    ),
    Client(
        "langchain-js",
        ("@langchain/community@1", "@langchain/core@1", "@langchain/classic@1", "@langchain/openai@1"),
        "langchain_loader.mjs",
    ),
    Client("openai-agents", ("openai-agents[voice]",), "openai_agents.py", PYTHON),
    Client("livekit", ("livekit-plugins-openai",), "livekit_plugin.py", PYTHON),
    Client("pipecat", ("pipecat-ai[openai]",), "pipecat_service.py", ("url", "run")),
    Client("openai-python-3-realtime", ("openai[realtime]==3.*",), "openai_realtime.py", PYTHON),
    Client("openai-agents-realtime", ("openai-agents[voice]",), "agents_realtime.py", ("url", "run")),
    Client("livekit-realtime", ("livekit-plugins-openai",), "livekit_realtime.py", ("url", "run")),
    Client("pipecat-realtime", ("pipecat-ai[openai]",), "pipecat_realtime.py", ("url", "run")),
    Client("SpeechRecognition", ("SpeechRecognition[openai]",), "speech_recognition_api.py", ("url", "run")),
    Client("python-telegram-bot", ("python-telegram-bot", "openai"), "python_telegram_bot.py", PYTHON),
    Client("aiogram", ("aiogram", "openai"), "aiogram_bot.py", PYTHON),
    Client("programs", ("axios@1", "form-data@4"), "programs.mjs"),
    Client("wyoming-openai", ("wyoming-openai",), "wyoming_proxy.py", ("url", "run"), python=">=3.12"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that asks for a key."""
    with serving("--model", "base", "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recording as Ogg, and as WAV with 16,000 samples a second."""
    return ENGLISH, as_wav(ENGLISH, tmp_path_factory.mktemp("recordings") / "voice.wav")


def settings(server: ServerProcess, way: str) -> dict[str, str]:
    """Return the environment in which a client uses the server, in one of three ways."""
    if way == "url":
        return {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY}
    ours = {
        "LOCALWHISPER_BASE_URL": server.base_url,
        "LOCALWHISPER_API_KEY": KEY,
        "OPENAI_API_KEY": "a-made-up-key-of-the-cloud",
    }
    return ours if way == "run" else {**ours, "SDK": "localwhisper"}


def run(*command: str | Path, **options: object) -> str:
    """Run a program; return its standard output.

    Raises:
        AssertionError: it failed; the message has the end of its output.

    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@functools.cache
def npm(name: str, *packages: str) -> Path:
    """Install packages of npm into a folder of their own; return it."""
    folder = Path(FOLDER, name)
    # One of these packages names many optional ones, whose versions contradict each other.
    run("npm", "install", "--silent", "--no-audit", "--no-fund", "--legacy-peer-deps", "--prefix", folder, *packages)
    return folder


@functools.cache
def python(client: Client) -> Path:
    """Install a client and localwhisper into an environment of their own; return the folder of its programs."""
    folder = Path(FOLDER, client.name)
    offline = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if subprocess.run(
        ["uv", "python", "find", client.python], capture_output=True, check=False, env=offline
    ).returncode:
        pytest.skip(f"{client.name} needs Python {client.python} in the PATH")
    run("uv", "venv", "--clear", "--python", client.python, folder, env=offline)
    run("uv", "pip", "install", "--python", folder, f"-e{ROOT}[cli]", *client.packages)
    return folder / "bin"


def command(client: Client, way: str) -> list[str | Path]:
    """Return the command that runs the client's script, less its arguments."""
    script = HERE / "scripts" / client.script
    if script.suffix == ".mjs":
        # Some of these packages need a newer Node than Debian has. Node looks for packages beside the script.
        node = npm("node", "node@22") / "node_modules/.bin/node"
        return [node, shutil.copy(script, npm(client.name, *client.packages))]
    programs = python(client)
    through = [programs / "localwhisper", "run", "--"] if way == "run" else []
    return [*through, programs / "python", script]


@pytest.mark.parametrize(
    ("client", "way"),
    [pytest.param(client, way, id=f"{client.name}-{way}") for client in CLIENTS for way in client.ways],
)
def test_client(client: Client, way: str, server: ServerProcess, recordings: tuple[Path, Path], tmp_path: Path) -> None:
    """Each of the client's calls returns the words."""
    environment = {**os.environ, **settings(server, way), **dict(client.environment)}
    printed = run(*command(client, way), *recordings, env=environment, cwd=tmp_path, timeout=300)
    transcripts = json.loads(printed.splitlines()[-1])
    assert transcripts
    assert not {name: text for name, text in transcripts.items() if WORDS not in text}


def test_the_npm_client_speaks_realtime_over_tls(recordings: tuple[Path, Path], tmp_path: Path) -> None:
    """OpenAI's SDK for Node makes wss:// of any base URL, so the server has a certificate here."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert.pem"))
    options = ("--port", "0", "--model", "tiny.en", "--log-file", "none", "--certfile", str(tmp_path / "cert.pem"))
    program = [sys.executable, "-m", "localwhisper_server", *options]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = ""
        for line in process.stderr:
            if found := re.search(r"listening on https://\S+:(\d+)", line):
                port = found[1]
            if "ready:" in line:
                break
        client = Client("openai-npm-7-realtime", ("openai@7", "ws@8"), "openai_realtime.mjs")
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": f"https://localhost:{port}/v1",
            "OPENAI_API_KEY": KEY,
            "NODE_EXTRA_CA_CERTS": str(tmp_path / "ca.pem"),
        }
        try:
            printed = run(*command(client, "url"), *recordings, env=environment, cwd=tmp_path, timeout=300)
        finally:
            process.terminate()
    assert all(WORDS in text.replace(",", "") for text in json.loads(printed.splitlines()[-1]).values())
