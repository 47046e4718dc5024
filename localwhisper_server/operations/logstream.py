"""Streams for the log that nobody ever waits for: lines that cannot be written in time are dropped and counted.

A full disk, a terminal that is held, a pipe whose reader sleeps: none of them may stop a request.
"""

import contextlib
import io
import logging
import queue
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

# A burst of errors with their tracebacks fits; more than that, and whoever reads is not reading.
LINES = 2000
# What a month of a LAN server's voice messages fits into many times over.
FILE_BYTES = 10_000_000
FILES = 5


class _Rotating(RotatingFileHandler):
    """The standard library's, but whoever writes hears of a failure."""

    terminator = ""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's signature
        """Raise what it was called for."""
        raise  # noqa: PLE0704 - logging calls this while it handles the error


class RotatingFile(io.TextIOBase):
    """A file that is begun anew every `size` bytes; `kept` earlier ones stay beside it, as NAME.1 and so on.

    `opening` is its first line, with its line break: a full disk takes a new file, but nothing in it.

    Raises:
        OSError: from the start or from a write: no permission, no room.

    """

    def __init__(self, path: Path, opening: str, *, size: int = FILE_BYTES, kept: int = FILES) -> None:
        super().__init__()
        self.path = path
        self._handler = _Rotating(path, maxBytes=size, backupCount=kept, encoding="utf-8")
        self.write(opening)

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, text: str, /) -> int:
        """Append `text`, which is whole lines; to a new file where somebody took the old one away."""
        if not self.path.exists():
            self._handler.close()  # which opens again with the next line
        self._handler.emit(logging.makeLogRecord({"msg": text}))
        return len(text)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._handler.close()
        super().close()


class NonBlockingStream(io.TextIOBase):
    """Text written to it is written on to `stream` by a thread of its own."""

    def __init__(self, stream: TextIO, *, lines: int = LINES) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(lines)
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name="localwhisper-log", daemon=True)
        self._thread.start()

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, text: str, /) -> int:
        """Take `text`, or drop it where too much waits already; never blocks, never fails."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        return len(text)

    def finish(self, timeout: float) -> bool:
        """Write out what waits; False if that takes longer than `timeout` seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (text := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                text = f"({dropped} lines of the log were dropped: nobody took them)\n{text}"
            # What cannot be written is lost; there is nowhere left to say so.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
