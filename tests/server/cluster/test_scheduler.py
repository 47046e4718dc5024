"""A face's scheduler, with replicas in this process: what it sends, sends again, refuses and takes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server.cluster.loads import Loads
from localwhisper_server.cluster.messages import Answer, Call, Refusal, State, with_features, without_features
from localwhisper_server.cluster.scheduler import ClusterScheduler
from localwhisper_server.errors import Busy, EngineFailed, Stopping
from localwhisper_server.types import BatchLimits, Segment
from localwhisper_server.whisper.chunks import ChunkResult
from tests.server.engine_double import chunk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio
LIMITS = BatchLimits(items=2, frames=10_000, share=1000)
HELLO = ChunkResult("en", (Segment(0.0, 1.0, " Hello."),))


class LostError(Exception):
    """What Ray raises for a replica that has died."""


class Response:
    """What a handle returns: can be awaited and cancelled."""

    def __init__(self, answer: Awaitable[Answer]) -> None:
        self._task = asyncio.ensure_future(answer)
        self.cancelled = asyncio.Event()

    def __await__(self) -> Any:
        return asyncio.shield(self._task).__await__()

    def cancel(self) -> None:
        self.cancelled.set()
        self._task.cancel()


class Replicas:
    """Replicas as a handle sees them: `answers` are used up in turn, the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[Call] = []
        self.responses: list[Response] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def decode(self, call: Call) -> Response:
        self.calls.append(call)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.responses.append(Response(self._answer(answer)))
        return self.responses[-1]

    async def _answer(self, answer: Any) -> Answer:
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return Answer(state(), **answer)


def state(name: str = "a", sound: float = 0.0, queue_seconds: float = 0.0, speed: float = 10.0) -> State:
    """Return how busy a replica says that it is."""
    return State(name, sound, queue_seconds, speed, requests=0, loaded=True)


def scheduler(decode: Callable[[Call], Any], loads: Loads | None = None, **given: Any) -> ClusterScheduler:
    """Return a scheduler with one replica."""
    loads = loads or Loads()
    loads.running(["a"])
    settings: dict[str, Any] = {"lost": (LostError,), "limits": LIMITS, "capacity": 3, "max_wait": 60.0} | given
    return ClusterScheduler(decode, loads, **settings)


async def test_a_chunk_is_sent_and_answered() -> None:
    """The call says whose chunk it is and how it counts; the future has the replica's result."""
    replicas = Replicas({"result": HELLO})
    ticket = scheduler(replicas.decode).admit(bulk=True)
    (future,) = ticket.submit([chunk()], first=True)
    assert await asyncio.wrap_future(future) == HELLO
    (call,) = replicas.calls
    assert (call.request, call.first, call.bulk, call.live) == (ticket.name, True, True, False)


@pytest.mark.parametrize("how", ["future", "ticket"])
async def test_who_leaves_takes_the_chunk_out_of_the_replica(how: str) -> None:
    """A cancelled future and a closed ticket cancel the call, and it no longer counts as the replica's work."""
    replicas, loads = Replicas({"result": HELLO}), Loads()
    replicas.gate.clear()
    ticket = scheduler(replicas.decode, loads).admit()
    (future,) = ticket.submit([chunk()])
    await asyncio.sleep(0)
    loads.sent(replicas.calls[0], "a")
    assert loads.queue_seconds(10.0) > 0
    future.cancel() if how == "future" else ticket.close()
    await asyncio.wait_for(replicas.responses[0].cancelled.wait(), 10)
    await asyncio.sleep(0)
    loads.told(state())
    assert loads.queue_seconds(10.0) == 0.0
    assert not ticket.calls


async def test_after_the_end_nothing_is_sent() -> None:
    """The futures of a closed ticket come back cancelled."""
    replicas = Replicas({"result": HELLO})
    ticket = scheduler(replicas.decode).admit()
    ticket.close()
    assert all(future.cancelled() for future in ticket.submit([chunk(), chunk()]))
    assert not replicas.calls


