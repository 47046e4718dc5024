"""What a local server's answer must look like, and which verdict its faults get.

`read` checks an answer before the caller gets it: all of a body, or a stream up to its first event. Until then the call
can fall back; afterwards the caller has part of the answer and gets the error. `failed` gives the verdict on a fault.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client._http import http
from localwhisper_client.errors import InvalidLocalResponse
from localwhisper_client.routing.plan import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

MOST_EVENT_BYTES = 8 * 1024 * 1024
"""The most bytes of one event of a stream."""

_JSON_FORMATS = frozenset({"json", "verbose_json", "diarized_json"})
_TEXT_FORMATS = frozenset({"text", "srt", "vtt"})

# OpenAI's stream ends with the first of these, or with an error. A quotation mark within a transcript is escaped, so a
# transcript cannot contain any of them.
_LAST_EVENT = re.compile(rb'"type"\s*:\s*"transcript\.text\.done"|"type"\s*:\s*"error"|"error"\s*:')
_LAST_EVENT_BYTES = 64  # the most that one of them takes, blanks included
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")
_NO_EVENT = "an event stream that ended before its first event"
_CUT_SHORT = "an event stream that ended before the transcript was whole"

_MISCONFIGURED = frozenset({401, 403, 404, 405})
_BUSY = frozenset({429, 503})
# Request timeout and "too early": faults of the server, though below 500.
_FAILURES_BELOW_500 = frozenset({408, 425})


class WrongAnswer(Exception):
    """A success by its status, but not a transcript; the message says what it was instead."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the answer to a call must look like."""

    response_format: str
    """`json`, `text`, `srt` …; empty if unknown."""
    stream: bool

    @classmethod
    def of(cls, fields: object, *, stream: bool) -> Expected:
        """Read the expectation from a request's form fields; `stream` counts if the fields do not say.

        If the program wrote the body itself, there are no fields, and any format may come.
        """
        if not isinstance(fields, dict):
            return cls("", stream)
        asked = fields.get("response_format")
        return cls(asked if isinstance(asked, str) else "json", bool(fields.get("stream", stream)))

    def check_head(self, headers: Mapping[str, str]) -> None:
        """Raise `WrongAnswer` unless the content type fits the response format."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.stream:
            right = kind == "text/event-stream"
        elif self.response_format in _JSON_FORMATS:
            right = kind == "application/json" or kind.endswith("+json")
        elif self.response_format in _TEXT_FORMATS:
            right = kind in ("", "application/x-subrip") or (kind.startswith("text/") and kind != "text/html")
        else:
            # An unknown format: only a web page is certainly wrong.
            right = kind != "text/html"
        if not right:
            raise WrongAnswer(f"a 200 of content type {kind or 'unknown'!r}, which is not a transcript")

    def check_body(self, body: bytes) -> None:
        """Raise `WrongAnswer` unless a body that was read to its end is a whole transcript."""
        if self.stream:
            # `extra_body` asked for events, and the SDK for a body.
            events = EventCheck()
            if not events.feed(body):
                raise WrongAnswer(_NO_EVENT)
            if not events.complete:
                raise WrongAnswer(_CUT_SHORT)
            return
        if self.response_format == "vtt" and not body.removeprefix(b"\xef\xbb\xbf").startswith(b"WEBVTT"):
            raise WrongAnswer(f"a 200 whose {len(body)} bytes are not WebVTT")
        if self.response_format == "srt" and body.strip() and b"-->" not in body:
            raise WrongAnswer(f"a 200 whose {len(body)} bytes are not SubRip")
        if self.response_format not in _JSON_FORMATS:
            return
        try:
            answer = json.loads(body)
        except ValueError:
            raise WrongAnswer(f"a 200 whose {len(body)} bytes are not whole JSON") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str) or answer.get("error"):
            raise WrongAnswer("a 200 whose JSON has no text")


class EventCheck:
    """Checks an event stream as its bytes come: no error first, no event too long, and the last one is there."""

    def __init__(self) -> None:
        self._first_seen = False
        self._awaits_end = False
        self._rest = b""
        self._tail = b""
        self._size = 0

    @property
    def complete(self) -> bool:
        """Whether the stream may end here. Only OpenAI's own events must end with a certain one."""
        return self._first_seen and not self._awaits_end

    def feed(self, chunk: bytes) -> bool:
        """Take in bytes; return whether the first event has been seen.

        Raises:
            WrongAnswer: the first event is an error, or an event is too long.

        """
        self._size += len(chunk)
        if not self._first_seen:
            self._look_for_first(chunk)
        else:
            text = self._tail + chunk
            self._tail = text[-_LAST_EVENT_BYTES:]
            self._awaits_end = self._awaits_end and _LAST_EVENT.search(text) is None
            end = max(text.rfind(blank) for blank in _BLANK_LINES)
            if end >= 0:
                self._size = len(text) - end
        if self._size > MOST_EVENT_BYTES:
            raise WrongAnswer(f"an event of more than {MOST_EVENT_BYTES // 2**20} MiB")
        return self._first_seen

    def _look_for_first(self, chunk: bytes) -> None:
        text = self._rest + chunk
        *blocks, rest = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
        # A final \r may be the first half of a line's end.
        self._rest = text if text.endswith(b"\r") else rest
        for block in blocks:
            lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            if lines:
                self._first_seen = True
                is_openais = _event_type(b"\n".join(lines)).startswith("transcript.")
                self._awaits_end = is_openais and _LAST_EVENT.search(text) is None
                self._tail = text[-_LAST_EVENT_BYTES:]
                return


