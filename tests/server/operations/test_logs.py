from __future__ import annotations

import io
import json
import logging
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server import observer, server
from localwhisper_server.api import routes
from localwhisper_server.operations import logs, tracing
from localwhisper_server.settings import Settings
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

    def model_loaded(self) -> None:
        self.notes.append(("loaded",))

    def out_of_memory(self) -> None:
        self.notes.append(("memory",))


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


# Traces


async def test_a_span_for_each_request_but_health() -> None:
    """With its path and status; nothing of headers or bodies."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    pytest.importorskip("opentelemetry.instrumentation.asgi")
    spans, provider = memory.InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(spans))
    app = tracing.traced(routes.create_app(FakeBackend(), clock=lambda: 0.0), provider)
    assert (await call(app, "GET", "/health")).status == 200
    assert (await call(app, "GET", "/v1/models", {"authorization": "Bearer sk-secret"})).status == 200
    (span,) = spans.get_finished_spans()
    assert "sk-secret" not in span.to_json()
    assert 200 in span.attributes.values()
    provider.shutdown()


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


def test_a_provider_sends_to_the_collector() -> None:
    """It is made without a connection, and closed without one."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    tracing.provider("http://127.0.0.1:9/v1/traces").shutdown()


def _missing(name: str) -> Any:
    raise ImportError(name)


def test_traces_without_their_packages() -> None:
    """The message says what to install."""
    for ask in (lambda: tracing.provider("http://x", _missing), lambda: tracing.traced(_nothing, None, _missing)):
        with pytest.raises(tracing.NotInstalled, match=r"\[server,otel\]"):
            ask()


async def _nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    """Answer nothing."""


async def test_what_is_around_is_made_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where nothing was asked for; else an upstream and a provider, both closed at the end."""
    plain = server.Surroundings(Settings(), ())
    assert plain.upstream is None
    assert plain.around(_nothing) is _nothing
    async with plain.open():
        pass
    closed = []
    provider = SimpleNamespace(shutdown=lambda: closed.append("traces"))
    monkeypatch.setattr(tracing, "provider", lambda _: provider)
    monkeypatch.setattr(tracing, "traced", lambda app, given: (app, given))
    full = server.Surroundings(Settings(upstream="https://api.example/v1", otlp_endpoint="http://127.0.0.1:9"), ("k",))
    assert full.around(_nothing) == (_nothing, provider)
    async with full.open():
        assert full.upstream is not None
    assert full.upstream._client.is_closed
    assert closed == ["traces"]


def test_missing_packages_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, not at the first request."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(server.Misconfigured, match="pip install"):
        server.Surroundings(Settings(otlp_endpoint="http://127.0.0.1:9"), ())


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