async def test_what_a_lost_replica_had_is_sent_again() -> None:
    """So is what one that stops refuses; the request knows nothing of either."""
    stopping = {"refusal": Refusal("bye", 10.0, stopping=True)}
    replicas = Replicas(LostError(), stopping, {"result": HELLO})
    (future,) = scheduler(replicas.decode).admit().submit([chunk()])
    assert await asyncio.wrap_future(future) == HELLO
    assert len({call.number for call in replicas.calls}) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({}, EngineFailed),
        ({"refusal": Refusal("memory", 60.0, stopping=False)}, Busy),
        (RuntimeError("a fault in the replica's code"), EngineFailed),
    ],
)
async def test_failures(answer: Any, error: type[Exception]) -> None:
    """A model that fails is not asked again; what a replica cannot do now is told with its own `Retry-After`."""
    replicas = Replicas(answer)
    (future,) = scheduler(replicas.decode).admit().submit([chunk()])
    with pytest.raises(error) as caught:
        await asyncio.wrap_future(future)
    assert getattr(caught.value, "retry_after", 60) == 60
    assert len(replicas.calls) == 1


async def test_admission() -> None:
    """As many requests as fit into a batch of each replica, and `capacity` more; then a 503 with a true wait."""
    loads = Loads()
    queue = scheduler(Replicas({"result": HELLO}).decode, loads)
    tickets = [queue.admit() for _ in range(5)]
    loads.told(state(queue_seconds=7.2))
    with pytest.raises(Busy) as refused:
        queue.require_room()
    assert refused.value.retry_after == 8
    loads.running(["a", "b"])
    queue.require_room()
    for ticket in tickets:
        ticket.close()
    assert queue.requests == 0


async def test_a_long_wait_is_refused() -> None:
    """The wait is that of the best replica, and `Retry-After` is when it will be short enough."""
    loads = Loads()
    queue = scheduler(Replicas({"result": HELLO}).decode, loads)
    loads.running(["a", "b"])
    loads.told(state("a", queue_seconds=100.0))
    loads.told(state("b", queue_seconds=90.0))
    with pytest.raises(Busy) as refused:
        queue.admit()
    assert refused.value.retry_after == 30
    loads.told(state("b", queue_seconds=1.0))
    assert queue.admit()


async def test_without_a_replica() -> None:
    """It says so, and when to try again."""
    loads = Loads()
    queue = scheduler(Replicas({"result": HELLO}).decode, loads)
    loads.lost("a")
    with pytest.raises(Busy, match="No engine replica"):
        queue.admit()


async def test_the_end_of_the_face() -> None:
    """`send_away` refuses what has no result yet if the wait is too long; `close` refuses all."""
    replicas, loads = Replicas({"result": HELLO}), Loads()
    replicas.gate.clear()
    queue = scheduler(replicas.decode, loads)
    (first,), (second,) = queue.admit().submit([chunk()]), queue.admit().submit([chunk()])
    queue.send_away(Stopping(), later_than=5.0)
    assert not first.done()
    loads.told(state(queue_seconds=6.0))
    queue.send_away(Stopping(), later_than=5.0)
    assert isinstance(first.exception(0), Stopping)
    assert queue.close()
    assert isinstance(second.exception(0), Stopping)
    (after,) = queue.admit().submit([chunk()])
    assert isinstance(after.exception(0), Stopping)


def test_the_features_of_a_remainder_do_not_travel() -> None:
    """The face puts them back: they are the end of what it sent."""
    sent = replace(chunk(seconds=3.0), features=np.random.default_rng(0).random((80, 300), np.float32))
    remainder = sent.remainder(1.5, (7,))
    assert remainder is not None
    bare = without_features(ChunkResult("en", (), remainder))
    assert bare.remainder is not None
    assert bare.remainder.features.size == 0
    whole = with_features(bare, sent).remainder
    assert whole is not None
    assert np.array_equal(whole.features, remainder.features)
    assert whole.prefix_tokens == (7,)
    assert with_features(without_features(HELLO), sent) == HELLO
