from __future__ import annotations

import asyncio
import io
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_client._version import __version__
from localwhisper_server import api, server
from localwhisper_server.config import Settings
from localwhisper_server.engine import Chunk, ChunkResult, Device
from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.models import ModelError
from localwhisper_server.options import Options
from localwhisper_server.server import Backend, listen, url
from localwhisper_server.transcript import Segment, Transcript
from tests.server.driving import call, multipart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CUDNN = "Library libcudnn_ops.so.9 is not found or cannot be loaded"
OUT_OF_MEMORY = "CUDA failed with error out of memory"


class Engine:
    """Does as CTranslate2 does: `failures` are raised in turn, one a batch."""

    languages = frozenset({"en", "de"})

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.warmed = False

    def warm_up(self) -> None:
        """Run once."""
        self.run([Chunk(np.zeros(16, np.float32), 0.0, Options().decoding)])
        self.warmed = True

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Hear one word in each."""
        if self.failures:
            raise self.failures.pop(0)
        return [ChunkResult("de", (Segment(0.0, chunk.seconds, " ja"),)) for chunk in chunks]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder that passes for a model."""
    made = tmp_path / "my-model"
    made.mkdir()
    (made / "model.bin").touch()
    return made


@pytest.fixture
def settings(folder: Path) -> Settings:
    """Give settings that name it."""
    return Settings(model=str(folder), port=0)


def _backend(settings: Settings, engine: Engine, cuda_devices: int = 0) -> Backend:
    return Backend(settings, load=lambda _folder, _device: engine, cuda_devices=cuda_devices)  # type: ignore[arg-type, return-value]


@pytest.fixture
def ready(settings: Settings) -> Iterator[Backend]:
    """Give a backend that has loaded."""
    backend = _backend(settings, Engine())
    backend.start()
    yield backend
    assert backend.stop()


def test_while_loading_it_is_busy_and_says_so(settings: Settings) -> None:
    """Names are served from the first second; a request is told when to come back."""
    backend = _backend(settings, Engine())
    assert backend.health() == {
        "status": "loading",
        "ready": False,
        "model": settings.model,
        "device": "cpu",
        "compute_type": "int8",
        "version": __version__,
        "requests": 0,
        "queue_seconds": 0.0,
    }
    assert {"my-model", "whisper-1"} < set(backend.names)
    with pytest.raises(Busy) as refused:
        backend.require_ready()
    assert refused.value.retry_after == 2
    with pytest.raises(Busy):
        backend.transcribe(io.BytesIO(), Options())
    assert backend.stop()  # nothing to stop


def test_once_warm_it_is_ready(settings: Settings, folder: Path) -> None:
    """And not before: the first request must not pay for the first run."""
    engine = Engine()
    backend = _backend(settings, engine)
    backend.start()
    assert engine.warmed
    assert backend.health()["status"] == "ok"
    assert backend.health()["ready"] is True
    assert backend.created == int((folder / "model.bin").stat().st_mtime)
    assert backend.languages == engine.languages
    backend.require_ready()
    assert backend.stop()


