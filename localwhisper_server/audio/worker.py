"""The confined process that decodes: uploads come and samples go as messages over a socket, its standard input.

Once confined, the process has no file but that socket, cannot open another, and writes none. The kernel limits its
memory and its processor time, and ends it if it takes more. It has no settings, no keys and no file names of the
server. It asks for the bytes of an upload as FFmpeg reads them.

A message is a letter and a payload, framed as `multiprocessing.connection` does.

    to the worker    O  open an upload: maximum of seconds (f64), size (u64), language or zeros (8 bytes), then the
                        first bytes; ends the upload before it
                     N  next: send more samples
                     D  data: the bytes that the worker asked for
    from the worker  U  up: ready for uploads; sent once
                     R  read: offset (u64), length (u32)
                     S  samples, up to READ_BYTES: 16-bit, mono, 16 kHz, native byte order; then it waits for N or O
                     E  end of the samples
                     F  failure: JSON with `message`, `param`, `code`; `message` is null if the upload is not audio
"""

import contextlib
import io
import json
import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator

from localwhisper_server.audio import decoding
from localwhisper_server.errors import InvalidRequest, UnreadableAudio

LENGTH = struct.Struct("!i")
OPENING = struct.Struct("<dQ8s")
REQUEST = struct.Struct("<QI")
# How much of an upload is sent with O, and asked for with R: most voice messages fit into the first message. Samples
# are sent in blocks of this size too, 8 s.
READ_BYTES = 1 << 18
# The server rejects a longer message: a worker that an attacker controls must not fill the server's memory.
LONGEST_MESSAGE = 1 << 20

MEMORY_BYTES = 512 << 20
# Processor time for an upload: GRACE_SECONDS, and a second for each SLOWEST seconds of audio.
SLOWEST = 20.0
GRACE_SECONDS = 10
STUCK_SECONDS = 600  # of real time, for one block; a decoder of low priority may take long
# After so much processor time for one upload, the process lowers its priority, below the model and the decoders of
# short recordings. It cannot raise it again, so the pool then gives it no other upload.
PROMPT_SECONDS = 0.3
NICENESS = 15

Pcm = Callable[..., Iterator[bytes]]
"""Decodes an upload; see `decoding.pcm`."""


class Server:
    """The worker's end of the server's `multiprocessing.connection.Connection`; that module is slow to import."""

    def __init__(self, descriptor: int) -> None:
        self._incoming = open(descriptor, "rb", closefd=False)  # noqa: SIM115 - for as long as the process lives
        self._outgoing = open(descriptor, "wb", closefd=False)  # noqa: SIM115 - as above

    def send_bytes(self, message: bytes) -> None:
        """Send one message; raise OSError if the server is gone."""
        self._outgoing.write(LENGTH.pack(len(message)) + message)
        self._outgoing.flush()

    def recv_bytes(self) -> bytes:
        """Return the next message; raise EOFError if the server is gone."""
        head = self._incoming.read(LENGTH.size)
        message = self._incoming.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
        if not message:
            raise EOFError
        return message


