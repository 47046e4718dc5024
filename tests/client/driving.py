"""Drives the sync and the async client through one interface, so that each scenario is written once."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import openai

from localwhisper_client import AsyncLocalWhisper, LocalWhisper
from localwhisper_client.call import Route
from localwhisper_client.events import last_call
from localwhisper_client.routing import policy
from localwhisper_client.settings import split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localwhisper_client import LastCall, Policy
    from localwhisper_client.routing.backend import Backend

SHAPES = ("plain", "raw", "streaming", "events", "raw_events")
FLAVOURS = ("sync", "async")


def route(client: Any) -> Route[Any]:
    """Return a client's route. Only here do tests reach into a client."""
    return client._route


def backend(client: Any) -> Backend:
    """Return the routing's view of a client's first local server."""
    return route(client).servers.backends[0]


def make(kind: Any, *, finder: Any = None, waker: Any = None, rules: Any = None, **options: Any) -> Any:
    """Return a client that finds, wakes, and opens its breakers by what is given here."""
    if finder is waker is rules is None:
        return kind(**options)
    ours, sdk = split(options)  # type: ignore[arg-type] # any options
    base: Any = openai.AsyncOpenAI if issubclass(kind, openai.AsyncOpenAI) else openai.OpenAI
    return kind(_route=Route.load(base, os.environ, ours, finder=finder, waker=waker, rules=rules), **sdk)


class Driver:
    """Makes clients of one flavour and calls them in any shape."""

    def __init__(self, flavour: str, portal: anyio.from_thread.BlockingPortal) -> None:
        self.flavour = flavour
        self._portal = portal
        self._clients: list[Any] = []
        self.events: list[Any] = []
        self.last: LastCall | None = None

    def client(self, **options: Any) -> Any:
        """Return a client that is closed with the driver; its events are kept."""
        options.setdefault("on_event", self.events.append)
        client = self.run(_make, LocalWhisper if self.flavour == "sync" else AsyncLocalWhisper, options)
        self._clients.append(client)
        return client

    def run(self, function: Any, *args: Any) -> Any:
        """Run a coroutine function in the client's event loop, or a plain one at once."""
        return self._portal.call(function, *args) if self.flavour == "async" else _finish(function(*args))

    def call(self, client: Any, shape: str = "plain", within: Policy | None = None, **fields: Any) -> str:
        """Transcribe, perhaps within a policy; return the text, read out of whatever this shape gives."""
        fields = {"model": "whisper-1", "file": ("a.ogg", b"audio"), **fields}
        speak = _CALLS[self.flavour, shape]

        def call() -> Any:
            with policy.within(within) if within else contextlib.nullcontext():
                try:
                    return speak(client.audio.transcriptions, fields)
                finally:
                    self.last = last_call()

        async def acall() -> Any:
            with policy.within(within) if within else contextlib.nullcontext():
                try:
                    return await speak(client.audio.transcriptions, fields)
                finally:
                    self.last = last_call()

        return str(self.run(acall if self.flavour == "async" else call))

    def close(self) -> None:
        """Close every client that was made."""
        for client in self._clients:
            self.run(client.close)


async def _make(kind: Any, options: Any) -> Any:
    return make(kind, **options)


def _finish(result: Any) -> Any:
    if not hasattr(result, "send"):
        return result
    try:
        result.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("not a plain function")


@contextlib.contextmanager
def driver(flavour: str) -> Iterator[Driver]:
    """Yield a driver with an event loop in the background."""
    with anyio.from_thread.start_blocking_portal() as portal:
        driver = Driver(flavour, portal)
        try:
            yield driver
        finally:
            driver.close()


def _plain(api: Any, fields: Any) -> str:
    answer = api.create(**fields)
    return answer if isinstance(answer, str) else answer.text


def _raw(api: Any, fields: Any) -> str:
    answer = api.with_raw_response.create(**fields).parse()
    return answer if isinstance(answer, str) else answer.text


def _streaming(api: Any, fields: Any) -> str:
    with api.with_streaming_response.create(**fields) as response:
        return json.loads(b"".join(response.iter_bytes()))["text"]


def _events(api: Any, fields: Any) -> str:
    stream = api.create(stream=True, **fields)
    assert isinstance(stream, openai.Stream)
    with stream:
        return list(stream)[-1].text


def _raw_events(api: Any, fields: Any) -> str:
    stream = api.with_raw_response.create(stream=True, **fields).parse()
    assert isinstance(stream, openai.Stream)
    return list(stream)[-1].text


async def _async_plain(api: Any, fields: Any) -> str:
    answer = await api.create(**fields)
    return answer if isinstance(answer, str) else answer.text


async def _async_raw(api: Any, fields: Any) -> str:
    answer = (await api.with_raw_response.create(**fields)).parse()
    return answer if isinstance(answer, str) else answer.text


async def _async_streaming(api: Any, fields: Any) -> str:
    async with api.with_streaming_response.create(**fields) as response:
        return json.loads(b"".join([chunk async for chunk in response.iter_bytes()]))["text"]


async def _async_events(api: Any, fields: Any) -> str:
    stream = await api.create(stream=True, **fields)
    assert isinstance(stream, openai.AsyncStream)
    async with stream:
        return [event async for event in stream][-1].text


async def _async_raw_events(api: Any, fields: Any) -> str:
    stream = (await api.with_raw_response.create(stream=True, **fields)).parse()
    assert isinstance(stream, openai.AsyncStream)
    return [event async for event in stream][-1].text


_CALLS = {
    ("sync", "plain"): _plain,
    ("sync", "raw"): _raw,
    ("sync", "streaming"): _streaming,
    ("sync", "events"): _events,
    ("sync", "raw_events"): _raw_events,
    ("async", "plain"): _async_plain,
    ("async", "raw"): _async_raw,
    ("async", "streaming"): _async_streaming,
    ("async", "events"): _async_events,
    ("async", "raw_events"): _async_raw_events,
}
