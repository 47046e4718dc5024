"""Drives the sync and the async client through one interface, so that each scenario is written once."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import openai
import pytest

from localwhisper_client import AsyncLocalWhisper, LocalWhisper
from localwhisper_client.call import Route
from localwhisper_client.events import last_call
from localwhisper_client.routing import policy
from localwhisper_client.settings import split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from localwhisper_client import LastCall, Policy
    from localwhisper_client.routing.backend import Backend

SHAPES = ("plain", "raw", "streaming", "events", "raw_events")
FLAVOURS = ("sync", "async")
DEADLINES = (0.4, 5.0, 60.0)


def route(client: Any) -> Route[Any]:
    """Return a client's route. Only here do tests reach into a client."""
    return client._route


def backend(client: Any) -> Backend:
    """Return the routing's view of a client's first local server."""
    return route(client).servers.backends[0]


def in_time(check: Callable[[float], None]) -> None:
    """Check with a short deadline for calls, and with longer ones if this machine was too slow for it.

    A call that ends late is no fault where the machine did not get to what follows; one that goes wrong is wrong with a
    minute's deadline, too.
    """
    *short, last = DEADLINES
    for seconds in short:
        with contextlib.suppress(Exception, pytest.fail.Exception):
            return check(seconds)
    return check(last)


def make(kind: Any, *, finder: Any = None, waker: Any = None, rules: Any = None, **options: Any) -> Any:
    """Return a client that finds, wakes, and opens its breakers by what is given here."""
    if finder is waker is rules is None:
        return kind(**options)
    ours, sdk = split(options)  # type: ignore[arg-type] # any options
    base: Any = openai.AsyncOpenAI if issubclass(kind, openai.AsyncOpenAI) else openai.OpenAI
    return kind(_route=Route.load(base, os.environ, ours, finder=finder, waker=waker, rules=rules), **sdk)


class Driver:
    """Makes clients of one flavour and calls them in any shape."""

    def __init__(self, flavour: str, portal: anyio.from_thread.BlockingPortal | None) -> None:
        self.flavour = flavour
        self._portal = portal
        self._clients: list[Any] = []
        self.events: list[Any] = []
        self.last: LastCall | None = None

    def client(self, **options: Any) -> Any:
        """Return a client that is closed with the driver; its events are kept."""
        options.setdefault("on_event", self.events.append)
        options.setdefault("connect_timeout", 30.0)  # the machine of the tests may stand still for seconds
        client = self.run(_make, LocalWhisper if self.flavour == "sync" else AsyncLocalWhisper, options)
        self._clients.append(client)
        return client

    def run(self, function: Any, *args: Any) -> Any:
        """Run a coroutine function in the client's event loop, or a plain one at once."""
        return self._portal.call(function, *args) if self._portal else _finish(function(*args))

    def call(self, client: Any, shape: str = "plain", within: Policy | None = None, **fields: Any) -> str:
        """Transcribe, perhaps within a policy; return the text, read out of whatever this shape gives."""
        fields = {"model": "whisper-1", "file": ("a.ogg", b"audio"), **fields}

        async def call() -> Any:
            with policy.within(within) if within else contextlib.nullcontext():
                try:
                    return await _CALLS[shape](client.audio.transcriptions, fields)
                finally:
                    self.last = last_call()

        return str(self.run(call))

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
    """Yield a driver; one for the async client has an event loop in the background."""
    loop = anyio.from_thread.start_blocking_portal() if flavour == "async" else contextlib.nullcontext()
    with loop as portal:
        driver = Driver(flavour, portal)
        try:
            yield driver
        finally:
            driver.close()


async def _got(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def _each(items: Any) -> AsyncIterator[Any]:
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.text)


async def _plain(api: Any, fields: Any) -> str:
    return _text(await _got(api.create(**fields)))


async def _raw(api: Any, fields: Any) -> str:
    return _text((await _got(api.with_raw_response.create(**fields))).parse())


async def _streaming(api: Any, fields: Any) -> str:
    manager = api.with_streaming_response.create(**fields)
    response = await manager.__aenter__() if hasattr(manager, "__aenter__") else manager.__enter__()
    try:
        return str(json.loads(b"".join([chunk async for chunk in _each(response.iter_bytes())]))["text"])
    finally:
        await _got(response.close())


async def _events(api: Any, fields: Any) -> str:
    return await _last_text(await _got(api.create(stream=True, **fields)))


async def _raw_events(api: Any, fields: Any) -> str:
    return await _last_text((await _got(api.with_raw_response.create(stream=True, **fields))).parse())


async def _last_text(stream: Any) -> str:
    assert isinstance(stream, (openai.Stream, openai.AsyncStream))
    try:
        return str([event async for event in _each(stream)][-1].text)
    finally:
        await _got(stream.close())


_CALLS = {"plain": _plain, "raw": _raw, "streaming": _streaming, "events": _events, "raw_events": _raw_events}
