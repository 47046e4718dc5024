"""Decoding out of harm's way: a few processes that do nothing else, each of which may die without the server.

FFmpeg reads whatever strangers send, in C. What it makes of a hostile file happens in a worker (`decoder_worker`),
and the worst it can do is end that worker; the upload is then refused like any other that cannot be decoded.
"""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import IO, Protocol

import numpy as np

from localwhisper_server.audio import decoding
from localwhisper_server.audio.worker import OPENING, READ_BYTES, REQUEST, Channel
from localwhisper_server.errors import Busy, InvalidRequest, UnreadableAudio
from localwhisper_server.types import Samples

logger = logging.getLogger(__name__)

# -I and the order of the path: what lies in the current folder, in PYTHONPATH or wherever else this process found its
# packages cannot take the place of the standard library, and is found after the packages of Python itself.
COMMAND = (
    *(sys.executable, "-I", "-c"),
    "import sys; sys.path += sys.argv[1:]; from localwhisper_server.audio.worker import main; main()",
    *filter(None, sys.path),
)
# What a Python process may need to start; the rest of the environment, keys among it, is none of a worker's business.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
# So many wait for work; a recording of hours keeps one for itself until its end, so more are started as they go.
SPARE = 2
MOST = 32
# FFmpeg may leak; a process that is replaced now and then cannot for long.
JOBS_PER_WORKER = 500
RETRY_SECONDS = 10.0
EXIT_SECONDS = 5.0
# A Python process killed by SIGKILL; what the limits of a worker end, ends otherwise.
KILLED = -9


# To be closed where it is not read to its end.
Decoding = Generator[Samples, None, None]


class Blocks(Protocol):
    """Decodes an upload block by block."""

    def __call__(self, source: IO[bytes], *, max_seconds: float, language: str | None = None) -> Decoding:
        """Yield float32 samples in [-1, 1], shape (n,), at 16 kHz; see `Pool.blocks`."""


def blocks(source: IO[bytes], *, max_seconds: float, language: str | None = None) -> Decoding:
    """Decode in this process: for recordings of one's own."""
    for part in decoding.pcm(source, max_seconds=max_seconds, language=language):
        yield _samples(part)


def decode(source: IO[bytes], *, max_seconds: float) -> Samples:
    """Decode all of a recording of one's own at once, in this process."""
    return np.concatenate(list(blocks(source, max_seconds=max_seconds)))


def _samples(pcm: bytes) -> Samples:
    return np.frombuffer(pcm, np.int16).astype(np.float32) / np.float32(32768)


class Pool:
    """Worker processes, kept warm. Safe for any number of threads.

    `environ` is the environment to take a worker's few variables from.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        spare: int = SPARE,
        most: int = MOST,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._spare = spare
        self._most = most
        self._command = command
        self._environ = {name: environ[name] for name in ENVIRONMENT if name in environ}
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._closed = False

    def start(self) -> None:
        """Start the spare workers; returns before they are warm."""
        with self._lock:
            self._refill(self._spare)

    def close(self) -> None:
        """End all workers, those at work too."""
        with self._lock:
            self._closed = True
            workers, self._workers, self._idle = self._workers, set(), []
        for worker in workers:
            worker.end()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of all workers."""
        with self._lock:
            return tuple(worker.pid for worker in self._workers)

    def blocks(self, source: IO[bytes], *, max_seconds: float, language: str | None = None) -> Decoding:
        """Decode one audio track of `source` (seekable) in a worker, a few seconds at a time; see `audio.pcm`.

        Yields float32 samples in [-1, 1], shape (n,), at 16 kHz. Closing the generator frees its worker.

        Raises:
            UnreadableAudio: no audio in it that can be decoded, or decoding it took its worker's life.
            InvalidRequest: too short, longer than `max_seconds`, or in a codec without a decoder.
            Busy: no worker is free and no more may be started.

        """
        for last in (False, True):
            worker = self._take()
            try:
                yield from worker.decode(source, max_seconds, language)
            except (EOFError, OSError) as failure:
                status = worker.end()
                if status == KILLED and not worker.answered and not last:
                    continue  # from outside, most likely before it saw the upload: that is not to blame
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
            self._refill(1)  # so that the next one finds it warm
            return worker

    def _give_back(self, worker: "_Worker") -> None:
        with self._lock:
            if self._closed:
                return
            # One more than the spare ones is kept, or each busy moment would start and end a process.
            fit = worker.free and worker.alive and not worker.gives_way and worker.jobs < JOBS_PER_WORKER
            if fit and len(self._idle) <= self._spare:
                self._idle.append(worker)
                return
            self._drop(worker)
            self._refill(self._spare)

    def _refill(self, count: int) -> None:
        """Start workers until `count` are idle; fewer where no more may be started, or can be."""
        while len(self._idle) < count and len(self._workers) < self._most and not self._closed:
            try:
                worker = _Worker(self._command, self._environ)
            except OSError as failure:  # too many open files, too little memory: it passes
                logger.error("no decoding process can be started: %s", failure.strerror)  # noqa: TRY400 - said whole
                return
            self._workers.add(worker)
            self._idle.append(worker)

    def _drop(self, worker: "_Worker") -> None:
        self._workers.discard(worker)
        worker.end()


