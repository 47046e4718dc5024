from __future__ import annotations

import asyncio
import io
import socket
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_client._version import __version__
from localwhisper_server import server
from localwhisper_server.api import routes
from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.runtime import Runtime
from localwhisper_server.server import listen, url
from localwhisper_server.settings import Settings
from localwhisper_server.transcription.segmentation import Piece
from localwhisper_server.types import Decoding, Options, Segment, Transcript
from localwhisper_server.whisper.chunks import Chunk, ChunkResult
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.weights import ModelError
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
        self.batches: list[list[Chunk]] = []
        self.warmed = False

    def prepare(self, piece: Piece, decoding: Decoding, *, full: bool = False) -> Chunk:
        """Make a chunk without features."""
        return Chunk(np.zeros((1, 1), np.float32), piece.seconds, piece.offset, decoding, full=full)

    def warm_up(self) -> None:
        """Run once."""
        self.run([self.prepare(Piece(np.zeros(16, np.float32), 0.0, ()), Decoding())])
        self.warmed = True

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Hear one word in each."""
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(list(chunks))
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


def _backend(settings: Settings, engine: Engine, cuda_devices: int = 0) -> Runtime:
    return Runtime(settings, load=lambda _folder, _device: engine, cuda_devices=cuda_devices)  # type: ignore[arg-type, return-value]


@pytest.fixture
def ready(settings: Settings) -> Iterator[Runtime]:
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
        "loaded": False,
        "device": "cpu",
        "compute_type": "int8",
        "version": __version__,
        "requests": 0,
        "queue_seconds": 0.0,
        "speed": None,
    }
    assert backend.queue_seconds == 0.0
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
    assert backend.health()["loaded"] is True
    assert backend.health()["speed"] > 0
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
    assert (backend.health()["device"], backend.health()["compute_type"]) == (device.name, device.compute_type)
    assert backend.model == model


def test_the_engine_is_made_from_the_settings(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder, device and threads; the driver is asked for devices."""
    made: list[Any] = []

    def engine(where: Path, device: Device, workers: Workers) -> Engine:
        made.append((where, device.name, device.compute_type, workers))
        return Engine()

    monkeypatch.setattr(server, "Engine", engine)
    monkeypatch.setattr("localwhisper_server.whisper.engine.cuda_devices", lambda: 0)
    backend = Runtime(settings.model_copy(update={"threads": 6, "compute_type": "float32"}))
    backend.start()
    assert backend.stop()
    assert made == [(folder, "cpu", "float32", Workers(2, 3))]


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


