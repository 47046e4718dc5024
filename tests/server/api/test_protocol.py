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
from localwhisper_server.api.access_control import Rules
from localwhisper_server.api.limits import ConnectionLimits, Limits
from localwhisper_server.api.protocol import EVENTS_AT_A_TIME, MOST_HEAD_BYTES, HttpProtocol
from localwhisper_server.api.routes import create_app
from localwhisper_server.settings import Settings, written
from tests.server.driving import FakeTranscriber
from tests.server.listening import serving

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
SLOW = Limits(max_upload=1_000_000, min_rate=1000, grace=0.2)


class Hasty(HttpProtocol):
    """Waits as long as a test may take."""

    head_seconds = write_seconds = 0.3


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """A server without patience."""
    with serving(
        create_app(FakeTranscriber(), limits=SLOW), http=Hasty, h11_max_incomplete_event_size=MOST_HEAD_BYTES
    ) as at:
        yield at


@contextlib.contextmanager
def _connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=10) as connection:
        yield connection


def _rest(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def _refused(answer: bytes, status: int) -> Any:
    """Return the error of the one answer that came, which has an id as every answer has."""
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in head
    assert b"\r\ncontent-type: application/json" in head
    error = json.loads(body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


def _trickle(connection: socket.socket, part: bytes, *, most: int = 400) -> bytes:
    """Send a part now and then until the server has had enough; return what it says."""
    connection.settimeout(0.05)
    for _ in range(most):
        try:
            connection.sendall(part)
            answer = connection.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return b"reset"
        connection.settimeout(10)
        return answer + _rest(connection)
    raise AssertionError("it was let go on")


def test_a_head_that_never_ends(address: tuple[str, int]) -> None:
    """A header now and then does not hold a connection."""
    with _connected(address) as connection:
        connection.sendall(HEAD)
        error = _refused(_trickle(connection, b"X-A: b\r\n"), 408)
        assert error["code"] == "request_timeout"
        assert "did not come within 0.3 s" in error["message"]


def test_a_connection_that_says_nothing(address: tuple[str, int]) -> None:
    """It is closed, without a word that nobody asked for."""
    with _connected(address) as connection:
        assert _rest(connection) == b""


def test_the_second_head_is_not_waited_for_longer(address: tuple[str, int]) -> None:
    """One good request buys no patience."""
    with _connected(address) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HEAD)
        assert b"HTTP/1.1 408 " in _trickle(connection, b"X-A: b\r\n")


def test_an_idle_connection_outlives_the_sdks_patience() -> None:
    """Else it would be closed just as they send on it, and the request be lost without an answer."""
    expiry = httpx2.Limits().keepalive_expiry or 0.0
    assert expiry > 0
    assert min(server.uvicorn_options(Settings())["timeout_keep_alive"], HttpProtocol.head_seconds) >= 2 * expiry


def test_requests_one_after_another(address: tuple[str, int]) -> None:
    """Those who do not dawdle keep their connection, pipelined or not."""
    with _connected(address) as connection:
        connection.sendall((HEAD + b"\r\n") * 3 + HEAD + b"Connection: close\r\n\r\n")
        assert _rest(connection).count(b"HTTP/1.1 200 ") == 4


def test_a_head_too_large(address: tuple[str, int]) -> None:
    """It is refused before it is whole."""
    with _connected(address) as connection:
        connection.sendall(HEAD + b"X: " + b"x" * MOST_HEAD_BYTES)
        assert _refused(_rest(connection), 431)["code"] == "headers_too_large"


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00 hello\r\n\r\n", HEAD + b"no colon\r\n\r\n", b"GET\r\n\r\n"])
def test_what_is_no_http(address: tuple[str, int], sent: bytes) -> None:
    """TLS on a plain port, or somebody typing: an error in the envelope, like any other."""
    with _connected(address) as connection:
        connection.sendall(sent)
        assert _refused(_rest(connection), 400)["message"] == "This is not valid HTTP/1.1."


@pytest.mark.parametrize("with_the_head", [True, False])
@pytest.mark.parametrize("path", [b"/health", b"/v1/audio/transcriptions"])
def test_nonsense_in_the_middle_of_a_body(
    address: tuple[str, int], path: bytes, caplog: pytest.LogCaptureFixture, *, with_the_head: bool
) -> None:
    """The application has not answered yet, so there is still an answer; it is the only one, and no error of ours."""
    upload = UPLOAD.replace(b"/v1/audio/transcriptions", path)
    with _connected(address) as connection:
        if with_the_head:
            connection.sendall(upload + b"not a length\r\n")
        else:
            connection.sendall(UPLOAD)
            time.sleep(0.05)
            connection.sendall(b"not a length\r\n")
        _refused(_rest(connection), 400)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        # Two lengths: what one side takes for a body, another takes for the next request.
        (HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEAD + b"\r\n", 400),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/3.7") + b"\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (HEAD + b"X: " + b"x" * MOST_HEAD_BYTES + b"\r\n\r\n", 431),
    ],
    ids=["two lengths", "another version", "HTTP/2", "a whole head too large"],
)
def test_what_could_be_read_in_two_ways_is_not_read(address: tuple[str, int], sent: bytes, status: int) -> None:
    """One refusal, and the connection ends."""
    with _connected(address) as connection:
        connection.sendall(sent)
        answer = _rest(connection)
    _refused(answer, status)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_who_asks_for_another_protocol_gets_this_one(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Without advice on what to install in the log."""
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


def test_an_upload_by_drops(address: tuple[str, int]) -> None:
    """408 in OpenAI's words, and the connection is not left to go on."""
    with _connected(address) as connection:
        connection.sendall(UPLOAD)
        answer = _trickle(connection, b"1\r\nx\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer


def test_an_upload_that_stops(address: tuple[str, int]) -> None:
    """Silence is slow, too."""
    with _connected(address) as connection:
        connection.sendall(UPLOAD + b"1\r\nx\r\n")
        assert _rest(connection).startswith(b"HTTP/1.1 408 ")


def test_an_endless_body_is_answered_and_ended(address: tuple[str, int]) -> None:
    """413 as soon as it is too much; after that, what still comes is thrown away for a moment only."""
    with _connected(address) as connection:
        connection.sendall(UPLOAD)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() - began < 10:
                connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        assert time.monotonic() - began < 10
        assert _rest(connection).startswith(b"HTTP/1.1 413 ")


def test_a_refused_upload_is_thrown_away(address: tuple[str, int]) -> None:
    """A client that sends all of it before it reads still gets the answer; what follows is not a request."""
    with _connected(address) as connection:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2_000_000}\r\n\r\n"
        connection.sendall(head.encode() + bytes(2_000_000) + HEAD + b"Connection: close\r\n\r\n")
        answers = _rest(connection)
    assert answers.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answers.partition(b"\r\n\r\n")[0] + b"\r\n"
    assert answers.count(b"HTTP/1.1 ") == 1


def test_a_refused_body_is_not_parsed() -> None:
    """Without the key, nonsense in the rest of a body is neither seen nor answered."""
    with (
        serving(create_app(FakeTranscriber(), rules=Rules(keys=("lw-key",))), http=Hasty) as at,
        _connected(at) as connection,
    ):
        connection.sendall(UPLOAD)
        answer = connection.recv(65536)
        connection.sendall(b"not a length\r\n" + HEAD + b"\r\n")
        answer += _rest(connection)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("path", [b"/v1/audio/transcriptions", b"/nowhere"])
def test_chunks_of_one_byte(address: tuple[str, int], path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """400 after some hundred of them, whatever they are sent to; each costs as much as a large one."""
    upload = UPLOAD.replace(b"/v1/audio/transcriptions", path)
    with _connected(address) as connection:
        connection.sendall(upload + b"1\r\nx\r\n" * 300)
        answer = _rest(connection)
    if path == b"/nowhere":  # answered before they were all read
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
    else:
        assert "larger ones" in _refused(answer, 400)["message"]
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
def test_one_connection_has_only_its_turn(count: int, size: int) -> None:
    """However many chunks one read brings, so many are handled before others are; all of them arrive."""
    with serving(_echo, lifespan="off", http=HttpProtocol) as at, _connected(at) as connection:
        connection.sendall(HEAD.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        connection.sendall((b"%x\r\n" % size + bytes(size) + b"\r\n") * count + b"0\r\n\r\n")
        sizes = json.loads(_rest(connection).partition(b"\r\n\r\n")[2].split(b"\r\n")[1])
    assert sum(sizes) == count * size
    assert max(sizes) <= EVENTS_AT_A_TIME * size


def _large(sent: threading.Event) -> ASGIApp:
    """Return an app that answers with more than the kernel keeps, and notes when that was taken or given up."""

    async def large(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(30_000_000), "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})
        sent.set()

    return large


def test_a_caller_who_never_reads() -> None:
    """The connection is cut, and what waited to send is set free."""
    sent = threading.Event()
    with serving(_large(sent), lifespan="off", http=Hasty) as at, _connected(at) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert sent.wait(10)
        answer = _rest(connection)
    assert len(answer) < 30_000_000
    assert not answer.endswith(b"end\r\n0\r\n\r\n")


class Clockwork:
    """A loop and a transport in one, for a protocol: keeps what is to be called later, and how much was not taken."""

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
    """Whoever takes a part of the answer now and then is waited for, at a kibibyte a second."""
    clockwork: Any = Clockwork()
    config = uvicorn.Config(_echo, log_config=None)
    protocol = HttpProtocol(config=config, server_state=ServerState(), app_state={}, _loop=clockwork)
    protocol.connection_made(clockwork)
    clockwork.left = 1_000_000
    protocol.pause_writing()
    for clockwork.left in left:
        seconds, look = clockwork.later[-1]
        assert seconds == HttpProtocol.write_seconds
        look()
    assert clockwork.aborted is aborted


# How many connections


@pytest.mark.parametrize(("files", "total", "share"), [(65_536, 2048, 256), (1024, 256, 32), (256, 8, 1)])
def test_connection_limits_follow_from_the_open_files(files: int, total: int, share: int) -> None:
    """Files are left for decoders, uploads and the upstream; a trusted proxy has no share of its own."""
    limits = server.connection_limits(Settings(trusted_proxy="10.0.0.1"), files)  # type: ignore[arg-type] # as it is written
    assert (limits.total, limits.per_address) == (total, share)
    assert limits.refusal("10.0.0.1", ["10.0.0.1"] * (total - 1)) is None


def test_a_connection_too_many(caplog: pytest.LogCaptureFixture) -> None:
    """It is closed at once; those that are open go on, and one that closes makes room."""
    with serving(create_app(FakeTranscriber()), http=partial(HttpProtocol, limits=ConnectionLimits(total=1))) as at:
        with _connected(at) as first:
            for _ in range(3):
                first.sendall(HEAD + b"\r\n")
                assert first.recv(17, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK\r\n"
                while not first.recv(65536).endswith(b"}"):
                    pass
                with _connected(at) as second:
                    assert _rest(second) == b""
        until = time.monotonic() + 10
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
    """An authority, and the files of a certificate of its for this machine."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return authority, chain, key


def test_https(certificate: tuple[trustme.CA, Path, Path]) -> None:
    """Through uvicorn, with the options that the server gives it."""
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
    """One clear line before anything slow."""
    _, chain, _ = certificate
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    file = {"missing": tmp_path / "none.pem", "no certificate": nonsense, "no key": chain}[broken]
    with pytest.raises(server.Misconfigured, match="--certfile"):
        server.uvicorn_options(Settings(certfile=file))


# Settings


def test_settings_become_rules(tmp_path: Path) -> None:
    """Lists come separated by commas; keys from both places; the machine's own names are added."""
    file = tmp_path / "keys"
    file.write_text("three\n")
    given: dict[str, Any] = {
        "api_key": "one, two",
        "api_key_file": file,
        "allow_from": "192.168.1.0/24,fd00::/8",
        "trusted_proxy": "127.0.0.1",
        "allow_host": "PC.example.org",
        "cors_origin": "https://App.example.org/",
        "min_upload_rate": 10,
        "upload_grace": 3,
        "max_per_address": 5,
    }
    rules = server.access_rules(Settings(**given), server.own_names())
    limits = server.request_limits(Settings(**given))
    assert rules.keys == ("one", "two", "three")
    assert [str(network) for network in rules.allow_from] == ["192.168.1.0/24", "fd00::/8"]
    assert [str(network) for network in rules.trusted_proxies] == ["127.0.0.1/32"]
    assert rules.hosts == ("pc.example.org", *server.own_names())
    assert rules.origins == ("https://app.example.org",)
    assert (limits.min_rate, limits.grace, limits.per_address) == (10, 3, 5)
    assert socket.gethostname().lower() in rules.hosts


def test_the_environment_and_the_command_line_say_it_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas in both; an option can also be given twice."""
    from pydantic_settings import CliApp

    line = CliApp.run(Settings, cli_args=["--api-key", "a", "--api-key=b,c", "--allow-from", "10.0.0.0/8"])
    monkeypatch.setenv("LOCALWHISPER_SERVER_API_KEY", "a,b,c")
    monkeypatch.setenv("LOCALWHISPER_SERVER_ALLOW_FROM", "10.0.0.0/8")
    assert Settings().keys() == line.keys() == ("a", "b", "c")
    assert Settings().allow_from == line.allow_from


def test_the_default_is_this_machine_and_the_lan() -> None:
    """No key, no other names, no pages, no upstream; and nobody from outside."""
    settings = Settings()
    rules = server.access_rules(settings, ())
    assert (settings.host, settings.upstream) == ("127.0.0.1", None)
    assert rules.allow_from == Rules().allow_from
    assert [*rules.keys, *rules.hosts, *rules.origins, *rules.trusted_proxies] == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"api_key": "one,two", "allow_from": "10.0.0.0/8,fd00::/8"},
        {"cors_origin": "*", "certfile": "chain.pem", "max_wait": 2.5},
    ],
)
def test_settings_can_be_written_down_and_read_again(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the service's settings file does."""
    settings = Settings(**given)
    for name in Settings.model_fields:
        monkeypatch.setenv(f"LOCALWHISPER_SERVER_{name.upper()}", written(getattr(settings, name)))
    assert Settings() == settings
    assert written(True) == "true"  # noqa: FBT003 - how a flag is written


@pytest.mark.parametrize(
    "given",
    [
        {"allow_from": 5},
        {"allow_from": "the LAN server"},
        {"trusted_proxy": "10.0.0.1/8"},
        {"upstream": "api.openai.com"},
        {"upstream": "ftp://api.openai.com"},
        {"upstream": "https://"},
        {"upstream": "https://api.openai.com/v1?x=1"},
        {"keyfile": "key.pem"},
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any]) -> None:
    """They are refused at the start."""
    with pytest.raises(ValueError, match="1 validation error"):
        Settings(**given)


def test_a_file_of_keys_that_is_not_there(tmp_path: Path) -> None:
    """A server that was to be locked does not start."""
    with pytest.raises(server.Misconfigured, match="--api-key-file"):
        server.access_rules(Settings(api_key_file=tmp_path / "none"), ())