class _Worker:
    """One process; used by one recording at a time."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
        )
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        assert self._process.stdout is not None  # noqa: S101 - as above
        self._channel = Channel(self._process.stdout, self._process.stdin)  # type: ignore[arg-type]
        self.jobs = 0
        self._up = False
        self.free = True
        self.answered = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def gives_way(self) -> bool:
        """Whether it has taken so long for an upload that all others go first; see `decoder_worker.NICENESS`."""
        if sys.platform == "win32":
            return False
        return os.getpriority(os.PRIO_PROCESS, self.pid) > os.getpriority(os.PRIO_PROCESS, 0)

    def end(self) -> int | None:
        """End the process and return its exit status, a signal's as a negative number."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that closed its pipes is about to end by itself, for a reason worth knowing.
            self._process.wait(0.2 if not self.free else 0)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()
        return self._process.returncode

    def decode(self, source: IO[bytes], max_seconds: float, language: str | None) -> Decoding:
        """Yield blocks as `Pool.blocks` does.

        Raises:
            EOFError, OSError: the process died, or does not speak as agreed.

        """
        if not self._up:
            self._expect(b"U", self._channel.receive())
            self._up = True
        self.jobs += 1
        self.answered = False
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        self._ask(b"O", OPENING.pack(max_seconds, size, (language or "").encode()) + source.read(READ_BYTES))
        while (answer := self._answer(source))[0] == b"S":
            yield _samples(answer[1])
            self._ask(b"N")
        if answer[0] == b"F":
            raise _failure(answer[1])
        self._expect(b"E", answer)

    def _ask(self, kind: bytes, payload: bytes = b"") -> None:
        self.free = False
        self._channel.send(kind, payload)

    def _answer(self, source: IO[bytes]) -> tuple[bytes, bytes]:
        """Return the next message that is not a request for more of the upload."""
        while (message := self._channel.receive())[0] == b"R":
            offset, size = REQUEST.unpack(message[1])
            source.seek(offset)
            self._channel.send(b"D", source.read(min(size, READ_BYTES)))
            self.answered = True
        self.free = self.answered = True
        return message

    @staticmethod
    def _expect(kind: bytes, message: tuple[bytes, bytes]) -> None:
        if message[0] != kind:
            raise EOFError


def _failure(payload: bytes) -> InvalidRequest:
    """Return the error that a worker reports.

    Raises:
        EOFError: it is not one.

    """
    try:
        said = json.loads(payload)
        message, param, code = said["message"], said.get("param"), said.get("code")
    except (ValueError, TypeError, KeyError, AttributeError) as failure:
        raise EOFError from failure
    return UnreadableAudio() if message is None else InvalidRequest(str(message), param=param, code=code)
