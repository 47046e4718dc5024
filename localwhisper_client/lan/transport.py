"""HTTP to a local server: one deadline for the whole call, answers of bounded size, and a first look at each answer.

The HTTP library's timeouts are for single reads and writes: a server that sends a byte a second would hold a call for
ever. A sync call sets its deadline with `within`, an async one with `within_async`. It covers the look-up of the name,
the connection, sending the file, the headers and the body. When the caller reads an event stream further, only single
reads are bounded.

`read` checks an answer before the caller gets it: all of a body, or a stream up to its first event. Until then the call
can fall back; afterwards the caller has part of the answer and gets the error.
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
from localwhisper_client.errors import InvalidLocalResponse
from localwhisper_client.lan import resolution
from localwhisper_client.lan.classification import MOST_EVENT_BYTES, EventCheck, Expected, WrongAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from concurrent.futures import Future

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
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")

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
    pool._network_backend = network(pool._network_backend)  # noqa: SLF001
    return make_client(
        follow_redirects=False, trust_env=False, transport=transport, headers={"Accept-Encoding": "identity"}
    )


class SyncHTTP(openai.DefaultHttpxClient):
    """An HTTP client with bounded answers. It closes itself when it is deleted, as the SDK's does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made_in = os.getpid()

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
        if not self.is_closed and self._made_in == os.getpid():
            self.close()


class AsyncHTTP(openai.DefaultAsyncHttpxClient):
    """The same for async. When it is deleted it can close itself only if an event loop runs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made_in = os.getpid()

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
            if not self.is_closed and self._made_in == os.getpid():
                self._closing = asyncio.get_running_loop().create_task(self.aclose())
        except (RuntimeError, AttributeError, TypeError):
            # There is no loop, or the interpreter is shutting down and this module's names are gone.
            return


class _Network:
    """Makes connections within the deadline: looks the name up and tries its addresses in turn."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
        timeout = _left(timeout, http.ConnectTimeout)
        until = _until(timeout)
        look_up = resolution.look_up(host)
        _background.wait(look_up, timeout)
        failure: Exception | None = None
        for address, seconds in _shares(host, look_up, until):
            try:
                return _Connection(self._inner.connect_tcp(address, port, timeout=seconds, **options))
            except Exception as error:  # noqa: BLE001 - the last one is raised
                failure = error
        raise failure or resolution.not_in_time(host)


class _AsyncNetwork(_Network):
    """The same for async, where the deadline is a cancel scope around the task."""

    async def connect_tcp(  # the library's signature
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        **options: Any,
    ) -> Any:
        until = _until(timeout)
        look_up = resolution.look_up(host)
        await _background.wait_async(look_up, timeout)
        failure: Exception | None = None
        for address, seconds in _shares(host, look_up, until):
            try:
                return await self._inner.connect_tcp(address, port, timeout=seconds, **options)
            except Exception as error:  # noqa: BLE001 - as above
                failure = error
        raise failure or resolution.not_in_time(host)


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


def _shares(host: str, look_up: Future[tuple[str, ...]], until: float) -> Iterator[tuple[str, float | None]]:
    """Yield each address with its share of the remaining time."""
    if not look_up.done():
        raise resolution.not_in_time(host)
    try:
        addresses = look_up.result()
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
    """Limit the size of an answer, whether it is read here or by the caller."""
    headers = response.headers
    if headers.get("content-encoding", "identity") != "identity":
        # A few compressed bytes can expand to any size, and the request said `identity`.
        raise http.DecodingError("the answer is compressed, which was not asked for")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    events = stream and response.status_code == 200 and kind == "text/event-stream"  # noqa: PLR2004 - OK
    response.stream = _Bounded(response.stream, by_event=events)


class _Bounded(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc] # the library is chosen at run time
    """The bytes of an answer, with a limit on all of it or, for an event stream, on each event."""

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


class _Checked(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc] # as above
    """An event stream that was read up to its first event, given out from its beginning and checked to its end."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._events = EventCheck()
        self._seen: list[bytes] = []
        self._rest: Any = None

    def read_first_event(self) -> None:
        self._rest = iter(self._inner)
        for chunk in self._rest:
            self._seen.append(chunk)
            if self._events.feed(chunk):
                return
        raise WrongAnswer(_NO_EVENT)

    async def aread_first_event(self) -> None:
        self._rest = aiter(self._inner)
        async for chunk in self._rest:
            self._seen.append(chunk)
            if self._events.feed(chunk):
                return
        raise WrongAnswer(_NO_EVENT)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._seen
        for chunk in self._rest:
            self._events.feed(chunk)
            yield chunk
        self._check_end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._seen:
            yield chunk
        async for chunk in self._rest:
            self._events.feed(chunk)
            yield chunk
        self._check_end()

    def _check_end(self) -> None:
        # A server that was stopped, or a proxy, may end a stream early without an error.
        if not self._events.complete:
            raise http.RemoteProtocolError("the stream ended before the transcript was whole")

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


_NO_EVENT = "an event stream that ended before its first event"


def read(response: Any, expected: Expected) -> None:
    """Read and check a response: a body to its end, an event stream up to its first event.

    Raises:
        InvalidLocalResponse: it does not answer this call. The response is then closed, as after any error.

    """
    try:
        expected.check_head(response.headers)
        if _is_body(response, expected):
            expected.check_body(response.read())
        else:
            response.stream = _Checked(response.stream)
            response.stream.read_first_event()
    except WrongAnswer as wrong:
        response.close()
        raise InvalidLocalResponse(str(wrong), response=response) from None
    except BaseException:
        response.close()
        raise


async def aread(response: Any, expected: Expected) -> None:
    """Do as `read` does."""
    try:
        expected.check_head(response.headers)
        if _is_body(response, expected):
            expected.check_body(await response.aread())
        else:
            response.stream = _Checked(response.stream)
            await response.stream.aread_first_event()
    except WrongAnswer as wrong:
        await response.aclose()
        raise InvalidLocalResponse(str(wrong), response=response) from None
    except BaseException:
        await response.aclose()
        raise


def _is_body(response: Any, expected: Expected) -> bool:
    # If only `extra_body` asked for a stream, the SDK has read all of it by now.
    return bool(response.is_closed) or not expected.stream


_KINDS: dict[type, tuple[Any, Any, type[_Network]]] = {
    openai.OpenAI: (SyncHTTP, http.HTTPTransport, _Network),
    openai.AsyncOpenAI: (AsyncHTTP, http.AsyncHTTPTransport, _AsyncNetwork),
}
