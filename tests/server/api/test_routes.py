from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server.errors import Busy, EngineFailed, InvalidRequest, UnreadableAudio
from tests.server.driving import (
    NOTHING,
    SPOKEN,
    TEXT,
    WHOLE,
    Answer,
    FakeTranscriber,
    call,
    make_app,
    multipart,
    transcribe,
)

if TYPE_CHECKING:
    import io

    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio


INVALID = "invalid_request_error"


def _events(answer: Answer) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.endswith(b"\n\n")
    return [json.loads(frame.removeprefix(b"data: ")) for frame in answer.body[:-2].split(b"\n\n")]


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize(("route", "task"), [("transcriptions", "transcribe"), ("translations", "translate")])
async def test_speech_routes(app: ASGIApp, transcriber: FakeTranscriber, prefix: str, route: str, task: str) -> None:
    """Both tasks, with and without /v1: the model gets the upload byte for byte, the caller gets the text."""
    headers, body = multipart(file=b"\0sound\r\n--")
    answer = await call(app, "POST", f"{prefix}/audio/{route}", headers, body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.body.decode() == f'{{"text":"{TEXT}","usage":{{"type":"duration","seconds":3}}}}'
    assert transcriber.uploads == [b"\0sound\r\n--"]
    assert transcriber.asked[0].decoding.task == task


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_models(app: ASGIApp, transcriber: FakeTranscriber, prefix: str) -> None:
    """The list, and each of its members alone; a name may have a slash."""
    listed = (await call(app, "GET", f"{prefix}/models")).json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == list(transcriber.names)
    for entry in listed["data"]:
        one = await call(app, "GET", f"{prefix}/models/{entry['id']}")
        assert one.json() == entry
    assert listed["data"][0] == {
        "id": "base",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "localwhisper",
        "shutdown_date": None,
        "languages": sorted(transcriber.languages),
        "can_translate": True,
    }


async def test_the_api_document_shows_the_form(app: ASGIApp) -> None:
    """OpenAPI names the fields of the form, with brackets where the SDKs send them."""
    document = (await call(app, "GET", "/openapi.json")).json()
    form = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file"]
    assert "timestamp_granularities[]" in form["schema"]["properties"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1", "/v1/", "/v2/audio/transcriptions", "/v1/audio/%00"])
async def test_no_such_route(app: ASGIApp, method: str, path: str) -> None:
    """OpenAI's envelope and words, not the framework's `detail`."""
    answer = await call(app, method, path)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert [*answer.error.values()] == [f"Invalid URL ({method} {path})", INVALID, None, None]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/audio/transcriptions", "POST"), ("POST", "/v1/models", "GET"), ("PUT", "/health", "GET")],
)
async def test_a_method_that_the_route_does_not_take(app: ASGIApp, method: str, path: str, allowed: str) -> None:
    """405 with `Allow`, in the envelope."""
    answer = await call(app, method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert [*answer.error.values()] == [
        f"Not allowed to {method} on {path}. Allowed: {allowed}.",
        INVALID,
        None,
        "method_not_allowed",
    ]


@pytest.mark.parametrize(
    ("name", "content_type", "begins"),
    [
        ("json", "application/json", b'{"text":'),
        ("verbose_json", "application/json", b'{"task":'),
        ("text", "text/plain; charset=utf-8", b"Good"),
        ("srt", "text/plain; charset=utf-8", b"1\n"),
        ("vtt", "text/plain; charset=utf-8", b"WEBVTT\n"),
    ],
)
async def test_formats(app: ASGIApp, name: str, content_type: str, begins: bytes) -> None:
    """Each has OpenAI's content type; a recording without speech is a 200 as well."""
    answer = await transcribe(app, ("response_format", name))
    assert (answer.status, answer.headers["content-type"]) == (200, content_type)
    assert answer.body.startswith(begins)
    assert (await transcribe(make_app(FakeTranscriber([NOTHING])), ("response_format", name))).status == 200


@pytest.mark.parametrize("name", ["json", "text"])
async def test_a_stream_of_deltas(app: ASGIApp, transcriber: FakeTranscriber, name: str) -> None:
    """One delta for each segment; joined, they are the text of `done`."""
    answer = await transcribe(app, ("stream", "true"), ("response_format", name))
    *deltas, done = _events(answer)
    assert [delta["type"] for delta in deltas] == ["transcript.text.delta"] * 2
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == TEXT
    assert answer.whole
    assert transcriber.closed == 1


async def test_verbose_json_can_be_streamed(app: ASGIApp) -> None:
    """OpenAI's cannot. Deltas have their times, and `done` has all that verbose_json has."""
    asked = [("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]
    *deltas, done = _events(await transcribe(app, ("stream", "true"), *asked))
    whole = (await transcribe(app, *asked)).json()
    assert [(delta["start"], delta["end"]) for delta in deltas] == [(0.0, 1.5), (1.5, 2.5)]
    assert done == {"type": "transcript.text.done"} | whole
    assert [word["word"] for word in whole["words"]] == ["Good", "morning", "Zoë"]


async def test_empty_segments_send_no_delta() -> None:
    """The first delta with words has no leading space, whichever it is."""
    blank = replace(SPOKEN[0], text=" ")
    transcriber = FakeTranscriber([blank, *SPOKEN, replace(WHOLE, segments=(blank, *SPOKEN))])
    *deltas, done = _events(await transcribe(make_app(transcriber), ("stream", "true")))
    assert [delta["delta"] for delta in deltas] == ["Good morning,", " Zoë."]
    assert done["text"] == TEXT


@pytest.mark.parametrize("failure", [EngineFailed(), RuntimeError("secret trace")], ids=["an error", "a bug"])
async def test_an_error_later_is_an_event(failure: Exception) -> None:
    """The event has an `error` object, for which the SDKs raise; the stream ends as it should."""
    answer = await transcribe(make_app(FakeTranscriber([SPOKEN[0], failure])), ("stream", "true"))
    assert answer.status == 200
    delta, error = _events(answer)
    assert delta["delta"] == "Good morning,"
    assert error == {"type": "error"} | EngineFailed().body()
    assert "secret" not in str(error)
    assert answer.whole


async def test_a_transcription_without_a_transcript_is_a_500() -> None:
    """It is an error, streamed or not, and never looks like an empty answer."""
    app = make_app(FakeTranscriber([SPOKEN[0]]))
    assert (await transcribe(app)).status == 500
    assert "error" in _events(await transcribe(app, ("stream", "true")))[-1]


@pytest.mark.parametrize(
    ("failure", "filename", "code", "message"),
    [
        (UnreadableAudio(), "voice.ogg", "invalid_value", "Audio file might be corrupted or unsupported"),
        (UnreadableAudio(), "upload", "invalid_value", "Audio file might be corrupted or unsupported"),
        (UnreadableAudio(), "notes.bin", "unsupported_value", "Unsupported file format bin"),
        (InvalidRequest("Too short.", param="file", code="audio_too_short"), "a.bin", "audio_too_short", "Too short."),
    ],
    ids=["corrupt", "no extension", "bad extension", "too short"],
)
@pytest.mark.parametrize("stream", ["true", "false"])
async def test_bad_audio(failure: Exception, filename: str, code: str, message: str, stream: str) -> None:
    """The bytes decide whether a file is read; its name decides only which error says that it is not."""
    app = make_app(FakeTranscriber([failure]))
    answer = await transcribe(app, ("stream", stream), filename=filename)
    assert answer.status == 400
    assert [*answer.error.values()] == [message, INVALID, "file", code]


async def test_a_good_file_with_an_unknown_ending_is_transcribed(app: ASGIApp) -> None:
    """The name of a file decides nothing."""
    assert (await transcribe(app, filename="voice.bin")).status == 200
    assert (await transcribe(app, filename="")).status in (200, 400)


@pytest.mark.parametrize("name", ["gpt-5", "Base", "large-v3", "x" * 500])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/models"])
async def test_an_unknown_model_lists_those_served(
    app: ASGIApp, transcriber: FakeTranscriber, name: str, path: str
) -> None:
    """404 model_not_found, with the names to choose from. A long name is cut."""
    if path == "/v1/models":
        answer = await call(app, "GET", f"{path}/{name}")
    else:
        answer = await transcribe(app, ("model", name))
    served = ", ".join(transcriber.names)
    assert answer.status == 404
    assert [*answer.error.values()] == [
        f"The model '{name[:128]}' does not exist on this server. It serves: {served}.",
        INVALID,
        "model",
        "model_not_found",
    ]


@pytest.mark.parametrize(
    "path", ["/v1//audio/transcriptions", "//v1/audio//transcriptions", "//audio///transcriptions"]
)
async def test_doubled_slashes_are_one(app: ASGIApp, transcriber: FakeTranscriber, path: str) -> None:
    """A base URL that ends in a slash doubles it."""
    headers, body = multipart()
    assert (await call(app, "POST", path, headers, body)).status == 200
    assert (await call(app, "GET", "/v1//models")).status == 200


@pytest.mark.parametrize("name", ["", " ", "whisper", "whisper-large-v3", "openai/whisper-1"])
async def test_an_alias_or_no_name_is_the_served_model(app: ASGIApp, transcriber: FakeTranscriber, name: str) -> None:
    """An alias can be asked for by name, but is not listed."""
    assert (await transcribe(app, ("model", name))).json()["text"] == TEXT
    if name.strip():
        assert (await call(app, "GET", f"/v1/models/{name}")).json()["id"] == name
        assert name not in transcriber.names


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_full_queue_says_when_to_come_back(stream: str) -> None:
    """503 with whole seconds in `Retry-After`, rounded up."""
    answer = await transcribe(make_app(FakeTranscriber([Busy("full", retry_after=1.2)])), ("stream", stream))
    assert answer.status == 503
    assert answer.headers["retry-after"] == "2"
    assert [*answer.error.values()] == ["full", "service_unavailable_error", None, "server_is_overloaded"]


async def test_a_large_upload_to_a_full_queue_is_refused_unread(transcriber: FakeTranscriber) -> None:
    """A small one is read: it may repeat a recording that is being transcribed already."""
    transcriber.no_room = Busy("full", retry_after=7)
    app = make_app(transcriber)
    headers, body = multipart()
    headers["content-length"] = str(len(body))
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200
    headers, body = multipart(file=bytes(2_000_000))
    for announced in ({}, {"content-length": str(len(body))}):
        answer = await call(app, "POST", "/v1/audio/transcriptions", headers | announced, body)
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert len(transcriber.uploads) == 1


async def test_an_upload_before_the_model_is_ready_is_refused_unread(transcriber: FakeTranscriber) -> None:
    """503 before the body is read."""
    transcriber.not_ready = Busy("loading", retry_after=0)
    answer = await transcribe(make_app(transcriber))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert not transcriber.uploads


@pytest.mark.parametrize("failure", [RuntimeError("secret /home/me/x.py"), EngineFailed()])
async def test_the_cause_of_a_500_is_in_the_log_alone(failure: Exception, log: io.StringIO) -> None:
    """The answer has nothing of it; the log has it under the request's id."""
    answer = await transcribe(make_app(FakeTranscriber([failure])))
    assert answer.status == 500
    assert [*answer.error.values()] == [
        "The server had an error while processing your request.",
        "server_error",
        None,
        None,
    ]
    if not isinstance(failure, EngineFailed):
        (line,) = [line for line in log.getvalue().splitlines() if "a request failed" in line]
        assert answer.headers["x-request-id"] in line
        assert type(failure).__name__ in log.getvalue()


async def _while_it_works(app: ASGIApp, transcriber: FakeTranscriber, *fields: tuple[str, str]) -> Answer:
    """Hang up while the transcriber waits; the call must end by itself."""
    headers, body = multipart(*fields)
    gone = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(call(app, "POST", "/v1/audio/transcriptions", headers, body, hang_up=gone))
        await transcriber.reached.wait()
        gone.set()
    return calling.result()


@pytest.mark.parametrize("stream", ["true", "false"])
@pytest.mark.parametrize("yielded", [(), SPOKEN[:1]], ids=["before the first item", "after it"])
async def test_hanging_up_stops_the_work(stream: str, yielded: tuple[Any, ...], log: io.StringIO) -> None:
    """The generator is closed, which takes its chunks out of the queue, and the upload is closed."""
    transcriber = FakeTranscriber([*yielded, asyncio.Event(), WHOLE])
    answer = await _while_it_works(make_app(transcriber), transcriber, ("stream", stream))
    assert transcriber.closed == 1
    assert transcriber.sources[0].closed
    assert not answer.body or stream == "true"
    assert "Traceback" not in log.getvalue()
    assert ("499" in log.getvalue()) == (answer.status != 200)


async def test_hanging_up_while_an_event_is_sent_stops_the_work() -> None:
    """A caller who stops reading and hangs up leaves nothing running."""
    transcriber = FakeTranscriber([*SPOKEN, WHOLE])
    app, gone, sending = make_app(transcriber), asyncio.Event(), asyncio.Event()
    headers, body = multipart(("stream", "true"))

    async def stalled(scope: Any, receive: Any, send: Any) -> None:
        async def stall(message: Any) -> None:
            if message.get("body"):
                sending.set()
                await asyncio.Event().wait()
            await send(message)

        await app(scope, receive, stall)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(call(stalled, "POST", "/v1/audio/transcriptions", headers, body, hang_up=gone))
        await sending.wait()
        gone.set()
    assert transcriber.closed == 1


async def test_hanging_up_in_the_middle_of_the_upload(transcriber: FakeTranscriber, log: io.StringIO) -> None:
    """Nothing is transcribed, and the log has a 499, not an error of the server's."""
    headers, body = multipart(file=bytes(3_000_000))
    answer = await call(
        make_app(transcriber), "POST", "/v1/audio/transcriptions", headers, [body[:2_500_000]], unfinished=True
    )
    assert not transcriber.uploads
    assert not answer.body
    assert "Traceback" not in log.getvalue()
    assert "POST /v1/audio/transcriptions 499" in log.getvalue()


async def test_a_request_that_a_stop_cancels_gets_a_503(log: io.StringIO) -> None:
    """At the end of a stop uvicorn cancels what still runs; the log has no traceback of it."""
    transcriber = FakeTranscriber([asyncio.Event()])
    async with asyncio.timeout(60):
        calling = asyncio.create_task(transcribe(make_app(transcriber)))
        await transcriber.reached.wait()
        calling.cancel()
        answer = await calling
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")
    assert answer.error["code"] == "server_is_overloaded"
    assert transcriber.closed == 1
    assert "Traceback" not in log.getvalue()
