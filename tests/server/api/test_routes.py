from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server import observer
from localwhisper_server.api.routes import create_app
from localwhisper_server.errors import Busy, EngineFailed, InvalidRequest, UnreadableAudio
from localwhisper_server.operations import logs
from tests.server.driving import (
    LIMIT,
    NOTHING,
    SPOKEN,
    TEXT,
    WHOLE,
    Answer,
    FakeBackend,
    call,
    make_app,
    multipart,
    transcribe,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localwhisper_server.api.access_control import App

pytestmark = pytest.mark.anyio

INVALID = "invalid_request_error"


@pytest.fixture
def backend() -> FakeBackend:
    """Give a backend that hears two segments."""
    return FakeBackend()


@pytest.fixture
def app(backend: FakeBackend) -> App:
    """Give the app around it."""
    return make_app(backend)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Give what the server logs, as it formats it."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers, root.level, io.StringIO()
    logs.configure("info", [logging.StreamHandler(stream)])
    yield stream
    root.handlers = handlers
    root.setLevel(level)


def _events(answer: Answer) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.endswith(b"\n\n")
    return [json.loads(frame.removeprefix(b"data: ")) for frame in answer.body[:-2].split(b"\n\n")]


# Routes


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize(("route", "task"), [("transcriptions", "transcribe"), ("translations", "translate")])
async def test_speech_routes(app: App, backend: FakeBackend, prefix: str, route: str, task: str) -> None:
    """Both tasks, with and without /v1: the upload reaches the model byte for byte, its text the caller."""
    headers, body = multipart(file=b"\0sound\r\n--")
    answer = await call(app, "POST", f"{prefix}/audio/{route}", headers, body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.body.decode() == f'{{"text":"{TEXT}","usage":{{"type":"duration","seconds":3}}}}'
    assert backend.uploads == [b"\0sound\r\n--"]
    assert backend.asked[0].decoding.task == task


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_models(app: App, backend: FakeBackend, prefix: str) -> None:
    """The list and each of its members, names with a slash too, as one object."""
    listed = (await call(app, "GET", f"{prefix}/models")).json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == list(backend.names)
    for entry in listed["data"]:
        one = await call(app, "GET", f"{prefix}/models/{entry['id']}")
        assert one.json() == entry
    assert listed["data"][0] == {
        "id": "base",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "localwhisper",
        "shutdown_date": None,
    }


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_health_needs_no_key(backend: FakeBackend, prefix: str) -> None:
    """A monitor and a client's breaker ask it."""
    answer = await call(make_app(backend, api_key="k"), "GET", f"{prefix}/health")
    assert (answer.status, answer.json()) == (200, backend.health())


async def test_the_api_document_shows_the_form(app: App) -> None:
    """OpenAPI names every field a caller may send."""
    document = (await call(app, "GET", "/openapi.json")).json()
    form = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file"]
    assert "timestamp_granularities[]" in form["schema"]["properties"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/", "/v1/", "/v2/audio/transcriptions", "/v1/audio/%00"])
async def test_no_such_route(app: App, method: str, path: str) -> None:
    """OpenAI's envelope and words, not the framework's `detail`."""
    answer = await call(app, method, path)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.error == {
        "message": f"Invalid URL ({method} {path})",
        "type": INVALID,
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/audio/transcriptions", "POST"), ("POST", "/v1/models", "GET"), ("PUT", "/health", "GET")],
)
async def test_a_method_that_the_route_does_not_take(app: App, method: str, path: str, allowed: str) -> None:
    """405 with `Allow`, in the envelope."""
    answer = await call(app, method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert answer.error == {
        "message": f"Not allowed to {method} on {path}. Allowed: {allowed}.",
        "type": INVALID,
        "param": None,
        "code": "method_not_allowed",
    }


# The formats, end to end


@pytest.mark.parametrize(
    ("name", "content_type", "begins", "ends"),
    [
        ("json", "application/json", b'{"text":', b"}"),
        ("verbose_json", "application/json", b'{"task":"transcribe","language":"english"', b"}"),
        ("text", "text/plain; charset=utf-8", b"Good", "Zoë.\n".encode()),
        ("srt", "text/plain; charset=utf-8", b"1\n00:00:00,000 --> 00:00:01,500\n", "Zoë.\n\n\n".encode()),
        ("vtt", "text/plain; charset=utf-8", b"WEBVTT\n\n00:00:00.000 --> ", "Zoë.\n\n".encode()),
    ],
)
async def test_formats(app: App, name: str, content_type: str, begins: bytes, ends: bytes) -> None:
    """Each has OpenAI's content type and endings."""
    answer = await transcribe(app, ("response_format", name))
    assert answer.status == 200
    assert answer.headers["content-type"] == content_type
    assert answer.body.startswith(begins)
    assert answer.body.endswith(ends)


@pytest.mark.parametrize("name", ["json", "verbose_json", "text", "srt", "vtt"])
async def test_silence_is_200_and_empty(name: str) -> None:
    """No speech is an answer, in every format."""
    answer = await transcribe(make_app(FakeBackend([NOTHING])), ("response_format", name))
    assert answer.status == 200
    if "json" in name:
        assert answer.json()["text"] == ""
    else:
        assert not answer.body.replace(b"WEBVTT", b"").strip()


async def test_logprobs_and_languages(app: App) -> None:
    """Asked for with brackets, and by gpt-transcribe's name."""
    answer = await transcribe(app, ("include[]", "logprobs"), ("model", "gpt-transcribe"))
    assert list(answer.json()) == ["text", "logprobs", "languages", "usage"]
    assert answer.json()["languages"] == [{"code": "en"}]


# Streams


@pytest.mark.parametrize("name", ["json", "text"])
async def test_a_stream_of_deltas(app: App, backend: FakeBackend, name: str) -> None:
    """A delta per segment; together they are the text of `done`, which carries the usage."""
    answer = await transcribe(app, ("stream", "true"), ("response_format", name))
    *deltas, done = _events(answer)
    assert [delta["type"] for delta in deltas] == ["transcript.text.delta"] * 2
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == TEXT
    assert done == {"type": "transcript.text.done", "text": TEXT, "usage": {"type": "duration", "seconds": 3}}
    assert answer.whole
    assert backend.closed == 1


async def test_a_stream_carries_logprobs(app: App) -> None:
    """Each delta its own, `done` all of them."""
    *deltas, done = _events(await transcribe(app, ("stream", "true"), ("include[]", "logprobs")))
    assert [entry for delta in deltas for entry in delta["logprobs"]] == done["logprobs"]
    assert len(done["logprobs"]) == 3


async def test_a_stream_of_silence() -> None:
    """No delta, an empty `done`."""
    (done,) = _events(await transcribe(make_app(FakeBackend([NOTHING])), ("stream", "true")))
    assert done == {"type": "transcript.text.done", "text": "", "usage": {"type": "duration", "seconds": 3}}


async def test_empty_segments_send_no_delta() -> None:
    """And the first words lose their leading space wherever they come."""
    blank = replace(SPOKEN[0], text=" ")
    backend = FakeBackend([blank, *SPOKEN, replace(WHOLE, segments=(blank, *SPOKEN))])
    *deltas, done = _events(await transcribe(make_app(backend), ("stream", "true")))
    assert [delta["delta"] for delta in deltas] == ["Good morning,", " Zoë."]
    assert done["text"] == TEXT


async def test_cjk_deltas_join_without_spaces() -> None:
    """Segments that begin without a space stay so."""
    segments = [replace(SPOKEN[0], text="你好、"), replace(SPOKEN[1], text="世界。")]
    backend = FakeBackend([*segments, replace(WHOLE, segments=tuple(segments))])
    *deltas, done = _events(await transcribe(make_app(backend), ("stream", "true")))
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == "你好、世界。"


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (UnreadableAudio(), 400),
        (InvalidRequest("Audio file is too short.", param="file", code="audio_too_short"), 400),
        (Busy("full", retry_after=3), 503),
        (EngineFailed(), 500),
        (RuntimeError("secret"), 500),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_an_error_before_the_first_event_is_a_status(failure: Exception, status: int) -> None:
    """The headers wait for the first item, so that the error is an answer and not a broken stream."""
    answer = await transcribe(make_app(FakeBackend([failure])), ("stream", "true"))
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.error
    assert b"secret" not in answer.body


@pytest.mark.parametrize("failure", [EngineFailed(), RuntimeError("secret trace")], ids=["ours", "a bug"])
async def test_an_error_later_is_an_event(failure: Exception) -> None:
    """With an `error` object, on which the SDKs raise; the stream still ends well."""
    answer = await transcribe(make_app(FakeBackend([SPOKEN[0], failure])), ("stream", "true"))
    assert answer.status == 200
    delta, error = _events(answer)
    assert delta["delta"] == "Good morning,"
    assert error == {
        "type": "error",
        "error": {
            "message": "The server had an error while processing your request.",
            "type": "server_error",
            "param": None,
            "code": None,
        },
    }
    assert answer.whole


async def test_a_model_that_ends_without_a_transcript_is_a_fault() -> None:
    """Streaming or not, the caller is told; it never looks like an empty answer."""
    app = make_app(FakeBackend([SPOKEN[0]]))
    assert (await transcribe(app)).status == 500
    assert "error" in _events(await transcribe(app, ("stream", "true")))[-1]


# Errors of the reference's table


@pytest.mark.parametrize(
    ("failure", "filename", "param", "code", "message"),
    [
        (UnreadableAudio(), "voice.ogg", "file", "invalid_value", "Audio file might be corrupted or unsupported"),
        (UnreadableAudio(), "upload", "file", "invalid_value", "Audio file might be corrupted or unsupported"),
        (UnreadableAudio(), "notes.bin", "file", "unsupported_value", "Unsupported file format bin"),
        (
            InvalidRequest("Audio file is too short.", param="file", code="audio_too_short"),
            "voice.bin",
            "file",
            "audio_too_short",
            "Audio file is too short.",
        ),
    ],
    ids=["corrupt", "no extension", "bad extension", "too short"],
)
@pytest.mark.parametrize("stream", ["true", "false"])
async def test_bad_audio(failure: Exception, filename: str, param: str, code: str, message: str, stream: str) -> None:
    """The bytes decide; the name of a file that cannot be read only words the error."""
    app = make_app(FakeBackend([failure]))
    answer = await transcribe(app, ("stream", stream), filename=filename)
    assert answer.status == 400
    assert answer.error == {"message": message, "type": INVALID, "param": param, "code": code}


async def test_a_good_file_with_a_bad_extension_is_heard(app: App) -> None:
    """Names are never trusted."""
    assert (await transcribe(app, filename="voice.bin")).status == 200
    assert (await transcribe(app, filename="")).status in (200, 400)


@pytest.mark.parametrize("name", ["gpt-5", "Base", "large-v3", "x" * 500])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/models"])
async def test_an_unknown_model_lists_those_served(app: App, backend: FakeBackend, name: str, path: str) -> None:
    """404 model_not_found; the list is what the caller needs next. Long names are cut."""
    if path == "/v1/models":
        answer = await call(app, "GET", f"{path}/{name}")
    else:
        answer = await transcribe(app, ("model", name))
    assert answer.status == 404
    assert answer.error == {
        "message": f"The model '{name[:128]}' does not exist on this server. It serves: {', '.join(backend.names)}.",
        "type": INVALID,
        "param": "model",
        "code": "model_not_found",
    }


async def test_a_missing_file(app: App) -> None:
    """Said with the field's name, and how to send it."""
    answer = await transcribe(app, file=None)
    assert answer.status == 400
    assert answer.error["param"] == "file"
    assert answer.error["message"].startswith("Missing required parameter: 'file'.")


async def test_a_file_sent_as_text_is_missing(app: App) -> None:
    """A field without a file name is no upload."""
    answer = await transcribe(app, ("file", "sound"), file=None)
    assert (answer.status, answer.error["param"]) == (400, "file")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/json"}, b'{"model":"whisper-1","file":"x"}'),
        ({"content-type": "text/plain"}, b"model=whisper-1"),
        ({}, b""),
        ({"content-type": "application/x-www-form-urlencoded"}, b"model=whisper-1&file=sound"),
    ],
    ids=["json", "text", "nothing", "urlencoded"],
)
async def test_a_body_that_is_no_form_is_told_so(app: App, headers: dict[str, str], body: bytes) -> None:
    """Whatever else it lacks: what was sent is named, and what to send."""
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert (answer.status, answer.error["type"]) == (400, INVALID)
    assert "multipart/form-data" in answer.error["message"]
    assert headers.get("content-type", "without a Content-Type") in answer.error["message"]


def _part(disposition: str, content_type: str = "") -> tuple[dict[str, str], bytes]:
    """Return a form with a model and one part of this head."""
    headers, body = multipart(file=None)
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    part = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n{kind}\r\nsound\r\n--b--"
    return headers, body.replace(b"--b--", part.encode())


@pytest.mark.parametrize(
    ("disposition", "content_type", "name"),
    [
        ("name=\"file\"; filename*=UTF-8''caf%C3%A9.ogg", "", "café.ogg"),
        ("name=\"file\"; filename*=utf-8'en'caf%C3%A9.ogg", "text/plain", "café.ogg"),
        ("name=file;FileName*=\"UTF-8''a%22%0D%0Ab.ogg\"", "", "ab.ogg"),
        ("name=\"file\"; filename*0*=UTF-8''long; filename*1=er.ogg", "", "long"),
        ('filename*=x.ogg; name="file"', "", "x.ogg"),
        ('name="file"', "audio/ogg", ""),
        ('name="file"', "application/octet-stream", ""),
        ('name="file"; filename=""', "", ""),
    ],
)
async def test_a_file_without_a_plain_name(
    app: App, backend: FakeBackend, log: io.StringIO, disposition: str, content_type: str, name: str
) -> None:
    """One whose name comes in `filename*` alone, and one without a name whose type is not text."""
    headers, body = _part(disposition, content_type)
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200
    assert backend.uploads == [b"sound"]
    assert (f'"{name}"' in log.getvalue()) == bool(name)


@pytest.mark.parametrize("content_type", ["", "text/plain", "Text/Plain; charset=utf-8"])
async def test_a_text_field_called_file_is_no_file(app: App, content_type: str) -> None:
    """RFC 7578: a part without a type is text."""
    headers, body = _part('name="file"', content_type)
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert (answer.status, answer.error["param"]) == (400, "file")


async def test_a_body_that_is_refused_is_not_read(app: App) -> None:
    """A megabyte of `&` would take a second of the event loop."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    read = False

    async def receive() -> Any:
        nonlocal read
        read = True
        return {"type": "http.request", "body": b"&" * 1_000_000, "more_body": True}

    async def unread(scope: Any, _receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    assert (await call(unread, "POST", "/v1/audio/transcriptions", headers)).status == 400
    assert not read


@pytest.mark.parametrize(
    "path", ["/v1//audio/transcriptions", "//v1/audio//transcriptions", "//audio///transcriptions"]
)
async def test_doubled_slashes_are_one(app: App, backend: FakeBackend, path: str) -> None:
    """A base URL that ends in a slash makes them."""
    headers, body = multipart()
    assert (await call(app, "POST", path, headers, body)).status == 200
    assert (await call(app, "GET", "/v1//models")).status == 200


@pytest.mark.parametrize("name", ["", " ", "whisper", "whisper-large-v3", "openai/whisper-1"])
async def test_a_model_named_by_habit_or_not_at_all(app: App, backend: FakeBackend, name: str) -> None:
    """Means the served one; asked for by name it is there, but not listed."""
    assert (await transcribe(app, ("model", name))).json()["text"] == TEXT
    if name.strip():
        assert (await call(app, "GET", f"/v1/models/{name}")).json()["id"] == name
        assert name not in backend.names


async def test_a_form_without_a_model(app: App) -> None:
    """The field left out altogether."""
    headers, body = multipart()
    without = body.replace(b'name="model"', b'name="other"')
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, without)).json()["text"] == TEXT


async def test_hints_of_several_languages_reach_the_model(app: App, backend: FakeBackend) -> None:
    """And are repeated by the one model whose json lists languages, as OpenAI does."""
    hints = (("languages[]", "de-AT"), ("languages[]", "english"))
    answer = await transcribe(app, *hints, ("model", "gpt-transcribe"))
    assert backend.asked[0].decoding.languages == ("de", "en")
    assert answer.json()["languages"] == [{"code": "de"}, {"code": "en"}]


_FORM, _BODY = multipart()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", _BODY),
        ("multipart/form-data; boundary=", _BODY),
        ("multipart/form-data; boundary=other", _BODY),
        ("multipart/form-data; boundary=b", b"no boundary here"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Type: audio/ogg\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n: \r\n\r\n--b--"),
        ("multipart/form-data; boundary=b", multipart(*[(f"f{n}", "x") for n in range(300)])[1]),
        ("multipart/form-data; boundary=b", multipart(("prompt", "x" * 2_000_000))[1]),
        ("multipart/form-data; boundary=b; charset=undefined", _BODY),
    ],
    ids=[
        *("no boundary", "empty boundary", "another boundary", "not multipart", "no name", "bad header", "many fields"),
        *("long field", "no charset"),
    ],
)
async def test_a_form_that_cannot_be_parsed(app: App, content_type: str, body: bytes) -> None:
    """A 400 in the envelope, whatever is wrong with it; nothing but the caller's fault."""
    answer = await call(app, "POST", "/v1/audio/transcriptions", {"content-type": content_type}, body)
    assert answer.status == 400
    assert answer.error["type"] == INVALID


@pytest.mark.parametrize(
    "charset", ["utf-7", "unicode_escape", "raw_unicode_escape", "nonsense", "utf-16", "rot13", "idna", "punycode"]
)
async def test_an_odd_charset_is_refused_before_anything_is_decoded(app: App, charset: str) -> None:
    """Some of Python's decoders take minutes for a megabyte, others make half characters."""
    value = "\U00010000\U00010000".encode("punycode").decode() + "a" * 500_000
    _, body = multipart(("language", value), ("response_format", "\\ud800+2AA-"))
    headers = {"content-type": f'multipart/form-data; boundary=b; charset="{charset}"'}
    started = time.monotonic()
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert answer.status == 400
    assert "UTF-8" in answer.error["message"]
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "latin-1", "us-ascii"])
async def test_a_plain_charset_is_taken(app: App, charset: str) -> None:
    """As old clients name it."""
    headers, body = multipart()
    headers["content-type"] += f"; charset={charset}"
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200


