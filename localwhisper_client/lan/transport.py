"""HTTP to a server on the LAN: one deadline for the whole of a call, and an answer of bounded size.

The HTTP library's time-outs are for single reads and writes: a server that sends a byte a second would hold a call for
ever. A sync call sets its deadline with `within`, an async one with `within_async`; from then on it covers everything:
the look-up of the name, the connection, sending the file, the headers, the body. What the caller reads afterwards of an
event stream is bounded for each piece only.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio
import openai

from localwhisper_client import _background
from localwhisper_client._http import http
from localwhisper_client.lan import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from concurrent.futures import Future

MOST_BYTES = 64 * 1024 * 1024
"""Bytes of one answer. An hour's `verbose_json` with words has about two million."""
MOST_EVENT_BYTES = 8 * 1024 * 1024
"""Bytes of one event of a stream."""

# Seconds an idle connection is kept. Servers drop theirs after five (uvicorn's default), and a box that was switched
# off drops none: a call on a dead connection would look like a fault of a server that is well, or hang.
_IDLE = 2.0
# A box that loses power while it works says nothing more; the kernel asks after it in its stead, and gives up after
# ten seconds. Each system has the options that it has.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
# Bytes that are sent before the deadline is looked at again.
_PIECE = 64 * 1024
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")

_deadline: ContextVar[float] = ContextVar("localwhisper_deadline", default=math.inf)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Hold everything that this thread sends and reads inside the block to one deadline; `None` sets none.

    Raises:
        ConnectTimeout, WriteTimeout, ReadTimeout (of the HTTP library): the time was up.

    """
    token = _deadline.set(math.inf if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def within_async(seconds: float | None) -> Iterator[None]:
    """Do the same for the task that runs."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise http.ReadTimeout("the answer came too slowly") from error


def http_client(kind: type, url: str) -> Any:
    """Return an HTTP client for a server at this address, for `openai.OpenAI` or `openai.AsyncOpenAI`.

    It uses no proxy of the environment's: one would carry the audio out of the LAN, and could not reach the server
    anyway. It follows no redirects, for the same reason. Certificates are read only where the address has one.
    """
    make_client, make_transport, network = _KINDS[kind]
    transport = make_transport(
        trust_env=False,
        verify=url.lower().startswith("https:"),
        limits=http.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=_IDLE),
        socket_options=_KEEPALIVE,
    )
    pool = transport._pool  # noqa: SLF001 - the library has no public way to set what its connections are made with
    pool._network_backend = network(pool._network_backend)  # noqa: SLF001
    return make_client(
        follow_redirects=False, trust_env=False, transport=transport, headers={"Accept-Encoding": "identity"}
    )


class SyncHTTP(openai.DefaultHttpxClient):
    """An HTTP client whose answers are bounded; it closes itself when forgotten, as the SDK's does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made_in = os.getpid()

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, and read its answer unless that is a stream."""
        response = super().send(request, stream=True, **options)
        try:
            _bound(response, stream=stream)
            if not stream:
                response.read()
        except BaseException:
            response.close()
            raise
        return response

    def __del__(self) -> None:
        # A forked child must not wait for the locks of its parent's threads.
        if not self.is_closed and self._made_in == os.getpid():
            self.close()


class AsyncHTTP(openai.DefaultAsyncHttpxClient):
    """The same; what it can do when it is forgotten depends on a loop being there."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made_in = os.getpid()

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, as the other does."""
        response = await super().send(request, stream=True, **options)
        try:
            _bound(response, stream=stream)
            if not stream:
                await response.aread()
        except BaseException:
            await response.aclose()
            raise
        return response

    def __del__(self) -> None:
        try:
            if not self.is_closed and self._made_in == os.getpid():
                self._closing = asyncio.get_running_loop().create_task(self.aclose())
        except (RuntimeError, AttributeError, TypeError):
            # No loop; or the interpreter is ending, and has taken the module's names away.
            return


