from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from localwhisper_server.audio import pool
from localwhisper_server.audio.decoding import SAMPLE_RATE
from localwhisper_server.errors import InvalidRequest, UnreadableAudio
from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localwhisper_server.types import Samples


def _decode(data: bytes, max_seconds: float = 600.0) -> Samples:
    return pool.decode(io.BytesIO(data), max_seconds=max_seconds)


def _pitch(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples[:16_000]))
    return float(np.argmax(spectrum) * SAMPLE_RATE / min(samples.size, 16_000))


def test_the_shared_recordings_decode_whole(shared: Path) -> None:
    """Each gives the seconds of the manifest, to 0.1 s."""
    with (shared / "manifest.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    wrong = {
        row["id"]: seconds
        for row in rows
        if abs((seconds := _decode((shared / row["file"]).read_bytes()).size / 16_000) - float(row["seconds"])) > 0.1
    }
    assert rows
    assert not wrong


@pytest.mark.parametrize(("name", "seconds"), [("demo", 4.9), ("de-5s", 6.7), ("fr-5s", 5.1), ("en-60s", 60.6)])
def test_voice_messages_decode_whole(voices: dict[str, Path], name: str, seconds: float) -> None:
    """Opus in Ogg, as messengers send it: as long as the header says, within [-1, 1], and not silent."""
    samples = _decode(voices[name].read_bytes())
    with av.open(str(voices[name])) as container:
        assert container.duration is not None
        assert samples.size / 16_000 == pytest.approx(container.duration / 1e6, abs=0.1)
    assert samples.size / 16_000 == pytest.approx(seconds, abs=0.5)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 0.05 < np.abs(samples).max() <= 1.0


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_become_16_khz_mono(wav: Callable[..., bytes], rate: int, channels: int) -> None:
    """Length, pitch and level stay the same."""
    samples = _decode(wav(1.0, rate, channels))
    assert samples.size == pytest.approx(16_000, abs=160)
    assert _pitch(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


def _without_duration(webm: bytes) -> bytes:
    """Remove the Duration element, which a browser's live recording does not have."""
    assert webm.count(b"\x44\x89\x88") == 1  # EBML id of Duration, eight bytes long
    at = webm.index(b"\x44\x89\x88")
    return webm[:at] + b"\xec\x89" + bytes(9) + webm[at + 11 :]  # a Void of the same eleven bytes


def test_a_webm_without_duration_is_read_to_its_end() -> None:
    """Browsers record such files."""
    whole = encode(tone(2.0, 48_000), container="webm", codec="libopus", rate=48_000)
    live = _without_duration(whole)
    with av.open(io.BytesIO(whole)) as before, av.open(io.BytesIO(live)) as after:
        assert before.duration is not None
        assert after.duration is None
    assert _decode(live).size / 16_000 == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", ["demo", "de-5s"])
def test_a_truncated_file_gives_what_there_is(voices: dict[str, Path], name: str) -> None:
    """What arrived of a broken upload is transcribed."""
    data = voices[name].read_bytes()
    whole, half = _decode(data).size, _decode(data[: len(data) // 2]).size
    assert 0.3 * whole < half < 0.7 * whole


@pytest.mark.parametrize(("container", "codec"), [("ogg", "libopus"), ("mp3", "libmp3lame"), ("flac", "flac")])
def test_damage_in_the_middle_loses_only_the_damaged_part(container: str, codec: str) -> None:
    """Both ends of the recording are decoded."""
    noisy = tone(6.0, 48_000) + np.random.default_rng(1).normal(0, 0.05, (1, 288_000)).astype(np.float32)
    data = bytearray(encode(noisy, container=container, codec=codec, rate=48_000))
    middle = len(data) // 2
    data[middle : middle + 600] = np.random.default_rng(2).bytes(600)
    samples = _decode(bytes(data))
    assert 4.0 < samples.size / 16_000 < 6.2
    assert _pitch(samples[:16_000]) == pytest.approx(440, abs=2)
    assert _pitch(samples[-16_000:]) == pytest.approx(440, abs=2)


def test_a_packet_that_its_decoder_refuses_is_skipped() -> None:
    """The AAC decoder raises for a damaged packet; the next one is decoded."""
    data = bytearray(encode(tone(4.0, 48_000), container="mp4", codec="aac", rate=48_000))
    at = data.index(b"mdat") + 4
    sizes = 100
    data[at + sizes : at + sizes + 400] = b"\xff" * 400
    refused = 0
    with av.open(io.BytesIO(bytes(data))) as container:
        for packet in container.demux(audio=0):
            try:
                packet.decode()
            except av.error.FFmpegError:
                refused += 1
    assert refused  # otherwise the test shows nothing
    assert 3.0 < _decode(bytes(data)).size / 16_000 < 4.1


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (44_100, 1), (22_050, 2)])
def test_recordings_joined_end_to_end_decode_whole(rate: int, channels: int) -> None:
    """As of `cat a.mp3 b.mp3`, even if rate and channels change in the middle."""
    first = encode(tone(2.0, 48_000), container="mp3", codec="libmp3lame", rate=48_000)
    second = encode(tone(2.0, rate, channels), container="mp3", codec="libmp3lame", rate=rate)
    samples = _decode(first + second)
    assert samples.size / 16_000 == pytest.approx(4.0, abs=0.3)
    assert _pitch(samples[-20_000:]) == pytest.approx(440, abs=2)


def _silent_film() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            for packet in stream.encode(picture):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello, this is no recording\n" * 100,
        b'{"file": "voice.ogg"}',
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"OggS" + bytes(1000),
        bytes(100_000),
        _silent_film(),
        encode(tone(0.1))[:44],
    ],
    ids=["empty", "a zero", "text", "json", "a bare header", "broken ogg", "zeros", "film without sound", "no samples"],
)
def test_what_is_not_audio_is_unreadable(data: bytes) -> None:
    """The error is OpenAI's, whatever FFmpeg raises."""
    with pytest.raises(UnreadableAudio) as failure:
        _decode(data)
    assert failure.value.body()["error"] == {
        "message": "Audio file might be corrupted or unsupported",
        "type": "invalid_request_error",
        "param": "file",
        "code": "invalid_value",
    }


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.099])
def test_too_short_is_openais_error(wav: Callable[..., bytes], seconds: float) -> None:
    """Below 0.1 s; exactly 0.1 s is enough."""
    with pytest.raises(
        InvalidRequest, match=r"^Audio file is too short\. Minimum audio length is 0\.1 seconds\.$"
    ) as it:
        _decode(wav(seconds))
    assert (it.value.param, it.value.code) == ("file", "audio_too_short")
    assert _decode(wav(0.1)).size == 1600


