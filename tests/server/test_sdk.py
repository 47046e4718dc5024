"""The app through the OpenAI SDK: its types and errors, over a transport in this process."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)

from localwhisper_server.api.middleware import Limits
from localwhisper_server.errors import Busy, EngineFailed, UnreadableAudio
from localwhisper_server.types import KnownSpeaker, Speakers
from tests.server.driving import SPOKEN, TEXT, WHOLE, FakeTranscriber, InProcess, make_app

if TYPE_CHECKING:
    from localwhisper_server.types import Options

SOUND = ("voice.ogg", b"sound")


def _client(transcriber: FakeTranscriber, **settings: Any) -> openai.OpenAI:
    app = make_app(transcriber, **{key: settings.pop(key) for key in ("api_key", "limits") if key in settings})
    return openai.OpenAI(
        base_url="http://lan/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=InProcess(app)),
        **{"api_key": "sk-any"} | ({"api_key": settings["key"]} if "key" in settings else {}),
    )


def _create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.audio.transcriptions.create(**{"model": "whisper-1", "file": SOUND} | fields)


def test_json() -> None:
    """The SDK gives a `Transcription`, with usage in seconds."""
    transcriber = FakeTranscriber()
    transcription = _create(_client(transcriber))
    assert isinstance(transcription, Transcription)
    assert transcription.text == TEXT
    assert transcription.usage is not None
    assert (transcription.usage.type, transcription.usage.seconds) == ("duration", 3)  # type: ignore[union-attr]
    assert transcription.logprobs is None
    assert transcriber.uploads == [b"sound"]


def test_verbose_json() -> None:
    """The SDK gives a `TranscriptionVerbose` with every field typed, and `task` as an extra."""
    verbose = _create(
        _client(FakeTranscriber()), response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert isinstance(verbose, TranscriptionVerbose)
    assert (verbose.text, verbose.language, verbose.duration) == (TEXT, "english", 2.5)
    assert verbose.model_extra == {"task": "transcribe"}
    assert [word.word for word in verbose.words or ()] == ["Good", "morning", "Zoë"]
    (first, second) = verbose.segments or ()
    assert (first.id, first.start, first.end, first.text) == (0, 0.0, 1.5, " Good morning,")
    assert (first.avg_logprob, first.tokens) == (-0.25, [50364, 1, 50439])
    assert second.id == 1
    assert verbose.usage is not None
    assert verbose.usage.seconds == 3
    assert type(verbose).model_validate(verbose.model_dump())  # strictly what the type says


@pytest.mark.parametrize("name", ["text", "srt", "vtt"])
def test_plain_formats(name: str) -> None:
    """The SDK gives a `str`."""
    text = _create(_client(FakeTranscriber()), response_format=name)
    assert type(text) is str
    assert "Zoë." in text
    assert ("-->" in text) == (name != "text")


def test_logprobs() -> None:
    """They are typed, with their bytes."""
    transcription = _create(_client(FakeTranscriber()), include=["logprobs"], model="gpt-transcribe")
    assert [entry.token for entry in transcription.logprobs] == [" Good", " morning,", " Zoë."]
    assert bytes(int(byte) for entry in transcription.logprobs for byte in entry.bytes).decode() == " " + TEXT


def test_translations() -> None:
    """The SDK gives the types of this endpoint, and a deprecation warning of its own."""
    transcriber = FakeTranscriber()
    client = _client(transcriber)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = client.audio.translations.create(model="whisper-1", file=SOUND)
        verbose = client.audio.translations.create(model="whisper-1", file=SOUND, response_format="verbose_json")
        text = client.audio.translations.create(model="whisper-1", file=SOUND, response_format="text")
    assert isinstance(plain, Translation)
    assert isinstance(verbose, TranslationVerbose)
    assert plain.text == verbose.text == text.strip() == TEXT
    assert {options.decoding.task for options in transcriber.asked} == {"translate"}


def test_every_field_arrives() -> None:
    """The SDK's arguments arrive as options of the model."""
    transcriber = FakeTranscriber()
    _create(
        _client(transcriber),
        prompt="Zoë",
        temperature=0.5,
        keywords=["Ada", "Bob"],
        languages=["fr"],
        chunking_strategy={"type": "server_vad", "threshold": 0.25, "silence_duration_ms": 700},
        extra_body={"of_tomorrow": "x"},
    )
    _create(_client(transcriber), language="de", chunking_strategy="auto", temperature=0)
    first, second = transcriber.asked
    assert _brief(first) == ("fr", "Zoë", "Ada, Bob", 0.5, 0.25, 700)
    assert _brief(second) == ("de", "", "", 0.0, 0.5, 160)