class _Network:
    """Makes connections within the deadline: looks the name up, and tries its addresses in turn."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
        timeout = _left(timeout, http.ConnectTimeout)
        until = _until(timeout)
        look_up = names.look_up(host)
        _background.wait(look_up, timeout)
        failure: Exception | None = None
        for address, seconds in _turns(host, look_up, until):
            try:
                return _Connection(self._inner.connect_tcp(address, port, timeout=seconds, **options))
            except Exception as error:  # noqa: BLE001 - the last one is raised
                failure = error
        raise failure or _not_in_time(host)


class _AsyncNetwork(_Network):
    """The same for a task, whose deadline is a cancel scope around it."""

    async def connect_tcp(  # the library's signature
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        **options: Any,
    ) -> Any:
        until = _until(timeout)
        look_up = names.look_up(host)
        await _background.wait_async(look_up, timeout)
        failure: Exception | None = None
        for address, seconds in _turns(host, look_up, until):
            try:
                return await self._inner.connect_tcp(address, port, timeout=seconds, **options)
            except Exception as error:  # noqa: BLE001 - as above
                failure = error
        raise failure or _not_in_time(host)


class _Connection:
    """A connection whose every read and write keeps to the deadline of the thread that makes it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._inner.read(max_bytes, _left(timeout, http.ReadTimeout))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        for start in range(0, len(view), _PIECE):
            self._inner.write(view[start : start + _PIECE], _left(timeout, http.WriteTimeout))

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        return _Connection(self._inner.start_tls(ssl_context, server_hostname, _left(timeout, http.ConnectTimeout)))


def _turns(host: str, look_up: Future[tuple[str, ...]], until: float) -> Iterator[tuple[str, float | None]]:
    """Yield each address with its share of the time that is left."""
    if not look_up.done():
        raise _not_in_time(host)
    try:
        addresses = look_up.result()
    except (OSError, UnicodeError) as error:
        raise http.ConnectError(str(error)) from error
    for count, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        left = until - time.monotonic()
        if left <= 0:
            return
        yield address, None if left == math.inf else left / count


def _not_in_time(host: str) -> Exception:
    error: Exception = http.ConnectTimeout(f"the name {host} was not found in time")
    return error


def _until(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def _left(timeout: float | None, late: Any) -> float | None:
    """Return the seconds that one read or write may take."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise late("the call's time is up")
    return timeout if left == math.inf else min(left, math.inf if timeout is None else timeout)


def _bound(response: Any, *, stream: bool) -> None:
    """Let no more of an answer in than fits into memory, whether it is read here or by the caller."""
    headers = response.headers
    if headers.get("content-encoding", "identity") != "identity":
        # A few bytes could unpack to any number, and nothing that was asked for comes packed.
        raise http.DecodingError("the answer is compressed, which was not asked for")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    events = stream and response.status_code == 200 and kind == "text/event-stream"  # noqa: PLR2004 - OK
    response.stream = _Bounded(response.stream, by_event=events)


class _Bounded(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc] # the library is chosen at run time
    """The bytes of an answer up to a limit: on all of it or, of an event stream, on each event."""

    def __init__(self, inner: Any, *, by_event: bool) -> None:
        self._inner = inner
        self._by_event = by_event
        self._size = 0
        self._tail = b""

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self._count(chunk)
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._count(chunk)
            yield chunk

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._by_event:
            text = self._tail + chunk
            end = max(text.rfind(blank) for blank in _BLANK_LINES)
            if end >= 0:
                self._size = len(text) - end
            self._tail = text[-3:]
        most = MOST_EVENT_BYTES if self._by_event else MOST_BYTES
        if self._size > most:
            what = "an event" if self._by_event else "an answer"
            raise http.RemoteProtocolError(f"{what} of more than {most // 2**20} MiB")


_KINDS: dict[type, tuple[Any, Any, type[_Network]]] = {
    openai.OpenAI: (SyncHTTP, http.HTTPTransport, _Network),
    openai.AsyncOpenAI: (AsyncHTTP, http.AsyncHTTPTransport, _AsyncNetwork),
}