async def test_a_compressed_body_is_refused(app: App) -> None:
    """By name, instead of as a form that makes no sense."""
    headers, body = multipart()
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers | {"content-encoding": "gzip"}, body)
    assert answer.status == 400
    assert "Content-Encoding" in answer.error["message"]


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_monitors_may_ask_by_head(app: App, path: str) -> None:
    """As many do."""
    assert (await call(app, "HEAD", path)).status == 200


async def test_a_path_cannot_fill_or_forge_the_log(app: App, log: io.StringIO) -> None:
    """It is shown as it came, and not to its end."""
    await call(app, "GET", "/x%20200%200.4s" + "a" * 5000)
    (line,) = log.getvalue().splitlines()
    assert "GET /x%20200%200.4sa" in line
    assert len(line) < 400


async def test_fields_sent_twice(app: App, backend: FakeBackend) -> None:
    """The last value counts, the first file does."""
    second = b'--b\r\nContent-Disposition: form-data; name="file"; filename="b.ogg"\r\n\r\nsecond\r\n--b--\r\n'
    headers, body = multipart(("language", "de"), ("language", "fr"), file=b"first")
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body.replace(b"--b--\r\n", second))
    assert answer.status == 200
    assert backend.uploads == [b"first"]
    assert backend.asked[0].decoding.language == "fr"