def _brief(options: Options) -> tuple[Any, ...]:
    decoding, voice = options.decoding, options.voice
    return (
        *(decoding.language, decoding.prompt, decoding.hotwords, decoding.temperature),
        *(voice.threshold, voice.silence_duration_ms),
    )


@pytest.mark.parametrize("file", [b"sound", (None, b"sound"), ("a", b"sound"), ('ü".ogg', b"sound", "audio/ogg")])
def test_every_way_to_name_a_file(file: Any) -> None:
    """Bytes, names without an ending, names that need escaping. A part without a name is no upload."""
    transcriber = FakeTranscriber()
    if file == (None, b"sound"):
        with pytest.raises(openai.BadRequestError, match="Missing required parameter: 'file'"):
            _create(_client(transcriber), file=file)
    else:
        assert _create(_client(transcriber), file=file).text == TEXT
        assert transcriber.uploads == [b"sound"]


def test_a_stream() -> None:
    """The SDK gives typed events."""
    *deltas, done = list(_create(_client(FakeTranscriber()), stream=True, include=["logprobs"]))
    assert all(isinstance(delta, TranscriptionTextDeltaEvent) for delta in deltas)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(delta.delta for delta in deltas) == done.text == TEXT
    assert deltas[0].logprobs[0].token == " Good"


@pytest.mark.anyio
async def test_a_stream_of_the_async_client() -> None:
    """It gives the same events."""
    client = openai.AsyncOpenAI(
        api_key="sk-any",
        base_url="http://lan/v1",
        http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(make_app(FakeTranscriber()))),
    )
    stream = await client.audio.transcriptions.create(model="whisper-1", file=SOUND, stream=True)
    assert [event.type async for event in stream] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]


