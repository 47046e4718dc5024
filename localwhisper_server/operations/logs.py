"""What the server says about its work: request ids, the log, and whom else to tell.

Never a transcript, a key, or the bytes of a file.
"""

import contextlib
import contextvars
import datetime as dt
import json
import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, TypeVar

import platformdirs

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

# Loggers whose messages callers can cause as often as they like, each many times a second.
FLOODED = ("asyncio", "uvicorn.error", "localwhisper_server.api.protocol")
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id(given: str | None) -> str:
    """Keep a caller's `x-request-id` if it is fit to print, else make one in OpenAI's shape."""
    if given and _GIVEN_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(16)}"


@contextlib.contextmanager
def on_behalf_of(ids: Iterable[str]) -> Iterator[None]:
    """Log as of these requests, from a thread that works for several."""
    token = request_id.set(",".join(dict.fromkeys(ids)) or "-")
    try:
        yield
    finally:
        request_id.reset(token)


class Observer(Protocol):
    """Who is told what happens. Called from the event loop and from the engine's thread; must not block or raise."""

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Note an answer; `route` is the template that matched, None where none did; status 0: the caller hung up."""

    def transcribed(self, seconds: float) -> None:
        """Note a recording of so many seconds that was transcribed."""

    def waited(self, seconds: float) -> None:
        """Note that a chunk waited so long for its batch."""

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        """Note a batch: its chunks, how many it may hold, their seconds of sound, the seconds it took."""

    def retried(self, reason: str) -> None:
        """Note a chunk that was done again with the full window, and why; see `gate`."""

    def model_loaded(self) -> None:
        """Note that the model was loaded."""

    def out_of_memory(self) -> None:
        """Note that the device's memory ran out."""


class NullObserver:
    """An observer who does not care."""

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Ignore it, as all of this."""

    def transcribed(self, seconds: float) -> None:
        """Ignore it."""

    def waited(self, seconds: float) -> None:
        """Ignore it."""

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        """Ignore it."""

    def retried(self, reason: str) -> None:
        """Ignore it."""

    def model_loaded(self) -> None:
        """Ignore it."""

    def out_of_memory(self) -> None:
        """Ignore it."""


class _Sounding(Protocol):
    @property
    def seconds(self) -> float: ...


class _Doubted(Protocol):
    @property
    def doubt(self) -> str | None: ...


Item = TypeVar("Item", bound=_Sounding)
Result = TypeVar("Result", bound=_Doubted)


def watched(
    run: Callable[[Sequence[Item]], Sequence[Result]],
    observer: Observer,
    *,
    most: int,
    clock: Callable[[], float],
) -> Callable[[Sequence[Item]], Sequence[Result]]:
    """Return `run` with every batch that succeeds told to the observer; `most` is how many chunks one may hold."""

    def running(items: Sequence[Item]) -> Sequence[Result]:
        started = clock()
        results = run(items)
        observer.decoded(len(items), most, sum(item.seconds for item in items), clock() - started)
        for result in results:
            if result.doubt is not None:
                observer.retried(result.doubt)
        return results

    return running


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class Seldom(logging.Filter):
    """Lets each message of a logger through once in `seconds`: what callers can cause at will must not fill the log.

    A message is known by its first line, before its arguments are put in.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether to log it."""
        message = str(record.msg).partition("\n")[0]
        if record.created - self._last.get(message, float("-inf")) < self._seconds:
            return False
        if len(self._last) > 100:  # noqa: PLR2004 - asyncio's messages have addresses in them
            self._last.clear()
        self._last[message] = record.created
        return True


class _OneLine(logging.Formatter):
    """Text for people. What callers sent cannot begin a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.message)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """An object a line, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
        }
        # What a line is about, field by field; see `fields`.
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)  # in ASCII: no caller's line ends, no terminal's commands


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Return `extra` for a log call: the same facts as in its message, apart, for the JSON log."""
    return {"fields": values}


def default_log_file(port: int) -> Path:
    """Return where the log of the server on this port is kept where nobody says: in the user's folder for logs."""
    return platformdirs.user_log_path("localwhisper", appauthor=False) / f"server-{port}.log"


def opening_line(log_format: Literal["text", "json"]) -> str:
    """Return the line that a start of the server begins its log file with, in the format of the others."""
    if log_format == "text":
        return f"{'-' * 80}\n"
    record = {"name": __name__, "levelname": "INFO", "msg": "the server starts"}
    return _Json().format(logging.makeLogRecord(record)) + "\n"


def configure_logging(
    level: str, streams: Sequence[TextIO] = (), log_format: Literal["text", "json"] = "text", *, quiet: bool = False
) -> None:
    """Log to every one of `streams` (none: standard error), one line a record, each with the id of its request.

    If `quiet`, the first takes warnings and errors alone.
    """
    text = "%(asctime)s %(levelname)-7s %(request_id)s %(message)s"
    root = logging.getLogger()
    root.handlers = [logging.StreamHandler(stream) for stream in streams or (sys.stderr,)]
    for handler in root.handlers:
        handler.addFilter(_WithRequestId())
        handler.setFormatter(_Json() if log_format == "json" else _OneLine(text))
    root.setLevel(level.upper())
    if quiet:
        root.handlers[0].setLevel(logging.WARNING)
    for flooded in FLOODED:
        logging.getLogger(flooded).filters = [Seldom()]
    for chatty in ("httpx", "httpx2", "httpcore", "filelock", "faster_whisper", "uvicorn", "python_multipart"):
        logging.getLogger(chatty).setLevel(max(root.level, logging.WARNING))
