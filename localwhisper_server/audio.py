"""Bytes of any container to 16 kHz mono samples, under limits. The only importer of PyAV."""

from collections.abc import Iterator
from typing import IO

import av
import av.error
import numpy as np
import numpy.typing as npt

from localwhisper_server.errors import InvalidRequest, UnreadableAudio

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.1  # OpenAI's own floor
# Frames of 20 ms are joined before they are resampled: half the time of doing each alone.
BLOCK_SAMPLES = 48_000
# FFmpeg reads playlists, too, and would open what they point at: our files, other machines. No protocol is allowed.
SELF_CONTAINED = {"protocol_whitelist": "none"}

Samples = npt.NDArray[np.float32]


def decode(source: IO[bytes], *, max_seconds: float) -> Samples:
    """Decode the first audio stream of `source` (seekable, read from its start).

    Returns float32 samples in [-1, 1], shape (n,), at 16 kHz. The container is recognised by its bytes; names and
    content types play no part. Damaged packets are skipped, as players do, as long as something remains.

    Raises:
        UnreadableAudio: no audio stream, or nothing in it that can be decoded.
        InvalidRequest: shorter than 0.1 s, or longer than `max_seconds` (noticed while decoding).

    """
    parts: list[npt.NDArray[np.int16]] = []
    count = 0
    limit = max_seconds * SAMPLE_RATE
    source.seek(0)
    try:
        # ValueError: PyAV's word for an option or a stream it cannot make sense of.
        with av.open(source, mode="r", metadata_errors="ignore", container_options=SELF_CONTAINED) as container:
            for part in _resampled(container):
                parts.append(part)
                count += part.size
                if count > limit:
                    raise InvalidRequest(
                        f"audio duration is longer than {max_seconds:g} seconds which is the maximum for this server",
                        code="invalid_value",
                    )
    except (av.error.FFmpegError, ValueError) as failure:
        raise UnreadableAudio from failure
    if not count:
        raise UnreadableAudio
    if count < MIN_SECONDS * SAMPLE_RATE:
        raise InvalidRequest(
            "Audio file is too short. Minimum audio length is 0.1 seconds.", param="file", code="audio_too_short"
        )
    return np.concatenate(parts).astype(np.float32) / np.float32(32768)


def _resampled(container: "av.container.InputContainer") -> Iterator[npt.NDArray[np.int16]]:
    """Yield 16 kHz mono int16 pieces, each of shape (n,)."""
    if not container.streams.audio:
        raise UnreadableAudio
    stream = container.streams.audio[0]
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


def _samples(
    resampler: av.AudioResampler, joined: av.AudioFifo, *, end: bool = False
) -> Iterator[npt.NDArray[np.int16]]:
    """Resample what was joined; at the `end`, what the resampler still holds as well."""
    pieces = resampler.resample(joined.read()) if joined.samples else []
    for piece in [*pieces, *(resampler.resample(None) if end else [])]:
        yield piece.to_ndarray().reshape(-1).astype(np.int16, copy=False)
