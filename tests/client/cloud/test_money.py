"""Adapting, prices, budgets, and what a file says of itself: all without a network."""

from __future__ import annotations

import datetime as dt
import io
import sys
import wave
from pathlib import Path
from typing import Any

import av
import pytest

from localwhisper_client.cloud import media
from localwhisper_client.cloud.adaptation import Impossible, adapted
from localwhisper_client.cloud.budget import Budget
from localwhisper_client.cloud.models import MODELS, SHUTDOWN
from localwhisper_client.cloud.prices import PRICES, Usage, cost

BEFORE, AFTER = SHUTDOWN - dt.timedelta(days=1), SHUTDOWN
SPEECH, TRANSLATION = "/audio/transcriptions", "/audio/translations"
VOICE = Path(__file__).parents[2] / "voices" / "en-60s.ogg"


@pytest.mark.parametrize(
    ("asked", "before", "after"),
    [
        ({"model": "large-v3"}, "whisper-1", "gpt-transcribe"),
        ({}, "whisper-1", "gpt-transcribe"),
        ({"model": "large-v3", "response_format": "text"}, "whisper-1", "gpt-transcribe"),
        ({"model": "large-v3", "response_format": "srt"}, "whisper-1", None),
        ({"model": "large-v3", "response_format": "vtt"}, "whisper-1", None),
        ({"model": "large-v3", "response_format": "verbose_json"}, "whisper-1", None),
        ({"model": "whisper-1"}, "whisper-1", "gpt-transcribe"),
        ({"model": "gpt-transcribe"}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "gpt-4o-transcribe"}, "gpt-4o-transcribe", "gpt-transcribe"),
        ({"model": "gpt-4o-transcribe", "response_format": "srt"}, "whisper-1", None),
        ({"model": "gpt-transcribe", "response_format": "verbose_json"}, "whisper-1", None),
        ({"model": "large-v3", "stream": True}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "whisper-1", "stream": True}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "large-v3", "stream": True, "response_format": "srt"}, None, None),
        ({"model": "large-v3", "include": ["logprobs"]}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "whisper-1", "include": ["logprobs"], "response_format": "vtt"}, None, None),
        ({"model": "large-v3", "response_format": "diarized_json"}, None, None),
        (
            {"model": "gpt-4o-transcribe-diarize", "response_format": "diarized_json"},
            "gpt-4o-transcribe-diarize",
            None,
        ),
    ],
)
def test_which_model_of_the_clouds_answers(asked: dict[str, Any], before: str | None, after: str | None) -> None:
    """The caller's own where it can, else whisper-1 until its last day, then its successor for what that can give."""
    for day, model in ((BEFORE, before), (AFTER, after)):
        if model is None:
            with pytest.raises(Impossible, match="OpenAI has no model"):
                adapted(SPEECH, asked, day)
        else:
            assert adapted(SPEECH, asked, day) == ({**asked, "model": model}, ())


@pytest.mark.parametrize("asked", [{"model": "large-v3"}, {"model": "gpt-4o-transcribe", "response_format": "srt"}])
def test_translations_end_with_whisper(asked: dict[str, Any]) -> None:
    """And the message says since when."""
    assert adapted(TRANSLATION, asked, BEFORE)[0]["model"] == "whisper-1"
    with pytest.raises(Impossible, match=r"translation .* since whisper-1 was shut down on 2027-02-26"):
        adapted(TRANSLATION, asked, AFTER)


def test_what_only_the_lan_takes_stays_there() -> None:
    """Hints for another model, and the word for a language to be found out; the caller's own fields are not changed."""
    asked = {"model": "large-v3", "language": "auto", "keywords": ["x"], "languages": ["en"], "prompt": "p"}
    assert adapted(SPEECH, asked, BEFORE) == ({"model": "whisper-1", "prompt": "p"}, ())
    kept = {"model": "gpt-transcribe", "keywords": ["x"], "languages": ["en"], "prompt": "p"}
    assert adapted(SPEECH, {**asked, "language": "de"}, AFTER) == (kept, ())
    assert asked["language"] == "auto"


