"""Request coalescing: the same upload with the same options is transcribed once for all who ask meanwhile.

A client that lost its connection asks again; two bots in one chat ask for the same file. The key is the hash of the
bytes and the options: everything that decides the answer.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from localwhisper_server.transcription.transcriber import RequestSteps, StepRunner
from localwhisper_server.types import Options, Segment, Transcript

# Hashed at once: that takes less time than to change threads, and most uploads are no longer.
FIRST_BYTES = 1 << 20
# What one step hashes of a longer upload.
STEP_BYTES = 16 << 20

Item = Segment | Transcript
Transcribe = Callable[[IO[bytes], Options], AsyncGenerator[Item]]
_Key = tuple[bytes, Options]


@dataclass(eq=False)
class _Run:
    """One transcription: what it has given so far, how it ended, and how many callers follow it."""

    items: list[Item] = field(default_factory=list)
    failure: Exception | None = None
    ended: bool = False
    followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class CoalescingTranscriber:
    """Wraps `transcribe` of a Transcriber, and has the same contract.

    A transcription is cancelled when its last caller has left. The last `kept` finished transcripts stay in memory for
    later callers; the least recently used is dropped first. A failure is never kept. `steps` hashes long uploads.
    """

    def __init__(self, transcribe: Transcribe, steps: StepRunner, *, kept: int = 0) -> None:
        self._transcribe = transcribe
        self._steps = steps
        self._kept = kept
        self._running: dict[_Key, _Run] = {}
        self._finished: OrderedDict[_Key, list[Item]] = OrderedDict()

    async def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Item]:
        """Yield the segments, then the transcript; see `Transcriber.transcribe`."""
        started = False
        try:
            key = (await self._hash(source, RequestSteps(options.bulk)), options)
            if key in self._finished:
                self._finished.move_to_end(key)
                for item in self._finished[key]:
                    yield item
                return
            if key not in self._running:
                started, run = True, _Run()
                self._running[key] = run
                run.task = asyncio.create_task(self._compute(key, run, source))
            async with aclosing(self._follow(key, self._running[key])) as items:
                async for item in items:
                    yield item
        finally:
            if not started:
                source.close()

    async def _hash(self, source: IO[bytes], request: RequestSteps) -> bytes:
        """Return the SHA-256 of the whole of `source`."""
        sha = hashlib.sha256()

        def read_on(size: int) -> bool:
            data = source.read(size)
            sha.update(data)
            return len(data) == size

        source.seek(0)
        more = read_on(FIRST_BYTES)
        while more:
            more = await self._steps.run(request, partial(read_on, STEP_BYTES))
        return sha.digest()

    async def _follow(self, key: _Key, run: _Run) -> AsyncGenerator[Item]:
        """Yield the items of a run from its first; cancel the run if its last follower leaves before the end."""
        run.followers += 1
        position = 0
        try:
            while not run.ended or position < len(run.items):
                if position == len(run.items):
                    run.changed.clear()
                    await run.changed.wait()
                    continue
                yield run.items[position]
                position += 1
            if run.failure is not None:
                raise run.failure
        finally:
            run.followers -= 1
            if run.task is not None and not run.followers and not run.ended:
                self._running.pop(key, None)
                run.task.cancel()
                await asyncio.gather(run.task, return_exceptions=True)

    async def _compute(self, key: _Key, run: _Run, source: IO[bytes]) -> None:
        try:
            async with aclosing(self._transcribe(source, key[1])) as items:
                async for item in items:
                    run.items.append(item)
                    run.changed.set()
            if self._kept:
                self._finished[key] = run.items
                while len(self._finished) > self._kept:
                    self._finished.popitem(last=False)
        except Exception as failure:  # noqa: BLE001 - every follower raises it
            run.failure = failure
        finally:
            run.ended = True
            if self._running.get(key) is run:
                del self._running[key]
            run.changed.set()
