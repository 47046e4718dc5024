"""The log line of each request, its id and its other headers, and its place in the metrics."""

import json
import logging
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localwhisper_server.observer import Observer, new_request_id, request_id

logger = logging.getLogger(__name__)

LONGEST_NAME = 200  # characters of a path or a file name, so that no caller fills the log
# Monitors and the clients' breakers ask these.
HEALTH_PATHS = frozenset({"/health", "/v1/health", "/ready", "/v1/ready"})
OK = 200
SWITCHING_PROTOCOLS = 101
# The messages that begin an answer: to a request, to a WebSocket that is refused, and to one that is accepted.
ANSWERS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
_NOTES = "localwhisper.notes"


def note(scope: Scope, **facts: Any) -> None:
    """Note facts for the log line: `file` (its name), `audio_seconds`, `language`; `error`, the code of a refusal.

    Where access is refused, also `refused` (to what) and `option` (of the server, which would allow it). `failed` is
    the status of an error that came after the answer had begun.
    """
    scope.setdefault(_NOTES, {}).update(facts)


class RequestLog:
    """ASGI middleware that gives every answer its id and timing, and reports it to the log and the observer."""

    def __init__(
        self, app: ASGIApp, observer: Observer, *, queue_seconds: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._app = app
        self._observer = observer
        self._queue_seconds = queue_seconds
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        identity = new_request_id(Headers(scope=scope).get("x-request-id"))
        token = request_id.set(identity)
        started, status = self._clock(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] in ANSWERS:
                status = message.get("status", SWITCHING_PROTOCOLS)
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                # An upstream's answer has its own of these; OpenAI's support asks for them.
                headers.setdefault("x-request-id", identity)
                headers.setdefault("openai-processing-ms", str(round((self._clock() - started) * 1000)))
                headers.setdefault("openai-version", "2020-10-01")
                # For clients that choose among several servers.
                headers.setdefault("x-localwhisper-queue-seconds", f"{self._queue_seconds():.3f}")
                message["headers"] = headers.raw
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._log(scope, status, self._clock() - started)
            request_id.reset(token)

    def _log(self, scope: Scope, status: int, took: float) -> None:
        # The path as it came, percent-encoded, so that nothing in it looks like another part of the line.
        shown = scope["raw_path"].decode("latin-1")[:LONGEST_NAME]
        method, notes = scope.get("method", "GET"), scope.get(_NOTES, {})
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
            extra={"fields": {"method": method, "path": shown, "status": status, "seconds": round(took, 3), **notes}},
        )
        route = getattr(scope.get("route"), "path", None)
        self._observer.answered(method, route, notes.get("failed", status), took)


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
