from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client.shared.lan_ranges import parse_network
from localwhisper_server.api.access_control import ConnectionLimits
from localwhisper_server.api.middleware import PAUSE_SECONDS, Limits
from localwhisper_server.errors import TooSlow
from tests.server.driving import SPOKEN, WHOLE, Answer, FakeTranscriber, call, make_app, multipart

if TYPE_CHECKING:
    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio

# The body: how much and how fast


@pytest.mark.parametrize(
    ("limits", "left", "read", "waited", "expected"),
    [
        (Limits(min_rate=100, grace=10), 10, 0, 4, 6),
        (Limits(min_rate=100, grace=10), 10, 0, 10, 0),
        (Limits(min_rate=100, grace=10), 10, 500, 10, 5),
        (Limits(min_rate=100, grace=10), 10, 500, 16, -1),
        (Limits(min_rate=100, grace=10), 10, 10**9, 0, PAUSE_SECONDS),
        (Limits(min_rate=100, grace=90), 80, 10**9, 0, 90),
        (Limits(min_rate=0, grace=0), 1, 0, 1e9, PAUSE_SECONDS),
    ],
)
def test_how_long_a_body_may_pause(limits: Limits, left: float, read: int, waited: float, expected: float) -> None:
    """One second more for every `min_rate` bytes, up to a minute; without a rate, each pause may last a minute."""
    assert limits.pause_left(left, read, waited) == expected


class Sender:
    """Sends the parts of a body, each a pause in seconds of this clock and a size in bytes."""

    def __init__(self, *parts: tuple[float, int]) -> None:
        self.now = 0.0
        self._parts = list(parts)

    def clock(self) -> float:
        return self.now

    async def receive(self) -> dict[str, Any]:
        if not self._parts:
            return {"type": "http.disconnect"}
        pause, size = self._parts.pop(0)
        self.now += pause
        return {"type": "http.request", "body": bytes(size), "more_body": bool(self._parts)}


async def _upload(sender: Sender, *, limit: int = 10**9, busy: float = 0.0) -> int:
    """Receive a body under limits, and spend `busy` seconds on each part."""
    receive = Limits(limit, min_rate=1000, grace=10).receive(sender.receive, sender.clock)
    read = 0
    while True:
        message = await receive()
        read += len(message["body"])
        sender.now += busy
        if not message["more_body"]:
            return read


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 10)],
        [(9, 1), (0, 1)],
        [(1, 1000)] * 60,
        [(5, 100_000), (PAUSE_SECONDS - 1, 1), (0.5, 1)],
        [(11, 1)],  # late, but whole
    ],
)
async def test_a_slow_upload_within_the_limits_is_taken(parts: list[tuple[float, int]]) -> None:
    """Bytes that arrive early allow a later pause."""
    assert await _upload(Sender(*parts)) == sum(size for _, size in parts)


@pytest.mark.parametrize(
    "parts",
    [
        [(11, 1), (0, 1)],
        [(1, 1)] * 12,
        [(1, 900)] * 150,
        [(1, 199_000_000), (PAUSE_SECONDS + 1, 1), (0, 1)],
        [(1, 199_000_000), *[(PAUSE_SECONDS / 2, 1)] * 4],
    ],
    ids=["late", "drops", "below the rate", "a fast start and silence", "a fast start and drops"],
)
async def test_an_upload_below_the_rate_is_refused(parts: list[tuple[float, int]]) -> None:
    """A byte now and then does not keep a connection open."""
    with pytest.raises(TooSlow):
        await _upload(Sender(*parts))


async def test_the_servers_own_time_does_not_count() -> None:
    """A slow disk of the server's does not make an upload slow."""
    assert await _upload(Sender(*[(1, 1000)] * 60), busy=100.0) == 60_000


async def test_an_upload_of_nothing_is_refused() -> None:
    """The time runs out even if no message arrives."""
    receive = Limits(1, min_rate=1000, grace=0.01).receive(asyncio.Event().wait, lambda: 0.0)  # type: ignore[arg-type]
    with pytest.raises(TooSlow):
        await receive()


async def test_after_the_body_the_caller_may_wait() -> None:
    """While a caller waits for the transcript, no limit applies."""
    sender = Sender((0, 1))
    receive = Limits(1, min_rate=1000, grace=1).receive(sender.receive, sender.clock)
    await receive()
    sender.now += 1e6
    assert (await receive())["type"] == "http.disconnect"


TOO_LARGE = "413: Maximum content size limit (1000) exceeded ({read} bytes read)"


async def test_an_announced_body_over_the_limit_is_refused_unread() -> None:
    """OpenAI's 413: typed server_error, with an empty usage beside the error."""
    app = make_app(limits=Limits(1000))
    headers, body = multipart(file=bytes(2000))
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers | {"content-length": str(len(body))}, [])
    assert answer.status == 413
    assert answer.json() == {
        "error": {
            "message": TOO_LARGE.format(read=len(body)),
            "type": "server_error",
            "param": None,
            "code": None,
        },
        "usage": {"type": "duration", "seconds": 0},
    }


async def test_a_chunked_body_over_the_limit_is_refused_on_the_way() -> None:
    """It announces no length, so its bytes are counted."""
    headers, body = multipart(file=bytes(2000))
    chunks = [body[at : at + 300] for at in range(0, len(body), 300)]
    answer = await call(make_app(limits=Limits(1000)), "POST", "/v1/audio/transcriptions", headers, chunks)
    assert answer.status == 413
    assert answer.error["message"] == TOO_LARGE.format(read=1200)