async def test_a_file_part_first_is_as_good(app: App, backend: FakeBackend) -> None:
    """Node sends the caller's key order."""
    headers, body = multipart(file=b"sound")
    model = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    reordered = body.replace(model, b"").replace(b"--b--", model + b"--b--")
    assert reordered.index(b"voice.ogg") < reordered.index(b"whisper-1")
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, reordered)).status == 200
    assert backend.uploads == [b"sound"]


async def test_a_refused_field_never_reaches_the_model(app: App, backend: FakeBackend) -> None:
    """And carries its own param and code."""
    answer = await transcribe(app, ("language", "xx"))
    assert answer.status == 400
    assert answer.error["code"] == "invalid_language_format"
    assert not backend.asked


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_full_queue_says_when_to_come_back(stream: str) -> None:
    """503 with whole seconds in `Retry-After`."""
    answer = await transcribe(make_app(FakeBackend([Busy("full", retry_after=1.2)])), ("stream", stream))
    assert answer.status == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.error == {
        "message": "full",
        "type": "service_unavailable_error",
        "param": None,
        "code": "server_is_overloaded",
    }


async def test_a_large_upload_is_turned_away_before_it_is_read(backend: FakeBackend) -> None:
    """Where there is no room for it; a small one may be the same as one that is being transcribed, and is let in."""
    backend.no_room = Busy("full", retry_after=7)
    app = make_app(backend)
    headers, body = multipart()
    headers["content-length"] = str(len(body))
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200
    headers, body = multipart(file=bytes(2_000_000))
    for announced in ({}, {"content-length": str(len(body))}):
        answer = await call(app, "POST", "/v1/audio/transcriptions", headers | announced, body)
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert len(backend.uploads) == 1


