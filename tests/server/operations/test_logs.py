from __future__ import annotations

import errno
import io
import json
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from localwhisper_server import observer
from localwhisper_server.operations import logs
from tests.server.driving import call, make_app
from tests.server.listening import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _root() -> Iterator[None]:
    """Put the root logger back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = handlers, level


def _logged(log_format: Any, *arguments: Any, **how: Any) -> str:
    stream = io.StringIO()
    logs.configure("info", [logging.StreamHandler(stream)], log_format)
    logging.getLogger("lan").warning(*arguments, **how)
    return stream.getvalue()


def test_json_is_an_object_a_line() -> None:
    """With time zone, request id, the facts of the message as fields, and a traceback."""
    try:
        int("boom")
    except ValueError:
        token = observer.request_id.set("req_1")
        fields = {"status": 200, "seconds": 0.5}
        line = _logged("json", "two\nlines of %s", "Grüße", extra={"fields": fields}, exc_info=True)
        observer.request_id.reset(token)
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert "ValueError: invalid literal" in entry.pop("exception")
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "warning",
        "logger": "lan",
        "request_id": "req_1",
        "message": "two\nlines of Grüße",
        "status": 200,
        "seconds": 0.5,
    }


def test_a_caller_cannot_write_lines_of_the_log() -> None:
    """A line break in a path is escaped."""
    line = _logged("text", "GET %s", "/a\n2026-01-01 INFO forged\x1b[2J")
    assert line.count("\n") == 1
    assert "/a\\n2026" in line
    assert "\x1b" not in line


async def test_a_request_in_the_json_log() -> None:
    """Method, path, status and seconds as fields; the caller's id."""
    stream = io.StringIO()
    logs.configure("info", [logging.StreamHandler(stream)], "json")
    await call(make_app(), "GET", "/v1/models", {"x-request-id": "mine"})
    entry = json.loads(stream.getvalue())
    assert (entry["method"], entry["path"], entry["status"], entry["seconds"]) == ("GET", "/v1/models", 200, 0.0)
    assert entry["request_id"] == "mine"


def test_a_message_that_callers_can_repeat_is_logged_once_a_minute() -> None:
    """The same first line, whatever follows it; other messages in between; then again."""
    once = logs.OncePerPeriod(seconds=60.0)

    def passes(message: str, at: float) -> bool:
        return bool(once.filter(logging.makeLogRecord({"msg": message, "created": at})))

    assert passes("out of files\nsocket 1", 0.0)
    assert not passes("out of files\nsocket 2", 59.0)
    assert passes("a connection too many", 59.0)
    assert passes("out of files\nsocket 3", 61.0)
    assert all(passes(f"message {number}", 61.0) for number in range(1000))


def test_loggers_that_callers_can_flood() -> None:
    """A thousand warnings of one kind are one line."""
    stream = io.StringIO()
    logs.configure("info", [logging.StreamHandler(stream)])
    for name in logs.FLOODED:
        for number in range(1000):
            logging.getLogger(name).warning("it happened: %d", number)
    assert stream.getvalue().count("it happened: 0") == len(stream.getvalue().splitlines()) == 3


def test_the_framework_sends_no_traces_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the variables of OpenTelemetry say: FastAPI would log that it does not know this protocol."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with serving(make_app(), lifespan="on") as (host, port):
        assert httpx2.get(f"http://{host}:{port}/health", trust_env=False).status_code == 200
    assert not [record for record in caplog.records if record.name.startswith("fastapi")]


# Targets of the log that no request waits for


class _Stuck(io.StringIO):
    """A stream whose reader does not read until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def write(self, text: str, /) -> int:
        self.entered.set()
        assert self.released.wait(60)
        return super().write(text)


def test_a_target_that_is_stuck_costs_lines_and_never_time() -> None:
    """Lines that do not fit into its queue are dropped and counted; other targets get all of theirs."""
    stuck, other = _Stuck(), io.StringIO()
    targets = [logs.console(stuck), logs.console(other)]
    with logs.logging_to(targets, lines=3, finish_seconds=0.05) as finished:
        logging.getLogger("lan").info("first")
        for number in range(100):
            logging.getLogger("lan").info("line %d", number)
            while f"line {number}\n" not in other.getvalue():
                pass
    assert not finished[0]
    stuck.released.set()
    targets[0].acquire()  # not before the line that is being written
    targets[0].release()
    assert "first" in stuck.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_dropped_lines_are_counted(log_format: Any) -> None:
    """In a line of the log's own format: a program reads every line."""
    stuck = _Stuck()
    with logs.logging_to([logs.console(stuck)], log_format=log_format, lines=3, finish_seconds=60) as finished:
        logging.getLogger("lan").info("first")
        # Otherwise the thread that writes could find dropped lines before it is stuck, and count those apart.
        assert stuck.entered.wait(60)
        for number in range(100):
            logging.getLogger("lan").info("line %d", number)
        stuck.released.set()
    assert finished == [True]
    (note,) = [line for line in stuck.getvalue().splitlines() if "dropped" in line]
    text = json.loads(note)["message"] if log_format == "json" else note.partition("WARNING - ")[2]
    assert re.match(r"9\d lines of the log were dropped", text)


