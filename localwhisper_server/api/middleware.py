"""The layer around every route: a request's id and log line, access control, limits, and errors in OpenAI's envelope.

WebSockets pass through it as requests do; only the limits of a body are not theirs.
"""

import asyncio
import json
import logging
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localwhisper_client.shared.lan_ranges import Address, host_of
from localwhisper_server.api import formats
from localwhisper_server.api.access_control import ANY, HEALTH_PATHS, Rules, check_key, check_origin
from localwhisper_server.errors import (
    EngineFailed,
    Forbidden,
    ServerError,
    Stopping,
    TooLarge,
    TooManyRequests,
    TooSlow,
    WrongKey,
)
from localwhisper_server.observer import Observer, request_id

if TYPE_CHECKING:
    from localwhisper_server.models import Models

logger = logging.getLogger(__name__)

MOST_REQUESTS = 20  # that /activity tells of
LONGEST_NAME = 200  # characters of a path or a file name, so that no caller fills the log
# The longest pause in an upload, as in nginx.
PAUSE_SECONDS = 60.0
OK, SWITCHING_PROTOCOLS = 200, 101
CLIENT_CLOSED_REQUEST = 499  # nginx's number; only the log shows it, since the caller has left
# Beside the body, what a page may read of an answer.
EXPOSED_HEADERS = ("x-request-id", "openai-processing-ms", "retry-after", "x-localwhisper-queue-seconds")

_ANSWERS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOTES, _CLAIM = "localwhisper.notes", "localwhisper.claim"


Result = TypeVar("Result")


def new_request_id(given: str | None) -> str:
    """Keep a caller's `x-request-id` if it is safe to print; otherwise make one in OpenAI's form."""
    if given and _GIVEN_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(16)}"


def note(scope: Scope, **facts: Any) -> None:
    """Note facts for the log line: `file` (its name), `audio_seconds`, `language`; `error`, the code of a refusal.

    Where access is refused, also `refused` (to what) and `option` (of the server, which would allow it). `failed` is
    the status of an error that came after the answer had begun.
    """
    scope[_NOTES].update(facts)


def claim_share(scope: Scope) -> None:
    """Count this request, until its answer is sent, among those that its address has open.

    Every route that leads to the model calls this; a check that goes by paths could miss a spelling of one.

    Raises:
        TooManyRequests: the address has as many as it may have.

    """
    scope[_CLAIM]()


