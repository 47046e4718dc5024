"""Every fault of a server on the LAN, on real sockets: each ends as the routing table says."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import openai
import pytest

from localwhisper_client import Attempt, BreakerOpened, LocalWhisperError
from localwhisper_client._http import http
from tests.client.driving import SHAPES, in_time
from tests.client.fault_server import (
    TEXT,
    answers,
    blackhole,
    drips,
    error,
    in_turn,
    refusing,
    reset,
    response,
    says,
    serving,
    waits,
)
from tests.client.leaving import names

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer, Request

BODY = json.dumps({"text": TEXT, "padding": "x" * 4000}).encode()
HTML = b"<html><title>Router login</title></html>"
EVENT_SHAPES = ("events", "raw_events")
DELTA = b'data: {"type":"transcript.text.delta","delta":"a"}\n\n'
DONE = b'data: {"type":"transcript.text.done","text":"a"}\n\n'
# Long enough that a server which closes its end is noticed while the file is still on its way.
BIG = ("big.wav", bytes(8_000_000))


def _begin(conn: socket.socket, request: Request) -> bytes:
    """Send all of an answer but its end; return the end."""
    kind = b"text/event-stream" if request.wants_events else b"application/json"
    answer = response(200, kind, BODY)
    conn.sendall(answer[:-2000])
    return answer[-2000:]


def _stalls(conn: socket.socket, request: Request) -> None:
    waits(conn)


def _stalls_in_body(conn: socket.socket, request: Request) -> None:
    _begin(conn, request)
    waits(conn)


def _trickles(conn: socket.socket, request: Request) -> None:
    drips(conn, _begin(conn, request))


def _resets(conn: socket.socket, request: Request) -> None:
    reset(conn)


def _resets_in_body(conn: socket.socket, request: Request) -> None:
    _begin(conn, request)
    reset(conn)


def _cuts_body_short(conn: socket.socket, request: Request) -> None:
    _begin(conn, request)
    conn.close()


def _ends_json_early(conn: socket.socket, request: Request) -> None:
    kind = b"text/event-stream" if request.wants_events else b"application/json"
    conn.sendall(response(200, kind, BODY[:-2000]))


def _sends_other_json(conn: socket.socket, request: Request) -> None:
    if request.wants_events:
        conn.sendall(response(200, b"text/event-stream", b'data: {"error": {"message": "no"}}\n\n'))
    else:
        conn.sendall(response(200, b"application/json", b'["a", "list"]'))


def _sends_the_other_kind(conn: socket.socket, request: Request) -> None:
    request.body = request.body.replace(b"true", b"false") if request.wants_events else b'name="stream"\r\n\r\ntrue'
    answers(conn, request)


@dataclass(frozen=True)
class Fault:
    """What a server does wrong, the verdict on it, and the error where it is final."""

    name: str
    verdict: str
    behaviour: Callable[[socket.socket, Request], None] = answers
    error: type[Exception] = LocalWhisperError
    file: tuple[str, bytes] = ("a.ogg", b"audio")
    reads_body: bool = True
    shapes: tuple[str, ...] = ("plain", "events")
    """How it is called: in every shape where the fault comes in the answer, which each shape reads in its own way."""

    def check(self, within: Callable[[float], None]) -> None:
        """Check with a deadline for calls: a short one only where it will be waited for."""
        if self.behaviour in (_stalls, _stalls_in_body, _trickles):
            in_time(within)
        else:
            within(60.0)

    @property
    def connect_timeout(self) -> float:
        """Return the seconds for a connection: few only where they will be waited for."""
        return 0.15 if self.verdict == OUTAGE else 30.0

    @contextlib.contextmanager
    def url(self) -> Iterator[str]:
        """Yield the base URL of a server with this fault."""
        if self.name == "refused":
            with refusing() as port:
                yield f"http://127.0.0.1:{port}/v1"
        elif self.name == "blackholed":
            with blackhole() as port:
                yield f"http://127.0.0.1:{port}/v1"
        elif self.name == "no such host":
            yield "http://unknown.invalid:5000/v1"
        else:
            with serving(self.behaviour) as server:
                server.reads_body = self.reads_body
                yield server.url.replace("http:", "https:") if self.name == "no TLS" else server.url


OUTAGE, FAILURE, BUSY, MISCONFIGURED, BAD_REQUEST = "outage", "failure", "busy", "misconfigured", "bad_request"

FAULTS = [
    Fault("refused", OUTAGE, shapes=SHAPES),
    Fault("blackholed", OUTAGE),
    Fault("no such host", OUTAGE),
    Fault("no TLS", OUTAGE),
    Fault("slow headers", FAILURE, _stalls),
    Fault("stalled body", FAILURE, _stalls_in_body, shapes=SHAPES),
    Fault("trickling body", FAILURE, _trickles, shapes=SHAPES),
    Fault("reset", FAILURE, _resets),
    Fault("reset in the body", FAILURE, _resets_in_body, shapes=SHAPES),
    Fault("killed in mid-upload", FAILURE, _resets, file=BIG, reads_body=False),
    Fault("body cut short", FAILURE, _cuts_body_short, shapes=SHAPES),
    Fault("truncated JSON", FAILURE, _ends_json_early, shapes=SHAPES),
    Fault("other JSON", FAILURE, _sends_other_json, shapes=SHAPES),
    Fault("the other kind of answer", FAILURE, _sends_the_other_kind, shapes=SHAPES),
    Fault("HTML", FAILURE, says(200, b"text/html; charset=utf-8", HTML), shapes=SHAPES),
    Fault("redirect", FAILURE, says(302, b"text/html", HTML, b"location: http://router/login"), openai.APIStatusError),
    *(Fault(str(status), FAILURE, error(status), openai.InternalServerError) for status in (500, 502, 504)),
    Fault("408", FAILURE, error(408), openai.APIStatusError),
    Fault("503", BUSY, error(503), openai.InternalServerError, shapes=SHAPES),
    Fault("503 for an hour", BUSY, error(503, b"retry-after: 3600"), openai.InternalServerError),
    Fault("429", BUSY, error(429), openai.RateLimitError),
    Fault("401", MISCONFIGURED, error(401), openai.AuthenticationError, shapes=SHAPES),
    Fault("403", MISCONFIGURED, error(403), openai.PermissionDeniedError),
    Fault("404", MISCONFIGURED, error(404), openai.NotFoundError),
    Fault("405", MISCONFIGURED, error(405), openai.APIStatusError),
    Fault("400", BAD_REQUEST, error(400), openai.BadRequestError, shapes=SHAPES),
    Fault("413", BAD_REQUEST, error(413), openai.APIStatusError),
    Fault("415", BAD_REQUEST, error(415), openai.APIStatusError),
    Fault("422", BAD_REQUEST, error(422), openai.UnprocessableEntityError),
]
FINAL = (MISCONFIGURED, BAD_REQUEST)

every_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


@pytest.fixture(autouse=True)
def no_such_host() -> Iterator[None]:
    """No name server is asked: every name is unknown."""
    with names():
        yield


@pytest.mark.parametrize(
    ("fault", "shape"),
    [pytest.param(fault, shape, id=f"{fault.name}-{shape}") for fault in FAULTS for shape in fault.shapes],
)
def test_each_fault_ends_as_the_table_says(fault: Fault, shape: str, drive: Driver, cloud: FaultServer) -> None:
    """Under `cloud` the next backend gets the whole call, once; or the fault is raised and the cloud gets nothing."""

    def within(seconds: float) -> None:
        drive.events.clear()
        cloud.calls.clear()
        with fault.url() as url:
            client = drive.client(
                local_base_url=url,
                policy="cloud",
                connect_timeout=fault.connect_timeout,
                timeout=seconds,
                max_retries=0,
            )
            if fault.verdict in FINAL:
                with pytest.raises(fault.error) as raised:
                    drive.call(client, shape, file=fault.file)
                assert not cloud.calls
                assert url in str(raised.value)
            else:
                assert drive.call(client, shape, file=fault.file) == TEXT
                assert len(cloud.calls) == 1
                assert fault.file[1] in cloud.calls[0].body
        attempts = [event for event in drive.events if isinstance(event, Attempt)]
        assert attempts[0].verdict == fault.verdict
        assert not attempts[0].cloud
        assert any(isinstance(event, BreakerOpened) for event in drive.events) == (fault.verdict == OUTAGE)

    fault.check(within)


@every_fault
def test_nothing_leaves_the_lan_by_default(fault: Fault, drive: Driver, cloud: FaultServer) -> None:
    """Under `local_only` each fault is an SDK error that names the backend; the cloud gets nothing."""

    def within(seconds: float) -> None:
        with fault.url() as url:
            client = drive.client(local_base_url=url, connect_timeout=fault.connect_timeout, timeout=seconds)
            with pytest.raises(fault.error) as raised:
                drive.call(client, file=fault.file)
        assert isinstance(raised.value, openai.APIError)
        assert url in str(raised.value)
        assert not cloud.calls
        if fault.verdict not in FINAL:
            assert "LOCALWHISPER_POLICY=cloud" in str(raised.value)

    fault.check(within)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_local_server_that_answers_gets_the_call(
    shape: str, drive: Driver, local_server: FaultServer, cloud: FaultServer
) -> None:
    """No error, no cloud."""
    client = drive.client(local_base_url=local_server.url, policy="cloud")
    assert drive.call(client, shape) == TEXT
    assert len(local_server.calls) == 1
    assert not cloud.calls


def _breaks_after_first_event(conn: socket.socket, request: Request) -> None:
    conn.sendall(response(200, b"text/event-stream", DELTA + b"x" * 100)[:-100])
    reset(conn)


@pytest.mark.parametrize("shape", EVENT_SHAPES)
def test_a_stream_falls_back_only_before_its_first_event(shape: str, drive: Driver, cloud: FaultServer) -> None:
    """Once the caller has read an event, the stream is not started again at another backend."""
    with serving(_breaks_after_first_event) as server:
        client = drive.client(local_base_url=server.url, policy="cloud")
        with pytest.raises((openai.APIConnectionError, http.TransportError)):
            drive.call(client, shape)
    assert not cloud.calls


@pytest.mark.parametrize("shape", EVENT_SHAPES)
def test_a_stream_of_openais_events_needs_the_last_one(shape: str, drive: Driver) -> None:
    """The connection ends properly, but without that event; streams of other servers may have none."""
    for events in (DELTA + DONE, b'data: {"text":"b"}\n\ndata: {"text":"a"}\n\n'):
        with serving(says(200, b"text/event-stream", events)) as server:
            assert drive.call(drive.client(local_base_url=server.url), shape) == "a"
    with serving(says(200, b"text/event-stream", DELTA)) as server:
        client = drive.client(local_base_url=server.url)
        with pytest.raises((openai.APIConnectionError, http.TransportError)):
            drive.call(client, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(shape: str, status: int, drive: Driver, cloud: FaultServer) -> None:
    """A `Retry-After` that fits the deadline is obeyed, and the local server answers."""
    with serving() as server:
        server.behaviour = in_turn(
            error(status, b"retry-after: 0.05"), error(status, b"retry-after-ms: 50"), then=answers
        )
        client = drive.client(local_base_url=server.url, policy="cloud", timeout=60)
        assert drive.call(client, shape) == TEXT
        assert len(server.calls) == 3
    assert not cloud.calls
