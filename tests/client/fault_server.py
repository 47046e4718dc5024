"""A server on loopback that misbehaves as a test says, down to the bytes and the socket."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Behaviour = Callable[[socket.socket, "Request"], None]

TEXT = "a voice message"
EVENTS = (
    b'data: {"type":"transcript.text.delta","delta":"a voice "}\n\n'
    b'data: {"type":"transcript.text.delta","delta":"message"}\n\n'
    b'data: {"type":"transcript.text.done","text":"a voice message"}\n\n'
)


@dataclass
class Request:
    """What the client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def wants_events(self) -> bool:
        """Whether the call said `stream=True`."""
        return b'name="stream"\r\n\r\ntrue' in self.body


@dataclass
class FaultServer:
    """Answers each request as `behaviour` says; records calls and probes separately."""

    behaviour: Behaviour
    answers_probe: Behaviour | None = None
    calls: list[Request] = field(default_factory=list)
    probes: list[Request] = field(default_factory=list)
    reads_body: bool = True

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.stopped = threading.Event()
        self.open: set[socket.socket] = set()
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Refuse new connections and drop the open ones."""
        self.stopped.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for conn in list(self.open):
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            self.open.add(conn)
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        # Tests close the connection from the client's side too.
        with conn, contextlib.suppress(OSError, ValueError):
            while (request := self._receive(conn)) is not None:
                if request.method == "GET":
                    self.probes.append(request)
                    (self.answers_probe or says(200, b"application/json", b"{}"))(conn, request)
                else:
                    self.calls.append(request)
                    self.behaviour(conn, request)
        self.open.discard(conn)

    def _receive(self, conn: socket.socket) -> Request | None:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = conn.recv(65536)
            if not chunk:
                return None
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        request = Request(method, path, headers)
        if self.reads_body:
            if "chunked" in headers.get("transfer-encoding", ""):
                while not body.endswith(b"0\r\n\r\n"):
                    body += conn.recv(65536)
            while len(body) < int(headers.get("content-length", 0)):
                body += conn.recv(65536)
        request.body = body
        return request


def response(status: int, kind: bytes, body: bytes, *headers: bytes) -> bytes:
    """Return a response as it goes over the wire."""
    lines = [b"HTTP/1.1 %d Whatever" % status, b"content-type: " + kind, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def answers(conn: socket.socket, request: Request) -> None:
    """Answer as OpenAI does."""
    if request.wants_events:
        conn.sendall(response(200, b"text/event-stream", EVENTS))
    else:
        conn.sendall(response(200, b"application/json", json.dumps({"text": TEXT}).encode()))


def says(status: int, kind: bytes, body: bytes, *headers: bytes) -> Behaviour:
    """Answer with these bytes."""
    return lambda conn, _: conn.sendall(response(status, kind, body, *headers))


def error(status: int, *headers: bytes) -> Behaviour:
    """Answer with an error in OpenAI's envelope."""
    body = {"error": {"message": f"no {status}", "type": "x", "param": None, "code": None}}
    return says(status, b"application/json", json.dumps(body).encode(), *headers)


def in_turn(*turns: Behaviour, then: Behaviour) -> Behaviour:
    """Behave once in each way, then always in the last one."""
    rest = iter(turns)

    def behave(conn: socket.socket, request: Request) -> None:
        next(rest, then)(conn, request)

    return behave


def reset(conn: socket.socket) -> None:
    """Reset the connection."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()


def waits(conn: socket.socket, seconds: float = 20.0) -> bool:
    """Wait until the client has hung up, but no longer than this; return whether it is still there."""
    conn.settimeout(seconds)
    try:
        return conn.recv(1) != b""
    except TimeoutError:
        return True


def drips(conn: socket.socket, data: bytes) -> None:
    """Send a byte now and then, so that no single read is late."""
    for byte in data:
        conn.sendall(bytes([byte]))
        if not waits(conn, 0.02):
            return


@contextlib.contextmanager
def serving(behaviour: Behaviour = answers) -> Iterator[FaultServer]:
    """Run a server."""
    server = FaultServer(behaviour)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """Yield a port of this machine that refuses connections, and goes on refusing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def blackhole() -> Iterator[int]:
    """Yield a port whose queue is full: a connection gets no answer at all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003 - the standard library's signature
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]
