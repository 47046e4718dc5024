from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import av
import av.error
import numpy as np
import pytest

from localwhisper_server.audio.pool import Pool, decode
from localwhisper_server.errors import InvalidRequest, ServerError, UnreadableAudio
from tests.server import media
from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localwhisper_server.types import Samples


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Give a pool of confined workers: they cannot load a library later."""
    with closing(Pool(environ=os.environ)) as workers:
        workers.start()
        yield workers


@pytest.fixture(scope="module")
def speech(voices: dict[str, Path]) -> Samples:
    """Give five seconds of speech."""
    with voices["demo"].open("rb") as file:
        samples = decode(file, max_seconds=60)
    return samples / np.abs(samples).max() * np.float32(0.7)


def _decode(pool: Pool, data: bytes, *, max_seconds: float = 600.0, language: str | None = None) -> Samples:
    with closing(pool.blocks(io.BytesIO(data), max_seconds=max_seconds, language=language)) as blocks:
        return np.concatenate(list(blocks))


def _has_speech(decoded: Samples | None, speech: Samples, at: float = 0.0) -> bool:
    """Whether all the speech is there and begins within 0.1 s of `at`."""
    if decoded is None:
        return False
    found, likeness = media.found_at(speech, decoded)
    return abs(found - at) < 0.1 and likeness > 0.9 and decoded.size >= speech.size - 3200


# FFmpeg writes wrong timestamps into these: the second packet is ten packets late.
WRONG_TIMESTAMPS = {("wtv", "flac"), ("asf", "flac")}


@pytest.mark.parametrize("container", media.muxers())
def test_every_codec_in_every_container(pool: Pool, speech: Samples, container: str) -> None:
    """A confined worker decodes whatever FFmpeg by itself can write and decode; two seconds of each show it."""
    speech = speech[: 2 * media.RATE]
    lost, read = [], 0
    for codec in media.encoders():
        try:
            data = media.recording(speech, container, codec)
        except (av.error.FFmpegError, ValueError, OverflowError):
            continue  # not a codec for this container
        try:
            heard = _has_speech(_decode(pool, data), speech)
        except ServerError:
            heard = False
        read += heard
        if not heard and (container, codec) not in WRONG_TIMESTAMPS and _has_speech(media.plainly(data), speech):
            lost.append(codec)
    assert lost == []
    if container in {"matroska", "mp4", "mov", "webm", "ogg", "wav", "mpegts", "asf", "avi", "flv", "caf", "nut", "wv"}:
        assert read


@pytest.mark.parametrize(
    ("extension", "options"),
    [
        ("dts", "-c:a dca -strict -2 -ar 48000"),
        ("thd", "-c:a truehd -strict -2 -ar 48000"),
        ("mlp", "-c:a mlp -strict -2 -ar 48000"),
        ("spx", "-c:a libspeex -f spx"),
        ("ts", "-c:a s302m -strict -2 -ar 48000 -ac 2"),
        ("mkv", "-c:a dca -strict -2 -ar 48000"),
        ("mkv", "-c:a truehd -strict -2 -ar 48000"),
        ("wav", "-c:a libgsm_ms -ar 8000"),
        ("flv", "-c:a libspeex"),
    ],
)
def test_codecs_that_only_the_tool_writes(
    pool: Pool, speech: Samples, tmp_path: Path, extension: str, options: str
) -> None:
    """DTS, TrueHD, MLP, Speex, GSM: PyAV's FFmpeg decodes them and does not encode them."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg here")
    source, target = tmp_path / "speech.wav", tmp_path / f"speech.{extension}"
    source.write_bytes(encode(speech[None]))
    command = ["ffmpeg", "-v", "error", "-i", str(source), *options.split(), str(target)]
    if subprocess.run(command, capture_output=True, check=False, timeout=200).returncode:
        pytest.skip("this ffmpeg does not write it")
    assert _has_speech(_decode(pool, target.read_bytes()), speech)


@pytest.mark.parametrize(
    ("container", "codec", "subtitles"),
    [
        *(("matroska", "libopus", kind) for kind in ("subrip", "ass", "webvtt")),
        ("webm", "libopus", "webvtt"),
        ("mp4", "aac", "mov_text"),
        ("mov", "aac", "mov_text"),
    ],
)
def test_subtitles_are_ignored(pool: Pool, speech: Samples, container: str, codec: str, subtitles: str) -> None:
    """PyAV loads modules when it meets subtitles; a confined worker must have loaded them before."""
    data = media.recording(speech, container, codec, rate=48_000, subtitles=subtitles)
    assert _has_speech(_decode(pool, data), speech)


# Time


FILMS = [("matroska", "aac"), ("mp4", "aac"), ("mov", "pcm_s16le"), ("mpegts", "mp2"), ("nut", "flac"), ("asf", "mp2")]