async def test_not_ready_is_said_before_the_upload_is_read(backend: FakeBackend) -> None:
    """A caller who comes too early is not made to send it all."""
    backend.not_ready = Busy("loading", retry_after=0)
    answer = await transcribe(make_app(backend))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert not backend.uploads


@pytest.mark.parametrize(
    "failure", [RuntimeError("secret /home/me/x.py"), EngineFailed(), MemoryError(), KeyError("k")]
)
async def test_a_fault_of_ours_leaves_no_trace(failure: Exception, log: io.StringIO) -> None:
    """The envelope and nothing of the cause, which is in the log under the request's id."""
    answer = await transcribe(make_app(FakeBackend([failure])))
    assert answer.status == 500
    assert answer.error == {
        "message": "The server had an error while processing your request.",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    if not isinstance(failure, EngineFailed):
        (line,) = [line for line in log.getvalue().splitlines() if "a request failed" in line]
        assert answer.headers["x-request-id"] in line
        assert type(failure).__name__ in log.getvalue()


# The guard


TOO_LARGE = "413: Maximum content size limit (1000) exceeded ({read} bytes read)"


async def test_an_announced_body_over_the_limit_is_refused_unread(backend: FakeBackend) -> None:
    """OpenAI's 413: typed server_error, with an empty usage beside it."""
    app = make_app(backend, max_upload=1000)
    headers, body = multipart(file=bytes(2000))
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers | {"content-length": str(len(body))}, [])
    assert answer.status == 413
    assert answer.json() == {
        "error": {
            "message": TOO_LARGE.format(read=len(body)),
            "type": "server_error",
            "param": None,
            "code": None,
        },
        "usage": {"type": "duration", "seconds": 0},
    }


