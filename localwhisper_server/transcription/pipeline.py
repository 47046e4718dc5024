"""The chunks of one request on their way: several at a time through the scheduler, their results back in order."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from localwhisper_server.transcription.scheduler import Ticket
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

Awaited = TypeVar("Awaited", bound="asyncio.Future[Any]")

# Chunks on their way at a time: enough to fill batches, few enough to bound memory.
LOOKAHEAD = 16
# So many are handed in at a time, or the first would be a batch of its own; and no more before the language is known.
TOGETHER = 2


class ChunkPipeline:
    """What becomes of a request's chunks. Used by one task.

    Where the language is not known, the first chunk's decides. The second does not wait for that, so that a CPU's
    second worker has something to do: it detects its own, and what was heard in another one is run again. With
    `several` languages to expect, each chunk has its own, and none waits for the first.
    """

    def __init__(self, ticket: Ticket[Chunk, ChunkResult], language: str | None, *, several: bool = False) -> None:
        self._ticket = ticket
        self._language = language
        self._several = several
        self._decided: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._prepared: list[Chunk] = []
        self._pending: deque[asyncio.Task[list[ChunkResult]]] = deque()

    def __len__(self) -> int:
        """Count the chunks whose results are still to be had."""
        return len(self._prepared) + len(self._pending)

    @property
    def has_room(self) -> bool:
        """Whether one more chunk may be added; not while there is a result to be had at once."""
        return len(self) < LOOKAHEAD and not (self._pending and self._pending[0].done())

    @property
    def first(self) -> "set[asyncio.Task[list[ChunkResult]]]":
        """What `next` waits for; empty where nothing was handed in."""
        return {self._pending[0]} if self._pending else set()

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk."""
        self._prepared.append(chunk)
        if len(self._prepared) >= TOGETHER:
            self.hand_in()

    async def next(self) -> list[ChunkResult]:
        """Return the results of the first chunk that is not yet through: its own, and those of what it left.

        Raises:
            ServerError: it failed.

        """
        self.hand_in()
        results = await self._pending.popleft()
        if not self._several:
            self._language = self._language or next((result.language for result in results if result.language), None)
        if not self._decided.done():
            self._decided.set_result(self._language)
        self.hand_in()
        return results

    def cancel(self) -> None:
        """Wait for nothing any more."""
        for task in self._pending:
            task.cancel()

    def hand_in(self) -> None:
        """Submit the chunks that wait to be submitted together, unless they wait for the language."""
        if not self._prepared or (self._pending and not self._language and not self._several):
            return
        leads = self._several or (not self._pending and not self._decided.done())
        ready = [
            replace(
                _in_language(chunk, self._language),
                language_provisional=not leads or (bool(number) and not self._several),
            )
            for number, chunk in enumerate(self._prepared)
        ]
        self._prepared.clear()
        for chunk, future in zip(ready, self._submitted(ready), strict=True):
            self._pending.append(watched(asyncio.create_task(self._heard(chunk, future))))

    async def _heard(self, chunk: Chunk, future: asyncio.Future[ChunkResult]) -> list[ChunkResult]:
        """Return the result of a chunk that was handed in and of what it left, in the recording's language."""
        result = await future
        language = chunk.decoding.language
        if not language and chunk.language_provisional:
            language = await asyncio.shield(self._decided)
            if language and not result.rejected and result.language != language:
                result = await self._again(_in_language(chunk, language))
        results = [result]
        while result.remainder is not None:
            language = language or result.language
            result = await self._again(_in_language(result.remainder, language))
            results.append(result)
        return results

    def _submitted(self, chunks: Sequence[Chunk], *, first: bool = False) -> list[asyncio.Future[ChunkResult]]:
        return [watched(asyncio.wrap_future(future)) for future in self._ticket.submit(chunks, first=first)]

    async def _again(self, chunk: Chunk) -> ChunkResult:
        """Run what is left of an earlier chunk before the later ones."""
        return await self._submitted([chunk], first=True)[0]


def watched(future: Awaited) -> Awaited:
    """Return the future; if it fails after its request has failed, asyncio does not complain in the log."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _in_language(chunk: Chunk, language: str | None) -> Chunk:
    return replace(chunk, decoding=replace(chunk.decoding, language=language)) if language else chunk
