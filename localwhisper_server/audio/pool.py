"""The pool of decoding processes: an upload goes to one of them, and samples come back.

FFmpeg is C code that reads bytes from anywhere. A hostile file can at worst end its worker (`audio.worker`); the upload
is then refused like any other that cannot be decoded.
"""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import IO, Protocol

import numpy as np

from localwhisper_server.audio import decoding
from localwhisper_server.audio.worker import LONGEST_MESSAGE, OPENING, READ_BYTES, REQUEST
from localwhisper_server.errors import Busy, InvalidRequest, UnreadableAudio
from localwhisper_server.types import Samples

logger = logging.getLogger(__name__)

# -I, and the server's import path behind the interpreter's own: a module in the current folder, in PYTHONPATH or at the
# front of the server's path cannot replace one of the standard library.
COMMAND = (
    *(sys.executable, "-I", "-c"),
    "import sys; sys.path += sys.argv[1:]; from localwhisper_server.audio.worker import main; main()",
    *filter(None, sys.path),
)
# The variables a Python process may need to start. A worker sees nothing else of the environment, so no keys.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
# Idle workers kept ready. A recording of hours occupies a worker until its end, so more are started when needed.
SPARE = 2
# So many stay after a busy moment: as many as decode at a time (`transcription.transcriber.DECODERS`), and one more.
KEPT = 5
MOST = 32
# FFmpeg may leak memory, so a worker is replaced after so many uploads.
JOBS_PER_WORKER = 500
RETRY_SECONDS = 10.0
EXIT_SECONDS = 5.0
# The exit status after SIGKILL. The limits of a worker end it with other signals.
KILLED = -9


Blocks = Generator[Samples, None, None]
"""Samples of a recording, a few seconds at a time. Close it if it is not read to its end."""


class Decode(Protocol):
    """Decodes an upload block by block: `Pool.blocks`, or `blocks` in this process."""

    def __call__(self, source: IO[bytes], *, max_seconds: float, language: str | None = None) -> Blocks:
        """Yield float32 samples in [-1, 1], shape (n,), at 16 kHz; see `decoding.pcm`."""


def blocks(source: IO[bytes], *, max_seconds: float, language: str | None = None) -> Blocks:
    """Decode in this process: only for recordings that can be trusted."""
    for part in decoding.pcm(source, max_seconds=max_seconds, language=language):
        yield _samples(part)


def decode(source: IO[bytes], *, max_seconds: float) -> Samples:
    """Decode a whole recording at once, in this process: only for one that can be trusted."""
    return np.concatenate(list(blocks(source, max_seconds=max_seconds)))


def _samples(pcm: bytes) -> Samples:
    return np.frombuffer(pcm, np.int16).astype(np.float32) / np.float32(32768)


