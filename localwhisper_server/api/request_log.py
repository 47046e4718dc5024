"""Every request accounted for: its id, its timing, its line in the log, its place in the numbers."""

import json
import logging
from collections.abc import Callable
from typing import Any

from localwhisper_server import observer
from localwhisper_server.api.asgi import App, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

NOTES = "localwhisper.notes"  # where the routes leave what there is to say of a recording
LONGEST_NAME = 200  # of a path or a file, so that no caller rolls the log away
PROBES = frozenset({"/health", "/v1/health", "/ready", "/v1/ready", "/metrics"})
OK = 200


def note(scope: Scope, **facts: Any) -> None:
    """Note facts for the log's line: `file` (its name), `audio_seconds`, `language`; of a refusal, `error`.

    Of a caller who may not come in, `refused` (who) and `option` (what lets it in); `failed` is the status of an error
    that came after an answer had begun.
    """
    scope.setdefault(NOTES, {}).update(facts)


class RequestLog:
    """An ASGI wrapper that gives every answer its id and timing, and tells the log and an observer of every request."""

    def __init__(
        self, app: App, clock: Callable[[], float], queue_seconds: Callable[[], float], observer: observer.Observer
    ) -> None:
        self._app = app
        self._clock = clock
        self._queue_seconds = queue_seconds
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        identity = observer.new_request_id(given)
        token = observer.request_id.set(identity)
        started, status = self._clock(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed = round((self._clock() - started) * 1000)
                headers = list(message.get("headers", ()))
                # An answer from upstream has OpenAI's own of these, which its support asks for.
                there = {name for name, _ in headers}
                ours = (
                    (b"x-request-id", identity.encode()),
                    (b"openai-processing-ms", str(elapsed).encode()),
                    (b"openai-version", b"2020-10-01"),
                    # For clients with several servers to choose from.
                    (b"x-localwhisper-queue-seconds", f"{self._queue_seconds():.3f}".encode()),
                )
                message["headers"] = [*headers, *(header for header in ours if header[0] not in there)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            took = self._clock() - started
            # As it came, percent-encoded, so that nothing in it looks like another part of the line.
            shown = scope["raw_path"].decode("latin-1")[:LONGEST_NAME]
            method, path, notes = scope["method"], scope["path"], scope.get(NOTES, {})
            if "audio_seconds" in notes:
                notes["times_real_time"] = round(notes["audio_seconds"] / max(took, 1e-3), 1)
            # Who asks every few seconds whether all is well would fill the log with it.
            logger.log(
                logging.DEBUG if path in PROBES and status == OK else logging.INFO,
                "%s %s %d %.3fs%s",
                method,
                shown,
                status,
                took,
                _said(notes),
                extra={
                    "fields": {"method": method, "path": shown, "status": status, "seconds": round(took, 3), **notes}
                },
            )
            route = getattr(scope.get("route"), "path", None)
            self._observer.answered(method, route, notes.get("failed", status), took)
            observer.request_id.reset(token)


def _said(notes: dict[str, Any]) -> str:
    """Return what was noted as the end of a line: `, "voice.ogg", 5.1 s of en, 8.3 x real time`."""
    parts = [f"broke off: {notes['failed']}"] if "failed" in notes else []
    if notes.get("error"):
        parts.append(notes["error"])
    if "refused" in notes:
        parts.append(f"{json.dumps(notes['refused'])} ({notes['option']} lets it in)")
    if notes.get("file"):
        parts.append(json.dumps(notes["file"], ensure_ascii=False))  # quoted, whatever is in it
    if "audio_seconds" in notes:
        parts.append(f"{notes['audio_seconds']:.1f} s of {notes['language'] or 'silence'}")
        parts.append(f"{notes['times_real_time']:g} x real time")
    return "".join(f", {part}" for part in parts)
