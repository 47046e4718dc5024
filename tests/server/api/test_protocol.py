from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import httpx2
import pytest
import trustme
import uvicorn
from uvicorn.server import ServerState

from localwhisper_server import server
from localwhisper_server.api.access_control import ConnectionLimits, Rules
from localwhisper_server.api.middleware import Limits
from localwhisper_server.api.protocol import EVENTS_AT_A_TIME, MOST_HEAD_BYTES, HttpProtocol
from localwhisper_server.api.routes import create_app
from localwhisper_server.settings import Settings
from tests.server.driving import FakeTranscriber
from tests.server.listening import serving

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
SLOW = Limits(max_upload=1_000_000, min_rate=1000, grace=0.2)


class Quick(HttpProtocol):
    """Waits for a shorter time, for the tests."""

    head_seconds = write_seconds = 0.3


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Serve with short limits; give host and port."""
    with serving(
        create_app(FakeTranscriber(), limits=SLOW), http=Quick, h11_max_incomplete_event_size=MOST_HEAD_BYTES
    ) as at:
        yield at


@contextlib.contextmanager
def _connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=60) as connection:
        yield connection


def _rest(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def _refused(answer: bytes, status: int) -> Any:
    """Return the error of the answer, which must have an id as every answer has."""
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in head
    assert b"\r\ncontent-type: application/json" in head
    error = json.loads(body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


def _trickle(connection: socket.socket, part: bytes, *, most: int = 400) -> bytes:
    """Send a part every 50 ms until the server answers; return the answer, "reset" if there is none."""
    connection.settimeout(0.05)
    for _ in range(most):
        try:
            connection.sendall(part)
            answer = connection.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return b"reset"
        connection.settimeout(60)
        return answer + _rest(connection)
    raise AssertionError("the server never ended it")


@pytest.mark.parametrize("earlier", [b"", HEAD + b"\r\n"])
def test_a_head_that_never_ends(address: tuple[str, int], earlier: bytes) -> None:
    """A header now and then does not keep a connection open, whether it is the first or the second head."""
    with _connected(address) as connection:
        if earlier:
            connection.sendall(earlier)
            while not connection.recv(65536).endswith(b"}"):
                pass
        connection.sendall(HEAD)
        error = _refused(_trickle(connection, b"X-A: b\r\n"), 408)
        assert error["code"] == "request_timeout"
        assert "did not come within 0.3 s" in error["message"]


def test_a_connection_without_a_request(address: tuple[str, int]) -> None:
    """It is closed without an answer."""
    with _connected(address) as connection:
        assert _rest(connection) == b""


def test_an_idle_connection_is_kept_longer_than_the_sdks_keep_it() -> None:
    """Otherwise it could close just as an SDK sends on it, and the request would be lost."""
    expiry = httpx2.Limits().keepalive_expiry or 0.0
    assert expiry > 0
    assert min(server.uvicorn_options(Settings())["timeout_keep_alive"], HttpProtocol.head_seconds) >= 2 * expiry


def test_requests_one_after_another(address: tuple[str, int]) -> None:
    """They share a connection, pipelined or not."""
    with _connected(address) as connection:
        connection.sendall((HEAD + b"\r\n") * 3 + HEAD + b"Connection: close\r\n\r\n")
        assert _rest(connection).count(b"HTTP/1.1 200 ") == 4


def test_nonsense_after_the_application_has_the_request(caplog: pytest.LogCaptureFixture) -> None:
    """The application waits for the body; the answer is one 400, and no error is logged."""

    class Noticing(FakeTranscriber):
        def require_ready(self) -> None:
            reached.set()

    reached = threading.Event()
    with serving(create_app(Noticing()), http=Quick) as at, _connected(at) as connection:
        connection.sendall(UPLOAD)
        assert reached.wait(60)
        connection.sendall(b"not a length\r\n")
        _refused(_rest(connection), 400)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        # A server that goes by one length takes for a request what one that goes by the other takes for a body.
        (HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEAD + b"\r\n", 400),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/3.7") + b"\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", 400),
        (HEAD + b"no colon\r\n\r\n", 400),
        (HEAD + b"X: " + b"x" * MOST_HEAD_BYTES + b"\r\n\r\n", 431),
        (HEAD + b"X: " + b"x" * MOST_HEAD_BYTES, 431),
    ],
    ids=["two lengths", "another version", "HTTP/2", "TLS", "no colon", "a head too large", "half a head too large"],
)
def test_a_head_that_is_refused(address: tuple[str, int], sent: bytes, status: int) -> None:
    """There is one answer, in the envelope, and the connection ends."""
    with _connected(address) as connection:
        connection.sendall(sent)
        answer = _rest(connection)
    message = {400: "This is not valid HTTP/1.1.", 431: f"The request's head is longer than {MOST_HEAD_BYTES} bytes."}
    assert _refused(answer, status)["message"] == message[status]
    assert answer.count(b"HTTP/1.1 ") == 1


def test_an_upgrade_is_answered_in_http_1(address: tuple[str, int], caplog: pytest.LogCaptureFixture) -> None:
    """The log has no advice to install a WebSocket library."""
    with _connected(address) as connection:
        connection.sendall(HEAD + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
        assert _rest(connection).startswith(b"HTTP/1.1 200 ")
    assert not caplog.records


UPLOAD = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n"
)
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.ogg"\r\n\r\n'
UPLOAD += b"%x\r\n%s\r\n" % (len(PART), PART)


def test_an_upload_that_stops(address: tuple[str, int]) -> None:
    """408, though no further byte comes."""
    with _connected(address) as connection:
        connection.sendall(UPLOAD + b"1\r\nx\r\n")
        assert _rest(connection).startswith(b"HTTP/1.1 408 ")


def test_a_refused_upload_is_discarded(address: tuple[str, int]) -> None:
    """A client that sends all of it before it reads gets the answer; what follows is not taken for a request."""
    with _connected(address) as connection:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2_000_000}\r\n\r\n"
        connection.sendall(head.encode() + bytes(2_000_000) + HEAD + b"Connection: close\r\n\r\n")
        answers = _rest(connection)
    assert answers.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answers.partition(b"\r\n\r\n")[0] + b"\r\n"
    assert answers.count(b"HTTP/1.1 ") == 1


def test_a_refused_body_is_not_parsed() -> None:
    """After a 401, an error in the rest of the body has no second answer."""
    with (
        serving(create_app(FakeTranscriber(), rules=Rules(keys=("lw-key",))), http=Quick) as at,
        _connected(at) as connection,
    ):
        connection.sendall(UPLOAD)
        answer = connection.recv(65536)
        connection.sendall(b"not a length\r\n" + HEAD + b"\r\n")
        answer += _rest(connection)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_chunks_of_one_byte(address: tuple[str, int], caplog: pytest.LogCaptureFixture) -> None:
    """400 after some hundred of them; each costs as much as a large one."""
    with _connected(address) as connection:
        connection.sendall(UPLOAD + b"1\r\nx\r\n" * 300)
        assert "larger ones" in _refused(_rest(connection), 400)["message"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the sizes of the parts that the body came in."""
    sizes, more = [], scope["type"] == "http"
    while more:
        message = await receive()
        sizes.append(len(message["body"]))
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(sizes).encode()})