async def hung_up(receive: Receive) -> None:
    """Return when the caller has hung up; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(gone: Coroutine[Any, Any, None], work: Awaitable[Result]) -> Result:
    """Await `work`, but cancel it as soon as `gone` returns.

    Raises:
        ClientDisconnect: `gone` returned first.

    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request. A sender of a byte now and then costs itself nothing, and would hold a place for hours.

    A body may have `max_upload` bytes. It may pause for `grace` seconds at the start, and for one second more for every
    `min_rate` bytes that arrive, but for no longer than PAUSE_SECONDS (or `grace`, if that is longer) at a time.
    `min_rate` 0: any rate. `per_address` is how many transcriptions one address may have open; 0: any number.
    """

    max_upload: int = 512 * 1024 * 1024
    min_rate: float = 1024.0
    grace: float = 15.0
    per_address: int = 0

    def pause_left(self, left: float, read: int, waited: float) -> float:
        """Return the seconds that the body may pause after `read` bytes came in `waited` seconds; at 0 it is too slow.

        Pure; `left` is what this returned before, at first `grace`.
        """
        longest = max(PAUSE_SECONDS, self.grace)
        return min(longest, left - waited + read / self.min_rate) if self.min_rate else longest

    def receive(self, receive: Receive, clock: Callable[[], float]) -> Receive:
        """Return `receive` with the limits on a body's size and rate.

        Only the time spent waiting for the caller counts, not the time spent on the bytes. The messages after the body
        have no limit.

        Raises:
            TooLarge, TooSlow: from the returned function.

        """
        read, complete = 0, False
        left = self.grace if self.min_rate else self.pause_left(0, 0, 0)

        async def receive_limited() -> Message:
            nonlocal read, left, complete
            if complete:
                return await receive()
            started = clock()
            message: Message | None = None
            with anyio.move_on_after(max(0.0, left)):
                message = await receive()
            if message is not None:
                size = len(message.get("body", b""))
                read += size
                if read > self.max_upload:
                    raise TooLarge(self.max_upload, read)
                complete = not message.get("more_body", False)
                left = self.pause_left(left, size, clock() - started)
                if complete or left > 0:
                    return message
            raise TooSlow(
                f"The request's body came too slowly: this server waits for at least {self.min_rate:.0f} bytes a "
                f"second, and no longer than {max(PAUSE_SECONDS, self.grace):g} s for the next ones."
            )

        return receive_limited


class Activity:
    """The last requests that had a recording, without names and words. Not thread-safe: the event loop uses it."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._requests: deque[dict[str, Any]] = deque(maxlen=MOST_REQUESTS)

    def add(self, status: int, seconds: float, notes: Mapping[str, Any]) -> None:
        """Note the end of a request: its status, how long it took, and what the log noted of it."""
        self._requests.appendleft(
            {
                "ended": round(self._now(), 3),
                "status": notes.get("failed", status),
                "seconds": round(seconds, 3),
                "audio_seconds": notes.get("audio_seconds"),
                "language": notes.get("language"),
            }
        )

    def describe(self) -> dict[str, Any]:
        """Return the requests, latest first, and how many seconds of audio they took a second for."""
        answered = [request for request in self._requests if request["audio_seconds"] is not None]
        took = sum(request["seconds"] for request in answered)
        audio = sum(request["audio_seconds"] for request in answered)
        return {
            "requests": list(self._requests),
            "audio_seconds_per_second": round(audio / took, 2) if took else None,
        }


