"""How media files are measured and converted."""

from __future__ import annotations

import io
import sys
import wave
from pathlib import Path
from typing import Any

import av
import pytest

from localwhisper_client.cloud import media

VOICE = Path(__file__).parents[2] / "voices" / "en-60s.ogg"


def _wav(seconds: float) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(2 * int(8000 * seconds)))
    return target.getvalue()


def _webm_without_length() -> bytes:
    """Return what a browser's recorder writes: a stream whose header has no length."""
    pipe = io.BytesIO()
    pipe.seekable = lambda: False  # type: ignore[method-assign]
    with av.open(VOICE) as source, av.open(pipe, "w", format="webm", options={"live": "1"}) as sink:
        stream = sink.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    return pipe.getvalue()


def _silence(seconds: int) -> bytes:
    """Return silence in as few bytes as Opus can write it."""
    target = io.BytesIO()
    with av.open(target, "w", format="ogg") as sink:
        options = {"b": "500", "dtx": "1", "frame_duration": "60"}
        stream = sink.add_stream("libopus", rate=48000, layout="mono", options=options)
        frame = av.AudioFrame("s16", "mono", 48000)
        frame.sample_rate = 48000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for _ in range(seconds):
            frame.pts = None
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return target.getvalue()


@pytest.mark.parametrize("without", [None, "av"])
@pytest.mark.parametrize("as_file", [False, True])
def test_the_length_of_a_file(without: str | None, as_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - pytest passes it by name
    """Measured by either library, in bytes and in open files, which are left open."""
    if without:
        monkeypatch.setitem(sys.modules, without, None)
    for data, seconds in ((_wav(2.5), 2.5), (VOICE.read_bytes(), 60)):
        content = io.BytesIO(data) if as_file else data
        assert media.seconds(content) == pytest.approx(seconds, abs=1.5)
        assert not as_file or not content.closed  # type: ignore[union-attr]
        assert media.billed_seconds(content)[1] > seconds


def test_packets_are_counted_and_headers_are_not_believed() -> None:
    """In joined recordings each begins its clock anew, and the header gives the length of one, or none."""
    joined = VOICE.read_bytes() * 8
    for content in (joined, io.BytesIO(joined)):
        assert media.seconds(content) == media.counted_seconds(content) == pytest.approx(8 * 60, abs=12)
    assert media.counted_seconds(VOICE.read_bytes()) == pytest.approx(60, abs=1.5)
    assert media.counted_seconds(_webm_without_length()) == pytest.approx(60, abs=1.5)
    assert media.counted_seconds(_wav(2.5)) == pytest.approx(2.5, abs=0.01)


def test_the_size_bounds_a_length_that_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for silence, which Opus writes in few bytes."""
    silence = _silence(120)
    assert media.billed_seconds(silence) == (pytest.approx(120, abs=1), pytest.approx(121, abs=1))
    monkeypatch.setitem(sys.modules, "av", None)
    length, most = media.billed_seconds(silence)
    assert length is None
    assert most > 120


def test_an_unknown_length_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a file that is no audio, for an empty one, and if no library is installed."""
    assert media.seconds(b"no audio") is media.counted_seconds(b"no audio") is None
    assert media.seconds("") is None
    monkeypatch.setitem(sys.modules, "av", None)
    assert media.seconds(b"no audio") is None
    monkeypatch.setitem(sys.modules, "tinytag", None)
    assert media.seconds(_wav(1)) is None


def test_a_big_file_is_made_small() -> None:
    """It becomes Opus with 16 kHz and one channel, and keeps its length."""
    small = media.to_opus(io.BytesIO(_wav(30)))
    assert len(small) < len(_wav(30)) / 4
    with av.open(io.BytesIO(small)) as made:
        stream = made.streams.audio[0]
        assert (stream.codec_context.name, stream.codec_context.layout.name) == ("opus", "mono")
    assert media.seconds(small) == pytest.approx(30, abs=0.1)
    for wrong in (b"no audio", b""):
        with pytest.raises(media.Unreadable):
            media.to_opus(wrong)


def test_the_size_of_a_file() -> None:
    """Of bytes, text and open files, wherever these were read to."""
    file: Any = io.BytesIO(b"12345")
    file.seek(2)
    assert [media.size(each) for each in (b"12345", "123é", file, bytearray(5))] == [5, 5, 5, 5]


def test_a_file_is_not_measured_by_its_name(tmp_path: Path) -> None:
    """FFmpeg believes the ending of a name: these bytes would be a third of a second of A-law."""
    junk = tmp_path / "voice.al"
    junk.write_bytes(bytes(range(256)) * 11)
    with junk.open("rb") as file:
        assert media.counted_seconds(file) is None
        assert not file.closed
