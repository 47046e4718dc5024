from __future__ import annotations

import io
import json
import logging
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server import observer
from localwhisper_server.api import routes
from localwhisper_server.operations import logs
from localwhisper_server.transcription.queue import Limits
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.whisper.devices import Device
from localwhisper_server.whisper.model_manager import ModelManager
from tests.server.driving import FakeBackend, call
from tests.server.listening import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def root() -> Iterator[None]:
    """Put the root logger back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = handlers, level


def _logged(log_format: Any, *arguments: Any, **how: Any) -> str:
    stream = io.StringIO()
    logs.configure_logging("info", [stream], log_format)
    logging.getLogger("lan").warning(*arguments, **how)
    return stream.getvalue()


@pytest.mark.usefixtures("root")
def test_json_is_an_object_a_line() -> None:
    """With time zone, request id, and the facts of the message apart."""
    token = observer.request_id.set("req_1")
    try:
        line = _logged("json", "two\nlines of %s", "Grüße", extra=logs.fields(status=200, seconds=0.5))
    finally:
        observer.request_id.reset(token)
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "warning",
        "logger": "lan",
        "request_id": "req_1",
        "message": "two\nlines of Grüße",
        "status": 200,
        "seconds": 0.5,
    }


@pytest.mark.usefixtures("root")
def test_a_quiet_console_has_trouble_alone() -> None:
    """The file has everything."""
    console, file = io.StringIO(), io.StringIO()
    logs.configure_logging("info", [console, file], quiet=True)
    for level in (logging.INFO, logging.WARNING):
        logging.getLogger("lan").log(level, "at %d", level)
    assert ["at 20" in stream.getvalue() for stream in (console, file)] == [False, True]
    assert ["at 30" in stream.getvalue() for stream in (console, file)] == [True, True]


@pytest.mark.usefixtures("root")
def test_json_holds_a_traceback() -> None:
    """In the same line."""
    try:
        int("boom")
    except ValueError:
        line = _logged("json", "failed", exc_info=True)
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


@pytest.mark.usefixtures("root")
def test_a_caller_cannot_write_lines_of_the_log() -> None:
    """A line break in a path stays in its line."""
    line = _logged("text", "GET %s", "/a\n2026-01-01 INFO forged\x1b[2J")
    assert line.count("\n") == 1
    assert "/a\\n2026" in line
    assert "\x1b" not in line


@pytest.mark.usefixtures("root")
async def test_a_request_in_the_json_log() -> None:
    """Method, path, status and seconds; the caller's id."""
    stream = io.StringIO()
    logs.configure_logging("info", [stream], "json")
    await call(routes.create_app(FakeBackend(), clock=lambda: 0.0), "GET", "/v1/models", {"x-request-id": "mine"})
    entry = json.loads(stream.getvalue())
    assert (entry["method"], entry["path"], entry["status"], entry["seconds"]) == ("GET", "/v1/models", 200, 0.0)
    assert entry["request_id"] == "mine"


class Notes(observer.NullObserver):
    """An observer who writes down."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []

    def waited(self, seconds: float) -> None:
        self.notes.append(("waited", seconds))

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        self.notes.append(("decoded", chunks, most, sound, took))

    def retried(self, reason: str) -> None:
        self.notes.append(("retried", reason))

    def model_loaded(self) -> None:
        self.notes.append(("loaded",))

    def out_of_memory(self) -> None:
        self.notes.append(("memory",))


def test_a_batch_is_told() -> None:
    """How full, how much sound, how long, and which answers were in doubt; one that fails is not."""
    notes, times = Notes(), iter([1.0, 3.5, 5.0])
    results = [SimpleNamespace(doubt=None), SimpleNamespace(doubt="pace")]
    run = observer.watched(lambda _: results, notes, most=4, clock=lambda: next(times))
    assert run([SimpleNamespace(seconds=2.0), SimpleNamespace(seconds=3.0)]) == results
    assert notes.notes == [("decoded", 2, 4, 5.0, 2.5), ("retried", "pace")]

    def fail(_: Any) -> Any:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        observer.watched(fail, notes, most=4, clock=lambda: next(times))([])
    assert len(notes.notes) == 2


def test_the_keeper_tells_of_loads_and_of_memory() -> None:
    """Each time."""
    notes = Notes()

    class Engine:
        def run(self, chunks: Any) -> Any:
            if len(chunks) > 1:
                raise RuntimeError("CUDA failed with error out of memory")
            return list(chunks)

    model_manager: Any = ModelManager(
        lambda _: Engine(), Device("cpu", "int8", "test"), clock=lambda: 0.0, observer=notes
    )  # type: ignore[arg-type,return-value]
    assert model_manager.run([1, 2]) == [1, 2]
    model_manager.unload()
    model_manager.run([3])
    assert notes.notes == [("loaded",), ("memory",), ("loaded",)]


def test_the_scheduler_tells_how_long_a_chunk_waited() -> None:
    """From being handed in to its batch, on the scheduler's clock."""
    notes, now = Notes(), iter(range(100))
    scheduler: Scheduler[Any, Any] = Scheduler(
        lambda items: items,
        capacity=1,
        limits=Limits(items=1, frames=1000, share=1000),
        clock=lambda: float(next(now)),
        waited=notes.waited,
    )
    ticket = scheduler.admit()
    item = SimpleNamespace(frames=100, seconds=1.0)
    assert ticket.submit([item])[0].result(10) is item
    scheduler.close()
    ((what, seconds),) = notes.notes
    assert what == "waited"
    assert 1.0 <= seconds <= 5.0  # ticks of the clock, which others look at as well


def test_the_framework_sends_no_traces_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever other programs' variables say; with these, it would complain of the protocol if it listened to them."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with (
        serving(routes.create_app(FakeBackend()), lifespan="on") as (host, port),
        socket.create_connection((host, port), 5) as line,
    ):
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.name.startswith("fastapi")]


def test_what_callers_can_repeat_is_logged_seldom() -> None:
    """The same message once a minute, whatever its later lines and arguments are; others in between; then again."""
    seldom = logs.Seldom(seconds=60.0)

    def passes(message: str, at: float) -> bool:
        record = logging.makeLogRecord({"msg": message, "created": at})
        return bool(seldom.filter(record))

    assert passes("out of files\nsocket 1", 0.0)
    assert not passes("out of files\nsocket 2", 59.0)
    assert passes("a connection too many", 59.0)
    assert passes("out of files\nsocket 3", 61.0)
    assert all(passes(f"message {number}", 61.0) for number in range(1000))


def test_loggers_that_callers_can_flood(root: None) -> None:
    """A thousand warnings of one kind are one line."""
    stream = io.StringIO()
    logs.configure_logging("info", [stream])
    for name in ("asyncio", "uvicorn.error", "localwhisper_server.api.protocol"):
        for number in range(1000):
            logging.getLogger(name).warning("it happened: %d", number)
    assert stream.getvalue().count("it happened: 0") == len(stream.getvalue().splitlines()) == 3
