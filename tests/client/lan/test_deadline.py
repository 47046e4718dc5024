"""A call ends when its time is up, whatever a server, a name server or a search does; both flavours, real sockets."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest

from localwhisper_client import LocalServerUnavailable
from localwhisper_client._http import http
from localwhisper_client.lan.transport import look_up
from tests.client.driving import SHAPES
from tests.client.fault_server import TEXT, drips, refusing, response, says, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer, Request

# A call's own time, and when it must be over: what a call must not wait for here takes LONG seconds and more.
SECONDS, SOON, LONG = 0.3, 20.0, 40.0
BODY = b'{"text": "' + b"x" * 4000 + b'"}'


@contextmanager
def ends_soon() -> Iterator[None]:
    """See that what is inside waits for the call's own time, and not for what the other side takes."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SOON


class NameServer:
    """Answers slowly for `pc.local`, as mDNS does for a machine that is off; other names resolve as usual."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.done = threading.Event()
        self.addresses: tuple[str, ...] = ()
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in ("pc.local", b"pc.local"):
            return self._resolve(host, port, *args, **options)
        self.asked += 1
        self.done.wait(LONG)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in self.addresses]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """Make the look-up of `pc.local` slow."""
    server = NameServer(monkeypatch)
    yield server
    server.done.set()


def test_a_name_that_is_slow_to_fail_costs_no_call_its_deadline(drive: Driver, name_server: NameServer) -> None:
    """Not the first call, nor those after it, which wait for a probe; together they make one look-up."""
    client = drive.client(local_base_url="http://pc.local:5000/v1", timeout=SECONDS)
    threads = threading.active_count()
    for _ in range(4):
        with ends_soon(), pytest.raises(LocalServerUnavailable):
            drive.call(client)
    assert name_server.asked == 1
    assert threading.active_count() - threads <= 3  # the look-up, the probe, and a timer of the portal's


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "192.168.1.9"])
def test_addresses_need_no_look_up(host: str) -> None:
    """The answer is there at once."""
    assert look_up(host).result(0) == (host,)


def test_each_address_is_told_once_and_callers_share_a_look_up(name_server: NameServer) -> None:
    """In the order in which the system would try them; the next look-up begins when the one before has ended."""
    name_server.addresses = ("10.0.0.2", "10.0.0.1", "10.0.0.2")
    waiting = [look_up("pc.local") for _ in range(1000)]
    name_server.done.set()
    assert {future.result(60) for future in waiting} == {("10.0.0.2", "10.0.0.1")}
    assert name_server.asked == 1
    look_up("pc.local").result(60)
    assert name_server.asked == 2


def test_every_address_of_a_name_is_tried(drive: Driver, name_server: NameServer, local_server: FaultServer) -> None:
    """The first address may be of a network that the machine has left."""
    name_server.done.set()
    name_server.addresses = ("127.0.0.9", "127.0.0.1")
    client = drive.client(local_base_url=local_server.url.replace("127.0.0.1", "pc.local"))
    assert drive.call(client) == TEXT
    assert local_server.calls[0].headers["host"] == f"pc.local:{local_server.port}"


def _kind(request: Request) -> bytes:
    return b"text/event-stream" if request.wants_events else b"application/json"


def _drips_all(conn: socket.socket, request: Request) -> None:
    drips(conn, response(200, b"application/json", BODY))


def _drips_body(conn: socket.socket, request: Request) -> None:
    answer = response(200, _kind(request), BODY)
    conn.sendall(answer[:-3990])
    drips(conn, answer[-3990:])


@pytest.mark.parametrize(
    ("behaviour", "shape"), [(_drips_all, "plain"), (_drips_all, "events"), *((_drips_body, shape) for shape in SHAPES)]
)
def test_an_answer_that_trickles_ends_with_the_call(behaviour: Callable[..., None], shape: str, drive: Driver) -> None:
    """Headers and body, which take 80 s here; in every shape in which it is read before the caller has it."""
    with serving(behaviour) as server:
        client = drive.client(local_base_url=server.url, timeout=SECONDS)
        with ends_soon(), pytest.raises(openai.APITimeoutError):
            drive.call(client, shape)


def test_an_upload_that_is_read_slowly_ends_with_the_call(drive: Driver) -> None:
    """The server takes a little now and then, two minutes for all of it, so that no single write is late."""
    over = threading.Event()

    def sips(conn: socket.socket, _: Request) -> None:
        while conn.recv(4096):
            over.wait(0.02)

    with serving(sips) as server:
        server.reads_body = False
        client = drive.client(local_base_url=server.url, timeout=SECONDS)
        with ends_soon(), pytest.raises(openai.APITimeoutError):
            drive.call(client, file=("a.wav", bytes(30_000_000)))
        over.set()


class Slow:
    """A finder and a waker that take longer than any call."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def urls(self) -> tuple[str, ...]:
        self.done.wait(LONG)
        return ()

    def forget(self) -> None:
        self.done.wait(LONG)

    def wake(self, now: float) -> bool:
        return self.done.wait(LONG)


