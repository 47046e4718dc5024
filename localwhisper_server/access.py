"""Every request accounted for: its id, its timing, its line in the log, its place in the numbers."""

import logging
from collections.abc import Callable

from localwhisper_server import observe
from localwhisper_server.asgi import App, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class Accounted:
    """An ASGI wrapper that gives every answer its id and timing, and tells the log and an observer of every request."""

    def __init__(
        self, app: App, clock: Callable[[], float], queue_seconds: Callable[[], float], observer: observe.Observer
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
        identity = observe.new_request_id(given)
        token = observe.request_id.set(identity)
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
            method, path = scope["method"], scope["path"]
            logger.info(
                "%s %s %d %.3fs",
                method,
                path,
                status,
                took,
                extra=observe.fields(method=method, path=path, status=status, seconds=round(took, 3)),
            )
            self._observer.answered(method, getattr(scope.get("route"), "path", None), status, took)
            observe.request_id.reset(token)
