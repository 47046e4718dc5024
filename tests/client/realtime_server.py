"""A server on loopback with realtime sessions and `/ready`, which answers as a test says; needs `websockets`."""

from __future__ import annotations

import contextlib
import http
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import websockets.sync.server

if TYPE_CHECKING:
    from collections.abc import Iterator

READY = "/ready"


@dataclass
class Opened:
    """A session that was asked for; the names of the headers are in lower case."""

    path: str
    headers: dict[str, str]


@dataclass
class RealtimeServer:
    """Begins each session with `session.created`, and answers each event with its own type."""

    url: str
    ready: list[int] = field(default_factory=lambda: [200])
    """The statuses of `/ready`, one after the other; the last one stays."""
    refuses: int | None = None
    """The status with which it refuses sessions."""
    opened: list[Opened] = field(default_factory=list)
    asked: int = 0
    """How often `/ready` was asked."""

    def process(self, connection: Any, request: Any) -> Any:
        """Answer a request that does not become a session."""
        if request.path == READY:
            self.asked += 1
            status = self.ready.pop(0) if len(self.ready) > 1 else self.ready[0]
            reason = "the model is being loaded"
            return connection.respond(http.HTTPStatus(status), json.dumps({"ready": status == 200, "reason": reason}))
        self.opened.append(Opened(request.path, {name.lower(): value for name, value in request.headers.raw_items()}))
        return None if self.refuses is None else connection.respond(http.HTTPStatus(self.refuses), "no")

    def serve(self, connection: Any) -> None:
        """Speak with a client until it leaves."""
        connection.send(json.dumps({"type": "session.created", "event_id": "e1", "session": {}}))
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            for message in connection:
                connection.send(json.dumps({"type": json.loads(message)["type"], "event_id": "e2"}))


@contextlib.contextmanager
def serving() -> Iterator[RealtimeServer]:
    """Run a server on a free port."""
    running = RealtimeServer("")
    with websockets.sync.server.serve(
        running.serve,
        "127.0.0.1",
        0,
        process_request=running.process,
        select_subprotocol=lambda _connection, offered: offered[0] if offered else None,
    ) as server:
        running.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield running
        server.shutdown()
    thread.join()