# Whisper's own, by its tokenizer's table.
WHISPER = """
    en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy
    sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo
    uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue
"""
# Those that `gpt-transcribe` refuses.
REFUSED = """
    la br eu mn sq pa si km sn yo so oc tg sd am yi lo uz fo ht ps tk nn mt sa lb my bo mg as tt haw ln ha ba jw su
"""


@pytest.mark.parametrize("language", WHISPER.split())
def test_every_language_on_both_sides_of_the_date(language: str) -> None:
    """`whisper-1` takes it as it is; its successor ignores `language`, and would refuse a code it does not know."""
    assert len(set(WHISPER.split())) == 100
    asked = {"model": "large-v3", "language": language}
    assert adapted(SPEECH, asked, BEFORE) == ({"model": "whisper-1", "language": language}, ())
    taken = {"model": "gpt-transcribe", "languages": [language]}
    dropped = ({"model": "gpt-transcribe"}, (language,))
    assert adapted(SPEECH, asked, AFTER) == (dropped if language in REFUSED.split() else (taken, ()))
    # Wherever that model answers: it is asked before the date too, for streams.
    assert adapted(SPEECH, {**asked, "stream": True}, BEFORE)[1] == ((language,) if language in REFUSED.split() else ())


def test_hints_that_the_successor_refuses_are_dropped() -> None:
    """The others stay, each once; `language` is not sent beside them."""
    asked = {"model": "gpt-transcribe", "languages": ["de", "EU", "en", "de"], "language": "fr"}
    assert adapted(SPEECH, asked, AFTER) == ({"model": "gpt-transcribe", "languages": ["de", "en"]}, ("eu",))


def test_every_model_has_a_price() -> None:
    """Else a budget could not be held."""
    assert set(PRICES) == set(MODELS)


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        ("whisper-1", Usage(seconds=60), 0.006),
        ("gpt-transcribe", Usage(seconds=30), 0.00225),
        ("gpt-4o-transcribe", Usage(None, 1_000_000, 100_000), 3.5),
        ("gpt-4o-transcribe", Usage(None, 1_000_000), 2.5),
        ("gpt-4o-transcribe", Usage(seconds=60), 0.006),
        ("gpt-4o-mini-transcribe", Usage(None, 500, 10), None),
        ("whisper-1", Usage(), None),
        ("large-v3", Usage(seconds=60), None),
    ],
)
def test_costs(model: str, usage: Usage, dollars: float | None) -> None:
    """By tokens where the model is billed so and they are told, else by the minute; unknown is not nothing."""
    assert cost(model, usage) == (None if dollars is None else pytest.approx(dollars))


def test_budgets() -> None:
    """An amount a day or a month, which begin at midnight."""
    budget = Budget.parse(" $5.00 / Month ")
    assert (budget, str(budget)) == (Budget(5.0, "month"), "5.00/month")
    now = dt.datetime(2026, 11, 22, 20, 0, 1, tzinfo=dt.UTC)
    assert budget.since(now.timestamp(), dt.UTC) == dt.datetime(2026, 11, 1, tzinfo=dt.UTC).timestamp()
    assert Budget(1, "day").since(now.timestamp(), dt.UTC) == dt.datetime(2026, 11, 22, tzinfo=dt.UTC).timestamp()
    for wrong in ("5", "5/week", "x/day", "-1/day", "nan/day", "inf/month", ""):
        with pytest.raises(ValueError, match=r".*"):
            Budget.parse(wrong)


def _wav(seconds: float) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(2 * int(8000 * seconds)))
    return target.getvalue()


def _webm_without_length() -> bytes:
    """Return what a browser's recorder writes: a stream that nobody went back to write the length into."""

    class Pipe(io.RawIOBase):
        data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            Pipe.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with av.open(VOICE) as source, av.open(pipe, "w", format="webm", options={"live": "1"}) as sink:
        stream = sink.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    return Pipe.data