def test_an_error_in_a_stream_is_raised() -> None:
    """After the earlier events the SDK raises APIError, with the server's message."""
    stream = _create(_client(FakeTranscriber([SPOKEN[0], EngineFailed()])), stream=True)
    assert next(stream).delta == "Good morning,"
    with pytest.raises(openai.APIError, match="had an error while processing") as failure:
        next(stream)
    assert failure.value.type == "server_error"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("failure", "raised", "code"),
    [
        (UnreadableAudio(), openai.BadRequestError, "invalid_value"),
        (Busy("full", retry_after=2), openai.InternalServerError, "server_is_overloaded"),
        (RuntimeError("boom"), openai.InternalServerError, None),
    ],
    ids=["400", "503", "500"],
)
def test_errors_are_the_sdks(failure: Exception, raised: type[openai.APIStatusError], code: str, stream: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """They have the class of their status, with code and request id."""
    with pytest.raises(raised) as caught:
        _create(_client(FakeTranscriber([failure])), stream=stream)
    assert caught.value.code == code
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")
    assert "boom" not in str(caught.value)


def test_refusals_are_the_sdks() -> None:
    """404, 401 and 413 have their classes, codes and messages."""
    with pytest.raises(openai.NotFoundError, match="It serves: base, org/base") as unknown:
        _create(_client(FakeTranscriber()), model="gpt-9")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided") as wrong:
        _create(_client(FakeTranscriber(), api_key="right"))
    assert wrong.value.code == "invalid_api_key"
    assert _create(_client(FakeTranscriber(), api_key="right", key="right")).text == TEXT
    with pytest.raises(openai.APIStatusError, match="Maximum content size limit") as large:
        _create(_client(FakeTranscriber(), limits=Limits(100)))
    assert large.value.status_code == 413


def test_models() -> None:
    """They are listed and retrieved; the SDK escapes the slash in a name."""
    client = _client(FakeTranscriber())
    assert [model.id for model in client.models.list()][:3] == ["base", "org/base", "whisper-1"]
    model = client.models.retrieve("org/base")
    assert (model.id, model.object, model.owned_by) == ("org/base", "model", "localwhisper")


def test_raw_responses() -> None:
    """Headers and the unparsed body."""
    raw = _client(FakeTranscriber([WHOLE])).audio.transcriptions.with_raw_response.create(model="whisper-1", file=SOUND)
    assert raw.headers["x-request-id"].startswith("req_")
    assert json.loads(raw.text)["text"] == raw.parse().text


SPEAKING = tuple(replace(segment, speaker=name) for segment, name in zip(SPOKEN, ("A", "Zoë"), strict=True))
DIALOGUE = FakeTranscriber((*SPOKEN, replace(WHOLE, segments=SPEAKING)))
REFERENCE = "data:audio/wav;base64,UklGRg=="


def test_diarized_json() -> None:
    """The SDK gives a `TranscriptionDiarized` with its own segments, and sends known speakers as we read them."""
    transcriber = FakeTranscriber(DIALOGUE.items)
    diarized = _create(
        _client(transcriber),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        chunking_strategy="auto",
        known_speaker_names=["Zoë"],
        known_speaker_references=[REFERENCE],
        extra_body={"max_speakers": 2},
    )
    assert isinstance(diarized, TranscriptionDiarized)
    assert (diarized.task, diarized.duration, diarized.text) == ("transcribe", 2.5, TEXT)
    assert [(part.id, part.type, part.speaker, part.start, part.end, part.text) for part in diarized.segments] == [
        ("seg_001", "transcript.text.segment", "A", 0.0, 1.5, "Good morning,"),
        ("seg_002", "transcript.text.segment", "Zoë", 1.5, 2.5, "Zoë."),
    ]
    assert diarized.usage is not None
    assert (diarized.usage.type, diarized.usage.seconds) == ("duration", 3)  # type: ignore[union-attr]
    assert transcriber.asked[0].speakers == Speakers((KnownSpeaker("Zoë", b"RIFF"),), 2)


def test_a_stream_with_speakers() -> None:
    """Deltas as the words come, then each segment with its speaker, then the whole text."""
    events = list(_create(_client(FakeTranscriber(DIALOGUE.items)), response_format="diarized_json", stream=True))
    kinds = [TranscriptionTextDeltaEvent] * 2 + [TranscriptionTextSegmentEvent] * 2 + [TranscriptionTextDoneEvent]
    assert [type(event) for event in events] == kinds
    assert [(event.id, event.speaker, event.text) for event in events[2:4]] == [
        ("seg_001", "A", "Good morning,"),
        ("seg_002", "Zoë", "Zoë."),
    ]
    assert events[-1].text == TEXT == "".join(event.delta for event in events[:2])


def test_large_references_are_accepted() -> None:
    """Four times 10 s of uncompressed stereo; other fields stay limited to 1 MB."""
    large = f"data:audio/wav;base64,{'AAAA' * 600_000}"
    transcriber = FakeTranscriber(DIALOGUE.items)
    names = ["a", "b", "c", "d"]
    fields = {"response_format": "diarized_json", "known_speaker_names": names}
    assert _create(_client(transcriber), known_speaker_references=[large] * 4, **fields).text == TEXT
    with pytest.raises(openai.BadRequestError, match="maximum size"):
        _create(_client(transcriber), prompt=large)
    with pytest.raises(openai.BadRequestError, match="maximum size"):
        _create(_client(transcriber), known_speaker_references=[large] * 5, **fields)