def test_a_full_disk_under_the_log_raises_nothing() -> None:
    """The line is lost without a word on standard error, and the next one is tried again."""
    tried = []

    class Full(io.StringIO):
        def write(self, text: str, /) -> int:
            tried.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    with logs.logging_to([logs.console(Full())]) as finished:
        logging.getLogger("lan").info("lost")
        logging.getLogger("lan").info("lost as well")
    assert finished == [True]
    assert len(tried) == 2


def test_a_quiet_console_has_warnings_and_errors_alone() -> None:
    """Other targets have everything."""
    console, other = io.StringIO(), io.StringIO()
    with logs.logging_to([logs.console(console, quiet=True), logs.console(other)]):
        for level in (logging.INFO, logging.WARNING):
            logging.getLogger("lan").log(level, "at %d", level)
    assert ["at 20" in stream.getvalue() for stream in (console, other)] == [False, True]
    assert ["at 30" in stream.getvalue() for stream in (console, other)] == [True, True]


def _write(path: Path, *lines: str, **how: Any) -> None:
    with logs.logging_to([logs.rotating_file(path, **how)]):
        for line in lines:
            logging.getLogger("lan").info(line)


def test_a_full_file_is_renamed(tmp_path: Path) -> None:
    """The last earlier ones are kept, and no line is cut in two."""
    path = tmp_path / "server.log"
    _write(path, *(f"line number {number:02}" for number in range(40)), size=200, kept=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["server.log", "server.log.1", "server.log.2"]
    paths = [path.with_name(f"server.log.{each}") for each in (2, 1)] + [path]
    found = [line[-2:] for each in paths for line in each.read_text().splitlines()]
    assert found == [f"{number:02}" for number in range(40 - len(found), 40)]
    assert all(each.stat().st_size <= 200 for each in tmp_path.iterdir())


def test_a_restart_appends(tmp_path: Path) -> None:
    """Behind a line that marks the start, in the format of the log: a program reads every line of it."""
    path = tmp_path / "server.log"
    for line in ("before", "after"):
        _write(path, line)
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["starts", "before", "starts", "after"]
    logs.rotating_file(tmp_path / "json.log", "json").close()
    (line,) = (tmp_path / "json.log").read_text().splitlines()
    assert json.loads(line).keys() == {"time", "level", "logger", "request_id", "message"}


def test_a_file_that_was_moved_away_is_created_again(tmp_path: Path) -> None:
    """For instance by a program that rotates all logs of the machine; the next line is in a new file."""
    path = tmp_path / "server.log"
    file = logs.rotating_file(path)
    with logs.logging_to([file]):
        path.rename(tmp_path / "moved.log")
        logging.getLogger("lan").info("after")
    assert path.read_text().endswith("after\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_file_without_room_is_known_at_once() -> None:
    """/dev/full opens like any file; its first byte does not fit."""
    with pytest.raises(OSError, match="No space left"):
        logs.rotating_file(Path("/dev/full"))


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_log_levels(level: str) -> None:
    """What is below the level is not written; verbose libraries write nothing below warning."""
    stream = io.StringIO()
    logs.configure(level, [logging.StreamHandler(stream)])
    names = ["debug", "info", "warning", "error"]
    for name in names:
        getattr(logging.getLogger("x"), name)("ours at %s", name)
        getattr(logging.getLogger("httpx2"), name)("theirs at %s", name)
    expected = names[names.index(level) :]
    assert re.findall(r"ours at (\w+)", stream.getvalue()) == expected
    assert re.findall(r"theirs at (\w+)", stream.getvalue()) == [name for name in expected if name[0] in "we"]
