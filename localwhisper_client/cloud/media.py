"""What must be known of a file itself: how big it is, how long it plays, and how to make it small enough for the cloud.

The client needs none of this to work. PyAV does both where it is installed (extra `[transcode]`, and part of
`[server]`); tinytag, which is small, tells the length of most formats (extra `[ledger]`). Without either, a length is
unknown. All of it blocks.
"""

from __future__ import annotations

import io
import math
import os
from typing import IO, Any

RATE = 16_000
BITS_PER_SECOND = 24_000
"""Opus at this rate is transparent to speech recognition, and puts two hours and more into 25 MB."""
# Fewer bytes than a second takes in any speech codec in use: Opus in Ogg has about 26 for pure silence.
_LEAST_BYTES_PER_SECOND = 25


class Unreadable(Exception):
    """PyAV cannot read the file as audio."""


def size(content: Any) -> int:
    """Return the bytes of a file's content: bytes, or an open file that can be rewound."""
    if isinstance(content, (bytes, bytearray, memoryview)):
        return len(content)
    if isinstance(content, str):
        return len(content.encode())
    before = content.tell()
    try:
        return int(content.seek(0, os.SEEK_END) or content.tell())
    finally:
        content.seek(before)


def most_seconds(content: Any) -> float:
    """Return a length that audio of this size does not exceed, in the codecs that people record speech with."""
    return size(content) / _LEAST_BYTES_PER_SECOND


def counted(content: Any) -> float | None:
    """Return how long the audio plays, by counting all of its packets; `None` without PyAV, or where it finds none.

    Headers, page positions and time stamps may be wrong, by accident (joined recordings) or by design.
    """
    try:
        import av  # noqa: PLC0415 - an extra

        lengths: dict[int, _Length] = {}
        with av.open(_opened(content)) as source:
            for packet in source.demux(source.streams.audio):
                lengths.setdefault(packet.stream.index, _Length()).add(packet)
        return max((length.seconds for length in lengths.values()), default=0.0) or None
    except Exception:  # noqa: BLE001 - no library, or one at odds with the file
        return None


class _Length:
    """The length of one track: the longest of what its packets say, where they lie, and what they hold."""

    def __init__(self) -> None:
        self._said = self._held = 0.0
        self._first, self._last = math.inf, -math.inf

    def add(self, packet: Any) -> None:
        if not packet.size:  # the end of the file
            return
        base, codec = float(packet.time_base or 0), packet.stream.codec_context
        length = (packet.duration or 0) * base
        self._said += length
        self._held += codec.frame_size / codec.sample_rate if codec.sample_rate else 0.0
        if packet.pts is not None:
            self._first = min(self._first, packet.pts * base)
            self._last = max(self._last, packet.pts * base + length)

    @property
    def seconds(self) -> float:
        return max(self._said, self._held, self._last - self._first)


def seconds(content: Any) -> float | None:
    """Return how long the audio plays, by the file's own word; `None` where that cannot be had."""
    for measure in (_by_av, _by_tinytag):
        try:
            measured = measure(_opened(content))
        except Exception:  # noqa: BLE001 - a parser at odds with a file; the call matters, its length does not
            measured = None
        if measured is not None and measured > 0:
            return measured
    return None


def to_opus(content: Any) -> bytes:
    """Return the audio as 16 kHz mono Opus in Ogg, the whole of it in memory.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        Unreadable: it is no audio that PyAV knows.

    """
    import av  # noqa: PLC0415 - an extra

    target = io.BytesIO()
    try:
        with av.open(_opened(content)) as source, av.open(target, "w", format="ogg") as sink:
            out = sink.add_stream("libopus", rate=RATE, layout="mono")
            out.bit_rate = BITS_PER_SECOND
            resampler = av.AudioResampler("s16", "mono", RATE)
            for frame in source.decode(audio=0):
                # Joined recordings begin their clock anew; the encoder counts for itself.
                frame.pts = None
                for piece in resampler.resample(frame):
                    sink.mux(out.encode(piece))
            for piece in resampler.resample(None):
                sink.mux(out.encode(piece))
            sink.mux(out.encode(None))
    except (av.FFmpegError, IndexError) as error:
        raise Unreadable(str(error)) from error
    return target.getvalue()


def soundtrack(content: Any, target: IO[bytes]) -> IO[bytes] | None:
    """Write the sound of a film, as it is, into `target` as Matroska, and return that; `None` without a picture.

    All of its tracks, with their language; and of the picture the first frame, which keeps the film's clock: sound
    that begins after it begins as late in the copy.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        Unreadable: it is nothing that PyAV knows, or has no sound.

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
    """Return a file over the content that leaves the caller's own file where it is when it is closed."""
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, (bytes, bytearray, memoryview)):
        return io.BytesIO(content)
    content.seek(0)
    return _Borrowed(content)


class _Borrowed(io.RawIOBase):
    """Somebody else's file, read but not closed."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _by_av(file: Any) -> float | None:
    try:
        import av  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        return None
    with av.open(file) as source:
        if source.duration is not None:
            return float(source.duration) / float(av.time_base)
        # A recorder that streams, a browser's for one, writes no length; the packets tell.
        ends = (
            float((packet.pts + (packet.duration or 0)) * packet.time_base)
            for packet in source.demux(audio=0)
            if packet.pts is not None and packet.time_base is not None
        )
        return max(ends, default=None)


def _by_tinytag(file: Any) -> float | None:
    try:
        from tinytag import TinyTag  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        return None
    duration = TinyTag.get(file_obj=file, tags=False).duration
    return None if duration is None else float(duration)