class Upload:
    """An upload of `size` bytes that begins with `head`, as a file to read; asks the server for the other bytes."""

    def __init__(self, server: "Server", size: int, head: bytes) -> None:
        self._server = server
        self._size = size
        self._held, self._offset = head, 0  # a part of the upload, and where it begins
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, perhaps fewer; none at the end."""
        if size < 0:
            size = self._size
        size = min(size, READ_BYTES, self._size - self._position)
        if size <= 0:
            return b""
        at = self._position - self._offset
        if not 0 <= at < len(self._held):
            self._server.send_bytes(b"R" + REQUEST.pack(self._position, READ_BYTES))
            self._held = self._server.recv_bytes()[1:]
            self._offset, at = self._position, 0
        data = self._held[at : at + size]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move as files do, but never before the start."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


class TimeLimit:
    """Limits the processor time of an upload in proportion to its audio; the kernel ends a process that takes more."""

    def begin(self) -> None:
        """Begin to count for a new upload."""
        self._started = time.process_time()
        signal.signal(signal.SIGPROF, lambda *_: os.nice(NICENESS))
        signal.setitimer(signal.ITIMER_PROF, PROMPT_SECONDS)
        self.allow(0.0)

    def allow(self, seconds: float) -> None:
        """Allow the time for `seconds` of audio so far, and for the next block."""
        until = int(self._started + GRACE_SECONDS + seconds / SLOWEST) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        signal.alarm(STUCK_SECONDS)

    def pause(self) -> None:
        """Stop counting real time while the worker waits for the server."""
        signal.alarm(0)


def serve(server: "Server", limit: TimeLimit, pcm: Pcm = decoding.pcm) -> None:
    """Decode upload after upload until the server closes its end."""
    try:
        server.send_bytes(b"U")
        message = server.recv_bytes()
        while message.startswith(b"O"):
            message = _decode(server, limit, message[1:], pcm) or server.recv_bytes()
    except (EOFError, OSError):
        return


def _decode(server: "Server", limit: TimeLimit, opening: bytes, pcm: Pcm) -> bytes | None:
    """Decode one upload; return the message with which the server ended it early, if it did."""
    max_seconds, size, language = OPENING.unpack_from(opening)
    source = Upload(server, size, opening[OPENING.size :])
    seconds = 0.0
    limit.begin()
    try:
        for block in _blocks(pcm(source, max_seconds=max_seconds, language=language.rstrip(b"\0").decode())):
            limit.pause()
            server.send_bytes(b"S" + block)
            message = server.recv_bytes()
            if message != b"N":
                return message
            seconds += len(block) / decoding.SAMPLE_BYTES / decoding.SAMPLE_RATE
            limit.allow(seconds)
    except UnreadableAudio:
        failure: dict[str, str | None] | None = {"message": None}
    except InvalidRequest as refusal:
        failure = {"message": refusal.message, "param": refusal.param, "code": refusal.code}
    except (EOFError, OSError):
        raise
    except Exception:  # noqa: BLE001 - the fault is the upload's
        failure = {"message": None}
    else:
        failure = None
    limit.pause()
    server.send_bytes(b"F" + json.dumps(failure).encode() if failure else b"E")
    return None


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in blocks of READ_BYTES."""
    held = b""
    for part in parts:
        held += part
        while len(held) >= READ_BYTES:
            yield held[:READ_BYTES]
            held = held[READ_BYTES:]
    if held:
        yield held


def warm_up() -> None:
    """Decode half a second of silence, so that every library is loaded before `confine` forbids to open files."""
    frames = bytes(decoding.SAMPLE_RATE)
    form = struct.pack("<HHIIHH", 1, 1, decoding.SAMPLE_RATE, decoding.SAMPLE_RATE * 2, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(frames)) + frames
    for _ in decoding.pcm(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body), max_seconds=1.0):
        pass


def confine() -> None:  # pragma: no cover - a confined process cannot write its coverage down
    """Forbid new files and sockets, writing to files and core dumps, and limit the memory; there is no way back."""
    for limit, value in (
        (resource.RLIMIT_NOFILE, 3),  # 0, 1 and 2 are taken
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, MEMORY_BYTES),
    ):
        with contextlib.suppress(OSError, ValueError):  # not every kernel has all of them
            resource.setrlimit(limit, (value, value))


def main() -> None:  # pragma: no cover - as above
    """Serve on the process's own standard input."""
    # Only the server ends this process, by closing its input or by killing it. Ctrl-C reaches every process of a
    # terminal, but the server lets open requests finish, and they need their decoders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = Server(0)
    warm_up()
    confine()
    serve(server, TimeLimit())
    os._exit(0)  # skip the interpreter's cleanup, which may open files
