"""What an answer must look like, and what an exception means; the rest of the table is held on real sockets."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

import openai
import pytest

from localwhisper_client._http import http
from localwhisper_client.lan.answers import EventCheck, Expected, WrongAnswer, failed, retry_after
from localwhisper_client.routing.plan import Verdict

JSON, TEXT, SSE, HTML = "application/json", "text/plain; charset=utf-8", "text/event-stream", "text/html"


SRT, VTT, PROBLEM = "application/x-subrip", "text/vtt", "application/problem+json"
KINDS = (JSON, "application/json; charset=utf-8", PROBLEM, TEXT, VTT, SRT, "", SSE, HTML, "audio/x")


@pytest.mark.parametrize(
    ("response_format", "stream", "right"),
    [
        (None, False, KINDS[:3]),
        ("verbose_json", False, KINDS[:3]),
        ("srt", False, KINDS[3:8]),
        ("of_the_future", False, set(KINDS) - {HTML}),
        ("json", True, (SSE,)),
    ],
)
def test_content_type(response_format: str | None, stream: bool, right: Any) -> None:  # noqa: FBT001 - pytest passes it by name
    """A 200 of the wrong content type is no transcript."""
    expected = Expected.of({} if response_format is None else {"response_format": response_format}, stream=stream)
    for kind in KINDS:
        with contextlib.nullcontext() if kind in right else pytest.raises(WrongAnswer, match="content type"):
            expected.check_head({"content-type": kind})


@pytest.mark.parametrize(
    ("response_format", "body", "right"),
    [
        ("json", b'{"text":""}', True),
        ("json", b'{"text":"cut', False),
        ("json", b"", False),
        ("json", b"\xff", False),
        ("json", b'{"detail":"x"}', False),
        ("json", b"[]", False),
        ("text", b"", True),
        ("json", b'{"text":null}', False),
        ("json", b'{"text":"","error":{"message":"x"}}', False),
        ("vtt", b"Service is starting up", False),
        ("vtt", b"", False),
        ("srt", b"Service is starting up", False),
        ("srt", b"\n", True),
        ("srt", b"1\n00:00:00,000 --> 00:00:01,000\na\n", True),
        ("vtt", b"WEBVTT\n\n", True),
    ],
)
def test_body(response_format: str, body: bytes, right: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """JSON must be whole and hold a text; text may be anything, nothing too: that is silence."""
    expected = Expected.of({"response_format": response_format}, stream=False)
    with contextlib.nullcontext() if right else pytest.raises(WrongAnswer):
        expected.check_body(body)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_first_event_is_seen_however_the_bytes_fall(end: bytes) -> None:
    """Comments are no events; the stream is complete only once its last event has come."""
    wire = end.join([b": hello", b"", b"event: x", b'data: {"type":"transcript.text.delta"}', b"", b"data: "])
    events = EventCheck()
    seen = [events.feed(wire[i : i + 1]) for i in range(len(wire))]
    assert seen.index(True) >= wire.index(b"data") + 30
    assert not events.complete
    for byte in b'{"type": "transcript.text.done"}':
        events.feed(bytes([byte]))
    assert events.complete


@pytest.mark.parametrize("data", [b'{"error":{"message":"x"}}', b'{"type":"error"}', b"{cut"])
def test_a_stream_that_begins_badly(data: bytes) -> None:
    """An error as the first event is a failure, as an error status is."""
    with pytest.raises(WrongAnswer):
        EventCheck().feed(b"data: " + data + b"\n\n")


def test_done_is_an_event() -> None:
    """A server may end its stream with it, and send no text at all."""
    events = EventCheck()
    assert events.feed(b"data: [DONE]\n\n")
    assert events.complete
    with pytest.raises(WrongAnswer, match="before its first event"):
        Expected("json", stream=True).check_body(b": a comment\n\n")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0),
        ({"retry-after": "Thu, 01 Jan 2026 00:01:40 GMT", "date": "Thu, 01 Jan 2026 00:01:30 GMT"}, 10),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds, or a date against the server's own clock; nonsense is silence."""
    assert retry_after(headers, now=10.0) == seconds


REQUEST = http.Request("POST", "http://pc:5000/v1")


def _caused(cause: BaseException) -> openai.APIConnectionError:
    error = openai.APIConnectionError(request=REQUEST)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (_caused(http.ConnectError("refused")), Verdict.OUTAGE),
        (_caused(http.ConnectTimeout("slow")), Verdict.OUTAGE),
        (_caused(ssl.SSLError("handshake")), Verdict.OUTAGE),
        (_caused(http.ReadTimeout("")), Verdict.FAILURE),
        (_caused(http.WriteError("")), Verdict.FAILURE),
        (_caused(http.RemoteProtocolError("")), Verdict.FAILURE),
        (_caused(http.PoolTimeout("")), Verdict.BUSY),
        (http.ReadError("while reading the body"), Verdict.FAILURE),
        (http.ReadTimeout("while reading the body"), Verdict.FAILURE),
        (http.DecodingError("gzip"), Verdict.FAILURE),
        (_caused(http.LocalProtocolError("the file shrank")), None),
        (_caused(ValueError("I/O operation on closed file")), None),
        (OSError("the caller's disk"), None),
    ],
    ids=repr,
)
def test_what_an_exception_means(error: Exception, verdict: Verdict | None) -> None:
    """The network's faults have a verdict; the caller's own go back to the caller."""
    outcome = failed(error, 0.0)
    assert (outcome and outcome.verdict) == verdict
    if outcome is not None:
        assert isinstance(outcome.error, openai.APIConnectionError)
        assert isinstance(outcome.error, openai.APITimeoutError) == (type(error) is http.ReadTimeout)


def test_a_redirect_says_where_to() -> None:
    """It is most often a login page, or a server that moved."""
    answer = http.Response(307, request=REQUEST, headers={"location": "http://router/"})
    error = openai.APIStatusError("x", response=answer, body=None)
    outcome = failed(error, 0.0)
    assert outcome is not None
    assert "http://router/" in outcome.reason