def test_a_search_and_a_packet_end_with_the_call(drive: Driver) -> None:
    """They go on in the background; the call reports what is known by then."""
    slow = Slow()
    try:
        with ends_soon(), pytest.raises(LocalServerUnavailable):
            drive.call(drive.client(local_base_url="auto", timeout=SECONDS, finder=slow))
        with refusing() as port, ends_soon(), pytest.raises(LocalServerUnavailable):
            drive.call(drive.client(local_base_url=f"http://127.0.0.1:{port}/v1", timeout=SECONDS, waker=slow))
    finally:
        slow.done.set()


def _without_end(*, first: bytes = b"", piece: bytes = b"x" * 65536, status: int = 200) -> tuple[Any, list[int]]:
    sent = [0]

    def behave(conn: socket.socket, request: Request) -> None:
        conn.sendall(b"HTTP/1.1 %d Fine\r\ncontent-type: %b\r\n\r\n%b" % (status, _kind(request), first))
        while sent[0] < 200 * 2**20:
            conn.sendall(piece)
            sent[0] += len(piece)

    return behave, sent


EVENT = b'data: {"type":"transcript.text.delta","delta":"a"}\n\n'


@pytest.mark.parametrize(
    ("shape", "answer", "most"),
    [
        ("plain", {}, 64),
        ("streaming", {}, 64),
        ("plain", {"status": 500}, 64),
        ("events", {"status": 500, "piece": EVENT * 1000}, 64),
        ("events", {}, 8),
        ("events", {"piece": b": still here\n\n" * 4000}, 8),
        ("events", {"first": EVENT}, 8),
    ],
)
def test_an_answer_without_end_is_not_kept(shape: str, answer: Any, most: int, drive: Driver) -> None:
    """So many MiB of an answer, or of one event, and no more: an hour's transcript with words has two."""
    behaviour, sent = _without_end(**answer)
    with serving(behaviour) as server:
        client = drive.client(local_base_url=server.url, timeout=60)
        with pytest.raises((openai.APIError, http.RemoteProtocolError)):
            drive.call(client, shape)
    assert sent[0] / 2**20 < most + 16  # what the kernel had taken in already


def test_a_long_answer_is_no_endless_one(drive: Driver) -> None:
    """Thirty megabytes, in a body or in many events, are given out whole."""
    text = "x" * 30_000_000
    with serving(says(200, b"application/json", b'{"text": "%b"}' % text.encode())) as server:
        assert drive.call(drive.client(local_base_url=server.url)) == text
    long = EVENT.replace(b'"a"', b'"%b"' % bytes(b"x" * 1000))
    done = b'data: {"type":"transcript.text.done","text":"a"}\n\n'
    with serving(says(200, b"text/event-stream", long * 12_000 + done)) as server:
        assert drive.call(drive.client(local_base_url=server.url), "events") == "a"


def test_a_compressed_answer_is_not_unpacked(drive: Driver) -> None:
    """The request said `identity`, and a few bytes could expand to any size."""
    import gzip

    body = gzip.compress(b'{"text": "%b"}' % bytes(1_000_000))
    with serving(says(200, b"application/json", body, b"content-encoding: gzip")) as server:
        client = drive.client(local_base_url=server.url)
        with pytest.raises(LocalServerUnavailable, match="compressed"):
            drive.call(client)