async def test_a_chunked_body_over_the_limit_is_refused_on_the_way(backend: FakeBackend) -> None:
    """It announces nothing, so it is counted as it comes."""
    headers, body = multipart(file=bytes(2000))
    chunks = [body[at : at + 300] for at in range(0, len(body), 300)]
    answer = await call(make_app(backend, max_upload=1000), "POST", "/v1/audio/transcriptions", headers, chunks)
    assert answer.status == 413
    assert answer.error["message"] == TOO_LARGE.format(read=1200)
    assert not backend.uploads


@pytest.mark.parametrize("announced", ["", "junk", "-5", "²", "1000"])
async def test_an_odd_announcement_is_not_trusted(backend: FakeBackend, announced: str) -> None:
    """Neither a length that is none nor one that lies changes what may come."""
    headers, body = multipart(file=bytes(2000))
    app = make_app(backend, max_upload=1000)
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers | {"content-length": announced}, body)
    assert answer.status == 413


async def test_a_body_of_exactly_the_limit_is_taken(backend: FakeBackend) -> None:
    """The whole body counts, as OpenAI counts it."""
    headers, body = multipart(file=bytes(2000))
    headers["content-length"] = str(len(body))
    app = make_app(backend, max_upload=len(body))
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200


KEY = "lw-0123456789abcdef"


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic abc", KEY])
async def test_no_key(backend: FakeBackend, authorization: str | None) -> None:
    """OpenAI's 401 for it, before a byte of the body is read."""
    headers, _ = multipart()
    if authorization is not None:
        headers["authorization"] = authorization
    answer = await call(make_app(backend, api_key=KEY), "POST", "/v1/audio/transcriptions", headers, [])
    assert answer.status == 401
    assert answer.headers["content-type"] == "application/json"
    assert answer.error["message"].startswith("You didn't provide an API key.")
    assert (answer.error["type"], answer.error["param"], answer.error["code"]) == (INVALID, None, None)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("sk-proj-0123456789", "sk-***6789"),
        ("short", "***"),
        ("clé-0123456789abc", "clé***9abc"),
        (KEY + "x", "lw-***defx"),
    ],
)
async def test_a_wrong_key(backend: FakeBackend, key: str, shown: str) -> None:
    """As OpenAI sends it: text/plain, the status in the body; the key masked, ours not shown."""
    headers = {"authorization": f"Bearer {key}"}
    answer = await call(make_app(backend, api_key=KEY), "GET", "/v1/models", headers)
    assert answer.status == 401
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.json()["status"] == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["message"].startswith(f"Incorrect API key provided: {shown}.")
    assert key not in answer.body.decode() or len(key) < 8
    assert KEY not in answer.body.decode()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "  Bearer "])
