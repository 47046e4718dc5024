"""Bytes of any container to 16 kHz mono samples. The only importer of PyAV; runs in a worker process.

It does without NumPy, so that a worker starts in a fifth of a second and takes little memory.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from operator import add, sub
from typing import Any, Protocol

import av
import av.error
import av.logging

# PyAV imports these only when it meets a subtitle track, and a confined worker cannot read their files any more.
import av.subtitles.codeccontext
import av.subtitles.stream
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.stream import Disposition

from localwhisper_client.shared import languages
from localwhisper_server.errors import InvalidRequest, UnreadableAudio

SAMPLE_RATE = 16_000  # as types.SAMPLE_RATE, whose module imports NumPy
SAMPLE_BYTES = 2
MIN_SECONDS = 0.1  # OpenAI's limit
# Frames of 20 ms are joined before they are resampled: that takes half the time.
BLOCK_SAMPLES = 48_000
# A gap in the timestamps becomes silence if it is longer than this, as in FFmpeg's `aresample=async`.
LEAST_GAP_SECONDS = 0.1
LONGEST_GAP_SECONDS = 24 * 3600.0
# The timestamps of MPEG streams and of Ogg may restart. There, a longer gap is a restart, as for the ffmpeg tool.
LONGEST_JUMP_SECONDS = 10.0
TS_DISCONT = 0x0200  # FFmpeg's flag of such formats
# Formats without timestamps: FFmpeg counts their packets, for some codecs wrongly.
NO_TIMESTAMPS = ("avi",)
# Timestamps that go back by more than this have restarted; by less, they are only imprecise.
RESTART_SECONDS = 1.0
# If the sum of two channels has less than this part of the power of their difference, they cancel each other.
CANCELLED = 0.25
# Power is estimated from every 37th sample, which is fast enough in plain Python.
STEP = 37
SAMPLE_CODES = {"u8": "B", "s16": "h", "s32": "i", "s64": "q", "flt": "f", "dbl": "d"}
# Each track without sound costs one pass over the file.
MOST_TRACKS = 8
# The containers that are accepted, by FFmpeg's names: those it recognises by their bytes. FFmpeg's other demuxers read
# playlists, pictures, subtitles and devices; some would open files of this machine, or connect to others.
CONTAINERS = (
    *("aa", "aac", "ac3", "adx", "aea", "aiff", "alp", "amr", "amrnb", "amrwb", "ape", "apm", "argo_asf", "asf"),
    *("asf_o", "ast", "au", "avi", "caf", "dsf", "dts", "dtshd", "eac3", "film_cpk", "flac", "flv", "gxf", "iff"),
    *("ilbc", "ircam", "kvag", "live_flv", "loas", "matroska", "mlp", "mmf", "mov", "mp3", "mpc", "mpc8", "mpeg"),
    *("mpegts", "mxf", "nistsphere", "nut", "ogg", "oma", "qcp", "rm", "roq", "shn", "smjpeg", "sox", "spdif", "swf"),
    *("tak", "truehd", "tta", "voc", "w64", "wav", "wsaud", "wtv", "wv", "xwma"),
)


def _decodes_sound(name: str) -> bool:
    try:
        return Codec(name, "r").type == "audio"
    except UnknownCodecError:  # there is only an encoder
        return False


# FFmpeg recognises any other format and refuses it before it opens what the format refers to. All audio codecs are
# allowed and no video codecs, so that a film costs no more than its sound.
ALLOWED = {
    "format_whitelist": ",".join(CONTAINERS),
    "codec_whitelist": ",".join(sorted(filter(_decodes_sound, av.codecs_available))),
    "protocol_whitelist": "none",
}


class Source(Protocol):
    """A file that FFmpeg reads. In a worker it has no name, whose ending FFmpeg would trust."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move as files do."""
        ...

    def tell(self) -> int:
        """Return the position."""
        ...