@pytest.mark.parametrize("announced", ["", "junk", "-5", "²", "1000"])
async def test_a_wrong_length_changes_nothing(announced: str) -> None:
    """A malformed length, or one that is too small, does not allow a larger body."""
    headers, body = multipart(file=bytes(2000))
    app = make_app(limits=Limits(1000))
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers | {"content-length": announced}, body)
    assert answer.status == 413


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    """The limit is for the whole body, as OpenAI counts it."""
    headers, body = multipart(file=bytes(2000))
    headers["content-length"] = str(len(body))
    app = make_app(limits=Limits(len(body)))
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200


async def test_a_slow_upload_is_answered_as_such() -> None:
    """408 in OpenAI's envelope, which the SDKs retry."""
    ticking = itertools.count(step=10)
    app = make_app(limits=Limits(min_rate=1000, grace=5), clock=lambda: float(next(ticking)))
    headers, body = multipart()
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, [body[:10], body[10:20], body[20:]])
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")


# How much one address may have open


async def _at_once(
    transcriber: FakeTranscriber,
    app: ASGIApp,
    peers: list[str],
    release: asyncio.Event,
    path: str = "/v1/audio/transcriptions",
) -> list[Answer]:
    """Upload once from each peer, all at the same time; let the transcriber go on when each is there or refused."""
    headers, body = multipart()

    tasks = [asyncio.create_task(call(app, "POST", path, headers, body, peer=peer)) for peer in peers]
    async with asyncio.timeout(60):
        while len(transcriber.uploads) + sum(task.done() for task in tasks) < len(tasks):  # noqa: ASYNC110 - no time passes
            await asyncio.sleep(0)
        release.set()
        return [await task for task in tasks]


async def test_the_limit_of_one_address() -> None:
    """One more is a 429 with Retry-After. Other addresses are not concerned, and closed requests make room."""
    release = asyncio.Event()
    transcriber = FakeTranscriber([release, *SPOKEN, WHOLE], queue_seconds=7.2)
    app = make_app(transcriber, limits=Limits(per_address=2))
    peers = ["192.168.1.5"] * 3 + ["192.168.1.6", "fd00::1", "fd00::2", "fd00::3"]
    answers = await _at_once(transcriber, app, peers, release)
    assert [answer.status for answer in answers] == [200, 200, 429, 200, 200, 200, 429]
    assert answers[2].error["code"] == "rate_limit_exceeded"
    assert answers[2].headers["retry-after"] == "8"
    again = await _at_once(transcriber, app, ["192.168.1.5"] * 2, release)
    assert [answer.status for answer in again] == [200, 200]


@pytest.mark.parametrize("path", ["/audio/translations", "/v1/audio/transcriptions\n", "/v1/audio/translations\n"])
async def test_no_spelling_of_a_path_avoids_the_limit(path: str) -> None:
    """All that reaches the model is counted: `%0A` at the end of a path leads to the same route."""
    release = asyncio.Event()
    transcriber = FakeTranscriber([release, *SPOKEN, WHOLE])
    app = make_app(transcriber, limits=Limits(per_address=1))
    answers = await _at_once(transcriber, app, ["192.168.1.5"] * 2, release, path)
    assert sorted(answer.status for answer in answers) == [200, 429]


@pytest.mark.parametrize(("peer", "limit"), [("127.0.0.1", 1), ("::1", 1), ("192.168.1.5", 0)])
async def test_addresses_without_a_limit(peer: str, limit: int) -> None:
    """This machine's programs share one address, so it has no limit; 0 means none for any."""
    release = asyncio.Event()
    transcriber = FakeTranscriber([release, *SPOKEN, WHOLE])
    app = make_app(transcriber, limits=Limits(per_address=limit))
    answers = await _at_once(transcriber, app, [peer] * 5, release)
    assert {answer.status for answer in answers} == {200}


NETWORK = [f"192.168.1.{number}" for number in range(10)]


@pytest.mark.parametrize(
    ("peer", "peers", "refusal"),
    [
        ("192.168.1.5", [], None),
        ("192.168.1.5", NETWORK, None),
        ("192.168.1.5", [*NETWORK, "192.168.1.5"], "2 connections of 192.168.1.5 are open"),
        ("192.168.1.5", ["192.168.1.5", "::ffff:192.168.1.5"], "2 connections of 192.168.1.5 are open"),
        ("fd00::1", ["fd00::2", "fd00::3"], "2 connections of fd00::/64 are open"),
        ("192.168.1.1", ["192.168.1.1"] * 19, None),
        ("127.0.0.1", ["127.0.0.1"] * 19, None),
        ("127.0.0.1", ["127.0.0.1"] * 20, "20 connections are open"),
        ("not an address", ["not an address"] * 19, None),
    ],
)
def test_connection_limits(peer: str, peers: list[str], refusal: str | None) -> None:
    """One address may have so many, unless it is unlimited; all together may have so many."""
    limits = ConnectionLimits(
        total=20, per_address=2, unlimited=(parse_network("127.0.0.0/8"), parse_network("192.168.1.1"))
    )
    assert limits.refusal(peer, peers) == refusal