async def test_the_right_key(backend: FakeBackend, scheme: str) -> None:
    """The scheme's case does not matter."""
    app = make_app(backend, api_key=KEY)
    assert (await call(app, "GET", "/v1/models", {"authorization": f"{scheme} {KEY}"})).status == 200


async def test_no_key_needed_takes_any(app: App) -> None:
    """The SDK always sends one."""
    assert (await call(app, "GET", "/v1/models", {"authorization": "Bearer sk-whatever"})).status == 200


async def test_other_scopes_pass() -> None:
    """The server's start and stop are not requests."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"} if not sent else {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await make_app(FakeBackend())({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# Ids, headers, the log


async def _every_kind_of_answer(headers: dict[str, str]) -> list[Answer]:
    ok, bad, broken = FakeBackend(), FakeBackend([UnreadableAudio()]), FakeBackend([RuntimeError()])
    form, body = multipart()
    path = "/v1/audio/transcriptions"
    stream = multipart(("stream", "true"))[1]
    return [
        await call(make_app(ok), "POST", path, form | headers, body),
        await call(make_app(ok), "POST", path, form | headers, stream),
        await call(make_app(bad), "POST", path, form | headers, body),
        await call(make_app(broken), "POST", path, form | headers, body),
        await call(make_app(ok), "GET", "/health", headers),
        await call(make_app(ok), "GET", "/nowhere", headers),
        await call(make_app(ok), "GET", path, headers),
        await call(make_app(ok, api_key="k"), "GET", "/v1/models", headers),
        await call(make_app(ok, max_upload=10), "POST", path, form | headers, body),
    ]


async def test_every_answer_and_log_line_has_its_id(log: io.StringIO) -> None:
    """The caller's own where it is fit to print."""
    answers = await _every_kind_of_answer({"x-request-id": "mine-1"})
    assert [answer.status for answer in answers] == [200, 200, 400, 500, 200, 404, 405, 401, 413]
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine-1"}
    ours = [line for line in log.getvalue().splitlines() if re.match(r"\d{4}-", line)]
    assert len(ours) >= len(answers)
    assert all(" mine-1 " in line for line in ours)


async def test_ids_are_made_in_openais_shape() -> None:
    """A new one for each answer."""
    ids = [answer.headers["x-request-id"] for answer in await _every_kind_of_answer({})]
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", made) for made in ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a\tb", "naïve", "<b>"])
async def test_an_id_not_fit_to_print_is_replaced(app: App, given: str) -> None:
    """It goes to a log that people read."""
    answer = await call(app, "GET", "/health", {"x-request-id": given})
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_openais_other_headers(app: App) -> None:
    """The version and the time taken, in whole milliseconds."""
    answer = await call(app, "GET", "/health")
    assert answer.headers["openai-version"] == "2020-10-01"
    assert answer.headers["openai-processing-ms"] == "0"


async def test_every_answer_says_how_long_the_queue_is(app: App, backend: FakeBackend) -> None:
    """For clients with several servers to choose from."""
    backend.queue_seconds = 12.3456
    assert (await call(app, "GET", "/health")).headers["x-localwhisper-queue-seconds"] == "12.346"
    assert (await transcribe(app, ("model", "nope"))).headers["x-localwhisper-queue-seconds"] == "12.346"


