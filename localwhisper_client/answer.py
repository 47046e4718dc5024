"""Reads as much of a house server's response as it takes to trust it, and leaves it as if nobody had looked.

A whole body is read to its end; an event stream up to its first event, whose bytes are then put back. Until here a call
can fall back; after that the caller has part of the answer, and a fault is theirs to see.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from localwhisper_client._http import http
from localwhisper_client.errors import HouseAnsweredWrongly
from localwhisper_client.outcome import Expected, FirstEvent, LastEvent, WrongAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class _Replay(http.SyncByteStream):  # type: ignore[misc] # the library is chosen at run time
    """A response's bytes: those already read, then the rest."""

    def __init__(self, seen: list[bytes], rest: Iterator[bytes], original: Any, last: LastEvent | None = None) -> None:
        self._seen, self._rest, self._original, self._last = seen, rest, original, last

    def __iter__(self) -> Iterator[bytes]:
        for chunks in (self._seen, self._rest):
            for chunk in chunks:
                _watch(self._last, chunk)
                yield chunk
        _check_end(self._last)

    def close(self) -> None:
        self._original.close()


class _AsyncReplay(http.AsyncByteStream):  # type: ignore[misc] # as above
    """The same for a response that is awaited."""

    def __init__(
        self, seen: list[bytes], rest: AsyncIterator[bytes], original: Any, last: LastEvent | None = None
    ) -> None:
        self._seen, self._rest, self._original, self._last = seen, rest, original, last

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._seen:
            _watch(self._last, chunk)
            yield chunk
        async for chunk in self._rest:
            _watch(self._last, chunk)
            yield chunk
        _check_end(self._last)

    async def aclose(self) -> None:
        await self._original.aclose()


def read_whole(response: Any, deadline: float) -> None:
    """Read a body to its end by `deadline` (`time.monotonic`): the HTTP library bounds only each piece of it.

    Raises:
        ReadTimeout (of the HTTP library): it took too long; the response is closed.

    """
    body: list[bytes] = []
    try:
        for chunk in response.stream:
            body.append(chunk)
            _in_time(deadline)
    except BaseException:
        response.close()
        raise
    response.stream = _Replay(body, iter(()), response.stream)
    response.read()


def read(response: Any, expected: Expected, seconds: float | None = None) -> None:
    """Read and check a response, within so many seconds: a server may not be slow byte by byte, either.

    Raises:
        HouseAnsweredWrongly: it is no answer to this call. The response is closed then, as when reading fails.
        ReadTimeout (of the HTTP library): it took too long.

    """
    try:
        _read(response, expected, _deadline(seconds))
    except WrongAnswer as wrong:
        response.close()
        raise HouseAnsweredWrongly(str(wrong), response=response) from None
    except BaseException:
        response.close()
        raise


def _read(response: Any, expected: Expected, deadline: float) -> None:
    expected.check_head(response.headers)
    if response.is_closed:
        # A plain call's: `house` has read it already.
        expected.check_body(response.read())
        return
    if not expected.stream:
        read_whole(response, deadline)
        expected.check_body(response.read())
        return
    chunks = iter(response.stream)
    first = FirstEvent()
    for chunk in chunks:
        _in_time(deadline)
        if first.feed(chunk):
            break
    else:
        first.ended()
    response.stream = _Replay(first.chunks, chunks, response.stream, first.last)


async def aread(response: Any, expected: Expected, seconds: float | None = None) -> None:
    """Read and check a response, as `read` does."""
    try:
        await _aread(response, expected, _deadline(seconds))
    except WrongAnswer as wrong:
        await response.aclose()
        raise HouseAnsweredWrongly(str(wrong), response=response) from None
    except BaseException:
        await response.aclose()
        raise


async def _aread(response: Any, expected: Expected, deadline: float) -> None:
    expected.check_head(response.headers)
    if response.is_closed:
        expected.check_body(await response.aread())
        return
    chunks = aiter(response.stream)
    if not expected.stream:
        body: list[bytes] = []
        async for chunk in chunks:
            body.append(chunk)
            _in_time(deadline)
        response.stream = _AsyncReplay(body, chunks, response.stream)
        expected.check_body(await response.aread())
        return
    first = FirstEvent()
    async for chunk in chunks:
        _in_time(deadline)
        if first.feed(chunk):
            break
    else:
        first.ended()
    response.stream = _AsyncReplay(first.chunks, chunks, response.stream, first.last)


def _watch(last: LastEvent | None, chunk: bytes) -> None:
    if last is not None:
        last.feed(chunk)


def _check_end(last: LastEvent | None) -> None:
    # A server that was stopped, or a proxy, may end a stream as if that were all; half a transcript is none.
    if last is not None and not last.seen:
        raise http.RemoteProtocolError("the stream ended before the transcript was whole")


def _deadline(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds


def _in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise http.ReadTimeout("the answer came too slowly")
