"""The stock OpenAI SDK against a real server, with nothing changed but OPENAI_BASE_URL.

Which types and errors the SDK makes of each answer is in `tests/server/test_sdk.py`; here it is what was spoken.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent

from tests.e2e.conftest import ENGLISH, FRENCH, GERMAN, LONG

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("stock")]


def transcribe(client: openai.OpenAI, file: Any = ENGLISH, **fields: Any) -> Any:
    """Call the stock SDK."""
    create: Any = client.audio.transcriptions.create
    return create(file=file, model="whisper-1", **fields)


@pytest.mark.parametrize("file", [ENGLISH, io.BytesIO(ENGLISH.read_bytes())], ids=["a path", "bytes without a name"])
def test_json(client: openai.OpenAI, file: Any) -> None:
    """The default format has the words, and a usage in seconds."""
    transcript = transcribe(client, file)
    assert "bread on the way home" in transcript.text
    assert transcript.usage.to_dict() == {"type": "duration", "seconds": 5}


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt"])
def test_plain_formats(client: openai.OpenAI, response_format: str) -> None:
    """Text, srt and vtt come as str; the last two have times."""
    body = transcribe(client, response_format=response_format)
    assert "bread on the way home" in body
    assert ("-->" in body) is (response_format != "text")


def test_verbose_json_with_segments_and_words(client: openai.OpenAI) -> None:
    """All ten fields of a segment, words at the top, times inside the clip; with `word` alone there are no segments."""
    transcript = transcribe(client, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert transcript.language == "english"
    (segment,) = transcript.segments
    assert len(segment.to_dict()) == 10
    assert all(value is not None for value in segment.to_dict().values())
    assert [word.word for word in transcript.words][:5] == ["Please", "buy", "milk", "and", "bread"]
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= float(transcript.duration) + 0.01
    words = transcribe(client, response_format="verbose_json", timestamp_granularities=["word"])
    assert words.segments is None
    assert words.words == transcript.words


def test_logprobs(client: openai.OpenAI) -> None:
    """The logprobs' bytes are the text."""
    transcript = transcribe(client, include=["logprobs"])
    spoken = b"".join(bytes(int(byte) for byte in token.bytes or ()) for token in transcript.logprobs)
    assert spoken.decode().strip() == transcript.text
    assert all(token.logprob <= 0 for token in transcript.logprobs)


def test_stream(client: openai.OpenAI) -> None:
    """A stream is deltas as segments are found, then a done that holds their sum."""
    *deltas, done = list(transcribe(client, LONG, stream=True))
    assert all(type(event) is TranscriptionTextDeltaEvent for event in deltas)
    assert type(done) is TranscriptionTextDoneEvent
    assert len(deltas) > 2
    assert "".join(event.delta for event in deltas) == done.text
    assert "goodbye" in done.text.lower()


@pytest.mark.anyio
async def test_async_client() -> None:
    """The asynchronous SDK gets the same, plain and streamed."""
    async with openai.AsyncOpenAI(max_retries=0) as client:
        plain = await client.audio.transcriptions.create(file=ENGLISH, model="gpt-4o-transcribe")
        stream = await client.audio.transcriptions.create(file=ENGLISH, model="gpt-4o-transcribe", stream=True)
        events = [event async for event in stream]
    assert "bread on the way home" in plain.text
    assert events[-1].text == plain.text


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [(GERMAN, {"language": "de"}, "german"), (FRENCH, {"language": "fr"}, "french"), (GERMAN, {}, "german")],
)
def test_languages(client: openai.OpenAI, path: Path, fields: dict[str, str], name: str) -> None:
    """A language that is given is the one that is reported; otherwise it is detected from the speech."""
    transcript = transcribe(client, path, response_format="verbose_json", **fields)
    assert transcript.language == name
    assert ("Wetter schön" in transcript.text) is (path == GERMAN)


def test_translation(client: openai.OpenAI) -> None:
    """The translations endpoint, which OpenAI shuts down, answers in English."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the SDK's own, about the cloud's endpoint
        translation = client.audio.translations.create(file=GERMAN, model="whisper-1", response_format="verbose_json")
    assert translation.language == "english"
    assert translation.text
    assert "Wetter" not in translation.text


def test_models(client: openai.OpenAI) -> None:
    """The model list names what is served and OpenAI's aliases."""
    assert {"base", "whisper-1"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("Systran/faster-whisper-base").object == "model"


@pytest.mark.parametrize(
    ("file", "fields", "code"),
    [
        (("a.ogg", b"not audio at all"), {}, "invalid_value"),
        (("a.bin", b"not audio at all"), {}, "unsupported_value"),
        (("a.ogg", b""), {}, "invalid_value"),
        (("a.ogg", b"not audio"), {"stream": True}, "invalid_value"),
        (ENGLISH, {"language": "xx"}, "invalid_language_format"),
        (ENGLISH, {"response_format": "diarized_json"}, "unsupported_value"),
    ],
)
def test_errors(client: openai.OpenAI, file: Any, fields: dict[str, Any], code: str) -> None:
    """What the server cannot use is the SDK's own error, with OpenAI's code."""
    with pytest.raises(openai.BadRequestError) as caught:
        transcribe(client, file, **fields)
    assert caught.value.code == code
