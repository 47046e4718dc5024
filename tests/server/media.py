"""Recordings for tests, in every container and codec that PyAV writes; and speech found again in what was decoded."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.format import ContainerFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localwhisper_server.types import Samples

RATE = 16_000
# Codecs that take few rates, and containers that take one.
RATES = {"real_144": 8000, "g723_1": 8000, "libopencore_amrnb": 8000, "nellymoser": 8000, "adpcm_swf": 22_050}
RATES |= {"roq_dpcm": 22_050, "swf": 22_050, "gxf": 48_000, "mxf": 48_000, "mxf_opatom": 48_000, "flv": 44_100}
STEREO = {"vorbis", "aptx", "aptx_hd"}  # FFmpeg's own encoders of these take nothing else
# Muxers that write no audio file: they write to devices, networks or several files, or write text or checksums.
NO_FILES = {
    *("alsa", "oss", "xv", "sdl", "fbdev", "hls", "dash", "hds", "segment", "stream_segment,ssegment", "tee", "null"),
    *("hash", "md5", "crc", "framecrc", "framehash", "framemd5", "streamhash", "uncodedframecrc", "mkvtimestamp_v2"),
    *("sap", "rtp", "rtsp", "rtp_mpegts", "smoothstreaming", "webm_chunk", "webm_dash_manifest", "fifo", "whip"),
    *("ffmetadata", "image2", "image2pipe", "mpjpeg", "data", "rawvideo"),
}


def muxers() -> list[str]:
    """Return FFmpeg's names of the containers it writes into one file."""
    return sorted(name for name in av.formats_available if name not in NO_FILES and _writes(name))


def encoders() -> list[str]:
    """Return FFmpeg's names of the audio codecs that it encodes, except for those without sound."""
    return sorted(name for name in av.codecs_available - {"anull", "comfortnoise"} if _encodes_sound(name))


def recording(
    samples: Samples,
    container: str,
    codec: str,
    *,
    rate: int | None = None,
    start: float = 0.0,
    gap: tuple[float, float] = (0.0, 0.0),
    subtitles: str | None = None,
    film: bool = False,
    metadata: dict[str, str] | None = None,
    before: tuple[str, dict[str, str], Samples] | None = None,
) -> bytes:
    """Return float samples at 16 kHz, shape (n,), in a container.

    The sound begins `start` seconds in. `gap` is where its timestamps jump and by how much. `subtitles` is the codec of
    a subtitle track, `film` adds a video track, and `before` another audio track: codec, metadata, samples.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        rate = rate or _rate(container, codec)
        tracks = [_sound(output, before[0], before[2], rate, before[1])] if before else []
        tracks.append(_sound(output, codec, samples, rate, metadata or {}, start, gap))
        if film:
            tracks.append(_film(output, start + gap[1] + samples.size / RATE))
        if subtitles:
            tracks.append(_text(output, subtitles))
        # All tracks have to be added before the first packet is written.
        packets = [packet for encoded in tracks for packet in encoded()]
        packets.sort(key=lambda packet: (packet.dts or 0) * packet.time_base)
        for packet in packets:
            output.mux(packet)
    return file.getvalue()


def plainly(data: bytes) -> Samples | None:
    """Decode with FFmpeg alone: the first track, without limits and timestamps. Return None if that fails."""
    resampler, parts = av.AudioResampler(format="flt", layout="mono", rate=RATE), []
    try:
        with av.open(io.BytesIO(data)) as container:
            for frame in container.decode(audio=0):
                frame.pts = None
                parts += resampler.resample(frame)
            parts += resampler.resample(None)
    except (av.error.FFmpegError, IndexError, ValueError, AttributeError):
        return None
    return np.concatenate([part.to_ndarray()[0] for part in parts]) if parts else None


def found_at(original: Samples, decoded: Samples) -> tuple[float, float]:
    """Return where `original` lies in `decoded`, in seconds, and the correlation of their loudness there."""
    wanted, there = _loudness(original), _loudness(decoded)
    # Codecs add or drop samples at both ends.
    there = np.pad(there, wanted.size)
    at = int(np.correlate(there, wanted - wanted.mean(), "valid").argmax())
    found = there[at : at + wanted.size]
    return (at - wanted.size) / 100, float(np.corrcoef(wanted, found)[0, 1]) if found.any() else 0.0


def _loudness(samples: Samples) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the loudness of each 10 ms."""
    frames = samples[: samples.size // 160 * 160].reshape(-1, 160).astype(np.float64)
    return np.sqrt((frames**2).mean(1))


def _writes(name: str) -> bool:
    try:
        return ContainerFormat(name, "w").is_output
    except ValueError:
        return False


def _encodes_sound(name: str) -> bool:
    try:
        return Codec(name, "w").type == "audio"
    except UnknownCodecError:
        return False


def _rate(container: str, codec: str) -> int:
    fixed = RATES.get(container, RATES.get(codec))
    possible = Codec(codec, "w").audio_rates
    if not possible or (fixed or RATE) in possible:
        return fixed or RATE
    return min(possible, key=lambda rate: abs(rate - 44_100))


def _sound(
    output: Any,
    codec: str,
    samples: Samples,
    rate: int,
    metadata: dict[str, str],
    start: float = 0.0,
    gap: tuple[float, float] = (0.0, 0.0),
) -> Callable[[], Iterator[av.Packet]]:
    layout = "stereo" if codec in STEREO else "mono"
    stream = output.add_stream(codec, rate=rate, layout=layout)
    stream.metadata.update(metadata)
    context = stream.codec_context
    context.options = {"strict": "experimental"}
    context.open()

    def packets() -> Iterator[av.Packet]:
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        resampler = av.AudioResampler(context.format, layout, rate, context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(piece):
                for stamp in ("pts", "dts"):
                    if (ticks := getattr(packet, stamp)) is not None:
                        moved = start + (gap[1] if ticks * packet.time_base >= gap[0] else 0.0)
                        setattr(packet, stamp, ticks + round(moved / packet.time_base))
                yield packet

    return packets


def _film(output: Any, seconds: float) -> Callable[[], Iterator[av.Packet]]:
    stream = output.add_stream("mpeg4", rate=5)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"

    def packets() -> Iterator[av.Packet]:
        picture = np.zeros((32, 32, 3), np.uint8)
        for _ in range(round(seconds * 5)):
            yield from stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        yield from stream.encode(None)

    return packets


def _text(output: Any, codec: str) -> Callable[[], Iterator[av.Packet]]:
    stream = output.add_stream(codec)
    stream.codec_context.subtitle_header = b"[Script Info]\n"

    def packets() -> Iterator[av.Packet]:
        packet = av.Packet(b"\0\5Hello" if codec == "mov_text" else b"Hello")
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = packet.duration = 500
        yield packet

    return packets