async def test_the_log_never_holds_words_keys_or_sound(log: io.StringIO) -> None:
    """One line for the request, with its status; none of what was said or who may come in."""
    app = make_app(FakeBackend(), api_key=KEY)
    headers, body = multipart(("prompt", "hush"), file=b"sound of music")
    headers["authorization"] = f"Bearer {KEY}"
    await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    text = log.getvalue()
    assert "POST /v1/audio/transcriptions 200" in text
    assert not any(secret in text for secret in ("morning", "hush", KEY, "music"))


async def test_the_log_tells_of_the_recording(log: io.StringIO) -> None:
    """Its name, however odd, in one quoted piece; length, language and speed where there is a transcript."""
    app = make_app(FakeBackend())
    name = 'a \\" 200 0.1s\u2028b' + 200 * "c"
    for fields in ((), (("stream", "true"),)):
        await transcribe(app, *fields, filename=name)
    await transcribe(make_app(FakeBackend([NOTHING])))
    await transcribe(make_app(FakeBackend([UnreadableAudio()])))
    first, second, silent, unread = (line.partition(" 0.000s")[2] for line in log.getvalue().splitlines())
    quoted, _, rest = first.rpartition('"')
    assert quoted.startswith(', "a ')
    assert len(quoted) < 220
    assert rest == ", 2.5 s of en, 2500 x real time"
    assert second == first
    assert silent == ', "voice.ogg", 3.0 s of silence, 3000 x real time'
    assert unread == ', invalid_value, "voice.ogg"'


async def test_the_log_says_why_a_request_was_refused(log: io.StringIO) -> None:
    """By the error's code; what was asked for is not repeated."""
    app = make_app(FakeBackend(), api_key=KEY)
    key = {"authorization": f"Bearer {KEY}"}
    for fields in ((("model", "nope"),), (("language", "nonsense"),), (("temperature", "hot"),)):
        headers, body = multipart(*fields)
        await call(app, "POST", "/v1/audio/transcriptions", headers | key, body)
    await call(app, "GET", "/v1/models", {"authorization": "Bearer wrong"})
    said = [line.rpartition("s, ")[2].partition(",")[0] for line in log.getvalue().splitlines()]
    assert said == ["model_not_found", "invalid_language_format", "invalid_value", "invalid_api_key"]


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (EngineFailed(), 500, 'broke off: 500, "voice.ogg"'),
        (Busy("stopping", retry_after=1), 503, 'broke off: 503, server_is_overloaded, "voice.ogg"'),
        (RuntimeError("a fault of ours"), 500, 'broke off: 500, "voice.ogg"'),
    ],
    ids=["ours", "stopping", "a bug"],
)
async def test_a_stream_that_breaks_off_is_counted_as_a_failure(
    log: io.StringIO, failure: Exception, status: int, said: str
) -> None:
    """In the log's line and in the numbers, though 200 went out before."""
    counted = []

    class Counting(observer.NullObserver):
        def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
            counted.append(status)

    backend = FakeBackend([SPOKEN[0], failure])
    app = create_app(backend, metrics=Counting(), clock=lambda: 0.0)
    assert (await transcribe(app, ("stream", "true"))).status == 200
    assert counted == [status]
    assert log.getvalue().splitlines()[-1].endswith(f"POST /v1/audio/transcriptions 200 0.000s, {said}")
    await transcribe(make_app(FakeBackend()), ("stream", "true"))
    assert "broke off" not in log.getvalue().splitlines()[-1]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_log_levels(log: io.StringIO, level: str) -> None:
    """What is below the chosen one is not written; libraries that chat are held at warning."""
    logs.configure(level, [logging.StreamHandler(log)])
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("x"), name)("said at %s", name)
        getattr(logging.getLogger("httpx2"), name)("chat at %s", name)
    levels = ["debug", "info", "warning", "error"]
    expected = levels[levels.index(level) :]
    assert re.findall(r"said at (\w+)", log.getvalue()) == expected
    assert re.findall(r"chat at (\w+)", log.getvalue()) == [name for name in expected if name in ("warning", "error")]
    assert " - said at error" in log.getvalue()


async def test_probes_do_not_fill_the_log(log: io.StringIO, backend: FakeBackend) -> None:
    """Good news that somebody asks for every few seconds is for who debugs; bad news is a line."""
    app = make_app(backend)
    await call(app, "GET", "/health")
    await call(app, "POST", "/health")
    lines = log.getvalue().splitlines()
    assert len(lines) == 1
    assert "POST /health 405" in lines[0]


