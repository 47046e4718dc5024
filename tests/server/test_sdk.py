"""The stock SDK, its own types and errors, with nothing between it and the app but an in-process transport."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)

from localwhisper_server.api.limits import Limits
from localwhisper_server.errors import Busy, EngineFailed, UnreadableAudio
from tests.server.driving import SPOKEN, TEXT, WHOLE, FakeTranscriber, InProcess, make_app

if TYPE_CHECKING:
    from localwhisper_server.types import Options

SOUND = ("voice.ogg", b"sound")


def _client(backend: FakeTranscriber, **settings: Any) -> openai.OpenAI:
    app = make_app(backend, **{key: settings.pop(key) for key in ("api_key", "limits") if key in settings})
    return openai.OpenAI(
        base_url="http://lan/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=InProcess(app)),
        **{"api_key": "sk-any"} | ({"api_key": settings["key"]} if "key" in settings else {}),
    )


def _create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.audio.transcriptions.create(**{"model": "whisper-1", "file": SOUND} | fields)


def test_json() -> None:
    """`Transcription`, with usage of the duration kind."""
    backend = FakeTranscriber()
    transcription = _create(_client(backend))
    assert isinstance(transcription, Transcription)
    assert transcription.text == TEXT
    assert transcription.usage is not None
    assert (transcription.usage.type, transcription.usage.seconds) == ("duration", 3)  # type: ignore[union-attr]
    assert transcription.logprobs is None
    assert backend.uploads == [b"sound"]


def test_verbose_json() -> None:
    """`TranscriptionVerbose`: every field typed, `task` as an extra, words beside segments."""
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


def test_words_alone() -> None:
    """No segments, as OpenAI's example has none."""
    verbose = _create(_client(FakeTranscriber()), response_format="verbose_json", timestamp_granularities=["word"])
    assert verbose.segments is None
    assert len(verbose.words) == 3


@pytest.mark.parametrize("name", ["text", "srt", "vtt"])
def test_plain_formats(name: str) -> None:
    """A `str`, as it is on the wire."""
    text = _create(_client(FakeTranscriber()), response_format=name)
    assert type(text) is str
    assert "Zoë." in text
    assert ("-->" in text) == (name != "text")


def test_logprobs() -> None:
    """Typed, bytes and all."""
    transcription = _create(_client(FakeTranscriber()), include=["logprobs"], model="gpt-transcribe")
    assert [entry.token for entry in transcription.logprobs] == [" Good", " morning,", " Zoë."]
    assert bytes(int(byte) for entry in transcription.logprobs for byte in entry.bytes).decode() == " " + TEXT


def test_translations() -> None:
    """The endpoint's own types; the deprecation warning is the SDK's."""
    backend = FakeTranscriber()
    client = _client(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = client.audio.translations.create(model="whisper-1", file=SOUND)
        verbose = client.audio.translations.create(model="whisper-1", file=SOUND, response_format="verbose_json")
        text = client.audio.translations.create(model="whisper-1", file=SOUND, response_format="text")
    assert isinstance(plain, Translation)
    assert isinstance(verbose, TranslationVerbose)
    assert plain.text == verbose.text == text.strip() == TEXT
    assert {options.decoding.task for options in backend.asked} == {"translate"}


def test_every_field_arrives() -> None:
    """What the SDK's arguments become on the wire is what the model is asked."""
    backend = FakeTranscriber()
    _create(
        _client(backend),
        prompt="Zoë",
        temperature=0.5,
        keywords=["Ada", "Bob"],
        languages=["fr"],
        chunking_strategy={"type": "server_vad", "threshold": 0.25, "silence_duration_ms": 700},
        extra_body={"of_tomorrow": "x"},
    )
    _create(_client(backend), language="de", chunking_strategy="auto", temperature=0)
    first, second = backend.asked
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
    """Bytes, no name, no extension, letters and quotes that need escaping; a part without a name is no upload."""
    backend = FakeTranscriber()
    if file == (None, b"sound"):
        with pytest.raises(openai.BadRequestError, match="Missing required parameter: 'file'"):
            _create(_client(backend), file=file)
    else:
        assert _create(_client(backend), file=file).text == TEXT
        assert backend.uploads == [b"sound"]


def test_a_stream() -> None:
    """Typed events; the usage passes through."""
    *deltas, done = list(_create(_client(FakeTranscriber()), stream=True, include=["logprobs"]))
    assert all(isinstance(delta, TranscriptionTextDeltaEvent) for delta in deltas)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(delta.delta for delta in deltas) == done.text == TEXT
    assert deltas[0].logprobs[0].token == " Good"


@pytest.mark.anyio
async def test_a_stream_of_the_async_client() -> None:
    """The same events."""
    client = openai.AsyncOpenAI(
        api_key="sk-any",
        base_url="http://lan/v1",
        http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(make_app(FakeTranscriber()))),
    )
    stream = await client.audio.transcriptions.create(model="whisper-1", file=SOUND, stream=True)
    assert [event.type async for event in stream] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]


def test_an_error_in_a_stream_is_raised() -> None:
    """After the events before it, as the SDK's APIError with our message."""
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
def test_errors_are_the_sdks(failure: Exception, raised: type[openai.APIStatusError], code: str, stream: bool) -> None:  # noqa: FBT001
    """Of the class of their status, with code, param and request id read."""
    with pytest.raises(raised) as caught:
        _create(_client(FakeTranscriber([failure])), stream=stream)
    assert caught.value.code == code
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")
    assert "boom" not in str(caught.value)


def test_refusals_are_the_sdks() -> None:
    """404, 401 and 413 too."""
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
    """Listed and retrieved, a name with a slash as the SDK escapes it."""
    client = _client(FakeTranscriber())
    assert [model.id for model in client.models.list()][:3] == ["base", "org/base", "whisper-1"]
    model = client.models.retrieve("org/base")
    assert (model.id, model.object, model.owned_by) == ("org/base", "model", "localwhisper")


def test_raw_responses() -> None:
    """Headers and the unparsed body, for who wants them."""
    raw = _client(FakeTranscriber([WHOLE])).audio.transcriptions.with_raw_response.create(model="whisper-1", file=SOUND)
    assert raw.headers["x-request-id"].startswith("req_")
    assert json.loads(raw.text)["text"] == raw.parse().text
