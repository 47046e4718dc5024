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

from localwhisper_server.audio import pool as decoder
from localwhisper_server.errors import InvalidRequest, ServerError, UnreadableAudio
from tests.server import media
from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localwhisper_server.types import Samples


@pytest.fixture(scope="module")
def pool() -> Iterator[decoder.Pool]:
    """Give decoding processes in their jail: what they have not loaded they cannot load."""
    with closing(decoder.Pool(environ=os.environ)) as workers:
        workers.start()
        yield workers


@pytest.fixture(scope="module")
def speech(voices: dict[str, Path]) -> Samples:
    """Give five seconds of speech."""
    with voices["demo"].open("rb") as file:
        samples = decoder.decode(file, max_seconds=60)
    return samples / np.abs(samples).max() * np.float32(0.7)


def _decode(pool: decoder.Pool, data: bytes, *, max_seconds: float = 600.0, language: str | None = None) -> Samples:
    with closing(pool.blocks(io.BytesIO(data), max_seconds=max_seconds, language=language)) as blocks:
        return np.concatenate(list(blocks))


def _is_heard(decoded: Samples | None, speech: Samples, at: float = 0.0) -> bool:
    """Whether the speech is all there, and begins within 0.1 s of where it should."""
    if decoded is None:
        return False
    found, likeness = media.found_at(speech, decoded)
    return abs(found - at) < 0.1 and likeness > 0.9 and decoded.size >= speech.size - 3200


# What FFmpeg writes with a clock that is wrong: its second packet is ten packets late.
WRONG_CLOCK = {("wtv", "flac"), ("asf", "flac")}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("container", media.muxers())
def test_every_codec_in_every_container(pool: decoder.Pool, speech: Samples, container: str) -> None:
    """What FFmpeg writes and reads back comes out of the jail whole and in its place; nothing else is a wrong text."""
    lost, read = [], 0
    for codec in media.encoders():
        try:
            data = media.recording(speech, container, codec)
        except (av.error.FFmpegError, ValueError, OverflowError):
            continue  # not a codec for this container
        try:
            heard = _is_heard(_decode(pool, data), speech)
        except ServerError:
            heard = False
        read += heard
        if not heard and (container, codec) not in WRONG_CLOCK and _is_heard(media.plainly(data), speech):
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
    pool: decoder.Pool, speech: Samples, tmp_path: Path, extension: str, options: str
) -> None:
    """DTS, TrueHD, MLP, Speex, GSM: PyAV's FFmpeg decodes them and does not encode them."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg here")
    source, target = tmp_path / "speech.wav", tmp_path / f"speech.{extension}"
    source.write_bytes(encode(speech[None]))
    command = ["ffmpeg", "-v", "error", "-i", str(source), *options.split(), str(target)]
    if subprocess.run(command, capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("this ffmpeg does not write it")
    assert _is_heard(_decode(pool, target.read_bytes()), speech)


@pytest.mark.parametrize(
    ("container", "codec", "subtitles"),
    [
        *(("matroska", "libopus", kind) for kind in ("subrip", "ass", "webvtt")),
        ("webm", "libopus", "webvtt"),
        ("mp4", "aac", "mov_text"),
        ("mov", "aac", "mov_text"),
    ],
)
def test_subtitles_are_no_hindrance(
    pool: decoder.Pool, speech: Samples, container: str, codec: str, subtitles: str
) -> None:
    """PyAV loads what it needs for them when it meets them; the jail is closed by then."""
    data = media.recording(speech, container, codec, rate=48_000, subtitles=subtitles)
    assert _is_heard(_decode(pool, data), speech)


# Time


FILMS = [("matroska", "aac"), ("mp4", "aac"), ("mov", "pcm_s16le"), ("mpegts", "mp2"), ("nut", "flac"), ("asf", "mp2")]


@pytest.mark.parametrize(("container", "codec"), FILMS)
def test_sound_that_begins_later_is_heard_later(
    pool: decoder.Pool, speech: Samples, container: str, codec: str
) -> None:
    """Time runs from the container's start, as a player shows it and subtitles need it."""
    data = media.recording(speech, container, codec, start=5.0, film=True, rate=48_000)
    assert _is_heard(_decode(pool, data), speech, at=5.0)


