"""What the server says about its work: request ids, the log, and whom else to tell.

Never a transcript, a key, or the bytes of a file.
"""

import datetime as dt
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import platformdirs

from localwhisper_server.observer import request_id

# Loggers whose messages callers can cause as often as they like, each many times a second.
FLOODED = ("asyncio", "uvicorn.error", "localwhisper_server.api.protocol")


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
