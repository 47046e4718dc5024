"""HTTP to a local server: one deadline for the whole call, and answers of bounded size.

The HTTP library's timeouts are for single reads and writes: a server that sends a byte a second would hold a call for
ever. A sync call sets its deadline with `within`, an async one with `within_async`. It covers the look-up of the name,
the connection, sending the file, the headers and the body. When the caller reads an event stream further, only single
reads are bounded.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import openai

from localwhisper_client import _background
from localwhisper_client._http import http
from localwhisper_client.shared import lan_ranges

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MOST_BYTES = 64 * 1024 * 1024
"""The most bytes of one answer. An hour's `verbose_json` with words has about two million."""

# Seconds for which an idle connection is kept. Servers close theirs after five (uvicorn's default), and a machine that
# was switched off closes none: a call on such a connection would fail or hang, although the server may be running.
_IDLE = 2.0
# With keepalive the kernel notices within ten seconds that a machine has lost power. Systems differ in the options.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
# Bytes that are sent between two checks of the deadline.
_PIECE = 64 * 1024

# Calls that need a name while it is being looked up share that look-up.
_look_ups: dict[str, _background.OneAtATime[[], tuple[str, ...]]] = {}
_deadline: ContextVar[float] = ContextVar("localwhisper_deadline", default=math.inf)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Set one deadline for everything that this thread sends and reads inside the block; `None` sets none.

    Raises:
        ConnectTimeout, WriteTimeout, ReadTimeout (of the HTTP library): the deadline has passed.

    """
    token = _deadline.set(math.inf if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def within_async(seconds: float | None) -> Iterator[None]:
    """Do as `within` does, for this task."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise http.ReadTimeout("the answer came too slowly") from error


def http_client(kind: type, url: str) -> Any:
    """Return an HTTP client for the server at this URL, for use in `openai.OpenAI` or `openai.AsyncOpenAI`.

    It uses no proxy from the environment and follows no redirect: either could carry the audio off the LAN. It loads
    certificates only for https.
    """
    make_client, make_transport, network = _KINDS[kind]
    transport = make_transport(
        trust_env=False,
        verify=url.lower().startswith("https:"),
        limits=http.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=_IDLE),
        socket_options=_KEEPALIVE,
    )
    pool = transport._pool  # noqa: SLF001 - there is no public way to replace what makes the connections
    pool._network_backend = network(pool._network_backend)  # noqa: SLF001 - it has no public name
    client = make_client(
        follow_redirects=False, trust_env=False, transport=transport, headers={"Accept-Encoding": "identity"}
    )
    client.made_in = os.getpid()
    return client


class SyncHTTP(openai.DefaultHttpxClient):
    """An HTTP client with bounded answers. It closes itself when it is deleted, as the SDK's does."""

    made_in = 0
    """The process that made it."""

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, and read the answer unless it is a stream."""
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
        # In a forked child, closing could wait for a lock that a thread of the parent held.
        if not self.is_closed and self.made_in == os.getpid():
            self.close()


class AsyncHTTP(openai.DefaultAsyncHttpxClient):
    """The same for async. When it is deleted it can close itself only if an event loop runs."""

    made_in = 0

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Do as `SyncHTTP.send` does."""
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
            if not self.is_closed and self.made_in == os.getpid():
                self._closing = asyncio.get_running_loop().create_task(self.aclose())
        except (RuntimeError, AttributeError, TypeError):
            # There is no loop, or the interpreter is shutting down and this module's names are gone.
            return


class _Network:
    """Makes connections within the deadline: looks the name up and tries its addresses in turn."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, host: str, port: int, **options: Any) -> Any:
        timeout = _left(options.pop("timeout", None), http.ConnectTimeout)
        until = _until(timeout)
        found = look_up(host)
        _background.wait(found, timeout)
        failure: Exception | None = None
        for address, seconds in _shares(host, found, until):
            try:
                return _Connection(self._inner.connect_tcp(address, port, timeout=seconds, **options))
            except Exception as error:  # noqa: BLE001 - the last one is raised
                failure = error
        raise failure or _not_in_time(host)


class _AsyncNetwork(_Network):
    """The same for async, where the deadline is a cancel scope around the task."""

    async def connect_tcp(self, host: str, port: int, **options: Any) -> Any:
        timeout = options.pop("timeout", None)
        until = _until(timeout)
        found = look_up(host)
        await _background.wait_async(found, timeout)
        failure: Exception | None = None
        for address, seconds in _shares(host, found, until):
            try:
                return await self._inner.connect_tcp(address, port, timeout=seconds, **options)
            except Exception as error:  # noqa: BLE001 - as above
                failure = error
        raise failure or _not_in_time(host)


class _Connection:
    """A connection whose reads and writes each keep to the thread's deadline."""

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


def look_up(host: str) -> Future[tuple[str, ...]]:
    """Look a host's addresses up in the background; the future raises `OSError` if it has none.

    A PC that is off is often asked for by mDNS, which gives up after five seconds. The HTTP library has no timeout for
    that in a sync call, and in an async call each abandoned look-up holds a thread. An address and `localhost` need no
    look-up and are returned as they are.
    """
    if host == "localhost" or lan_ranges.parse_address(host) is not None:
        known: Future[tuple[str, ...]] = Future()
        known.set_result((host,))
        return known
    if host not in _look_ups:
        _look_ups.setdefault(host, _background.OneAtATime(partial(_addresses, host)))
    return _look_ups[host].start()


def _addresses(host: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def _not_in_time(host: str) -> Exception:
    error: Exception = http.ConnectTimeout(f"the name {host} was not found in time")
    return error


def _shares(host: str, found: Future[tuple[str, ...]], until: float) -> Iterator[tuple[str, float | None]]:
    """Yield each address with its share of the remaining time."""
    if not found.done():
        raise _not_in_time(host)
    try:
        addresses = found.result()
    except (OSError, UnicodeError) as error:
        raise http.ConnectError(str(error)) from error
    for count, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        left = until - time.monotonic()
        if left <= 0:
            return
        yield address, None if left == math.inf else left / count


def _until(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def _left(timeout: float | None, error: Any) -> float | None:
    """Return the seconds that one read or write may take."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise error("the call's time is up")
    return timeout if left == math.inf else min(left, math.inf if timeout is None else timeout)


def _bound(response: Any, *, stream: bool) -> None:
    """Limit the size of an answer, read here or by the caller. For an event stream, `answers` limits each event."""
    headers = response.headers
    if headers.get("content-encoding", "identity") != "identity":
        # A few compressed bytes can expand to any size, and the request said `identity`.
        raise http.DecodingError("the answer is compressed, which was not asked for")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (stream and response.is_success and kind == "text/event-stream"):
        response.stream = _Bounded(response.stream)


class _Bounded(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc] # the library is chosen at run time
    """The bytes of an answer, up to a limit."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            yield self._counted(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield self._counted(chunk)

    def _counted(self, chunk: bytes) -> bytes:
        self._size += len(chunk)
        if self._size > MOST_BYTES:
            raise http.RemoteProtocolError(f"an answer of more than {MOST_BYTES // 2**20} MiB")
        return chunk

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


_KINDS: dict[type, tuple[Any, Any, type[_Network]]] = {
    openai.OpenAI: (SyncHTTP, http.HTTPTransport, _Network),
    openai.AsyncOpenAI: (AsyncHTTP, http.AsyncHTTPTransport, _AsyncNetwork),
}