async def test_a_full_disk_turns_an_upload_away(app: App, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads wait on the disk; one that finds no room is told to come back, and the log says why in a line."""

    class Full(io.BytesIO):
        def write(self, _data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", lambda **_: Full())
    answer = await transcribe(app)
    assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
    assert answer.headers["retry-after"] == "30"
    assert "ERROR" in log.getvalue()
    assert "temporary folder: No space left on device" in log.getvalue()
    assert "Traceback" not in log.getvalue()


# Hanging up


async def _while_it_works(app: App, backend: FakeBackend, *fields: tuple[str, str]) -> Answer:
    """Hang up while the backend waits; the call must end by itself."""
    headers, body = multipart(*fields)
    gone = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(call(app, "POST", "/v1/audio/transcriptions", headers, body, hang_up=gone))
        await backend.reached.wait()
        gone.set()
    return calling.result()


@pytest.mark.parametrize("stream", ["true", "false"])
@pytest.mark.parametrize("heard", [(), SPOKEN[:1]], ids=["before the first item", "after it"])
async def test_hanging_up_stops_the_work(stream: str, heard: tuple[Any, ...], log: io.StringIO) -> None:
    """The generator is closed, so that its chunks leave the queue, and the upload with it."""
    backend = FakeBackend([*heard, asyncio.Event(), WHOLE])
    answer = await _while_it_works(make_app(backend), backend, ("stream", stream))
    assert backend.closed == 1
    assert backend.sources[0].closed
    assert not answer.body or stream == "true"
    assert "Traceback" not in log.getvalue()
    assert ("499" in log.getvalue()) == (answer.status != 200)


async def test_hanging_up_while_an_event_is_sent_stops_the_work() -> None:
    """A reader that stalls and goes leaves nothing running, either."""
    backend = FakeBackend([*SPOKEN, WHOLE])
    app, gone, sending = make_app(backend), asyncio.Event(), asyncio.Event()
    headers, body = multipart(("stream", "true"))

    async def stalled(scope: Any, receive: Any, send: Any) -> None:
        async def stall(message: Any) -> None:
            if message.get("body"):
                sending.set()
                await asyncio.Event().wait()
            await send(message)

        await app(scope, receive, stall)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(call(stalled, "POST", "/v1/audio/transcriptions", headers, body, hang_up=gone))
        await sending.wait()
        gone.set()
    assert backend.closed == 1


async def test_hanging_up_in_the_middle_of_the_upload(backend: FakeBackend, log: io.StringIO) -> None:
    """Nothing is transcribed, and the log takes it for what it is, not for a fault of ours."""
    headers, body = multipart(file=bytes(3_000_000))
    answer = await call(
        make_app(backend), "POST", "/v1/audio/transcriptions", headers, [body[:2_500_000]], unfinished=True
    )
    assert not backend.uploads
    assert not answer.body
    assert "Traceback" not in log.getvalue()
    assert "POST /v1/audio/transcriptions 499" in log.getvalue()


async def test_who_is_cut_off_by_a_stop_is_told_to_come_back(log: io.StringIO) -> None:
    """At the end of a stop uvicorn cancels what still runs; the caller gets an answer, the log no traceback."""
    backend = FakeBackend([asyncio.Event()])
    async with asyncio.timeout(10):
        calling = asyncio.create_task(transcribe(make_app(backend)))
        await backend.reached.wait()
        calling.cancel()
        answer = await calling
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert answer.error["code"] == "server_is_overloaded"
    assert backend.closed == 1
    assert "Traceback" not in log.getvalue()


async def test_hanging_up_before_anything_is_done_closes_the_upload(backend: FakeBackend) -> None:
    """The model is never asked, and nothing is left open."""
    opened: list[Any] = []
    app, gone = make_app(backend), asyncio.Event()
    gone.set()
    real = backend.transcribe

    def keep(source: Any, options: Any) -> Any:
        opened.append(source)
        return real(source, options)

    backend.transcribe = keep  # type: ignore[method-assign]
    backend.items = [asyncio.Event()]
    headers, body = multipart()
    await call(app, "POST", "/v1/audio/transcriptions", headers, body, hang_up=gone)
    assert [source.closed for source in opened] == [True]


async def test_extra_files_are_closed(app: App, backend: FakeBackend) -> None:
    """Uploads under other names are read by nobody."""
    headers, body = multipart()
    extra = b'--b\r\nContent-Disposition: form-data; name="image"; filename="b.png"\r\n\r\npixels\r\n--b--\r\n'
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body.replace(b"--b--\r\n", extra))
    assert answer.status == 200
    assert backend.uploads == [b"sound"]


@pytest.mark.parametrize("outcome", [WHOLE, UnreadableAudio(), RuntimeError()], ids=["heard", "refused", "failed"])
@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_large_upload_leaves_nothing_behind(
    outcome: Any, stream: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes go through a spooled file; it is closed however the request ends."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = FakeBackend([outcome])
    data = bytes(range(256)) * 20_000
    await transcribe(make_app(backend), ("stream", stream), file=data)
    assert backend.uploads == [data]
    assert backend.sources[0].closed
    assert not list(tmp_path.iterdir())
    assert len(data) < LIMIT