def test_too_long_is_noticed_early(wav: Callable[..., bytes]) -> None:
    """The rest of the upload is not decoded."""
    source = io.BytesIO(wav(60.0))
    with pytest.raises(InvalidRequest, match=r"longer than 2\.5 seconds which is the maximum") as failure:
        pool.decode(source, max_seconds=2.5)
    assert failure.value.body()["error"]["code"] == "invalid_value"
    assert failure.value.param is None
    assert source.tell() < len(source.getvalue()) / 4


def test_too_long_is_noticed_without_a_header(wav: Callable[..., bytes]) -> None:
    """Decoding stops soon after the maximum, not at the end."""
    live = _without_duration(encode(tone(30.0, 48_000), container="webm", codec="libopus", rate=48_000))
    with pytest.raises(InvalidRequest, match=r"^audio duration [\d.]+ seconds is longer than 2 seconds") as failure:
        _decode(live, max_seconds=2.0)
    assert float(failure.value.message.split()[2]) < 8


@pytest.mark.parametrize("most", [2.0, float("inf")])
def test_the_limit_is_inclusive(wav: Callable[..., bytes], most: float) -> None:
    """Exactly the maximum is accepted; infinity is no limit."""
    assert _decode(wav(2.0), max_seconds=most).size == 32_000
