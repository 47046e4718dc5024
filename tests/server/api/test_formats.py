from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.api import formats
from localwhisper_server.api.formats import Format
from localwhisper_server.api.subtitle_lines import LineLimits
from localwhisper_server.types import Segment, TokenLogprob, Transcript, Word

HELLO = Transcript(
    "transcribe",
    "en",
    8.47,
    (
        Segment(
            0.0,
            3.319999933242798,
            " Don't stop,",
            tokens=(50364, 1468, 380, 51, 50530),
            seek=0,
            temperature=0.2,
            avg_logprob=-0.286,
            compression_ratio=1.23,
            no_speech_prob=0.009,
            words=(Word(" Don't", 0.0, 0.5), Word(" stop,", 0.5, 1.1)),
            logprobs=(TokenLogprob(b" Don't", -0.25), TokenLogprob(b" stop,", -0.5)),
        ),
        Segment(
            3.32, 6.0, " it's fun.", words=(Word(" it's", 3.32, 4.0), Word(" fun.", 4.0, 4.5), Word(" -", 4.5, 4.6))
        ),
    ),
)
CHINESE = Transcript("transcribe", "zh", 4.0, (Segment(0.0, 2.0, "你好、"), Segment(2.0, 4.0, "世界。")))
SILENCE = Transcript("transcribe", None, 10.0)


def render(transcript: Transcript, name: str = "json", **shown: Any) -> bytes:
    """Render a transcript."""
    return formats.render(transcript, Format(name, **shown))


def _events(body: bytes) -> list[dict[str, object]]:
    assert body.endswith(b"\n\n")
    frames = body[:-2].split(b"\n\n")
    assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in frames)
    return [json.loads(frame[6:]) for frame in frames]


def test_json_is_compact_with_usage_and_no_final_newline() -> None:
    """As of whisper-1, by the length of its live answers: the text and the usage alone."""
    assert render(HELLO) == b'{"text":"Don\'t stop, it\'s fun.","usage":{"type":"duration","seconds":9}}'


@pytest.mark.parametrize(("duration", "seconds"), [(0.1, 1), (8.47, 9), (9.0, 9), (27.4, 28), (27.0001, 28)])
def test_usage_counts_started_seconds_in_whole_numbers(duration: float, seconds: int) -> None:
    """OpenAI's example has 8.47 → 9."""
    usage = formats.usage(Transcript("transcribe", "en", duration))
    assert usage == {"type": "duration", "seconds": seconds}
    assert isinstance(usage["seconds"], int)


def test_json_of_the_model_that_lists_languages() -> None:
    """gpt-transcribe's field is between text and usage; it is empty for silence."""
    assert render(HELLO, languages=()) == (
        b'{"text":"Don\'t stop, it\'s fun.","languages":[{"code":"en"}],"usage":{"type":"duration","seconds":9}}'
    )
    hinted = json.loads(render(HELLO, languages=("de", "en")))
    assert hinted["languages"] == [{"code": "de"}, {"code": "en"}]
    assert render(SILENCE, languages=("de", "en")) == (
        b'{"text":"","languages":[],"usage":{"type":"duration","seconds":10}}'
    )


def test_logprobs_are_tokens_with_their_bytes() -> None:
    """As in OpenAI's example. Half a character is a replacement in the text, and exact in the bytes."""
    split = Transcript("transcribe", "en", 1.0, (Segment(0, 1, " é", logprobs=(TokenLogprob(b" \xc3", -2.3e-5),)),))
    assert json.loads(render(split, logprobs=True))["logprobs"] == [
        {"token": " �", "logprob": -2.3e-5, "bytes": [32, 0xC3]}
    ]
    assert [entry["token"] for entry in json.loads(render(HELLO, logprobs=True))["logprobs"]] == [
        " Don't",
        " stop,",
    ]


@pytest.mark.parametrize(("transcript", "asked"), [(SILENCE, True), (HELLO, False)])
def test_logprobs_are_absent_not_empty(transcript: Transcript, asked: bool) -> None:  # noqa: FBT001 - a table's column
    """For silence, and where they were not asked for."""
    assert b"logprobs" not in render(transcript, logprobs=asked)
    assert b"logprobs" not in formats.done_event(transcript, Format(logprobs=asked))


