"""The chunk pipeline of one request: several chunks are in the scheduler at a time, and results come back in order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from localwhisper_server.transcription.preparation import Recording
from localwhisper_server.transcription.scheduler import Ticket
from localwhisper_server.types import Decoding
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

Awaited = TypeVar("Awaited", bound="asyncio.Future[Any]")

# Chunks of one request in the pipeline: enough to fill batches, few enough to bound memory.
LOOKAHEAD = 16
# So many chunks are submitted together; the first alone would be a batch of its own.
TOGETHER = 2


class ChunkPipeline:
    """Takes the chunks of one recording through the scheduler. Only one task may use it.

    If the request names no language, the first chunk decides it, and later chunks wait for that. The second chunk does
    not, so that a second worker has work: it detects its own language, and is decoded again if the first chunk's is
    another. If the request names several `languages`, each chunk keeps its own, and none waits.
    """

    def __init__(self, ticket: Ticket, decoding: Decoding) -> None:
        self._ticket = ticket
        self._language = decoding.language
        self._several = bool(decoding.languages)
        self._decided: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._preparing: asyncio.Task[list[Chunk]] | None = None
        self._ready: deque[Chunk] = deque()  # from the recording, not yet in the pipeline
        self._held: list[Chunk] = []  # in the pipeline, not yet submitted
        self._running: deque[asyncio.Task[list[ChunkResult]]] = deque()

    async def results(self, recording: Recording) -> AsyncGenerator[ChunkResult]:
        """Yield the results in the order of the recording, and prepare further chunks meanwhile.

        Raises:
            ServerError: decoding, preparation or the model failed.

        """
        try:
            while not recording.ended or self._ready or self._held or self._running:
                if self._preparing is None and not self._ready and not recording.ended:
                    self._preparing = _quiet(asyncio.create_task(recording.next()))
                if self._ready and self._has_room:
                    self._hold(self._ready.popleft())
                elif self._preparing is not None and self._has_room:
                    await self._wait_for_chunks(self._preparing)
                else:
                    for result in await self._next_results():
                        yield result
        finally:
            for task in (*self._running, self._preparing):
                if task is not None:
                    task.cancel()

    async def _wait_for_chunks(self, preparing: asyncio.Task[list[Chunk]]) -> None:
        """Wait for the recording's next chunks, or until the next result is ready."""
        first = {self._running[0]} if self._running else set()
        await asyncio.wait({preparing, *first}, return_when=asyncio.FIRST_COMPLETED)
        if preparing.done():
            self._preparing = None
            self._ready.extend(preparing.result())
            if not self._ready:
                self._submit_held()  # a long silence: do not wait for a second chunk

    def _hold(self, chunk: Chunk) -> None:
        self._held.append(chunk)
        if len(self._held) >= TOGETHER:
            self._submit_held()

    @property
    def _has_room(self) -> bool:
        """Whether to add a chunk now: there is room, and no result is ready to be yielded."""
        return len(self._held) + len(self._running) < LOOKAHEAD and not (self._running and self._running[0].done())

    async def _next_results(self) -> list[ChunkResult]:
        """Return the results of the first chunk in the pipeline, those of its remainders included."""
        self._submit_held()
        results = await self._running.popleft()
        if not self._several:
            self._language = self._language or next((result.language for result in results if result.language), None)
        if not self._decided.done():
            self._decided.set_result(self._language)
        self._submit_held()
        return results

    def _submit_held(self) -> None:
        """Submit the held chunks together, unless they wait for the language."""
        if not self._held or (self._running and not self._language and not self._several):
            return
        leads = self._several or (not self._running and not self._decided.done())
        chunks = [
            replace(
                _in_language(chunk, self._language),
                language_provisional=not leads or (bool(number) and not self._several),
            )
            for number, chunk in enumerate(self._held)
        ]
        self._held.clear()
        for chunk, future in zip(chunks, self._ticket.submit(chunks), strict=True):
            self._running.append(_quiet(asyncio.create_task(self._decode(chunk, _wrapped(future)))))

    async def _decode(self, chunk: Chunk, future: asyncio.Future[ChunkResult]) -> list[ChunkResult]:
        """Return the results of a submitted chunk and its remainders, in the recording's language."""
        result = await future
        language = chunk.decoding.language
        if not language and chunk.language_provisional:
            language = await asyncio.shield(self._decided)
            if language and not result.rejected and result.language != language:
                result = await self._decode_now(_in_language(chunk, language))
        results = [result]
        while result.remainder is not None:
            language = language or result.language
            result = await self._decode_now(_in_language(result.remainder, language))
            results.append(result)
        return results

    async def _decode_now(self, chunk: Chunk) -> ChunkResult:
        """Decode a chunk before the request's later chunks."""
        return await _wrapped(*self._ticket.submit([chunk], first=True))


def _wrapped(future: Future[ChunkResult]) -> asyncio.Future[ChunkResult]:
    return _quiet(asyncio.wrap_future(future))


def _quiet(future: Awaited) -> Awaited:
    """Return the future; asyncio does not log its failure even if the request has already failed for another reason."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _in_language(chunk: Chunk, language: str | None) -> Chunk:
    return replace(chunk, decoding=replace(chunk.decoding, language=language)) if language else chunk
