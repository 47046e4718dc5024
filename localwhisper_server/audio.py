"""Bytes of any container to 16 kHz mono samples, under limits. The only importer of PyAV; runs in a worker process.

It imports no NumPy, so that a worker starts in a fifth of a second and weighs little.
"""

from collections.abc import Iterator
from typing import Protocol

import av
import av.error

from localwhisper_server.errors import InvalidRequest, UnreadableAudio

SAMPLE_RATE = 16_000  # chunks.SAMPLE_RATE, which NumPy comes with
SAMPLE_BYTES = 2
MIN_SECONDS = 0.1  # OpenAI's own floor
# Frames of 20 ms are joined before they are resampled: half the time of doing each alone.
BLOCK_SAMPLES = 48_000
# What a recording may come in (FFmpeg's names). FFmpeg's other demuxers read playlists, pictures, subtitles, games'
# archives and devices, some of which would open what they point at: our files, other machines.
CONTAINERS = (
    "aac",
    "ac3",
    "aiff",
    "amr",
    "amrnb",
    "amrwb",
    "asf",
    "au",
    "avi",
    "caf",
    "flac",
    "loas",
    "matroska",
    "mov",
    "mp3",
    "mpeg",
    "mpegts",
    "ogg",
    "w64",
    "wav",
)
# FFmpeg prefers its own decoders; the lib* names stand in for those on builds that lack them.
CODECS = (
    *("aac", "aac_latm", "ac3", "eac3", "alac", "flac", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float"),
    *("opus", "libopus", "vorbis", "libvorbis", "speex", "libspeex", "wmav1", "wmav2", "wmavoice", "wmapro"),
    *("amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "gsm", "gsm_ms", "libgsm", "libgsm_ms", "ilbc"),
    *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "adpcm_yamaha", "g722", "g726", "g726le"),
    *("pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8", "pcm_s16be", "pcm_s16le", "pcm_u16be", "pcm_u16le"),
    *("pcm_s24be", "pcm_s24le", "pcm_u24be", "pcm_u24le", "pcm_s32be", "pcm_s32le", "pcm_u32be", "pcm_u32le"),
    *("pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le"),
)
# FFmpeg refuses anything else after it has recognised it and before it opens it, whatever it points at.
ALLOWED = {
    "format_whitelist": ",".join(CONTAINERS),
    "codec_whitelist": ",".join(CODECS),
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


def pcm(source: Source, *, max_seconds: float) -> Iterator[bytes]:
    """Decode the first audio stream of `source` (seekable, read from its start), a few seconds at a time.

    Yields signed 16-bit samples at 16 kHz, mono, in this machine's byte order. The container is recognised by its
    bytes; names and content types play no part. Damaged packets are skipped, as players do, as long as something
    remains.

    Raises:
        UnreadableAudio: no audio stream, none in an allowed container and codec, or nothing that can be decoded.
        InvalidRequest: shorter than 0.1 s, or longer than `max_seconds` (noticed as soon as it shows).

    """
    count = 0
    source.seek(0)
    try:
        # ValueError: PyAV's word for an option or a stream it cannot make sense of.
        with av.open(_Nameless(source), mode="r", metadata_errors="ignore", container_options=ALLOWED) as container:
            # What the container says of its length may be wrong, so it can only be a reason not to begin.
            _check_length((container.duration or 0) / av.time_base, max_seconds)
            for part in _resampled(container):
                count += len(part) // SAMPLE_BYTES
                _check_length(count / SAMPLE_RATE, max_seconds)
                yield part
    except (av.error.FFmpegError, ValueError, MemoryError) as failure:
        raise UnreadableAudio from failure
    if not count:
        raise UnreadableAudio
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


def _resampled(container: "av.container.InputContainer") -> Iterator[bytes]:
    """Yield pieces of 16 kHz mono, 16-bit."""
    if not container.streams.audio:
        raise UnreadableAudio
    stream = container.streams.audio[0]
    # The list holds for what FFmpeg opens to look at a file; PyAV's own decoder is held to it here.
    if stream.codec_context.codec.name not in CODECS:
        raise UnreadableAudio
    resampler, joined = _new_resampler(), av.AudioFifo()
    sound: tuple[str, str, int] | None = None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue  # one damaged packet, by whichever name its decoder calls that; the next may be whole
        for frame in frames:
            before, sound = sound, (frame.format.name, frame.layout.name, frame.sample_rate)
            if before not in (None, sound):  # files joined end to end change their kind in the middle
                yield from _samples(resampler, joined, end=True)
                resampler, joined = _new_resampler(), av.AudioFifo()
            frame.pts = None  # gaps in timestamps must not become an error of the resampler
            joined.write(frame)
            if joined.samples >= BLOCK_SAMPLES:
                yield from _samples(resampler, joined)
    yield from _samples(resampler, joined, end=True)


def _new_resampler() -> av.AudioResampler:
    return av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)


def _samples(resampler: av.AudioResampler, joined: av.AudioFifo, *, end: bool = False) -> Iterator[bytes]:
    """Resample what was joined; at the `end`, what the resampler still holds as well."""
    pieces = resampler.resample(joined.read()) if joined.samples else []
    for piece in [*pieces, *(resampler.resample(None) if end else [])]:
        # A plane is longer than what is in it.
        yield bytes(piece.planes[0])[: piece.samples * SAMPLE_BYTES]
