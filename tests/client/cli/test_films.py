"""A recording that is too large for the server: its sound alone is sent, or a message says what to do."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from localwhisper_client.cli.app import app
from localwhisper_client.cloud import media
from tests.client.fault_server import error, says

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.fault_server import FaultServer

np = pytest.importorskip("numpy")
av = pytest.importorskip("av")
RATE = 16_000


def film(*, seconds: int = 3, starts: float = 0.0, tracks: tuple[str, ...] = ("eng",), picture: bool = True) -> bytes:
    """Return a film with noise for a picture, whose sound begins `starts` seconds after the picture."""
    target = io.BytesIO()
    random = np.random.default_rng(1)
    with av.open(target, "w", format="matroska") as sink:
        shown = sink.add_stream("mpeg4", rate=10, width=320, height=240, pix_fmt="yuv420p") if picture else None
        sounds = [sink.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in tracks]
        for stream, language in zip(sounds, tracks, strict=True):
            stream.metadata["language"] = language
        if shown is not None:
            shown.bit_rate = 4_000_000
            for number in range(10 * seconds):
                frame = av.VideoFrame.from_ndarray(random.integers(0, 255, (240, 320, 3), np.uint8), format="rgb24")
                frame.pts = number
                sink.mux(shown.encode(frame))
            sink.mux(shown.encode(None))
        for number in range(seconds):
            for stream in sounds:
                sound = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
                sound.sample_rate, sound.pts = RATE, round((starts + number) * RATE)
                sink.mux(stream.encode(sound))
    return target.getvalue()


def test_the_sound_of_a_film_keeps_its_time_and_its_tracks() -> None:
    """It is not encoded again, has one frame of the picture, and begins as late as in the film."""
    whole = film(starts=5.0, tracks=("eng", "ger"))
    sound = media.soundtrack(io.BytesIO(whole), io.BytesIO())
    assert sound is not None
    assert len(sound.getvalue()) < len(whole) / 2
    with av.open(sound) as copy:
        assert [stream.metadata["language"] for stream in copy.streams.audio] == ["eng", "ger"]
        assert copy.start_time == 0
        first = next(packet for packet in copy.demux(audio=1))
        assert float(first.pts * first.time_base) == pytest.approx(5.0, abs=0.05)
        assert first.stream.codec_context.name == "pcm_s16le"


def test_only_a_film_has_a_soundtrack() -> None:
    """Sound without a picture gives None; a silent film and other files are unreadable."""
    assert media.soundtrack(film(picture=False), io.BytesIO()) is None
    for content in (film(tracks=()), b"no film"):
        with pytest.raises(media.Unreadable):
            media.soundtrack(content, io.BytesIO())


def taking(limit: int, local_server: FaultServer) -> None:
    """Let a server take at most `limit` bytes."""
    takes = says(200, b"text/plain", b"milk\n", b"x-localwhisper-queue-seconds: 0.000")
    local_server.behaviour = lambda conn, request: (error(413) if len(request.body) > limit else takes)(conn, request)


@pytest.fixture
def transcribe(local_server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command on one file."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)

    def run(content: bytes, *arguments: str) -> Any:
        (tmp_path / "film.mkv").write_bytes(content)
        return CliRunner().invoke(app, ["transcribe", str(tmp_path / "film.mkv"), *arguments])

    return run


def test_the_sound_of_a_film_that_is_too_large_is_sent(
    transcribe: Any, local_server: FaultServer, tmp_path: Path
) -> None:
    """The film is sent first, since the client does not know the server's limit. --delete-after works as usual."""
    content = film()
    taking(len(content) // 2, local_server)
    done = transcribe(content, "--delete-after")
    assert (done.exit_code, len(local_server.calls)) == (0, 2), done.stderr
    assert b'filename="sound.mka"' in local_server.calls[1].body
    assert [path.name for path in tmp_path.iterdir()] == ["film.txt"]


def test_sound_that_is_too_large_is_made_smaller(transcribe: Any, local_server: FaultServer) -> None:
    """The sound of a film, or a recording without a picture, as Opus."""
    taking(60_000, local_server)
    for picture, calls in ((True, 3), (False, 5)):
        assert transcribe(film(picture=picture), "--force").exit_code == 0
        assert len(local_server.calls) == calls
        assert b'filename="sound.ogg"' in local_server.calls[-1].body


def test_the_message_says_what_to_do(
    transcribe: Any, local_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It always has the server's option, and what to install if PyAV is missing."""
    taking(10, local_server)
    failed = transcribe(film())
    assert (failed.exit_code, len(local_server.calls)) == (1, 3)
    assert "--max-upload" in failed.stderr
    assert "transcode" not in failed.stderr
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install '.[transcode]'" in transcribe(b"a recording").stderr
