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
from localwhisper_client.outcome import Expected, FirstEvent, WrongAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class _Replay(http.SyncByteStream):  # type: ignore[misc] # the library is chosen at run time
    """A response's bytes: those already read, then the rest."""

    def __init__(self, seen: list[bytes], rest: Iterator[bytes], original: Any) -> None:
        self._seen, self._rest, self._original = seen, rest, original

    def __iter__(self) -> Iterator[bytes]:
        yield from self._seen
        yield from self._rest

    def close(self) -> None:
        self._original.close()


class _AsyncReplay(http.AsyncByteStream):  # type: ignore[misc] # as above
    """The same for a response that is awaited."""

    def __init__(self, seen: list[bytes], rest: AsyncIterator[bytes], original: Any) -> None:
        self._seen, self._rest, self._original = seen, rest, original

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._seen:
            yield chunk
        async for chunk in self._rest:
            yield chunk

    async def aclose(self) -> None:
        await self._original.aclose()


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
        # A plain call's: the HTTP library has read it already.
        expected.check_body(response.read())
        return
    chunks = iter(response.stream)
    if not expected.stream:
        body: list[bytes] = []
        for chunk in chunks:
            body.append(chunk)
            _in_time(deadline)
        response.stream = _Replay(body, iter(()), response.stream)
        expected.check_body(response.read())
        return
    first = FirstEvent()
    for chunk in chunks:
        _in_time(deadline)
        if first.feed(chunk):
            break
    else:
        first.ended()
    response.stream = _Replay(first.chunks, chunks, response.stream)


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
    response.stream = _AsyncReplay(first.chunks, chunks, response.stream)


def _deadline(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds


def _in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise http.ReadTimeout("the answer came too slowly")