@pytest.mark.parametrize(("count", "size"), [(3000, 16), (100, 1000), (40, 20_000)])
def test_one_connection_does_not_hold_up_the_others(count: int, size: int) -> None:
    """Of the chunks that one read brings, a few are handled at a time; all of them arrive."""
    with serving(_echo, lifespan="off", http=HttpProtocol) as at, _connected(at) as connection:
        connection.sendall(HEAD.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        connection.sendall((b"%x\r\n" % size + bytes(size) + b"\r\n") * count + b"0\r\n\r\n")
        sizes = json.loads(_rest(connection).partition(b"\r\n\r\n")[2].split(b"\r\n")[1])
    assert sum(sizes) == count * size
    assert max(sizes) <= EVENTS_AT_A_TIME * size


def _large(sent: threading.Event) -> ASGIApp:
    """Return an app whose answer is larger than the kernel's buffers; sets `sent` at its end."""

    async def large(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(30_000_000), "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})
        sent.set()

    return large


def test_a_caller_who_never_reads() -> None:
    """The connection is cut, and the application may end."""
    sent = threading.Event()
    with serving(_large(sent), lifespan="off", http=Quick) as at, _connected(at) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert sent.wait(60)
        answer = _rest(connection)
    assert len(answer) < 30_000_000
    assert not answer.endswith(b"end\r\n0\r\n\r\n")


class FakeLoop:
    """An event loop and a transport for a protocol: keeps the calls for later, and the bytes left to send."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Any]] = []
        self.left = 0
        self.aborted = False

    def call_later(self, seconds: float, call: Any, *arguments: Any) -> asyncio.Handle:
        self.later.append((seconds, partial(call, *arguments)))
        return MagicMock()

    def get_extra_info(self, _name: str) -> None:
        return None

    def set_write_buffer_limits(self, *, high: int) -> None:
        assert high == 1

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("left", "aborted"), [([900_000, 800_000, 1], False), ([900_000, 899_999], True)])
def test_a_caller_who_reads_slowly(left: list[int], *, aborted: bool) -> None:
    """The connection is kept at 1 KiB a second and more."""
    loop: Any = FakeLoop()
    config = uvicorn.Config(_echo, log_config=None)
    protocol = HttpProtocol(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    protocol.connection_made(loop)
    loop.left = 1_000_000
    protocol.pause_writing()
    for loop.left in left:
        seconds, check = loop.later[-1]
        assert seconds == HttpProtocol.write_seconds
        check()
    assert loop.aborted is aborted


# How many connections


@pytest.mark.parametrize(("files", "total", "per_address"), [(65_536, 2048, 256), (1024, 256, 32), (256, 8, 1)])
def test_connection_limits_follow_from_the_open_files(files: int, total: int, per_address: int) -> None:
    """Some files are left for decoders, uploads and the upstream; a trusted proxy has no limit of its own."""
    limits = server.connection_limits(Settings(trusted_proxy="10.0.0.1"), files)  # type: ignore[arg-type] # as users write it
    assert (limits.total, limits.per_address) == (total, per_address)
    assert limits.refusal("10.0.0.1", ["10.0.0.1"] * (total - 1)) is None


def test_a_connection_too_many(caplog: pytest.LogCaptureFixture) -> None:
    """It is closed at once; the open ones go on, and one that closes makes room."""
    with serving(create_app(FakeTranscriber()), http=partial(HttpProtocol, limits=ConnectionLimits(total=1))) as at:
        with _connected(at) as first:
            for _ in range(3):
                first.sendall(HEAD + b"\r\n")
                assert first.recv(17, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK\r\n"
                while not first.recv(65536).endswith(b"}"):
                    pass
                with _connected(at) as second:
                    assert _rest(second) == b""
        until = time.monotonic() + 60
        answer = b""
        while not answer and time.monotonic() < until:
            with _connected(at) as third, contextlib.suppress(ConnectionError):
                third.sendall(HEAD + b"Connection: close\r\n\r\n")
                answer = _rest(third)
        assert answer.startswith(b"HTTP/1.1 200 ")
    assert {record.getMessage() for record in caplog.records} == {
        "1 connections are open; further ones are closed at once"
    }


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path, Path]:
    """Give an authority, and the files of its certificate for this machine."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return authority, chain, key


def test_https(certificate: tuple[trustme.CA, Path, Path]) -> None:
    """Uvicorn serves it with the options of the server."""
    authority, chain, key = certificate
    context = ssl.create_default_context()
    authority.configure_trust(context)
    options = server.uvicorn_options(Settings(certfile=chain, keyfile=key))
    with (
        serving(create_app(FakeTranscriber()), **options) as (_, port),
        httpx2.Client(verify=context, trust_env=False) as client,
    ):
        answer = client.get(f"https://localhost:{port}/health")
    assert answer.status_code == 200
    assert "server" not in answer.headers


@pytest.mark.parametrize("broken", ["missing", "no certificate", "no key"])
def test_a_certificate_that_cannot_be_used(
    certificate: tuple[trustme.CA, Path, Path], tmp_path: Path, broken: str
) -> None:
    """The error names the option."""
    _, chain, _ = certificate
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    file = {"missing": tmp_path / "none.pem", "no certificate": nonsense, "no key": chain}[broken]
    with pytest.raises(server.Misconfigured, match="--certfile"):
        server.uvicorn_options(Settings(certfile=file))