@pytest.mark.parametrize(("container", "codec"), FILMS)
def test_a_track_that_begins_later_begins_with_silence(pool: Pool, speech: Samples, container: str, codec: str) -> None:
    """Time runs from the container's start, as in a player: subtitles need that."""
    data = media.recording(speech, container, codec, start=5.0, film=True, rate=48_000)
    assert _has_speech(_decode(pool, data), speech, at=5.0)


def test_timestamps_that_begin_late_give_no_silence(pool: Pool, speech: Samples) -> None:
    """A broadcast's timestamps may begin at an hour; the recording begins there."""
    assert _has_speech(_decode(pool, media.recording(speech, "mpegts", "mp2", start=3600.0)), speech)
    assert _has_speech(_decode(pool, media.recording(speech, "matroska", "aac", start=3600.0)), speech)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "libopus"), ("mp4", "aac"), ("flv", "aac")])
@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_a_gap_in_the_timestamps_is_silence(
    pool: Pool, speech: Samples, container: str, codec: str, seconds: float
) -> None:
    """The sound after it keeps its time."""
    twice = np.concatenate([speech, speech])
    at = speech.size / media.RATE
    data = media.recording(twice, container, codec, rate=48_000 if codec == "libopus" else 44_100, gap=(at, seconds))
    decoded = _decode(pool, data)
    assert _has_speech(decoded[: speech.size], speech)
    assert _has_speech(decoded[speech.size :], speech, at=seconds)
    middle = decoded[speech.size + 1600 : round((at + seconds) * media.RATE) - 1600]
    assert not np.abs(middle).max() > 0.05


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_timestamps_that_restart_give_no_silence(pool: Pool, speech: Samples, container: str) -> None:
    """Of two streams joined end to end, the second begins 11 h later or earlier: that is 10 s of sound, not 11 h."""
    first, second = (media.recording(speech, container, "mp2", start=start) for start in (0.0, 11 * 3600.0))
    if container == "matroska":  # which cannot be joined; its timestamps jump
        joined = media.recording(np.concatenate([speech, speech]), container, "mp2", gap=(4.9, 11 * 3600.0))
        orders = [joined]
    else:
        orders = [first + second, second + first]
    for data in orders:
        assert _decode(pool, data).size == pytest.approx(2 * speech.size, abs=8000)


@pytest.mark.parametrize("codec", ["g722", "libmp3lame", "pcm_s16le", "vorbis"])
def test_the_timestamps_of_an_avi_are_ignored(pool: Pool, speech: Samples, codec: str) -> None:
    """FFmpeg counts its packets, some in a wrong unit: that must not become minutes of silence."""
    assert _has_speech(_decode(pool, media.recording(speech, "avi", codec)), speech)


# Wrong headers


def _xing(speech: Samples) -> bytes:
    data = bytearray(media.recording(speech, "mp3", "libmp3lame"))
    at = data.index(b"Info") if b"Info" in data else data.index(b"Xing")
    data[at + 8 : at + 12] = struct.pack(">I", 1_500_000)  # frames
    return bytes(data)


def _flac(speech: Samples) -> bytes:
    data = bytearray(media.recording(speech, "flac", "flac"))
    data[21:26] = bytes([data[21] | 0x0F]) + b"\xff" * 4  # STREAMINFO's 36 bits of total samples
    return bytes(data)


def _webm(speech: Samples) -> bytes:
    data = bytearray(media.recording(speech, "webm", "libopus", rate=48_000))
    at = data.index(b"\x44\x89\x88") + 3  # Duration, in milliseconds
    data[at : at + 8] = struct.pack(">d", 11 * 3600e3)
    return bytes(data)