def test_a_card_that_is_not_there_is_known_before_anything_is_fetched(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three gigabytes for nothing would be a bad joke."""
    monkeypatch.setattr("localwhisper_server.whisper.weights.find", lambda *_, **__: pytest.fail("fetched"))
    backend = Runtime(settings.model_copy(update={"device": "cuda"}), cuda_devices=0)
    with pytest.raises(RuntimeError, match="no CUDA device"):
        backend.start()


def test_a_stop_while_the_model_loads_waits_for_nothing(settings: Settings) -> None:
    """A thread in C++ cannot be called back, so the process must not be taken down around it."""
    loading, go_on = threading.Event(), threading.Event()

    def load(_folder: Path, _device: Device) -> Any:
        loading.set()
        assert go_on.wait(10)
        return Engine()

    backend = Runtime(settings, load=load, cuda_devices=0)
    thread = threading.Thread(target=backend.start)
    thread.start()
    assert loading.wait(10)
    assert not backend.stop()
    go_on.set()
    thread.join(10)
    assert backend.stop()


def test_a_card_that_is_full_is_waited_for(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A game ends some time; until then the server is loading, and the log says what could be done."""
    failures, pauses = [RuntimeError(OUT_OF_MEMORY) for _ in range(3)], list[float]()

    def load(_folder: Path, _device: Device) -> Any:
        return Engine(failures.pop()) if failures else Engine()

    backend = Runtime(settings, load=load, cuda_devices=1, pause=pauses.append)
    backend.start()
    assert pauses == [60, 60, 60]
    assert backend.health()["ready"]
    assert "take a smaller model" in caplog.text
    assert backend.stop()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("message", "status", "kind"),
    [(OUT_OF_MEMORY, 503, "service_unavailable_error"), (CUDNN, 500, "server_error")],
    ids=["out of memory", "no cuDNN"],
)
async def test_a_failure_of_the_device_is_answered_and_no_dead_server(
    settings: Settings, voices: dict[str, Path], message: str, status: int, kind: str
) -> None:
    """The cause stays out of the answer; a full memory is busy, not broken; the next request is served."""
    engine = Engine()
    backend = _backend(settings, engine)
    backend.start()
    app = routes.create_app(backend)
    headers, body = multipart(file=voices["demo"].read_bytes())
    engine.failures = [RuntimeError(message)]
    failed = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert failed.status == status
    assert failed.error["type"] == kind
    assert message not in failed.body.decode()
    assert ("retry-after" in failed.headers) == (status == 503)
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert answer.json() == {"text": "ja", "usage": {"type": "duration", "seconds": 5}}
    assert backend.health()["requests"] == 0
    assert await asyncio.to_thread(backend.stop)


@pytest.mark.anyio
@pytest.mark.parametrize(("window", "full"), [("adaptive", False), ("exact", True)])
async def test_the_window_is_the_servers_setting(
    settings: Settings,
    voices: dict[str, Path],
    window: str,
    full: bool,  # noqa: FBT001 - a table's column
) -> None:
    """For every request, unless one asks for the full window itself."""
    engine = Engine()
    backend = _backend(settings.model_copy(update={"window": window}), engine)
    backend.start()
    _ = [item async for item in backend.transcribe(io.BytesIO(voices["demo"].read_bytes()), Options())]
    assert engine.batches[-1][0].full is full
    assert await asyncio.to_thread(backend.stop)


@pytest.mark.anyio
async def test_an_idle_model_leaves_the_memory_and_comes_back(settings: Settings, voices: dict[str, Path]) -> None:
    """Where that was asked for; health says which it is, and stays ready."""
    loads: list[Engine] = []

    def load(_folder: Path, _device: Device) -> Engine:
        loads.append(Engine())
        return loads[-1]

    backend = Runtime(
        settings.model_copy(update={"idle_unload": 0.01}),
        load=load,
        cuda_devices=0,  # type: ignore[arg-type]
    )
    backend.start()
    async with asyncio.timeout(10):
        while backend.health()["loaded"]:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0.001)
    assert backend.health()["ready"] is True
    items = [item async for item in backend.transcribe(io.BytesIO(voices["demo"].read_bytes()), Options())]
    assert len(items) == 2
    assert len(loads) == 2
    assert await asyncio.to_thread(backend.stop)


@pytest.mark.anyio
async def test_a_ready_backend_transcribes(ready: Runtime, voices: dict[str, Path]) -> None:
    """From the bytes of a voice message to its transcript."""
    with voices["demo"].open("rb") as file:
        *segments, transcript = [item async for item in ready.transcribe(file, Options())]
    assert isinstance(transcript, Transcript)
    assert (transcript.text, transcript.language) == ("ja", "de")
    assert transcript.segments == tuple(segments)


def test_health_counts_open_requests(ready: Runtime) -> None:
    """And how long the queue is, in seconds."""
    ticket = ready._scheduler.admit() if ready._scheduler else None
    assert ticket is not None
    assert ready.health()["requests"] == 1
    ticket.close()
    assert ready.health()["requests"] == 0
    assert ready.health()["queue_seconds"] == ready.queue_seconds == 0.0


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
        server.run(Settings(model=str(empty)), bound, environ={})