def _event_type(data: bytes) -> str:
    if data.startswith(b"[DONE]"):
        return ""
    try:
        event = json.loads(data)
    except ValueError:
        raise WrongAnswer("an event stream whose first event is not JSON") from None
    if isinstance(event, dict) and (event.get("error") or event.get("type") == "error"):
        raise WrongAnswer("an event stream that begins with an error")
    return str(event.get("type")) if isinstance(event, dict) else ""


class _CheckedEvents(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc] # the library is chosen at run time
    """An event stream that was read up to its first event, given out from its beginning and checked to its end."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._events = EventCheck()
        self._seen: list[bytes] = []
        self._rest: Any = None

    def read_first_event(self) -> None:
        self._rest = iter(self._inner)
        for chunk in self._rest:
            self._seen.append(chunk)
            if self._events.feed(chunk):
                return
        raise WrongAnswer(_NO_EVENT)

    async def aread_first_event(self) -> None:
        self._rest = aiter(self._inner)
        async for chunk in self._rest:
            self._seen.append(chunk)
            if self._events.feed(chunk):
                return
        raise WrongAnswer(_NO_EVENT)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._seen
        with _as_protocol_error():
            for chunk in self._rest:
                self._events.feed(chunk)
                yield chunk
            self._check_end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._seen:
            yield chunk
        with _as_protocol_error():
            async for chunk in self._rest:
                self._events.feed(chunk)
                yield chunk
            self._check_end()

    def _check_end(self) -> None:
        # A server that was stopped, or a proxy, may end a stream early without an error.
        if not self._events.complete:
            raise WrongAnswer(_CUT_SHORT)

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


@contextmanager
def _as_protocol_error() -> Iterator[None]:
    # The caller is reading the stream by now: no other backend can be tried.
    try:
        yield
    except WrongAnswer as wrong:
        raise http.RemoteProtocolError(str(wrong)) from None


def read(response: Any, expected: Expected) -> None:
    """Read and check a response: a body to its end, an event stream up to its first event.

    Raises:
        InvalidLocalResponse: it does not answer this call. The response is then closed, as after any error.

    """
    try:
        with _judged(response, expected) as is_body:
            if is_body:
                expected.check_body(response.read())
            else:
                response.stream.read_first_event()
    except BaseException:
        response.close()
        raise


async def aread(response: Any, expected: Expected) -> None:
    """Do as `read` does."""
    try:
        with _judged(response, expected) as is_body:
            if is_body:
                expected.check_body(await response.aread())
            else:
                await response.stream.aread_first_event()
    except BaseException:
        await response.aclose()
        raise


@contextmanager
def _judged(response: Any, expected: Expected) -> Iterator[bool]:
    """Check the head of a response, and give out whether it has a body to read, or else events."""
    try:
        expected.check_head(response.headers)
        # If only `extra_body` asked for a stream, the SDK has read all of it by now.
        is_body = bool(response.is_closed) or not expected.stream
        if not is_body:
            response.stream = _CheckedEvents(response.stream)
        yield is_body
    except WrongAnswer as wrong:
        raise InvalidLocalResponse(str(wrong), response=response) from None


def failed(error: Exception, now: float) -> Outcome | None:
    """Return the outcome of an attempt that raised; `None` if the error is the caller's own.

    `now` is seconds since the epoch, for a `Retry-After` that is a date.
    """
    if isinstance(error, openai.APIStatusError):
        return _status(error, now)
    if isinstance(error, InvalidLocalResponse):
        return Outcome(Verdict.FAILURE, error.message, error=error)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    verdict = _transport(cause)
    if verdict is None:
        return None
    if not isinstance(error, openai.APIConnectionError):
        # The SDK does not wrap the HTTP library's errors while it reads the body.
        wrapper = openai.APITimeoutError if isinstance(error, http.TimeoutException) else openai.APIConnectionError
        request: Any = getattr(error, "_request", None)  # the public property raises if there is none
        wrapped = wrapper(request=request)
        wrapped.__cause__, error = error, wrapped
    return Outcome(verdict, _reason(cause), error=error)


def _status(error: openai.APIStatusError, now: float) -> Outcome:
    status = error.status_code
    headers = error.response.headers
    reason = f"status {status}"
    if status in _BUSY:
        return Outcome(
            Verdict.BUSY,
            reason,
            retry_after=retry_after(headers, now),
            queue_seconds=queue_seconds(headers),
            error=error,
        )
    if status in _MISCONFIGURED:
        return Outcome(Verdict.MISCONFIGURED, reason, error=error)
    if 300 <= status < 400:  # noqa: PLR2004 - the redirects
        # A router's login page, or a server that moved. Following it could carry audio off the LAN.
        return Outcome(Verdict.FAILURE, f"{reason}, a redirect to {headers.get('location', 'nowhere')}", error=error)
    if status >= 500 or status in _FAILURES_BELOW_500:  # noqa: PLR2004 - the server's faults
        return Outcome(Verdict.FAILURE, reason, error=error)
    return Outcome(Verdict.BAD_REQUEST, reason, error=error)


def _transport(cause: BaseException | None) -> Verdict | None:
    # The HTTP library does not wrap the SSL and anyio errors of a failed TLS handshake.
    unreachable = (http.ConnectError, http.ConnectTimeout, http.ProxyError, ssl.SSLError)
    if isinstance(cause, unreachable) or type(cause).__name__ == "EndOfStream":
        return Verdict.OUTAGE
    if isinstance(cause, http.PoolTimeout):
        return Verdict.BUSY
    if isinstance(cause, (http.UnsupportedProtocol, http.LocalProtocolError)):
        return None
    if isinstance(cause, (http.TransportError, http.DecodingError)):
        return Verdict.FAILURE
    return None


def _reason(cause: BaseException | None) -> str:
    name = type(cause).__name__
    message = str(cause)
    return f"{name}: {message}" if message else name


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds after which a server may be asked again, or `None` if it does not say.

    Reads `retry-after-ms`, then `retry-after` in seconds (whole or not) or as an HTTP date. A date is compared with the
    answer's own `date` if it has one, since the two clocks may differ. `now` is seconds since the epoch.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return _not_negative(float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    when = _date(headers.get("retry-after"))
    return None if when is None else max(0.0, when - (_date(headers.get("date")) or now))


def queue_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long the server says that its next call will wait, or `None` if it does not say."""
    try:
        return _not_negative(float(headers["x-localwhisper-queue-seconds"]))
    except (KeyError, ValueError):
        return None


def _not_negative(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _date(value: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value or "").timestamp()
    except ValueError:
        return None