def _wav(speech: Samples, size: int) -> bytes:
    data = bytearray(media.recording(speech, "wav", "pcm_s16le"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    return bytes(data)


WRONG_HEADERS = {
    "the frames of an MP3": _xing,
    "the samples of a FLAC": _flac,
    "the duration of a WebM": _webm,
    "the size of a WAV": lambda speech: _wav(speech, 0x7FFFFFF0),
    "the size of a WAV that was streamed": lambda speech: _wav(speech, 0xFFFFFFFF),
    "no size of a WAV": lambda speech: _wav(speech, 0),
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_a_wrong_length_in_the_header_is_ignored(pool: Pool, speech: Samples, name: str) -> None:
    """The recording is neither refused nor cut."""
    decoded = _decode(pool, WRONG_HEADERS[name](speech), max_seconds=30.0)
    assert _has_speech(decoded, speech)
    assert decoded.size == pytest.approx(speech.size, abs=3200)


@pytest.mark.parametrize("name", ["start", "gap"])
def test_silence_never_exceeds_the_maximum(pool: Pool, speech: Samples, name: str) -> None:
    """A gap that would make the recording too long is ignored, and the speech is decoded."""
    start, gap = (100.0, (0.0, 0.0)) if name == "start" else (0.0, (2.0, 100.0))
    data = media.recording(speech, "matroska", "aac", film=name == "start", start=start, gap=gap)
    assert _decode(pool, data, max_seconds=60.0).size == pytest.approx(speech.size, abs=4800)
    assert _decode(pool, data, max_seconds=600.0).size > 100 * media.RATE


# Channels


def _stereo(left: Samples, right: Samples, codec: str) -> bytes:
    rate, container = media.RATE, "flac" if codec == "flac" else "wav"
    return encode(np.stack([left, right]), container=container, codec=codec, rate=rate)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "pcm_u8", "pcm_s24le", "flac"])
def test_channels_in_opposite_phase_do_not_cancel(pool: Pool, speech: Samples, codec: str) -> None:
    """Their mix would be silence, so one of them is used."""
    assert _has_speech(_decode(pool, _stereo(speech, -speech, codec)), speech)
    assert _has_speech(_decode(pool, _stereo(speech, -0.8 * speech, codec)), speech)


def test_speakers_on_two_channels_are_mixed(pool: Pool, speech: Samples) -> None:
    """Each on one channel, one after the other or both at once."""
    silence = np.zeros_like(speech)
    decoded = _decode(pool, _stereo(np.r_[speech, silence], np.r_[silence, speech[::-1]], "pcm_s16le"))
    assert _has_speech(decoded[: speech.size], speech)
    assert _has_speech(decoded[speech.size :], speech[::-1])
    both = _decode(pool, _stereo(speech, speech[::-1].copy(), "pcm_s16le"))
    assert np.abs(both - (speech + speech[::-1]) / 2).max() < 0.01


@pytest.mark.parametrize("channels", [3, 6, 9, 64])
def test_any_number_of_channels_is_read(pool: Pool, speech: Samples, channels: int) -> None:
    """If a recorder's channels have no positions, the loudest is used."""
    sound = np.zeros((speech.size, channels), "<i2")
    sound[:, -1] = speech * 32767
    form = struct.pack("<IHHIIHH", 16, 1, channels, media.RATE, media.RATE * channels * 2, channels * 2, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", sound.nbytes) + sound.tobytes()
    decoded = _decode(pool, b"RIFF" + struct.pack("<I", len(body)) + body)
    assert _has_speech(decoded, speech)
    assert decoded.size == speech.size


# Tracks


def _two(speech: Samples, first: dict[str, str], second: dict[str, str], codec: str = "aac") -> bytes:
    quiet = tone(speech.size / media.RATE)[0]
    return media.recording(speech, "matroska", "aac", before=(codec, first, quiet), metadata=second)


@pytest.mark.parametrize(
    ("first", "second", "asked", "heard"),
    [
        ("eng", "ger", "de", True),
        ("eng", "deu", "de", True),
        ("eng", "de-DE", "de", True),
        ("ger", "eng", "de", False),
        ("eng", "ger", "fr", False),
        ("eng", "ger", None, False),
    ],
)
def test_the_track_in_the_asked_language(
    pool: Pool, speech: Samples, first: str, second: str, asked: str | None, *, heard: bool
) -> None:
    """By its metadata, in any usual spelling; the default track if there is none."""
    data = _two(speech, {"language": first}, {"language": second})
    assert _has_speech(_decode(pool, data, language=asked), speech) is heard


def test_the_default_track_is_taken(pool: Pool, speech: Samples) -> None:
    """If none is in the language. In an MP4, it is the enabled one, whatever its place."""
    quiet = tone(speech.size / media.RATE)[0]
    data = bytearray(media.recording(speech, "mp4", "aac", before=("aac", {}, quiet)))
    first = data.index(b"tkhd")
    second = data.index(b"tkhd", first + 4)
    data[first + 7] &= ~1
    data[second + 7] |= 1
    assert _has_speech(_decode(pool, bytes(data)), speech)
    assert _has_speech(_decode(pool, bytes(data), language="de"), speech)


def test_a_track_without_sound_is_skipped(pool: Pool, speech: Samples) -> None:
    """Its codec is unknown, so the other track is decoded."""
    unknown = _two(speech, {}, {}, "libopus").replace(b"A_OPUS", b"A_WHAT")
    assert _has_speech(_decode(pool, unknown), speech)


@pytest.mark.parametrize("language", ["de", None])
def test_a_codec_without_a_decoder_is_named(pool: Pool, speech: Samples, language: str | None) -> None:
    """The error has OpenAI's code for unsupported values, and does not say that the file may be corrupted."""
    wav = bytearray(media.recording(speech, "wav", "pcm_s16le"))
    wav[20:22] = struct.pack("<H", 0x9999)  # the codec's number
    with pytest.raises(InvalidRequest, match=r"^Unsupported audio codec .*0x9999") as failure:
        _decode(pool, bytes(wav), language=language)
    assert not isinstance(failure.value, UnreadableAudio)
    assert (failure.value.param, failure.value.code) == ("file", "unsupported_value")