def pcm(source: Source, *, max_seconds: float, language: str | None = None) -> Iterator[bytes]:
    """Decode one audio track of `source` (seekable, read from its start), a few seconds at a time.

    Yields signed 16-bit samples at 16 kHz, mono, in native byte order. FFmpeg recognises the container by its bytes;
    the file's name, its content type and the duration in its header are ignored. Of several tracks, the first in
    `language` (a Whisper code) is taken, else the default track, else the first; a track without sound is skipped. Time
    runs from the container's start: a track that begins later, and gaps in its timestamps, become silence unless
    `max_seconds` would be exceeded. Damaged packets are skipped, as players do, if others can be decoded.

    Raises:
        UnreadableAudio: no audio track, no accepted container, or nothing that can be decoded.
        InvalidRequest: a codec without a decoder; shorter than 0.1 s; longer than `max_seconds` (raised as early as
            possible).

    """
    count = 0
    try:
        for part in _decoded(source, max_seconds, language):
            count += len(part) // SAMPLE_BYTES
            _check_length(count / SAMPLE_RATE, max_seconds)
            yield part
    # PyAV raises ValueError for an option or a stream that it cannot handle.
    except (av.error.FFmpegError, ValueError, MemoryError) as failure:
        raise UnreadableAudio from failure
    if count < MIN_SECONDS * SAMPLE_RATE:
        raise InvalidRequest(
            "Audio file is too short. Minimum audio length is 0.1 seconds.", param="file", code="audio_too_short"
        )


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise InvalidRequest(
            f"audio duration {seconds:.2f} seconds is longer than {max_seconds:g} seconds which is the maximum for "
            "this server",
            code="invalid_value",
        )


def _opened(source: Source) -> "av.container.InputContainer":
    source.seek(0)
    return av.open(source, mode="r", metadata_errors="ignore", container_options=ALLOWED)


def _decoded(source: Source, max_seconds: float, language: str | None) -> Iterator[bytes]:
    """Yield the sound of the first track, in order of preference, that has any sound."""
    tried: set[int] = set()
    while len(tried) < MOST_TRACKS:
        with _opened(source) as container:
            tracks = _by_preference(container, language)
            left = [track.index for track in tracks if track.index not in tried and _has_decoder(track)]
            if not left:
                break
            tried.add(left[0])
            if (container.duration or 0) / av.time_base > max_seconds:
                # The header may be wrong. Counting packets is a hundred times faster than decoding ten hours.
                _check_length(_seconds_in_packets(source, left[0], max_seconds), max_seconds)
            parts = _resampled(container, left[0], max_seconds)
            if first := next(parts, None):
                yield first
                yield from parts
                return
    raise UnreadableAudio if tried or not tracks else _unknown_codec(source)


def _seconds_in_packets(source: Source, index: int, max_seconds: float) -> float:
    """Add up the durations of a track's packets until they exceed `max_seconds`; keep the position of `source`."""
    before = source.tell()
    with _opened(source) as container:
        track, ticks = container.streams[index], 0
        unit = float(track.time_base or 0)
        most = max_seconds / unit if unit else float("inf")
        for packet in container.demux(track):
            ticks += packet.duration or 0
            if ticks > most:
                break
    source.seek(before)
    return ticks * unit


def _by_preference(container: "av.container.InputContainer", language: str | None) -> list["av.AudioStream"]:
    return sorted(
        container.streams.audio,
        key=lambda track: (
            not language or languages.whisper_code(track.metadata.get("language", "")) != language,
            not track.disposition & Disposition.default,
        ),
    )


def _has_decoder(track: "av.AudioStream") -> bool:
    context: object | None = track.codec_context  # PyAV's type says that it is never None
    return context is not None


