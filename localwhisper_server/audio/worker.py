"""The confined process that decodes: uploads come as messages on standard input, samples go out on standard output.

Once confined, the process has no file but its pipes, cannot open another, and writes none. The kernel limits its memory
and its processor time, and ends it if it takes more. It has no settings, no keys and no file names of the server. It
asks for the bytes of an upload as FFmpeg reads them.

A message is a letter, the length of the payload as an unsigned 32-bit little-endian number, and the payload.

    to the worker    O  open an upload: maximum of seconds (f64), size (u64), language or zeros (8 bytes), then the
                        first bytes; ends the upload before it
                     N  next: send more samples
                     D  data: the bytes that the worker asked for
    from the worker  U  up: ready for uploads; sent once
                     R  read: offset (u64), length (u32)
                     S  samples: 16-bit, mono, 16 kHz, native byte order; the worker then waits for N or O
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
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from localwhisper_server.audio import decoding
from localwhisper_server.errors import InvalidRequest, UnreadableAudio

HEADER = struct.Struct("<cI")
OPENING = struct.Struct("<dQ8s")
REQUEST = struct.Struct("<QI")
# How much of an upload is sent with O, and asked for with R: most voice messages fit into the first message.
READ_BYTES = 1 << 18
# Both sides reject a longer message: a worker that an attacker controls must not fill the server's memory.
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


class Channel:
    """Messages over two byte streams."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send one message.

        Raises:
            OSError: the other side is gone.

        """
        self._outgoing.write(HEADER.pack(kind, len(payload)) + payload)
        self._outgoing.flush()

    def receive(self) -> tuple[bytes, bytes]:
        """Return the next message's letter and payload.

        Raises:
            EOFError: the other side is gone, or sent no valid message.

        """
        kind, length = HEADER.unpack(self._exactly(HEADER.size))
        if length > LONGEST_MESSAGE:
            raise EOFError
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = self._incoming.read(size)
        if len(data) < size:
            raise EOFError
        return data


class Upload:
    """An upload of `size` bytes that begins with `head`, as a file to read; asks the server for the other bytes."""

    def __init__(self, channel: Channel, size: int, head: bytes) -> None:
        self._channel = channel
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
            self._channel.send(b"R", REQUEST.pack(self._position, READ_BYTES))
            _, self._held = self._channel.receive()
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


def serve(channel: Channel, limit: TimeLimit, pcm: Pcm = decoding.pcm) -> None:
    """Decode upload after upload until the server closes its end."""
    try:
        channel.send(b"U")
        message = channel.receive()
        while True:
            if message[0] != b"O":
                return  # the server broke the protocol
            message = _decode(channel, limit, message[1], pcm) or channel.receive()
    except (EOFError, OSError):
        return


def _decode(channel: Channel, limit: TimeLimit, opening: bytes, pcm: Pcm) -> tuple[bytes, bytes] | None:
    """Decode one upload; return the message with which the server ended it early, if it did."""
    max_seconds, size, language = OPENING.unpack_from(opening)
    source = Upload(channel, size, opening[OPENING.size :])
    seconds = 0.0
    limit.begin()
    try:
        for part in pcm(source, max_seconds=max_seconds, language=language.rstrip(b"\0").decode()):
            for start in range(0, len(part), READ_BYTES):
                samples = part[start : start + READ_BYTES]
                limit.pause()
                channel.send(b"S", samples)
                message = channel.receive()
                if message[0] != b"N":
                    return message
                seconds += len(samples) / decoding.SAMPLE_BYTES / decoding.SAMPLE_RATE
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
    channel.send(b"F" if failure else b"E", json.dumps(failure).encode() if failure else b"")
    return None


def warm_up(pcm: Pcm = decoding.pcm) -> None:
    """Decode half a second of silence, so that every library is loaded before `confine` forbids to open files."""
    frames = bytes(decoding.SAMPLE_RATE)
    form = struct.pack("<HHIIHH", 1, 1, decoding.SAMPLE_RATE, decoding.SAMPLE_RATE * 2, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(frames)) + frames
    for _ in pcm(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body), max_seconds=1.0):
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
    """Serve on the process's own standard input and output."""
    # Only the server ends this process, by closing its input or by killing it. Ctrl-C reaches every process of a
    # terminal, but the server lets open requests finish, and they need their decoders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(sys.stdin.buffer, sys.stdout.buffer)
    sys.stdout = sys.stderr  # a stray print must not corrupt the messages
    warm_up()
    confine()
    serve(channel, TimeLimit())
    os._exit(0)  # skip the interpreter's cleanup, which may open files