class RequestMiddleware:
    """ASGI middleware that lets a request through to `app`, answers what is raised there, and reports the answer.

    The `queue_seconds` of the `models` are a header of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        models: "Models",
        rules: Rules,
        limits: Limits,
        *,
        observer: Observer,
        activity: Activity,
        clock: Callable[[], float],
    ) -> None:
        self._app = app
        self._models = models
        self._rules = rules
        self._limits = limits
        self._observer = observer
        self._activity = activity
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._cors: CORSMiddleware | None = None
        if rules.origins or rules.keys:
            self._cors = CORSMiddleware(
                app,
                allow_origins=rules.origins,
                allow_origin_regex=".*" if rules.keys else None,
                allow_methods=(ANY,),
                allow_headers=(ANY,),
                allow_private_network=True,
                expose_headers=EXPOSED_HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        # A base URL that ends in a slash doubles it. Everything after this sees single ones.
        scope["path"] = re.sub("/{2,}", "/", scope["path"])
        scope["raw_path"] = re.sub(b"/{2,}", b"/", scope["raw_path"])
        identity = new_request_id(Headers(scope=scope).get("x-request-id"))
        started = self._clock()
        notes = scope[_NOTES] = {"status": 0}

        async def send_with_headers(message: Message) -> None:
            if message["type"] in _ANSWERS:
                notes["status"] = message.get("status", SWITCHING_PROTOCOLS)
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                # An upstream's answer has its own of these; OpenAI's support asks for them.
                headers.setdefault("x-request-id", identity)
                headers.setdefault("openai-processing-ms", str(round((self._clock() - started) * 1000)))
                headers.setdefault("openai-version", "2020-10-01")
                # For clients that choose among several servers.
                headers.setdefault("x-localwhisper-queue-seconds", f"{self._models.queue_seconds:.3f}")
                message["headers"] = headers.raw
            await send(message)

        token = request_id.set(identity)
        try:
            await self._answer(scope, receive, send_with_headers)
        finally:
            self._report(scope, self._clock() - started)
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: ServerError
        try:
            address = check_origin(self._rules, scope)
            if self._cors is not None and scope["type"] == "http":
                headers = Headers(scope=scope)
                # Before the key is checked: preflights come without one, and pages must be able to read that it is
                # wrong. They cannot read that their origin is refused.
                if scope["method"] == "OPTIONS" and {"origin", "access-control-request-method"} <= set(headers):
                    await self._cors.preflight_response(headers)(scope, receive, send)
                    return
                send = partial(self._cors.send, send=send, request_headers=headers)
            check_key(self._rules, scope)
            await self._let_through(address, scope, receive, send)
        except ServerError as failure:
            error = failure
        except ClientDisconnect:
            if not scope[_NOTES]["status"]:
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
            return
        except asyncio.CancelledError:
            # uvicorn cancels what still runs at the end of a graceful stop, and would answer it in plain text.
            error = Stopping()
        except Exception:
            logger.exception("a request failed")
            error = EngineFailed()
        else:
            return
        await _refuse(error, scope, receive, send)

    async def _let_through(self, address: Address, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application within the limits.

        Raises:
            TooLarge: the request announces a body over the limit.

        """
        if scope["type"] == "http":
            most = self._limits.max_upload
            for announced in Headers(scope=scope).getlist("content-length"):
                if announced.isascii() and announced.isdigit() and int(announced[:20]) > most:
                    raise TooLarge(most, int(announced[:20]))
            receive = self._limits.receive(receive, self._clock)
        claimed: Counter[str] = Counter()

        def claim() -> None:
            most = self._limits.per_address
            if not most or address.is_loopback:
                return
            host = host_of(address)
            if self._open[host] >= most:
                raise TooManyRequests(most, retry_after=self._models.queue_seconds)
            claimed[host] += 1
            self._open[host] += 1

        scope[_CLAIM] = claim
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= claimed  # drops addresses that have none open

    def _report(self, scope: Scope, took: float) -> None:
        """Write the log line, and tell the observer."""
        # The path as it came, percent-encoded, so that nothing in it looks like another part of the line.
        shown = scope["raw_path"].decode("latin-1")[:LONGEST_NAME]
        method, notes = scope.get("method", "GET"), scope[_NOTES]
        status = notes["status"]
        if "audio_seconds" in notes:
            notes["times_real_time"] = round(notes["audio_seconds"] / max(took, 1e-3), 1)
        # They are asked every few seconds; their lines would fill the log.
        quiet = status == OK and scope["path"] in {*HEALTH_PATHS, "/metrics"}
        logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %d %.3fs%s",
            method,
            shown,
            status,
            took,
            _described(notes),
            # The same facts apart, for the log in JSON.
            extra={"fields": {"method": method, "path": shown, "seconds": round(took, 3), **notes}},
        )
        if "file" in notes:
            self._activity.add(status, took, notes)
        route = getattr(scope.get("route"), "path", None)
        self._observer.answered(method, route, notes.get("failed", status), took)


async def _refuse(error: ServerError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error and note it; only note it if another answer has begun."""
    note(scope, error=error.code or error.param)
    if isinstance(error, Forbidden):
        note(scope, refused=error.who, option=error.option)
    if scope[_NOTES]["status"]:
        note(scope, failed=error.status)
        return
    # OpenAI labels the JSON of a wrong key as text; the SDKs parse it all the same.
    media_type = formats.TEXT_TYPE if isinstance(error, WrongKey) else formats.JSON_TYPE
    body = formats.to_json(error.body())
    await Response(body, error.status, error.headers, media_type)(scope, receive, send)


def _described(notes: dict[str, Any]) -> str:
    """Return the notes as the end of a line: `, "voice.ogg", 5.1 s of en, 8.3 x real time`."""
    parts = [f"broke off: {notes['failed']}"] if "failed" in notes else []
    if notes.get("error"):
        parts.append(notes["error"])
    if "refused" in notes:
        parts.append(f"{json.dumps(notes['refused'])} ({notes['option']} lets it in)")
    if notes.get("file"):
        parts.append(json.dumps(notes["file"], ensure_ascii=False))  # quoted, whatever it has in it
    if "audio_seconds" in notes:
        parts.append(f"{notes['audio_seconds']:.1f} s of {notes['language'] or 'silence'}")
        parts.append(f"{notes['times_real_time']:g} x real time")
    return "".join(f", {part}" for part in parts)
