"""Reads as much of a LAN server server's response as it takes to trust it, and leaves it as if nobody had looked.

A whole body is read to its end; an event stream up to its first event, whose bytes are then put back. Until here a call
can fall back; after that the caller has part of the answer, and a fault is theirs to see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localwhisper_client._http import http
from localwhisper_client.errors import InvalidLocalResponse
from localwhisper_client.lan.classification import Expected, FirstEvent, LastEvent, WrongAnswer

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


def read(response: Any, expected: Expected) -> None:
    """Read and check a response.

    Raises:
        InvalidLocalResponse: it is no answer to this call. The response is closed then, as when reading fails.

    """
    try:
        _read(response, expected)
    except WrongAnswer as wrong:
        response.close()
        raise InvalidLocalResponse(str(wrong), response=response) from None
    except BaseException:
        response.close()
        raise


def _read(response: Any, expected: Expected) -> None:
    expected.check_head(response.headers)
    # A stream that was asked for in `extra_body` alone comes read, as a body.
    if response.is_closed or not expected.stream:
        expected.check_body(response.read())
        return
    chunks = iter(response.stream)
    first = FirstEvent()
    for chunk in chunks:
        if first.feed(chunk):
            break
    else:
        first.ended()
    response.stream = _Replay(first.chunks, chunks, response.stream, first.last)


async def aread(response: Any, expected: Expected) -> None:
    """Read and check a response, as `read` does."""
    try:
        await _aread(response, expected)
    except WrongAnswer as wrong:
        await response.aclose()
        raise InvalidLocalResponse(str(wrong), response=response) from None
    except BaseException:
        await response.aclose()
        raise


async def _aread(response: Any, expected: Expected) -> None:
    expected.check_head(response.headers)
    if response.is_closed or not expected.stream:
        expected.check_body(await response.aread())
        return
    chunks = aiter(response.stream)
    first = FirstEvent()
    async for chunk in chunks:
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