def test_the_log_names_the_device_and_why(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """In one line."""
    with caplog.at_level("INFO"):
        backend = _backend(settings, Engine())
        backend.start()
    assert backend.stop()
    (line,) = [record.getMessage() for record in caplog.records if "ready" in record.getMessage()]
    assert "on cpu, int8 (no CUDA device found)" in line


@pytest.mark.parametrize(
    ("cuda_devices", "device", "model"),
    [(0, Device("cpu", "int8", ""), "base"), (1, Device("cuda", "float16", ""), "large-v3")],
)
def test_the_model_follows_the_device(cuda_devices: int, device: Device, model: str) -> None:
    """Where none is named."""
    backend = _backend(Settings(), Engine(), cuda_devices)
    assert (backend.device.name, backend.device.compute_type) == (device.name, device.compute_type)
    assert backend.model == model


def test_the_engine_is_made_from_the_settings(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder, device and threads; the driver is asked for devices."""
    made: list[Any] = []

    def engine(where: Path, device: Device, *, threads: int) -> Engine:
        made.append((where, device.name, device.compute_type, threads))
        return Engine()

    monkeypatch.setattr(server, "Engine", engine)
    monkeypatch.setattr("localwhisper_server.engine.cuda_devices", lambda: 0)
    backend = Backend(settings.model_copy(update={"threads": 3, "compute_type": "float32"}))
    backend.start()
    assert backend.stop()
    assert made == [(folder, "cpu", "float32", 3)]


@pytest.mark.parametrize(
    "failure", [RuntimeError(CUDNN), RuntimeError(OUT_OF_MEMORY), ValueError("unsupported model")], ids=str
)
def test_a_model_that_cannot_be_loaded(settings: Settings, failure: Exception) -> None:
    """As CTranslate2 says it: raised to the command line, and until then answered as our fault, not as busy."""
    backend = _backend(settings, Engine(failure))
    with pytest.raises(type(failure)):
        backend.start()
    backend.failure = failure
    assert backend.health()["status"] == "failed"
    assert backend.health()["ready"] is False
    with pytest.raises(EngineFailed, match="could not be loaded"):
        backend.require_ready()


@pytest.mark.anyio
@pytest.mark.parametrize("message", [OUT_OF_MEMORY, CUDNN])
async def test_a_failure_of_the_device_is_a_500_and_no_dead_server(
    settings: Settings, voices: dict[str, Path], message: str
) -> None:
    """The cause stays out of the answer; the next request is served."""
    engine = Engine()
    backend = _backend(settings, engine)
    backend.start()
    app = api.create_app(backend, max_upload=10**6)
    headers, body = multipart(file=voices["demo"].read_bytes())
    engine.failures = [RuntimeError(message)]
    failed = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert failed.status == 500
    assert failed.error["type"] == "server_error"
    assert message not in failed.body.decode()
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert answer.json() == {"text": "ja", "usage": {"type": "duration", "seconds": 5}}
    assert backend.health()["requests"] == 0
    assert await asyncio.to_thread(backend.stop)


@pytest.mark.anyio
async def test_a_ready_backend_transcribes(ready: Backend, voices: dict[str, Path]) -> None:
    """From the bytes of a voice message to its transcript."""
    with voices["demo"].open("rb") as file:
        *segments, transcript = [item async for item in ready.transcribe(file, Options())]
    assert isinstance(transcript, Transcript)
    assert (transcript.text, transcript.language) == ("ja", "de")
    assert transcript.segments == tuple(segments)


@pytest.mark.anyio
async def test_health_counts_open_requests(ready: Backend, voices: dict[str, Path]) -> None:
    """And how long the queue is, in seconds."""
    items = ready.transcribe(io.BytesIO(voices["demo"].read_bytes()), Options())
    await anext(items)
    assert ready.health()["requests"] == 1
    await items.aclose()
    assert ready.health()["requests"] == 0
    assert ready.health()["queue_seconds"] >= 0


def test_a_port_is_taken_before_anything_slow() -> None:
    """Port 0 is any free one; the socket is bound, and a second server on it fails at once."""
    with listen("127.0.0.1", 0) as bound:
        host, port = bound.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)
        assert url(bound) == f"http://127.0.0.1:{port}"
        bound.listen()
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", port)


def test_an_ipv6_address_has_brackets() -> None:
    """As URLs want it."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 in this Python")
    try:
        bound = listen("::1", 0)
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    with bound:
        assert url(bound) == f"http://[::1]:{bound.getsockname()[1]}"


def test_an_address_of_another_machine_is_refused() -> None:
    """Before a model is loaded for nothing."""
    with pytest.raises(OSError, match="assign"):
        listen("192.0.2.1", 0)  # TEST-NET-1, which nobody has


def test_a_server_whose_model_fails_stops_and_says_why(tmp_path: Path) -> None:
    """It does not go on answering 500 for ever."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with listen("127.0.0.1", 0) as bound, pytest.raises(ModelError, match=r"holds no model\.bin"):
        server.run(Settings(model=str(empty)), bound)