def test_the_start_of_the_container_is_its_own(pool: decoder.Pool, speech: Samples) -> None:
    """A clock that reads an hour at the first sound, as a broadcast's does, begins there."""
    assert _is_heard(_decode(pool, media.recording(speech, "mpegts", "mp2", start=3600.0)), speech)
    assert _is_heard(_decode(pool, media.recording(speech, "matroska", "aac", start=3600.0)), speech)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "libopus"), ("mp4", "aac"), ("flv", "aac")])
@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_a_hole_in_the_timestamps_is_silence(
    pool: decoder.Pool, speech: Samples, container: str, codec: str, seconds: float
) -> None:
    """What comes after it stays where it is."""
    twice = np.concatenate([speech, speech])
    at = speech.size / media.RATE
    data = media.recording(twice, container, codec, rate=48_000 if codec == "libopus" else 44_100, hole=(at, seconds))
    decoded = _decode(pool, data)
    assert _is_heard(decoded[: speech.size], speech)
    assert _is_heard(decoded[speech.size :], speech, at=seconds)
    middle = decoded[speech.size + 1600 : round((at + seconds) * media.RATE) - 1600]
    assert not np.abs(middle).max() > 0.05


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_clock_that_starts_anew_is_no_hole(pool: decoder.Pool, speech: Samples, container: str) -> None:
    """Streams joined end to end, whose second begins hours later or earlier: 10 s of sound, not 11 h."""
    first, second = (media.recording(speech, container, "mp2", start=start) for start in (0.0, 11 * 3600.0))
    if container == "matroska":  # which cannot be joined; here one clock jumps
        joined = media.recording(np.concatenate([speech, speech]), container, "mp2", hole=(4.9, 11 * 3600.0))
        orders = [joined]
    else:
        orders = [first + second, second + first]
    for data in orders:
        assert _decode(pool, data).size == pytest.approx(2 * speech.size, abs=8000)


@pytest.mark.parametrize("codec", ["g722", "libmp3lame", "pcm_s16le", "vorbis"])
def test_an_avi_has_no_clock(pool: decoder.Pool, speech: Samples, codec: str) -> None:
    """FFmpeg counts its packets, some by the wrong unit: that must not become minutes of silence."""
    assert _is_heard(_decode(pool, media.recording(speech, "avi", codec)), speech)


# Headers that lie


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


LIARS = {
    "the frames of an MP3": _xing,
    "the samples of a FLAC": _flac,
    "the duration of a WebM": _webm,
    "the size of a WAV": lambda speech: _wav(speech, 0x7FFFFFF0),
    "the size of a WAV that was streamed": lambda speech: _wav(speech, 0xFFFFFFFF),
    "no size of a WAV": lambda speech: _wav(speech, 0),
}


@pytest.mark.parametrize("name", LIARS)
def test_the_length_is_what_is_there(pool: decoder.Pool, speech: Samples, name: str) -> None:
    """A header's word for it refuses nothing and cuts nothing off."""
    decoded = _decode(pool, LIARS[name](speech), max_seconds=30.0)
    assert _is_heard(decoded, speech)
    assert decoded.size == pytest.approx(speech.size, abs=3200)


@pytest.mark.parametrize("name", ["start", "hole"])
def test_silence_is_not_made_beyond_the_limit(pool: decoder.Pool, speech: Samples, name: str) -> None:
    """A hole that would make the recording too long is no hole: the speech is not refused for it."""
    start, hole = (100.0, (0.0, 0.0)) if name == "start" else (0.0, (2.0, 100.0))
    data = media.recording(speech, "matroska", "aac", film=name == "start", start=start, hole=hole)
    assert _decode(pool, data, max_seconds=60.0).size == pytest.approx(speech.size, abs=4800)
    assert _decode(pool, data, max_seconds=600.0).size > 100 * media.RATE


# Channels


