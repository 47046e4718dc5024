"""A thousand calls while the local server comes and goes: each is answered once or fails by an SDK error."""

from __future__ import annotations

import asyncio
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest

from localwhisper_client import AsyncLocalWhisper, Attempt, LocalWhisper
from localwhisper_client.routing.backend import Rules
from tests.client.cloud.test_ledger import rows as read
from tests.client.driving import make
from tests.client.fault_server import error, reset, serving

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tests.client.fault_server import FaultServer, Request

# A thousand calls in all: two ways to run them, two policies.
CALLS, AT_ONCE = 250, 50
RULES = Rules(failures=3, cooldown=0.01, longest_cooldown=0.05)


class Flapping:
    """A server that answers, resets, fails and is full in turn."""

    def __init__(self) -> None:
        self.calls_so_far = itertools.count()

    def calls(self, conn: socket.socket, request: Request) -> None:
        mood = next(self.calls_so_far) // 20 % 4
        if mood == 1:
            reset(conn)
        elif mood == 2:
            error(500)(conn, request)
        elif mood == 3:
            error(503, b"retry-after: 0.01")(conn, request)
        else:
            echo(conn, request)


def echo(conn: socket.socket, request: Request) -> None:
    """Answer with the audio itself, so that each call can check that it got its own answer."""
    audio = request.body.split(b"audio:", 1)[1].split(b":", 1)[0].decode()
    body = json.dumps({"text": audio, "usage": {"type": "duration", "seconds": 1}}).encode()
    conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def _threads(options: dict[str, Any]) -> list[Any]:
    with make(LocalWhisper, **options) as client:

        def call(number: int) -> Any:
            try:
                file = ("a.ogg", b"audio:%d:" % number)
                return client.audio.transcriptions.create(model="whisper-1", file=file).text
            except openai.OpenAIError as failure:
                return failure

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(call, range(CALLS)))


def _tasks(options: dict[str, Any]) -> list[Any]:
    async def main() -> list[Any]:
        async with make(AsyncLocalWhisper, **options) as client:
            limit = asyncio.Semaphore(AT_ONCE)

            async def call(number: int) -> Any:
                async with limit:
                    try:
                        file = ("a.ogg", b"audio:%d:" % number)
                        return (await client.audio.transcriptions.create(model="whisper-1", file=file)).text
                    except openai.OpenAIError as failure:
                        return failure

            return list(await asyncio.gather(*map(call, range(CALLS))))

    return asyncio.run(main())


@pytest.mark.parametrize("run", [_threads, _tasks])
@pytest.mark.parametrize("policy", ["cloud", "local_only"])
def test_every_call_is_answered_once_or_fails_with_an_error_of_the_sdks(
    run: Any, policy: str, cloud: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets its own answer; under `cloud` all are answered; each request to the cloud is a row with its cost."""
    monkeypatch.setenv("LOCALWHISPER_LEDGER", str(tmp_path / "ledger"))
    flapping, events = Flapping(), []
    cloud.behaviour = echo
    with serving(flapping.calls) as server:
        server.answers_probe = error(404)
        results = run(
            {"local_base_url": server.url, "policy": policy, "on_event": events.append, "timeout": 30, "rules": RULES}
        )
    for number, result in enumerate(results):
        if isinstance(result, str):
            assert result == str(number)
        else:
            assert policy == "local_only"
            assert isinstance(result, openai.APIError), result
    rows = read(tmp_path / "ledger")
    assert len(rows) == sum(isinstance(result, str) for result in results)
    paid = [row for row in rows if row.cloud]
    assert len(paid) == len(cloud.calls) == sum(event.cloud for event in events if isinstance(event, Attempt))
    assert all(row.cost_usd == pytest.approx(0.0001) for row in paid)
    assert 0 < len(cloud.calls) < CALLS or policy == "local_only"
