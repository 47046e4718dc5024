"""The server's log: its lines, in text or JSON, and handlers that no request ever waits for.

It never holds a transcript, a key, or the bytes of a file.
"""

import contextlib
import datetime as dt
import json
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

import platformdirs

from localwhisper_server.observer import request_id

Format = Literal["text", "json"]

# Callers can cause the messages of these loggers at will, many times a second.
FLOODED = ("asyncio", "uvicorn.error", "localwhisper_server.api.protocol")
VERBOSE = ("httpx", "httpx2", "httpcore", "filelock", "faster_whisper", "uvicorn", "python_multipart")
# Lines that may wait to be written: room for a burst of errors with their tracebacks.
LINES = 2000
# A month of a LAN server's voice messages fits into one file many times over.
FILE_BYTES = 10_000_000
FILES = 5


class OncePerPeriod(logging.Filter):
    """Lets each message of a logger through once in `seconds`, so that callers cannot fill the log.

    Messages are the same if their first lines are, before arguments are put in.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        message = str(record.msg).partition("\n")[0]
        if record.created - self._last.get(message, float("-inf")) < self._seconds:
            return False
        if len(self._last) > 100:  # noqa: PLR2004 - asyncio's messages contain addresses
            self._last.clear()
        self._last[message] = record.created
        return True


class _TextFormatter(logging.Formatter):
    """Lines for people. A line break that a caller sent is escaped, so that it cannot begin a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.message)
        record.request_id = request_id.get()
        return super().formatMessage(record)


class _JsonFormatter(logging.Formatter):
    """One object per line, for programs. `extra={"fields": {…}}` of a log call adds to the object."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)  # ASCII: no line breaks and no terminal's commands


def _formatter(log_format: Format) -> logging.Formatter:
    if log_format == "json":
        return _JsonFormatter()
    return _TextFormatter("%(asctime)s %(levelname)-7s %(request_id)s %(message)s")


class _File(RotatingFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        if not Path(self.baseFilename).exists():
            self.close()  # the file was moved or deleted: the line goes to a new one
        super().emit(record)


def console(stream: Any, *, quiet: bool = False) -> logging.Handler:
    """Return a handler that writes to a stream; `quiet`: warnings and errors alone."""
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING if quiet else logging.NOTSET)
    return handler


def rotating_file(
    path: Path, log_format: Format = "text", *, size: int = FILE_BYTES, kept: int = FILES
) -> RotatingFileHandler:
    """Return a handler that appends to a file, renamed to PATH.1 when it has `size` bytes; `kept` of these are kept.

    A line is written at once, which marks the start of the server.

    Raises:
        OSError: the file cannot be written, or the disk is full.

    """
    start = logging.makeLogRecord({"name": __name__, "levelname": "INFO", "msg": "the server starts"})
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{_formatter(log_format).format(start)}\n")
    return _File(path, maxBytes=size, backupCount=kept, encoding="utf-8", delay=True)


def default_log_file(port: int) -> Path:
    """Return the log file of the server on this port, in the user's folder for logs."""
    return platformdirs.user_log_path("localwhisper", appauthor=False) / f"server-{port}.log"


class _Queue(QueueHandler):
    """Formats a record for the thread that writes it. If the queue is full, the line is dropped and counted."""

    dropped = 0

    def __init__(self, lines: int) -> None:
        self.lines: queue.Queue[Any] = queue.Queue(lines)
        super().__init__(self.lines)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        self.dropped += 1


class _Writer(QueueListener):
    """The thread that writes what a `_Queue` holds."""

    def __init__(self, source: _Queue, target: logging.Handler) -> None:
        super().__init__(source.queue, target)
        source.setLevel(target.level)
        self._source = source
        self._target = target

    def handle(self, record: logging.LogRecord) -> None:
        dropped, self._source.dropped = self._source.dropped, 0
        if dropped:
            note = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            note["msg"] = f"{dropped} lines of the log were dropped, because they could not be written in time"
            super().handle(self._source.prepare(logging.makeLogRecord(note)))
        super().handle(record)

    def enqueue_sentinel(self) -> None:
        self._source.lines.put(None)  # waits while the queue is full

    def finish(self, seconds: float) -> bool:
        """Write what waits and close the handler; return False if that takes longer."""
        stopping = threading.Thread(target=self.stop, daemon=True)
        stopping.start()
        stopping.join(seconds)
        if stopping.is_alive():
            return False
        self._target.close()
        return True


@contextlib.contextmanager
def logging_to(
    targets: Sequence[logging.Handler],
    level: str = "info",
    log_format: Format = "text",
    *,
    lines: int = LINES,
    finish_seconds: float = 1.0,
) -> Iterator[list[bool]]:
    """Log to every target while the block runs, one line per record, each with the id of its request.

    Each target has a thread and a queue of its own: a full disk, a terminal that is stopped, or a pipe that is not read
    costs lines of that target, and never time. After the block, the list that is yielded holds, for each target,
    whether all lines were written within `finish_seconds`.
    """
    queues = [_Queue(lines) for _ in targets]
    writers = [_Writer(source, target) for source, target in zip(queues, targets, strict=True)]
    for writer in writers:
        writer.start()
    configure(level, queues, log_format)
    finished: list[bool] = []
    try:
        yield finished
    finally:
        finished += [writer.finish(finish_seconds) for writer in writers]


def configure(level: str, handlers: Sequence[logging.Handler], log_format: Format = "text") -> None:
    """Make `handlers` those of the root logger, with the server's format."""
    root = logging.getLogger()
    # A line that cannot be written is lost: the disk may be full, which must not stop the server.
    logging.raiseExceptions = False
    root.handlers = list(handlers)
    for handler in root.handlers:
        handler.setFormatter(_formatter(log_format))
    root.setLevel(level.upper())
    for name in FLOODED:
        logging.getLogger(name).filters = [OncePerPeriod()]
    for name in VERBOSE:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