def _stereo(left: Samples, right: Samples, codec: str) -> bytes:
    rate, container = media.RATE, "flac" if codec == "flac" else "wav"
    return encode(np.stack([left, right]), container=container, codec=codec, rate=rate)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "pcm_u8", "pcm_s24le", "flac"])
def test_channels_in_opposite_phase_are_heard(pool: decoder.Pool, speech: Samples, codec: str) -> None:
    """Their mix is silence; one of them is taken."""
    assert _is_heard(_decode(pool, _stereo(speech, -speech, codec)), speech)
    assert _is_heard(_decode(pool, _stereo(speech, -0.8 * speech, codec)), speech)


def test_speakers_on_either_side_are_both_heard(pool: decoder.Pool, speech: Samples) -> None:
    """Each on a channel of one's own, one after the other and at once; as before, by mixing."""
    silence = np.zeros_like(speech)
    decoded = _decode(pool, _stereo(np.r_[speech, silence], np.r_[silence, speech[::-1]], "pcm_s16le"))
    assert _is_heard(decoded[: speech.size], speech)
    assert _is_heard(decoded[speech.size :], speech[::-1])
    both = _decode(pool, _stereo(speech, speech[::-1].copy(), "pcm_s16le"))
    assert np.abs(both - (speech + speech[::-1]) / 2).max() < 0.01


@pytest.mark.parametrize("channels", [3, 6, 9, 64])
def test_any_number_of_channels_is_read(pool: decoder.Pool, speech: Samples, channels: int) -> None:
    """A recorder of many tracks, whose places nothing tells: the loudest is taken."""
    sound = np.zeros((speech.size, channels), "<i2")
    sound[:, -1] = speech * 32767
    form = struct.pack("<IHHIIHH", 16, 1, channels, media.RATE, media.RATE * channels * 2, channels * 2, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", sound.nbytes) + sound.tobytes()
    decoded = _decode(pool, b"RIFF" + struct.pack("<I", len(body)) + body)
    assert _is_heard(decoded, speech)
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
    pool: decoder.Pool, speech: Samples, first: str, second: str, asked: str | None, *, heard: bool
) -> None:
    """By its metadata, in any usual spelling; the default where there is none."""
    data = _two(speech, {"language": first}, {"language": second})
    assert _is_heard(_decode(pool, data, language=asked), speech) is heard


def test_the_default_track_is_taken(pool: decoder.Pool, speech: Samples) -> None:
    """Where none is in the language: in an MP4 the enabled one, wherever it stands."""
    quiet = tone(speech.size / media.RATE)[0]
    data = bytearray(media.recording(speech, "mp4", "aac", before=("aac", {}, quiet)))
    first = data.index(b"tkhd")
    second = data.index(b"tkhd", first + 4)
    data[first + 7] &= ~1
    data[second + 7] |= 1
    assert _is_heard(_decode(pool, bytes(data)), speech)
    assert _is_heard(_decode(pool, bytes(data), language="de"), speech)


def test_a_track_that_gives_no_sound_is_passed_over(pool: decoder.Pool, speech: Samples) -> None:
    """Whether nothing knows its codec or its packets are no sound."""
    unknown = _two(speech, {}, {}, "libopus").replace(b"A_OPUS", b"A_WHAT")
    assert _is_heard(_decode(pool, unknown), speech)


@pytest.mark.parametrize("language", ["de", None])
def test_a_codec_without_a_decoder_is_named(pool: decoder.Pool, speech: Samples, language: str | None) -> None:
    """OpenAI's code for what is not supported; not that the file may be corrupted."""
    wav = bytearray(media.recording(speech, "wav", "pcm_s16le"))
    wav[20:22] = struct.pack("<H", 0x9999)  # the codec's number
    with pytest.raises(InvalidRequest, match=r"^Unsupported audio codec .*0x9999") as failure:
        _decode(pool, bytes(wav), language=language)
    assert not isinstance(failure.value, UnreadableAudio)
    assert (failure.value.param, failure.value.code) == ("file", "unsupported_value")
