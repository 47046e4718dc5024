"""The stock OpenAI SDK against a real server, with nothing changed but OPENAI_BASE_URL."""

import io
import warnings
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
)

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("stock")]

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "localwhisper_client" / "demo.ogg"
LONG = ROOT / "tests" / "voices" / "en-60s.ogg"
GERMAN = ROOT / "tests" / "voices" / "de-5s.ogg"
FRENCH = ROOT / "tests" / "voices" / "fr-5s.ogg"


def transcribe(path: Path = ENGLISH, **fields: Any) -> Any:
    """Call the stock SDK, which finds the server in its environment."""
    return openai.OpenAI(max_retries=0).audio.transcriptions.create(file=path, model="whisper-1", **fields)


def test_json() -> None:
    """The default format is the SDK's Transcription, with the words and a usage in seconds."""
    transcript = transcribe()
    assert type(transcript) is Transcription
    assert "bread on the way home" in transcript.text
    assert transcript.usage is not None
    assert transcript.usage.to_dict() == {"type": "duration", "seconds": 5}


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt"])
def test_plain_formats(response_format: str) -> None:
    """Text, srt and vtt come as str."""
    body = transcribe(response_format=response_format)
    assert type(body) is str
    assert "bread on the way home" in body
    if response_format != "text":
        assert "-->" in body


def test_verbose_json_with_segments_and_words() -> None:
    """verbose_json is the SDK's TranscriptionVerbose: all ten fields, words at the top, times inside the clip."""
    transcript = transcribe(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert type(transcript) is TranscriptionVerbose
    assert transcript.language == "english"
    assert transcript.model_extra is not None
    assert transcript.model_extra["task"] == "transcribe"
    (segment,) = transcript.segments
    assert all(value is not None for value in segment.to_dict().values())
    assert len(segment.to_dict()) == 10
    words = [word.word for word in transcript.words]
    assert words[:5] == ["Please", "buy", "milk", "and", "bread"]
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= float(transcript.duration) + 0.01


def test_words_alone() -> None:
    """Granularity word alone leaves the segments out."""
    transcript = transcribe(response_format="verbose_json", timestamp_granularities=["word"])
    assert transcript.segments is None
    assert transcript.words


def test_logprobs() -> None:
    """The logprobs' bytes are the text."""
    transcript = transcribe(include=["logprobs"])
    spoken = b"".join(bytes(int(byte) for byte in token.bytes or ()) for token in transcript.logprobs)
    assert spoken.decode().strip() == transcript.text
    assert all(token.logprob <= 0 for token in transcript.logprobs)


def test_stream() -> None:
    """A stream is deltas as segments are found, then a done that holds their sum."""
    events = list(transcribe(LONG, stream=True))
    assert all(type(event) is TranscriptionTextDeltaEvent for event in events[:-1])
    assert type(events[-1]) is TranscriptionTextDoneEvent
    assert len(events) > 3
    assert "".join(event.delta for event in events[:-1]) == events[-1].text
    assert "goodbye" in events[-1].text.lower()


@pytest.mark.anyio
async def test_async_client() -> None:
    """The asynchronous SDK gets the same, plain and streamed."""
    async with openai.AsyncOpenAI(max_retries=0) as client:
        plain = await client.audio.transcriptions.create(file=ENGLISH, model="gpt-4o-transcribe")
        stream = await client.audio.transcriptions.create(file=ENGLISH, model="gpt-4o-transcribe", stream=True)
        events = [event async for event in stream]
    assert "bread on the way home" in plain.text
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == plain.text


@pytest.mark.parametrize(("path", "language", "name"), [(GERMAN, "de", "german"), (FRENCH, "fr", "french")])
def test_languages(path: Path, language: str, name: str) -> None:
    """A language that is given is the one that is reported."""
    assert transcribe(path, language=language, response_format="verbose_json").language == name


def test_german_is_detected() -> None:
    """A language that is not given is detected from the speech."""
    transcript = transcribe(GERMAN, response_format="verbose_json")
    assert transcript.language == "german"
    assert "Wetter schön" in transcript.text


def test_translation() -> None:
    """The translations endpoint, which OpenAI shuts down, answers in English."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the SDK's own, about the cloud's endpoint
        translation = openai.OpenAI().audio.translations.create(
            file=GERMAN, model="whisper-1", response_format="verbose_json"
        )
    assert translation.language == "english"
    assert "Wetter" not in translation.text
    assert translation.text


def test_raw_and_streaming_responses() -> None:
    """Raw responses show the request id and parse to the same."""
    raw = openai.OpenAI().audio.transcriptions.with_raw_response.create(file=ENGLISH, model="whisper-1")
    assert raw.headers["x-request-id"].startswith("req_")
    assert "milk" in raw.parse().text
    with openai.OpenAI().audio.transcriptions.with_streaming_response.create(
        file=ENGLISH, model="whisper-1"
    ) as response:
        assert b"milk" in response.read()


def test_models() -> None:
    """The model list names what is served and OpenAI's aliases."""
    client = openai.OpenAI()
    names = [model.id for model in client.models.list()]
    assert {"base", "whisper-1"} <= set(names)
    assert client.models.retrieve("Systran/faster-whisper-base").object == "model"


@pytest.mark.parametrize(
    ("file", "fields", "error", "code"),
    [
        (("a.ogg", b"not audio at all"), {}, openai.BadRequestError, "invalid_value"),
        (("a.bin", b"not audio at all"), {}, openai.BadRequestError, "unsupported_value"),
        (("a.ogg", b""), {}, openai.BadRequestError, "invalid_value"),
        (ENGLISH, {"language": "xx"}, openai.BadRequestError, "invalid_language_format"),
        (ENGLISH, {"model": "whisper-9"}, openai.NotFoundError, "model_not_found"),
        (ENGLISH, {"response_format": "diarized_json"}, openai.BadRequestError, "unsupported_value"),
        (("a.ogg", b"not audio"), {"stream": True}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors(file: Any, fields: dict[str, Any], error: type[openai.APIStatusError], code: str) -> None:
    """Bad input is the SDK's own error of the right class, with OpenAI's code."""
    with pytest.raises(error) as caught:
        openai.OpenAI(max_retries=0).audio.transcriptions.create(**{"file": file, "model": "whisper-1"} | fields)
    assert caught.value.code == code
    assert caught.value.request_id


def test_file_without_a_name() -> None:
    """Bytes without a name or an extension are recognised by what they hold."""
    transcript = openai.OpenAI().audio.transcriptions.create(file=io.BytesIO(ENGLISH.read_bytes()), model="whisper-1")
    assert "milk" in transcript.text