def _unknown_codec(source: Source) -> InvalidRequest:
    """Return the error for a codec without a decoder. FFmpeg tells the codec's name only in its log."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as lines, _opened(source):
            said = "".join(message for _, _, message in lines)
    finally:
        av.logging.set_level(before)
    name = re.search(r"\(Audio: (?:none )?([^,]{1,64}?)(?:,|: )", said)
    return InvalidRequest(
        f"Unsupported audio codec {name[1] if name else 'in this file'}",
        param="file",
        code="unsupported_value",
    )


def _resampled(container: "av.container.InputContainer", index: int, max_seconds: float) -> Iterator[bytes]:
    """Yield 16-bit samples at 16 kHz, mono, with silence for the gaps in the timestamps."""
    mono = _Mono()
    timestamps = container.format.name not in NO_TIMESTAMPS
    longest = LONGEST_JUMP_SECONDS if container.format.flags & TS_DISCONT else LONGEST_GAP_SECONDS
    start, given = (container.start_time or 0) / av.time_base, 0.0
    for packet in container.demux(container.streams[index]):
        try:
            frames: list[Any] = packet.decode()
        except av.error.FFmpegError:
            continue  # a damaged packet; the next may be whole
        for frame in frames:
            gap = frame.time - start - given if timestamps and frame.time is not None else 0.0
            most = min(max_seconds - given, longest if given else LONGEST_GAP_SECONDS)
            if LEAST_GAP_SECONDS < gap <= most:
                yield from mono.end()
                yield from _silence(gap)
                given += gap
            elif gap > LEAST_GAP_SECONDS or gap < -RESTART_SECONDS:
                start += gap  # the timestamps have restarted
            given += frame.samples / frame.sample_rate
            yield from mono.write(frame)
    yield from mono.end()


def _silence(seconds: float) -> Iterator[bytes]:
    left = round(seconds * SAMPLE_RATE)
    while left > 0:
        yield bytes(min(left, BLOCK_SAMPLES) * SAMPLE_BYTES)
        left -= BLOCK_SAMPLES


class _Mono:
    """Converts frames of any format to 16-bit samples at 16 kHz, mono."""

    def __init__(self) -> None:
        self._joined = av.AudioFifo()
        self._resampler: av.AudioResampler | None = None
        self._joined_format: tuple[str, str, int] | None = None
        self._resampled_format: tuple[str, str, int] | None = None

    def write(self, frame: av.AudioFrame) -> Iterator[bytes]:
        """Take a frame; yield what is ready."""
        if _format(frame) != self._joined_format:  # files joined end to end change their format in the middle
            yield from self.end()
            self._joined_format = _format(frame)
        frame.pts = None  # the resampler would refuse timestamps with gaps
        self._joined.write(frame)
        if self._joined.samples >= BLOCK_SAMPLES:
            yield from self._resample(self._joined.read())

    def end(self) -> Iterator[bytes]:
        """Yield the remaining samples; the next frame may have another format."""
        if self._joined.samples:
            yield from self._resample(self._joined.read())
        yield from self._resample(None)
        self._joined, self._joined_format = av.AudioFifo(), None

    def _resample(self, frame: av.AudioFrame | None) -> Iterator[bytes]:
        if frame is not None:
            frame = _mixable(frame)
        if (form := _format(frame) if frame else None) != self._resampled_format:
            if self._resampler is not None:
                yield from _samples(self._resampler.resample(None))
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE) if frame else None
            self._resampled_format = form
        if frame is not None and self._resampler is not None:
            yield from _samples(self._resampler.resample(frame))


def _format(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _samples(frames: list[av.AudioFrame]) -> Iterator[bytes]:
    for frame in frames:
        # A plane is longer than its samples.
        yield bytes(frame.planes[0])[: frame.samples * SAMPLE_BYTES]


def _mixable(frame: av.AudioFrame) -> av.AudioFrame:
    """Return the frame, or only its loudest channel if a mix of the channels would lose sound."""
    stereo = frame.layout.nb_channels == 2  # noqa: PLR2004 - which is what stereo means
    # If the channels have no positions, FFmpeg mixes six microphones of a recorder as 5.1 surround sound and leaves one
    # out; it does not mix more than eight.
    if not stereo and not frame.layout.name.endswith(" channels"):
        return frame
    channels = _channels(frame)
    middle = 128 if channels[0].typecode == "B" else 0
    estimates = [[value - middle for value in channel[::STEP]] for channel in channels]
    if stereo and _power(map(add, *estimates)) >= CANCELLED * _power(map(sub, *estimates)):
        return frame
    powers = [_power(values) for values in estimates]
    alone = av.AudioFrame(format=frame.format.packed.name, layout="mono", samples=frame.samples)
    alone.sample_rate = frame.sample_rate
    alone.planes[0].update(channels[powers.index(max(powers))].tobytes())
    return alone


def _channels(frame: av.AudioFrame) -> list["array[Any]"]:
    form, count = frame.format, frame.layout.nb_channels
    code: Any = SAMPLE_CODES[form.packed.name]
    size = frame.samples * form.bytes * (1 if form.is_planar else count)  # a plane is longer than its samples
    planes = [array(code, bytes(plane)[:size]) for plane in frame.planes]
    return planes if form.is_planar else [planes[0][number::count] for number in range(count)]


def _power(values: Iterable[float]) -> float:
    return sum(value * value for value in values)