def test_text_is_the_words_and_a_newline() -> None:
    """Without quotes."""
    assert render(HELLO, "text") == b"Don't stop, it's fun.\n"
    assert render(SILENCE, "text") == b"\n"


def test_srt_byte_for_byte() -> None:
    """Cues are numbered from 1, a blank line is between them, three newlines are at the end."""
    assert render(HELLO, "srt") == (
        b"1\n00:00:00,000 --> 00:00:03,320\nDon't stop,\n\n2\n00:00:03,320 --> 00:00:06,000\nit's fun.\n\n\n"
    )


def test_vtt_byte_for_byte() -> None:
    """Times always have hours, two newlines are at the end."""
    assert render(HELLO, "vtt") == (
        b"WEBVTT\n\n00:00:00.000 --> 00:00:03.320\nDon't stop,\n\n00:00:03.320 --> 00:00:06.000\nit's fun.\n\n"
    )


def test_lines_within_limits() -> None:
    """Srt and vtt have the cut cues, verbose_json has them beside its segments."""
    limits = LineLimits(max_width=8)
    assert render(HELLO, "srt", lines=limits).startswith(b"1\n00:00:00,000 --> 00:00:01,100\nDon't\nstop,\n\n2\n")
    assert render(HELLO, "vtt", lines=limits).startswith(b"WEBVTT\n\n00:00:00.000 --> 00:00:01.100\nDon't\nstop,\n\n")
    body = json.loads(render(HELLO, "verbose_json", lines=limits))
    assert body["cues"][0] == {"start": 0.0, "end": 1.1, "lines": ["Don't", "stop,"]}
    assert len(body["segments"]) == 2
    assert "cues" not in json.loads(render(HELLO, "verbose_json"))


def test_a_segment_without_words_is_no_cue() -> None:
    """The numbers of the other cues have no gap."""
    transcript = Transcript("transcribe", "en", 3.0, (Segment(0, 1, " "), Segment(1, 2, " a"), Segment(2, 3, " b")))
    assert render(transcript, "srt").split(b"\n")[0::4][:2] == [b"1", b"2"]
    assert render(transcript, "vtt").count(b"-->") == 2


def test_a_cue_cannot_be_ended_by_its_text() -> None:
    """A player would take an arrow or a blank line for the end of the cue."""
    transcript = Transcript("transcribe", "en", 1.0, (Segment(0, 1, " a --> b\n\n2\n"),))
    assert render(transcript, "vtt") == b"WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na -> b 2\n\n"


def test_a_player_of_vtt_shows_all_letters_of_a_cue() -> None:
    """It would take "<" for the beginning of a tag. Files without limits are as OpenAI's, and srt has no such rule."""
    transcript = Transcript("transcribe", "en", 2.0, (Segment(0, 2, " a <b &lt; c AT&T"),))
    assert b"\na &lt;b &amp;lt; c AT&T\n" in render(transcript, "vtt", lines=LineLimits())
    assert b"\na <b &lt; c AT&T\n" in render(transcript, "srt", lines=LineLimits())
    assert b"\na <b &lt; c AT&T\n" in render(transcript, "vtt")


@given(st.floats(0, 1e6))
def test_times_round_to_the_nearest_millisecond(seconds: float) -> None:
    """Every time is read back within half a millisecond, and no part of it overflows."""
    transcript = Transcript("transcribe", "en", seconds, (Segment(seconds, seconds, " x"),))
    hours, minutes, rest = render(transcript, "srt").split(b"\n")[1].split(b" --> ")[0].split(b":")
    whole, _, milliseconds = rest.partition(b",")
    assert (len(minutes), len(whole), len(milliseconds)) == (2, 2, 3)
    assert int(minutes) < 60 > int(whole)
    shown = int(hours) * 3600 + int(minutes) * 60 + int(whole) + int(milliseconds) / 1000
    assert abs(shown - seconds) <= 0.00051


