"""A media file itself: its size, its length, and how to make it small enough for the cloud.

The client works without any of this. PyAV (extra `[transcode]`, and part of `[server]`) measures and converts; tinytag
(extra `[ledger]`), which is small, measures most formats. Without either, a length is unknown.
Every function may block. `content` is bytes, text, or an open file that can be rewound, which is left open.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from typing import IO, Any

RATE = 16_000
BITS_PER_SECOND = 24_000
"""Opus at this rate costs speech recognition no accuracy, and 25 MB hold more than two hours of it."""
# Fewer bytes than a second takes in any speech codec in use: Opus in Ogg has about 26 for pure silence.
_LEAST_BYTES_PER_SECOND = 25


class Unreadable(Exception):
    """PyAV cannot read the file as audio."""


def size(content: Any) -> int:
    """Return the size in bytes."""
    opened = _opened(content)
    return int(opened.seek(0, os.SEEK_END) or opened.tell())


def billed_seconds(content: Any) -> tuple[float | None, float]:
    """Return how long the audio plays, and the most that the cloud could bill, both in seconds.

    The packets are counted, since a header may be wrong by any factor. Where they cannot be counted, the length is
    unknown (`None`), and the most follows from the file's size.
    """
    length = counted_seconds(content)
    return length, size(content) / _LEAST_BYTES_PER_SECOND if length is None else length + 1


def seconds(content: Any) -> float | None:
    """Return how long the audio plays, by its packets or else by tinytag; `None` if neither can tell."""
    if (counted := counted_seconds(content)) is not None:
        return counted
    try:
        from tinytag import TinyTag  # noqa: PLC0415 - an extra

        return TinyTag.get(file_obj=_opened(content), tags=False).duration or None
    except Exception:  # noqa: BLE001 - no library, or one that fails at this file
        return None


def counted_seconds(content: Any) -> float | None:
    """Return how long the audio plays, by counting all of its packets; `None` without PyAV, or if it finds none.

    Headers, page positions and time stamps may be wrong, by accident (joined recordings) or by intent.
    """
    try:
        import av  # noqa: PLC0415 - an extra

        tracks: dict[int, _Track] = {}
        with av.open(_opened(content)) as source:
            for packet in source.demux(source.streams.audio):
                tracks.setdefault(packet.stream.index, _Track()).add(packet)
        return max((track.seconds for track in tracks.values()), default=0.0) or None
    except Exception:  # noqa: BLE001 - no library, or one that fails at this file
        return None


@dataclass
class _Track:
    """The packets of one track, added up in three ways, each in seconds; the longest is believed."""

    durations: float = 0.0
    samples: float = 0.0
    first: float = math.inf
    last: float = -math.inf

    def add(self, packet: Any) -> None:
        if not packet.size:  # the end of the file
            return
        base, codec = float(packet.time_base or 0), packet.stream.codec_context
        length = (packet.duration or 0) * base
        self.durations += length
        self.samples += codec.frame_size / codec.sample_rate if codec.sample_rate else 0.0
        if packet.pts is not None:
            self.first = min(self.first, packet.pts * base)
            self.last = max(self.last, packet.pts * base + length)

    @property
    def seconds(self) -> float:
        return max(self.durations, self.samples, self.last - self.first)


def to_opus(content: Any) -> bytes:
    """Return the audio as 16 kHz mono Opus in Ogg, the whole of it in memory.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        Unreadable: PyAV finds no audio in it.

    """
    import av  # noqa: PLC0415 - an extra

    target = io.BytesIO()
    try:
        with av.open(_opened(content)) as source, av.open(target, "w", format="ogg") as sink:
            out = sink.add_stream("libopus", rate=RATE, layout="mono")
            out.bit_rate = BITS_PER_SECOND
            for frame in source.decode(audio=0):
                # Joined recordings begin their clock anew; the encoder counts for itself.
                frame.pts = None
                sink.mux(out.encode(frame))
            sink.mux(out.encode(None))
    except (av.FFmpegError, IndexError) as error:
        raise Unreadable(str(error)) from error
    return target.getvalue()


def soundtrack(content: Any, target: IO[bytes]) -> IO[bytes] | None:
    """Copy the sound of a film, not encoded again, into `target` as Matroska; return that, or `None` without a picture.

    All audio tracks are copied, with their languages. The first picture is copied too, because it keeps the film's
    clock: sound that begins after it begins as late in the copy.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        Unreadable: PyAV cannot read it, or it has no sound.

    """
    import av  # noqa: PLC0415 - an extra

    try:
        with av.open(_opened(content)) as source, av.open(target, "w", format="matroska") as sink:
            if not source.streams.video:
                return None
            if not source.streams.audio:
                raise Unreadable("no sound in it")
            tracks = [source.streams.video[0], *source.streams.audio]
            copies = {}
            for track in tracks:
                copy = copies[track.index] = sink.add_stream_from_template(track)
                copy.metadata.update(track.metadata)
                copy.disposition = track.disposition
            pictured = False
            for packet in source.demux(tracks):
                is_picture = packet.stream.type == "video"
                if packet.dts is None or (is_picture and pictured):
                    continue
                pictured = pictured or is_picture
                packet.stream = copies[packet.stream.index]
                sink.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        raise Unreadable(str(error)) from error
    target.seek(0)
    return target


def _opened(content: Any) -> Any:
    """Return a file over the content, at its beginning and without a name: FFmpeg would believe a name's ending."""
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, (bytes, bytearray, memoryview)):
        return io.BytesIO(content)
    content.seek(0)
    return _Nameless(content)


class _Nameless:
    """A file that is read, and has nothing else; neither PyAV nor tinytag can close it."""

    def __init__(self, file: Any) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
