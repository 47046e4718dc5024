"""What a server on the LAN did, and which verdict of the routing table that is."""

from __future__ import annotations

import email.utils
import json
import math
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import openai

from localwhisper_client._http import http
from localwhisper_client.errors import InvalidLocalResponse
from localwhisper_client.lan.transport import MOST_EVENT_BYTES
from localwhisper_client.routing.steps import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

_JSON_FORMATS = frozenset({"json", "verbose_json", "diarized_json"})
_TEXT_FORMATS = frozenset({"text", "srt", "vtt"})

# The stream ends with the first or, when something went wrong on the way, with one of the others. In JSON a quotation
# mark within a text is escaped, so none of these can be a part of a transcript.
_LAST_EVENT = re.compile(rb'"type"\s*:\s*"transcript\.text\.done"|"type"\s*:\s*"error"|"error"\s*:')
_LAST_EVENT_BYTES = 64  # what it may be spread over, blanks included

_MISCONFIGURED = frozenset({401, 403, 404, 405})
_BUSY = frozenset({429, 503})
# Time-outs and "too early" are the server's trouble, whatever their class says.
_FAILURES_BELOW_500 = frozenset({408, 425})


class WrongAnswer(Exception):
    """A success by its status, but not the answer of a speech-to-text server; says what was seen instead."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the answer to a call must look like."""

    response_format: str
    stream: bool

    @classmethod
    def of(cls, fields: object, *, stream: bool) -> Expected:
        """Read the expectation off a request's form fields; `stream` is what the SDK was asked, where they say nothing.

        Of a body that the program wrote itself nothing is known.
        """
        if not isinstance(fields, dict):
            return cls("", stream)
        asked = fields.get("response_format")
        return cls(asked if isinstance(asked, str) else "json", bool(fields.get("stream", stream)))

    def check_head(self, headers: Mapping[str, str]) -> None:
        """Raise `WrongAnswer` unless the content type is one that this answer may have."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.stream:
            right = kind == "text/event-stream"
        elif self.response_format in _JSON_FORMATS:
            right = kind == "application/json" or kind.endswith("+json")
        elif self.response_format in _TEXT_FORMATS:
            right = kind in ("", "application/x-subrip") or (kind.startswith("text/") and kind != "text/html")
        else:
            # A format this version does not know: only what can never be a transcript is wrong.
            right = kind != "text/html"
        if not right:
            raise WrongAnswer(f"a 200 of content type {kind or 'unknown'!r}, which is not a transcript")

    def check_body(self, body: bytes) -> None:
        """Raise `WrongAnswer` unless a body that was read to its end is a whole transcript."""
        if self.stream:
            # The SDK was asked for a body, and the server, in `extra_body`, for events.
            first = FirstEvent()
            if not first.feed(body):
                first.ended()
            if first.last is not None:
                first.last.feed(body)
                if not first.last.seen:
                    raise WrongAnswer("an event stream that ended before the transcript was whole")
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


class FirstEvent:
    """Watches the bytes of an event stream until its first event is whole."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        """Every byte seen so far, to be given out again."""
        self.last: LastEvent | None = None
        """What to watch the rest of the stream with; `None` where it need not end in any event we know."""
        self._size = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> bool:
        """Take in bytes; return whether the first event has been seen.

        Raises:
            WrongAnswer: the first event is an error, or too long.

        """
        self.chunks.append(chunk)
        self._size += len(chunk)
        if self._size > MOST_EVENT_BYTES:
            raise WrongAnswer(f"an event stream of {self._size} bytes without an event")
        text = self._rest + chunk
        *blocks, rest = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
        # Half a line's end, perhaps.
        self._rest = text if text.endswith(b"\r") else rest
        for block in blocks:
            lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            if lines:
                if self._check(b"\n".join(lines)).startswith("transcript."):
                    self.last = LastEvent()
                return True
        return False

    @staticmethod
    def ended() -> NoReturn:
        """Say that the stream was over before its first event."""
        raise WrongAnswer("an event stream that ended before its first event")

    @staticmethod
    def _check(data: bytes) -> str:
        if data.startswith(b"[DONE]"):
            return ""
        try:
            event = json.loads(data)
        except ValueError:
            raise WrongAnswer("an event stream whose first event is not JSON") from None
        if isinstance(event, dict) and (event.get("error") or event.get("type") == "error"):
            raise WrongAnswer("an event stream that begins with an error")
        return str(event.get("type")) if isinstance(event, dict) else ""


class LastEvent:
    """Watches the bytes of an event stream of OpenAI's for an event that may be its last."""

    def __init__(self) -> None:
        self.seen = False
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        """Take in bytes."""
        if not self.seen:
            text = self._tail + chunk
            self.seen = _LAST_EVENT.search(text) is not None
            self._tail = text[-_LAST_EVENT_BYTES:]


def failed(error: Exception, now: float) -> Outcome | None:
    """Return what an attempt's exception means; `None` when it is neither the network's nor a server's.

    `now` is wall-clock time in seconds since the epoch, for a `Retry-After` that is a date.
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
        # The connection broke while the answer was being read, where the SDK lets the HTTP library's errors through.
        ours = openai.APITimeoutError if isinstance(error, http.TimeoutException) else openai.APIConnectionError
        request: Any = getattr(error, "_request", None)  # the public property raises where there is none
        wrapped = ours(request=request)
        wrapped.__cause__, error = error, wrapped
    return Outcome(verdict, _reason(cause), error=error)


def _status(error: openai.APIStatusError, now: float) -> Outcome:
    status = error.status_code
    reason = f"status {status}"
    if status in _BUSY:
        headers = error.response.headers
        return Outcome(
            Verdict.BUSY,
            reason,
            retry_after=retry_after(headers, now),
            queue_seconds=queue_seconds(headers),
            error=error,
        )
    if status in _MISCONFIGURED:
        return Outcome(Verdict.MISCONFIGURED, reason, error=error)
    if 300 <= status < 400:  # noqa: PLR2004 - the statuses that mean "elsewhere"
        # A router's login page, or a server that moved. Following it could carry audio off the LAN.
        reason = f"status {status}, a redirect to {error.response.headers.get('location', 'nowhere')}"
        return Outcome(Verdict.FAILURE, reason, error=error)
    if status >= 500 or status in _FAILURES_BELOW_500:  # noqa: PLR2004 - the statuses that are the server's fault
        return Outcome(Verdict.FAILURE, reason, error=error)
    return Outcome(Verdict.BAD_REQUEST, reason, error=error)


def _transport(cause: BaseException | None) -> Verdict | None:
    # The SSL and anyio errors are those that the HTTP library forgets to wrap when TLS cannot be set up.
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
    said = str(cause)
    return f"{name}: {said}" if said else name


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds after which a server wants to be asked again, or `None` where it does not say so.

    Reads `retry-after-ms`, then `retry-after` in seconds (whole or not) or as an HTTP date. A date is read against the
    answer's own `date`, where it has one: the two clocks need not agree. `now` is seconds since the epoch.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    when = _date(headers.get("retry-after"))
    return None if when is None else max(0.0, when - (_date(headers.get("date")) or now))


def queue_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long a server says that its next call will wait, or `None` where it does not say so."""
    try:
        seconds = float(headers["x-localwhisper-queue-seconds"])
    except (KeyError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _date(value: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value or "").timestamp()
    except ValueError:
        return None