class Pool:
    """Worker processes, `spare` of them idle and ready, and `most` in all. Safe for any number of threads.

    A worker gets a few variables of `environ` (see ENVIRONMENT) and is replaced after `jobs` uploads.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        spare: int = SPARE,
        most: int = MOST,
        jobs: int = JOBS_PER_WORKER,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._spare = spare
        self._most = most
        self._jobs = jobs
        self._command = command
        self._environ = {name: environ[name] for name in ENVIRONMENT if name in environ}
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._closed = False

    def start(self) -> None:
        """Start the spare workers; return before they are ready."""
        with self._lock:
            self._refill(self._spare)

    def close(self) -> None:
        """End all workers, busy ones included."""
        with self._lock:
            self._closed = True
            workers, self._workers, self._idle = self._workers, set(), []
        for worker in workers:
            worker.end()

    def blocks(self, source: IO[bytes], *, max_seconds: float, language: str | None = None) -> Blocks:
        """Decode one audio track of `source` (seekable) in a worker, a few seconds at a time; see `decoding.pcm`.

        Yields float32 samples in [-1, 1], shape (n,), at 16 kHz. Closing the generator frees its worker.

        Raises:
            UnreadableAudio: it has no audio that can be decoded, or its worker died.
            InvalidRequest: it is too short, longer than `max_seconds`, or in a codec without a decoder.
            Busy: no worker is idle and no more may be started.

        """
        for last in (False, True):
            worker = self._take()
            try:
                yield from worker.decode(source, max_seconds, language)
            except (EOFError, OSError) as failure:
                status = worker.end()
                if status == KILLED and not worker.answered and not last:
                    continue  # killed from outside before it read the upload: try another worker
                logger.warning("a decoding process ended in the middle of an upload (%s)", status)
                raise UnreadableAudio from failure
            finally:
                self._give_back(worker)
            return

    def _take(self) -> "_Worker":
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    break
                self._drop(worker)
            else:
                self._refill(1)
                if not self._idle:
                    raise Busy(
                        "The server is decoding as many recordings as it can. Try again later.",
                        retry_after=RETRY_SECONDS,
                    )
                worker = self._idle.pop()
            self._refill(1)  # ready for the next upload
            return worker

    def _give_back(self, worker: "_Worker") -> None:
        with self._lock:
            if self._closed:
                return
            reusable = worker.free and worker.alive and not worker.low_priority and worker.jobs < self._jobs
            # Keep more than the spare workers: otherwise each busy moment would start and end processes.
            if reusable and len(self._idle) < max(KEPT, self._spare + 1):
                self._idle.append(worker)
                return
            self._drop(worker)
            self._refill(self._spare)

    def _refill(self, count: int) -> None:
        """Start workers until `count` are idle, or until no more may or can be started."""
        while len(self._idle) < count and len(self._workers) < self._most and not self._closed:
            try:
                worker = _Worker(self._command, self._environ)
            except OSError as failure:  # too many open files or too little memory, for now
                logger.error("no decoding process can be started: %s", failure.strerror)  # noqa: TRY400 - no traceback
                return
            self._workers.add(worker)
            self._idle.append(worker)

    def _drop(self, worker: "_Worker") -> None:
        self._workers.discard(worker)
        worker.end()


class _Worker:
    """One process. Only one recording may use it at a time."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        # Closed with its last reference: another thread may still read from it when the process is ended.
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environ,
            )
        self.jobs = 0
        self._up = False
        self.free = True  # nothing of an upload is in the socket
        self.answered = False  # it has shown that it reads the present upload

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def low_priority(self) -> bool:
        """Whether the process has lowered its priority, because of a slow upload; see `worker.NICENESS`."""
        return os.getpriority(os.PRIO_PROCESS, self._process.pid) > os.getpriority(os.PRIO_PROCESS, 0)

    def end(self) -> int | None:
        """End the process and return its exit status, which is negative after a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A worker that closed its socket is about to end by itself: wait for the status that says why.
            self._process.wait(0.2 if not self.free else 0)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        return self._process.returncode

    def decode(self, source: IO[bytes], max_seconds: float, language: str | None) -> Blocks:
        """Yield blocks as `Pool.blocks` does.

        Raises:
            EOFError, OSError: the process died, or broke the protocol.
            UnreadableAudio, InvalidRequest: the process reported it.

        """
        if not self._up and self._connection.recv_bytes(LONGEST_MESSAGE) != b"U":
            raise EOFError
        self._up = True
        self.jobs += 1
        self.answered = False
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        opening = OPENING.pack(max_seconds, size, (language or "").encode()) + source.read(READ_BYTES)
        answer = self._ask(b"O" + opening, source)
        while answer.startswith(b"S"):
            yield _samples(answer[1:])
            answer = self._ask(b"N", source)
        if answer.startswith(b"F"):
            raise _failure(answer[1:])
        if answer != b"E":
            raise EOFError

    def _ask(self, message: bytes, source: IO[bytes]) -> bytes:
        """Send a message; answer requests for more of the upload until another message comes, and return that."""
        self.free = False
        self._connection.send_bytes(message)
        while (answer := self._connection.recv_bytes(LONGEST_MESSAGE)).startswith(b"R"):
            offset, size = REQUEST.unpack(answer[1:])
            source.seek(offset)
            self._connection.send_bytes(b"D" + source.read(min(size, READ_BYTES)))
            self.answered = True
        self.free = self.answered = True
        return answer


def _failure(payload: bytes) -> InvalidRequest:
    """Return the error that a worker reports.

    Raises:
        EOFError: the payload is no report.

    """
    try:
        said = json.loads(payload)
        message, param, code = said["message"], said.get("param"), said.get("code")
    except (ValueError, TypeError, KeyError, AttributeError) as failure:
        raise EOFError from failure
    return UnreadableAudio() if message is None else InvalidRequest(str(message), param=param, code=code)
