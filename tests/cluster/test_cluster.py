"""The app on a real Ray: where chunks go, what a caller who leaves takes along, and what a lost replica costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.e2e.conftest import ENGLISH, LONG

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.conftest import Cluster

pytestmark = [pytest.mark.model, pytest.mark.anyio]
MODEL = "tiny.en"
OPTIONS = ("--max-per-address", "0", "--queue", "400")
# `nox -s cluster` sets what the project asks of itself: 10 rounds of a kill, 1,000 cancelled uploads.
ROUNDS = int(os.environ.get("ROUNDS", "1"))
CANCELLED = int(os.environ.get("CANCELLED", "60"))
CLIENTS = 16
BACK_SECONDS = 30.0
RANDOM = random.Random(5)  # noqa: S311 - no secret
HELLO = ENGLISH.read_bytes()
MINUTE = LONG.read_bytes()


async def until(condition: Callable[[], object], seconds: float = BACK_SECONDS) -> float:
    """Wait for a condition; return how long that took."""
    began = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def ask(http: httpx2.AsyncClient, data: bytes = HELLO, **form: str) -> httpx2.Response:
    """Ask for a transcription. Bytes are added, or equal requests would be computed once."""
    own = data + RANDOM.randbytes(8)
    fields = {"model": "whisper-1", "language": "en"} | form
    return await http.post("/v1/audio/transcriptions", data=fields, files={"file": ("a.ogg", own)})


def client(cluster: Cluster) -> httpx2.AsyncClient:
    """Return a client of the face."""
    return httpx2.AsyncClient(base_url=cluster.url, timeout=200, limits=httpx2.Limits(max_connections=None))


def samples(cluster: Cluster, name: str) -> dict[str, float]:
    """Return the values of a metric by replica; those of the face are left out."""
    found = {}
    for line in cluster.get("/metrics").text.splitlines():
        if line.startswith(f"{name}{{") and 'replica="this"' not in line:
            labels, value = line.rsplit(" ", 1)
            found[labels.split('replica="')[1].split('"')[0]] = float(value)
    return found


async def load(cluster: Cluster, over: asyncio.Event, answers: Counter[str]) -> None:
    """Send messages with CLIENTS clients until `over`; count the answers. One that is refused waits a moment."""

    async def one(http: httpx2.AsyncClient) -> None:
        while not over.is_set():
            answer = await ask(http)
            retry_after = answer.headers.get("retry-after")
            refused = answer.status_code == 503 and retry_after is not None
            answers["refused" if refused else str(answer.status_code)] += 1
            if refused:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), 1)

    async with client(cluster) as http:
        await asyncio.gather(*(one(http) for _ in range(CLIENTS)))


async def test_a_long_recording_is_spread(cluster: Cluster) -> None:
    """Both replicas decode chunks of it; the words come in their order; /metrics shows who did what."""
    async with client(cluster) as http:
        answer = await ask(http, MINUTE, response_format="verbose_json")
    assert answer.status_code == 200, answer.text
    segments = answer.json()["segments"]
    assert [segment["start"] for segment in segments] == sorted(segment["start"] for segment in segments)
    text = answer.json()["text"]
    assert text.index("garden") < text.index("tomatoes") < text.index("bridge") < text.index("goodbye")
    await until(lambda: len([1 for value in samples(cluster, "localwhisper_chunks_total").values() if value]) == 2)


async def test_what_is_left_is_taken_out_of_the_queues(cluster: Cluster) -> None:
    """Uploads that are cancelled at every stage leave no request open, no work, and no file."""

    async def leave(http: httpx2.AsyncClient) -> None:
        task = asyncio.create_task(ask(http, MINUTE))
        await asyncio.sleep(RANDOM.random() ** 2 * 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async with client(cluster) as http:
        for _ in range(0, CANCELLED, 20):
            await asyncio.gather(*(leave(http) for _ in range(20)))
    await until(lambda: cluster.health()["requests"] == 0)
    await until(lambda: not any(samples(cluster, "localwhisper_open_requests").values()))
    async with client(cluster) as http:
        began = time.monotonic()
        answer = await ask(http)
        took = time.monotonic() - began
    assert answer.status_code == 200
    assert "bread" in answer.json()["text"]
    assert took < 5.0
    assert [path for path in cluster.temporary.iterdir() if not path.name.startswith("ray")] == []


async def test_a_killed_replica_loses_no_request(cluster: Cluster) -> None:
    """Under load, what it had is decoded by the other one; soon there are two again."""
    back: list[float] = []
    for _ in range(ROUNDS):
        over, answers = asyncio.Event(), Counter[str]()
        loading = asyncio.create_task(load(cluster, over, answers))
        await until(lambda counted=answers: counted.total() >= CLIENTS)
        before = await asyncio.to_thread(cluster.engines)
        victim = RANDOM.choice(before)
        os.kill(victim, signal.SIGKILL)
        back.append(
            await until(
                lambda gone=victim, had=before: (
                    len(set(cluster.engines()) - {gone}) >= len(had) and cluster.replicas() == 2
                )
            )
        )
        over.set()
        await loading
        assert set(answers) <= {"200", "refused"}, answers
        assert answers["200"] >= CLIENTS
        print(f"back to two after {back[-1]:.1f} s; {dict(answers)}")  # noqa: T201 - with -s


async def test_an_update_fails_no_request(cluster: Cluster) -> None:
    """`cluster up` again, under load: each replica and the face are replaced, and every request is answered."""
    before = set(await asyncio.to_thread(cluster.engines))
    over, answers = asyncio.Event(), Counter[str]()
    loading = asyncio.create_task(load(cluster, over, answers))
    await until(lambda: answers.total() >= CLIENTS)
    said = await asyncio.to_thread(cluster.up)
    over.set()
    await loading
    assert "is updated" in said
    assert set(answers) == {"200"}, answers
    after = set(await asyncio.to_thread(cluster.engines))
    assert not before & after
    assert len(after) == 2


async def test_status(cluster: Cluster) -> None:
    """It says what runs."""
    status = cluster.status()
    assert status["status"] == "RUNNING"
    assert status["deployments"]["engine-tiny.en"] == {"running": 2, "status": "HEALTHY"}
    assert "2 running" in cluster.run("status").stdout
