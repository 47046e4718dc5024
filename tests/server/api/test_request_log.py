from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from localwhisper_server import observer
from localwhisper_server.api.middleware import Limits
from localwhisper_server.errors import Busy, EngineFailed, UnreadableAudio
from tests.server.driving import NOTHING, SPOKEN, FakeTranscriber, call, make_app, multipart, transcribe

if TYPE_CHECKING:
    import io

    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio


KEY = "lw-0123456789abcdef"


async def test_every_answer_and_log_line_has_its_id(log: io.StringIO) -> None:
    """It is the caller's own if that can be printed."""
    headers = {"x-request-id": "mine-1"}
    ok, bad, broken = FakeTranscriber(), FakeTranscriber([UnreadableAudio()]), FakeTranscriber([RuntimeError()])
    form, body = multipart()
    path = "/v1/audio/transcriptions"
    stream = multipart(("stream", "true"))[1]
    answers = [
        await call(make_app(ok), "POST", path, form | headers, body),
        await call(make_app(ok), "POST", path, form | headers, stream),
        await call(make_app(bad), "POST", path, form | headers, body),
        await call(make_app(broken), "POST", path, form | headers, body),
        await call(make_app(ok), "GET", "/health", headers),
        await call(make_app(ok), "GET", "/nowhere", headers),
        await call(make_app(ok), "GET", path, headers),
        await call(make_app(ok, api_key="k"), "GET", "/v1/models", headers),
        await call(make_app(ok, limits=Limits(10)), "POST", path, form | headers, body),
    ]
    assert [answer.status for answer in answers] == [200, 200, 400, 500, 200, 404, 405, 401, 413]
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine-1"}
    lines = [line for line in log.getvalue().splitlines() if re.match(r"\d{4}-", line)]
    assert len(lines) >= len(answers)
    assert all(" mine-1 " in line for line in lines)


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a\tb", "naïve", "<b>"])
async def test_an_id_that_cannot_be_printed_is_replaced(app: ASGIApp, given: str) -> None:
    """The id is written to the log. Each answer has a new one, in OpenAI's shape."""
    ids = [(await call(app, "GET", "/health", {"x-request-id": given})).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", made) for made in ids)
    assert len(set(ids)) == 2


async def test_the_other_headers_of_every_answer(app: ASGIApp, transcriber: FakeTranscriber) -> None:
    """Clients with several servers choose by the queue; the others are OpenAI's."""
    transcriber.queue_seconds = 12.3456
    for answer in (await call(app, "GET", "/health"), await transcribe(app, ("model", "nope"))):
        assert answer.headers["x-localwhisper-queue-seconds"] == "12.346"
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-processing-ms"] == "0"


async def test_the_log_never_holds_words_keys_or_sound(log: io.StringIO) -> None:
    """The line of a request has its status, but nothing of what was said or sent."""
    app = make_app(FakeTranscriber(), api_key=KEY)
    headers, body = multipart(("prompt", "hush"), file=b"sound of music")
    headers["authorization"] = f"Bearer {KEY}"
    await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    text = log.getvalue()
    assert "POST /v1/audio/transcriptions 200" in text
    assert not any(secret in text for secret in ("morning", "hush", KEY, "music"))


async def test_the_log_describes_the_recording(log: io.StringIO) -> None:
    """It has the file's name, quoted and cut, and of a transcript the length, language and speed."""
    app = make_app(FakeTranscriber())
    name = 'a \\" 200 0.1s\u2028b' + 200 * "c"
    for fields in ((), (("stream", "true"),)):
        await transcribe(app, *fields, filename=name)
    await transcribe(make_app(FakeTranscriber([NOTHING])))
    await transcribe(make_app(FakeTranscriber([UnreadableAudio()])))
    first, second, silent, unread = (line.partition(" 0.000s")[2] for line in log.getvalue().splitlines())
    quoted, _, rest = first.rpartition('"')
    assert quoted.startswith(', "a ')
    assert len(quoted) < 220
    assert rest == ", 2.5 s of en, 2500 x real time"
    assert second == first
    assert silent == ', "voice.ogg", 3.0 s of silence, 3000 x real time'
    assert unread == ', invalid_value, "voice.ogg"'


async def test_the_log_says_why_a_request_was_refused(log: io.StringIO) -> None:
    """It has the error's code, and nothing of what was sent."""
    app = make_app(FakeTranscriber(), api_key=KEY)
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
        (RuntimeError("a bug"), 500, 'broke off: 500, "voice.ogg"'),
    ],
    ids=["an error", "stopping", "a bug"],
)
async def test_a_stream_that_breaks_off_is_counted_as_a_failure(
    log: io.StringIO, failure: Exception, status: int, said: str
) -> None:
    """In the log line and for the observer, though a 200 was sent before."""
    counted = []

    class Counting(observer.Observer):
        def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
            counted.append(status)

    transcriber = FakeTranscriber([SPOKEN[0], failure])
    app = make_app(transcriber, observer=Counting())
    assert (await transcribe(app, ("stream", "true"))).status == 200
    assert counted == [status]
    assert log.getvalue().splitlines()[-1].endswith(f"POST /v1/audio/transcriptions 200 0.000s, {said}")
    await transcribe(make_app(FakeTranscriber()), ("stream", "true"))
    assert "broke off" not in log.getvalue().splitlines()[-1]


async def test_probes_do_not_fill_the_log(log: io.StringIO, transcriber: FakeTranscriber) -> None:
    """The line of a successful probe has the level debug; monitors ask every few seconds."""
    app = make_app(transcriber)
    await call(app, "GET", "/health")
    await call(app, "POST", "/health")
    lines = log.getvalue().splitlines()
    assert len(lines) == 1
    assert "POST /health 405" in lines[0]


async def test_a_path_can_neither_fill_nor_forge_the_log(app: ASGIApp, log: io.StringIO) -> None:
    """It is shown percent-encoded, and cut."""
    await call(app, "GET", "/x%20200%200.4s" + "a" * 5000)
    (line,) = log.getvalue().splitlines()
    assert "GET /x%20200%200.4sa" in line
    assert len(line) < 400