@pytest.mark.parametrize("without", [None, "av"])
@pytest.mark.parametrize("as_file", [False, True])
def test_how_long_a_file_plays(without: str | None, as_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """By either library, of bytes and of open files, which are left open."""
    if without:
        monkeypatch.setitem(sys.modules, without, None)
    for data, seconds in ((_wav(2.5), 2.5), (VOICE.read_bytes(), 60)):
        content = io.BytesIO(data) if as_file else data
        assert media.seconds(content) == pytest.approx(seconds, abs=1.5)
        assert not as_file or not content.closed  # type: ignore[union-attr]
        assert media.most_seconds(content) > seconds


def _silence(codec: str, container: str, seconds: int, **options: str) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format=container) as sink:
        stream = sink.add_stream(codec, rate=48000, layout="mono", options=options)
        frame = av.AudioFrame("s16", "mono", 48000)
        frame.sample_rate = 48000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 48000)
        for _ in range(seconds):
            frame.pts = None
            for piece in resampler.resample(frame):
                sink.mux(stream.encode(piece))
        sink.mux(stream.encode(None))
    return target.getvalue()


def test_what_is_paid_for_is_counted() -> None:
    """Joined recordings of which each begins its clock anew; the header knows of one alone."""
    one = VOICE.read_bytes()
    assert media.counted(one) == pytest.approx(60, abs=1.5)
    assert media.seconds(one * 8) == pytest.approx(60, abs=1.5)
    assert media.counted(one * 8) == pytest.approx(8 * 60, abs=12)
    assert media.counted(io.BytesIO(one * 8)) == pytest.approx(8 * 60, abs=12)
    assert media.counted(_webm_without_length()) == pytest.approx(60, abs=1.5)
    assert media.counted(_wav(2.5)) == pytest.approx(2.5, abs=0.01)
    assert media.counted(b"no audio") is None


def test_what_cannot_be_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's size, for silence too, which Opus writes in few bytes."""
    silence = _silence("libopus", "ogg", 120, b="500", dtx="1", frame_duration="60")
    counted = media.counted(silence)
    assert counted == pytest.approx(120, abs=1)
    assert media.most_seconds(silence) > counted
    monkeypatch.setitem(sys.modules, "av", None)
    assert media.counted(silence) is None


def test_a_length_that_nobody_wrote_down_is_counted() -> None:
    """In packets."""
    assert media.seconds(_webm_without_length()) == pytest.approx(60, abs=1.5)


def test_a_length_that_cannot_be_had_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is no audio, of nothing, and where no library is installed."""
    assert media.seconds(b"no audio") is None
    assert media.seconds("") is None
    monkeypatch.setitem(sys.modules, "av", None)
    assert media.seconds(b"no audio") is None
    monkeypatch.setitem(sys.modules, "tinytag", None)
    assert media.seconds(_wav(1)) is None


def test_a_big_file_is_made_small() -> None:
    """Sixteen kilohertz, one channel, Opus, as long as before."""
    small = media.to_opus(io.BytesIO(_wav(30)))
    assert len(small) < len(_wav(30)) / 4
    with av.open(io.BytesIO(small)) as made:
        stream = made.streams.audio[0]
        assert (stream.codec_context.name, stream.codec_context.layout.name) == ("opus", "mono")
    assert media.seconds(small) == pytest.approx(30, abs=0.1)
    for wrong in (b"no audio", b""):
        with pytest.raises(media.Unreadable):
            media.to_opus(wrong)


def test_how_big_a_file_is() -> None:
    """Of bytes, text and open files, whose place is kept."""
    file = io.BytesIO(b"12345")
    file.seek(2)
    assert [media.size(each) for each in (b"12345", "123é", file, bytearray(5))] == [5, 5, 5, 5]
    assert file.tell() == 2