def test_verbose_json_byte_for_byte() -> None:
    """Fields in OpenAI's order, all ten of a segment, numbers in single precision, no `words`."""
    assert render(Transcript("transcribe", "en", 8.47, HELLO.segments[:1]), "verbose_json") == (
        b'{"task":"transcribe","language":"english","duration":8.470000267028809,"text":"Don\'t stop,",'
        b'"segments":[{"id":0,"seek":0,"start":0.0,"end":3.319999933242798,"text":" Don\'t stop,",'
        b'"tokens":[50364,1468,380,51,50530],"temperature":0.20000000298023224,"avg_logprob":-0.28600001335144043,'
        b'"compression_ratio":1.2300000190734863,"no_speech_prob":0.008999999612569809}],'
        b'"usage":{"type":"duration","seconds":9}}'
    )


def test_words_alone_bring_no_segments() -> None:
    """As in OpenAI's example. Words have no spaces, and no punctuation but apostrophes inside."""
    body = json.loads(render(HELLO, "verbose_json", segments=False, words=True))
    assert list(body) == ["task", "language", "duration", "text", "words", "usage"]
    assert body["words"] == [
        {"word": "Don't", "start": 0.0, "end": 0.5},
        {"word": "stop", "start": 0.5, "end": 1.100000023841858},
        {"word": "it's", "start": 3.319999933242798, "end": 4.0},
        {"word": "fun", "start": 4.0, "end": 4.5},
    ]


def test_words_and_segments_together() -> None:
    """Words come first; segments have none themselves."""
    body = json.loads(render(HELLO, "verbose_json", segments=True, words=True))
    assert list(body) == ["task", "language", "duration", "text", "words", "segments", "usage"]
    assert len(body["words"]) == 4
    assert "words" not in body["segments"][0]
    assert [segment["id"] for segment in body["segments"]] == [0, 1]


@pytest.mark.parametrize(
    ("task", "code", "name"),
    [("transcribe", "de", "german"), ("translate", "de", "english"), ("transcribe", "yue", "cantonese")],
)
def test_the_language_is_a_full_lowercase_name(task: str, code: str, name: str) -> None:
    """The language that was spoken; for a translation always English."""
    body = json.loads(render(Transcript(task, code, 1.0), "verbose_json"))  # type: ignore[arg-type]
    assert (body["task"], body["language"]) == (task, name)


def test_silence_in_verbose_json() -> None:
    """Text and lists are empty; the language is a string, as the SDK's type requires."""
    body = json.loads(render(SILENCE, "verbose_json", segments=True, words=True))
    assert (body["text"], body["segments"], body["words"], body["language"]) == ("", [], [], "english")
    assert body["usage"] == {"type": "duration", "seconds": 10}


def test_events_are_data_lines_alone() -> None:
    """There is no `event:` line, and a blank line after each."""
    assert (
        formats.delta_event("Hi", HELLO.segments[1], Format())
        == b'data: {"type":"transcript.text.delta","delta":"Hi"}\n\n'
    )
    assert (
        formats.done_event(CHINESE, Format(languages=()))
        == (
            'data: {"type":"transcript.text.done","text":"你好、世界。","languages":[{"code":"zh"}],'
            '"usage":{"type":"duration","seconds":4}}\n\n'
        ).encode()
    )


@given(st.text('a\u00e4\u20ac\U0001f3a4\0\n\r\u2028\u0085 :{}"\\'))
def test_no_text_breaks_a_frame(text: str) -> None:
    """Line ends in a text stay inside the JSON."""
    (payload,) = _events(formats.delta_event(text, HELLO.segments[0], Format()))
    assert payload == {"type": "transcript.text.delta", "delta": text}


def test_deltas_carry_logprobs_where_asked() -> None:
    """A delta has those of its segment, `done` has all."""
    (delta,) = _events(formats.delta_event("x", HELLO.segments[0], Format(logprobs=True)))
    (done,) = _events(formats.done_event(HELLO, Format(logprobs=True)))
    assert delta["logprobs"] == done["logprobs"]
