"""Bytes of any container to 16 kHz mono samples, under limits. The only importer of PyAV; runs in a worker process.

It imports no NumPy, so that a worker starts in a fifth of a second and weighs little.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from operator import add, sub
from typing import Any, Protocol

import av
import av.error
import av.logging

# PyAV imports these only when it meets a subtitle track, and a worker in its jail cannot read their files any more.
import av.subtitles.codeccontext
import av.subtitles.stream
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.stream import Disposition

from localwhisper_client.shared import languages
from localwhisper_server.errors import InvalidRequest, UnreadableAudio

SAMPLE_RATE = 16_000  # chunks.SAMPLE_RATE, which NumPy comes with
SAMPLE_BYTES = 2
MIN_SECONDS = 0.1  # OpenAI's own floor
# Frames of 20 ms are joined before they are resampled: half the time of doing each alone.
BLOCK_SAMPLES = 48_000
# A hole in the timestamps becomes silence from this length on, as in FFmpeg's `aresample=async`.
LEAST_GAP_SECONDS = 0.1
LONGEST_GAP_SECONDS = 24 * 3600.0
# The clock of MPEG streams and of Ogg may start anew; a longer hole there is no hole, as the ffmpeg tool has it.
LONGEST_JUMP_SECONDS = 10.0
TS_DISCONT = 0x0200  # FFmpeg's flag of such formats
# What has no clock: FFmpeg counts packets, and for some codecs wrongly.
CLOCKLESS = ("avi",)
# A clock that goes back by so much has started anew; by less, it is only imprecise.
RESTART_SECONDS = 1.0
# Stereo whose sum has less than this part of the power of its difference: the channels cancel each other.
CANCELLED = 0.25
# Power is estimated from every 37th sample, which plain Python has the time for.
STEP = 37
SAMPLE_CODES = {"u8": "B", "s16": "h", "s32": "i", "s64": "q", "flt": "f", "dbl": "d"}
# Each track that gives no sound costs a pass over the file.
MOST_TRACKS = 8
# What a recording may come in (FFmpeg's names): what can be told by its bytes. FFmpeg's other demuxers read playlists,
# pictures, subtitles and devices, some of which would open what they point at: our files, other machines.
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
    except UnknownCodecError:  # it only encodes
        return False


# FFmpeg refuses anything else after it has recognised it and before it opens it, whatever it points at. Of the codecs,
# every one of sound is allowed and none of pictures, so that a film costs no more than its sound.
ALLOWED = {
    "format_whitelist": ",".join(CONTAINERS),
    "codec_whitelist": ",".join(sorted(filter(_decodes_sound, av.codecs_available))),
    "protocol_whitelist": "none",
}


class Source(Protocol):
    """What FFmpeg reads an upload through. It has no name, since FFmpeg would believe its ending."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move, as files do."""
        ...

    def tell(self) -> int:
        """Return the position."""
        ...


class _Nameless:
    """A source without its name."""

    def __init__(self, source: Source) -> None:
        self.read = source.read
        self.seek = source.seek
        self.tell = source.tell


def pcm(source: Source, *, max_seconds: float, language: str | None = None) -> Iterator[bytes]:
    """Decode one audio track of `source` (seekable, read from its start), a few seconds at a time.

    Yields signed 16-bit samples at 16 kHz, mono, in this machine's byte order. The container is recognised by its
    bytes; names, content types and what it says of its length play no part. Of several tracks it takes one in
    `language` (a code of Whisper's), else the one marked as default, else the first; one that gives no sound is passed
    over. Time runs from the container's start: a track that begins later and holes in its timestamps give silence, as
    long as `max_seconds` is not exceeded by it. Damaged packets are skipped, as players do, as long as something
    remains.

    Raises:
        UnreadableAudio: no audio track, no allowed container, or nothing that can be decoded.
        InvalidRequest: a codec without a decoder; shorter than 0.1 s; or longer than `max_seconds` (noticed as soon as
            it shows).

    """
    count = 0
    try:
        for part in _decoded(source, max_seconds, language):
            count += len(part) // SAMPLE_BYTES
            _check_length(count / SAMPLE_RATE, max_seconds)
            yield part
    # ValueError: PyAV's word for an option or a stream it cannot make sense of.
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
    return av.open(_Nameless(source), mode="r", metadata_errors="ignore", container_options=ALLOWED)


def _decoded(source: Source, max_seconds: float, language: str | None) -> Iterator[bytes]:
    """Yield the sound of the first track, in order of preference, that has any."""
    tried: set[int] = set()
    while len(tried) < MOST_TRACKS:
        with _opened(source) as container:
            tracks = _by_preference(container, language)
            left = [track.index for track in tracks if track.index not in tried and _has_decoder(track)]
            if not left:
                break
            tried.add(left[0])
            if (container.duration or 0) / av.time_base > max_seconds:
                # It may be wrong. Counting packets is a hundred times faster than decoding ten hours to refuse them.
                _check_length(_seconds_in_packets(source, left[0], max_seconds), max_seconds)
            parts = _resampled(container, left[0], max_seconds)
            if first := next(parts, None):
                yield first
                yield from parts
                return
    raise UnreadableAudio if tried or not tracks else _unknown_codec(source)


