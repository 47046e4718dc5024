"""What runs in a decoding process: uploads come as messages on standard input, samples go out on standard output.

The process is FFmpeg's cage. It has no file but its two pipes and cannot open another, it writes nowhere, its memory
and time are counted by the kernel, which ends it where it takes too much, and it knows nothing of the server: no
settings, no keys, no file names. The bytes of an upload reach it as it asks for them.

A message is a letter, its payload's length as an unsigned 32-bit little-endian number, and the payload.

    to the worker    O  open: maximum of seconds (f64), size (u64), language or zeros (8 bytes), then the first bytes;
                        drops what was open
                     N  go on
                     D  the bytes that were asked for
    from the worker  U  up: ready for work, once
                     R  asks for bytes: offset (u64), length (u32)
                     S  samples: 16-bit, mono, 16 kHz, this machine's byte order; it waits for N or O
                     E  that was all
                     F  failure: JSON with `message`, `param`, `code`; `message` is null for what is not audio
"""

import contextlib
import io
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

from localwhisper_server.audio import decoding
from localwhisper_server.errors import InvalidRequest, UnreadableAudio

if sys.platform != "win32":
    import resource

HEADER = struct.Struct("<cI")
OPENING = struct.Struct("<dQ8s")
REQUEST = struct.Struct("<QI")
# What is sent along unasked, and asked for at a time: most voice messages need no second message.
READ_BYTES = 1 << 18
# Neither side believes in a longer message: a worker that was taken over must not fill the server's memory.
LONGEST_MESSAGE = 1 << 20

MEMORY_BYTES = 512 << 20
# A decoder may be this slow, and begin this late, in seconds of processor time.
SLOWEST = 20.0  # times the speed of sound
GRACE_SECONDS = 10
STUCK_SECONDS = 600  # by the clock, for one block; a decoder that gives way to others may take long
# After so many seconds of processor time for one upload, the process gives way to all others: to the model, and to the
# decoders of short recordings. It cannot take that back, so the server gives it no other upload.
PROMPT_SECONDS = 0.3
NICENESS = 15


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
            EOFError: the other side is gone, or sends what is no message.

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


class _Upload:
    """An upload as a file to read, whose bytes are asked for as they are needed."""

    def __init__(self, channel: Channel, size: int, head: bytes) -> None:
        self._channel = channel
        self._size = size
        self._held, self._offset = head, 0  # a stretch of it, and where that begins
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
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
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position


class Clock:
    """Allows a decoder processor time in proportion to what it gives; the kernel ends the process that takes more."""

    def begin(self) -> None:
        """Start an upload's account."""
        self._started = time.process_time()
        if sys.platform != "win32":
            signal.signal(signal.SIGPROF, lambda *_: os.nice(NICENESS))
            signal.setitimer(signal.ITIMER_PROF, PROMPT_SECONDS)
        self.allow(0.0)

    def allow(self, seconds: float) -> None:
        """Allow what `seconds` of sound so far may cost, and the next block its time."""
        if sys.platform != "win32":  # which has no such limits
            until = int(self._started + GRACE_SECONDS + seconds / SLOWEST) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
            signal.alarm(STUCK_SECONDS)

    def rest(self) -> None:
        """Stop the clock while the server does not ask for more."""
        if sys.platform != "win32":
            signal.alarm(0)


def serve(channel: Channel, clock: Clock) -> None:
    """Decode upload after upload until the server closes its end."""
    try:
        channel.send(b"U")
        message = channel.receive()
        while True:
            if message[0] != b"O":
                return  # nothing else makes sense here
            message = _decode(channel, clock, message[1]) or channel.receive()
    except (EOFError, OSError):
        return


def _decode(channel: Channel, clock: Clock, opening: bytes) -> tuple[bytes, bytes] | None:
    """Decode one upload; returns the message by which the server dropped it, if it did."""
    max_seconds, size, language = OPENING.unpack_from(opening)
    source = _Upload(channel, size, opening[OPENING.size :])
    seconds = 0.0
    clock.begin()
    try:
        for part in decoding.pcm(source, max_seconds=max_seconds, language=language.rstrip(b"\0").decode()):
            for start in range(0, len(part), READ_BYTES):
                samples = part[start : start + READ_BYTES]
                clock.rest()
                channel.send(b"S", samples)
                message = channel.receive()
                if message[0] != b"N":
                    return message
                seconds += len(samples) / decoding.SAMPLE_BYTES / decoding.SAMPLE_RATE
                clock.allow(seconds)
    except UnreadableAudio:
        failure: dict[str, str | None] | None = {"message": None}
    except InvalidRequest as refusal:
        failure = {"message": refusal.message, "param": refusal.param, "code": refusal.code}
    except (EOFError, OSError):
        raise
    except Exception:  # noqa: BLE001 - whatever it is, it is the upload's
        failure = {"message": None}
    else:
        failure = None
    clock.rest()
    channel.send(b"F" if failure else b"E", json.dumps(failure).encode() if failure else b"")
    return None


def warm_up() -> None:
    """Decode a moment of silence, so that everything is loaded before the cage closes and the first upload comes."""
    frames = bytes(decoding.SAMPLE_RATE)
    form = struct.pack("<HHIIHH", 1, 1, decoding.SAMPLE_RATE, decoding.SAMPLE_RATE * 2, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(frames)) + frames
    for _ in decoding.pcm(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body), max_seconds=1.0):
        pass


def confine() -> None:  # pragma: no cover - what happens in there cannot be written down any more
    """Close the cage: no new file or socket, no byte written to a file, no core, so much memory and no more."""
    if sys.platform != "win32":
        for limit, value in (
            (resource.RLIMIT_NOFILE, 3),  # 0, 1 and 2 are taken
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_DATA, MEMORY_BYTES),
        ):
            with contextlib.suppress(OSError, ValueError):  # a kernel may know some and not others
                resource.setrlimit(limit, (value, value))


def main(confine: Callable[[], None] = confine) -> None:  # pragma: no cover - as above
    """Serve on the process's own standard input and output."""
    # The server ends this process, by closing its input or by killing it; a signal to all must not, or a stop that
    # lets requests finish would take their decoders away.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(sys.stdin.buffer, sys.stdout.buffer)
    sys.stdout = sys.stderr  # a stray print must not end up among the messages
    warm_up()
    confine()
    serve(channel, Clock())
    os._exit(0)  # nothing is left to be tidied up


if __name__ == "__main__":  # pragma: no cover - as above
    main()
