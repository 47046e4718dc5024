"""A real Ray on this machine, started by the command: a face, and two engine replicas with one CPU core each."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = (sys.executable, "-m", "localwhisper_server", "cluster")
SECONDS = 240.0


@dataclass
class Cluster:
    """A running cluster: its folder, which is Ray's, and what its app was started with."""

    folder: Path
    options: tuple[str, ...]
    url: str = ""

    @property
    def temporary(self) -> Path:
        """Where its processes keep temporary files."""
        return self.folder / "tmp"

    def run(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `localwhisper-server cluster ACTION`."""
        own = {"LOCALWHISPER_CLUSTER_DIR": str(self.folder), "TMPDIR": str(self.temporary), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [*COMMAND, action, *options],
            env=os.environ | own,
            text=True,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )

    def up(self) -> str:
        """Start or update it; return what the command says."""
        done = self.run("up", *self.options)
        assert done.returncode == 0, done.stdout + done.stderr
        self.url = self.status()["url"]
        return done.stdout

    def status(self) -> Any:
        """Return what `cluster status --json` says."""
        return json.loads(self.run("status", "--json").stdout)

    def get(self, path: str) -> httpx2.Response:
        """Ask the face."""
        return httpx2.get(self.url + path, timeout=30)

    @property
    def base_url(self) -> str:
        """The value for OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    def health(self) -> Any:
        """Return the body of /health."""
        return self.get("/health").json()

    def replicas(self) -> int:
        """How many engine replicas the face knows."""
        return int(self.health()["replicas"])

    def engines(self) -> list[int]:
        """Return the running processes whose log says that a model is loaded."""
        logs = self.folder.glob("session_latest/logs/worker-*.err")
        found = [int(log.stem.rsplit("-", 1)[1]) for log in logs if b"loaded and warmed up" in log.read_bytes()]
        return [number for number in found if Path("/proc", str(number), "stat").exists()]


def running(model: str, *options: str, replicas: int = 2) -> Iterator[Cluster]:
    """Run a cluster until the generator is closed; skip where Ray is not installed."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: nox -s cluster")
    # Short, since paths of sockets are, and outside of pytest's folders, which are not.
    folder = Path(tempfile.mkdtemp(prefix="lw-"))
    (folder / "tmp").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shape = ("--replicas", str(replicas), "--model", model, "--port", str(port))
    cluster = Cluster(folder, (*shape, *options))
    try:
        assert "ready: http://127.0.0.1" in cluster.up()
        yield cluster
    finally:
        cluster.run("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Give a cluster of the module's MODEL, with its OPTIONS and REPLICAS."""
    module = request.module
    yield from running(module.MODEL, *getattr(module, "OPTIONS", ()), replicas=getattr(module, "REPLICAS", 2))


@pytest.fixture
def server(cluster: Cluster) -> Cluster:
    """The cluster, for tests that are run against one process too."""
    return cluster


@pytest.fixture
def stock(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Set the environment of a bot of which only OPENAI_BASE_URL was changed."""
    monkeypatch.setenv("OPENAI_BASE_URL", cluster.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "whatever")
    return cluster


@pytest.fixture
def client(stock: Cluster) -> Iterator[openai.OpenAI]:
    """The stock SDK's client, which finds the cluster in its environment."""
    with openai.OpenAI(max_retries=0) as made:
        yield made