def _seconds_in_packets(source: Source, index: int, max_seconds: float) -> float:
    """Add up how long a track's packets are, until that is more than `max_seconds`; leaves `source` where it is."""
    before = source.tell()
    with _opened(source) as container:
        track, ticks = container.streams[index], 0
        unit = float(track.time_base or 0)
        for packet in container.demux(track):
            ticks += packet.duration or 0
            if ticks * unit > max_seconds:
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
    context: object | None = track.codec_context  # typed as if it were never None
    return context is not None


def _unknown_codec(source: Source) -> InvalidRequest:
    """Return the error for sound that FFmpeg has no decoder for; it says the codec's name in its log alone."""
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
    """Yield pieces of 16 kHz mono, 16-bit, on the container's clock."""
    mono = _Mono()
    has_clock = container.format.name not in CLOCKLESS
    longest = LONGEST_JUMP_SECONDS if container.format.flags & TS_DISCONT else LONGEST_GAP_SECONDS
    start, given = (container.start_time or 0) / av.time_base, 0.0
    for packet in container.demux(container.streams[index]):
        try:
            frames: list[Any] = packet.decode()
        except av.error.FFmpegError:
            continue  # one damaged packet, by whichever name its decoder calls that; the next may be whole
        for frame in frames:
            gap = frame.time - start - given if has_clock and frame.time is not None else 0.0
            most = min(max_seconds - given, longest if given else LONGEST_GAP_SECONDS)
            if LEAST_GAP_SECONDS < gap <= most:
                yield from mono.end()
                yield from _silence(gap)
                given += gap
            elif gap > LEAST_GAP_SECONDS or gap < -RESTART_SECONDS:
                start += gap  # another clock from here on
            given += frame.samples / frame.sample_rate
            yield from mono.write(frame)
    yield from mono.end()


def _silence(seconds: float) -> Iterator[bytes]:
    left = round(seconds * SAMPLE_RATE)
    while left > 0:
        yield bytes(min(left, BLOCK_SAMPLES) * SAMPLE_BYTES)
        left -= BLOCK_SAMPLES


class _Mono:
    """Frames of any kind to 16 kHz mono, 16-bit."""

    def __init__(self) -> None:
        self._joined = av.AudioFifo()
        self._resampler: av.AudioResampler | None = None
        self._kinds: list[tuple[str, str, int] | None] = [None, None]  # of what is joined, and of what is resampled

    def write(self, frame: av.AudioFrame) -> Iterator[bytes]:
        """Take a frame; yield what is ready."""
        if _kind(frame) != self._kinds[0]:  # files joined end to end change their kind in the middle
            yield from self.end()
            self._kinds[0] = _kind(frame)
        frame.pts = None  # the resampler would refuse what does not follow on
        self._joined.write(frame)
        if self._joined.samples >= BLOCK_SAMPLES:
            yield from self._resample(self._joined.read())

    def end(self) -> Iterator[bytes]:
        """Yield all that is left; what is written after that begins anew."""
        if self._joined.samples:
            yield from self._resample(self._joined.read())
        yield from self._resample(None)
        self._joined, self._kinds[0] = av.AudioFifo(), None

    def _resample(self, frame: av.AudioFrame | None) -> Iterator[bytes]:
        if frame is not None:
            frame = _mixable(frame)
        if (kind := _kind(frame) if frame else None) != self._kinds[1]:
            if self._resampler is not None:
                yield from _samples(self._resampler.resample(None))
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE) if frame else None
            self._kinds[1] = kind
        if frame is not None and self._resampler is not None:
            yield from _samples(self._resampler.resample(frame))


def _kind(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _samples(frames: list[av.AudioFrame]) -> Iterator[bytes]:
    for frame in frames:
        # A plane is longer than what is in it.
        yield bytes(frame.planes[0])[: frame.samples * SAMPLE_BYTES]


def _mixable(frame: av.AudioFrame) -> av.AudioFrame:
    """Return the frame, or its loudest channel alone where a mix of its channels would lose the sound."""
    stereo = frame.layout.nb_channels == 2  # noqa: PLR2004 - which is what stereo means
    # Where nothing tells the channels' places, FFmpeg takes a recorder's six microphones for a cinema's loudspeakers,
    # and leaves out the bass; more than eight it does not mix at all.
    if not stereo and not frame.layout.name.endswith(" channels"):
        return frame
    channels = _channels(frame)
    middle = 128 if channels[0].typecode == "B" else 0
    looked_at = [[value - middle for value in channel[::STEP]] for channel in channels]
    if stereo and _power(map(add, *looked_at)) >= CANCELLED * _power(map(sub, *looked_at)):
        return frame
    powers = [_power(values) for values in looked_at]
    alone = av.AudioFrame(format=frame.format.packed.name, layout="mono", samples=frame.samples)
    alone.sample_rate = frame.sample_rate
    alone.planes[0].update(channels[powers.index(max(powers))].tobytes())
    return alone


def _channels(frame: av.AudioFrame) -> list["array[Any]"]:
    form, count = frame.format, frame.layout.nb_channels
    code: Any = SAMPLE_CODES[form.packed.name]
    size = frame.samples * form.bytes * (1 if form.is_planar else count)  # a plane is longer than what is in it
    planes = [array(code, bytes(plane)[:size]) for plane in frame.planes]
    return planes if form.is_planar else [planes[0][number::count] for number in range(count)]


def _power(values: Iterable[float]) -> float:
    return sum(value * value for value in values)
