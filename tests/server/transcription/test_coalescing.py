from __future__ import annotations

import asyncio
import io
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server.transcription.coalescing import CoalescingTranscriber
from localwhisper_server.transcription.transcriber import StepRunner
from localwhisper_server.types import Decoding, Options
from tests.server.engine_double import SECONDS, Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


class Transcribe:
    """A transcriber double that counts to `count`, one number for each permit, and closes its upload at the end."""

    def __init__(self, count: int = 3, failure: Exception | None = None) -> None:
        self.count, self.failure = count, failure
        self.sources: list[Any] = []
        self.finished = 0
        self.permits = asyncio.Semaphore(0)

    @property
    def started(self) -> int:
        """How many transcriptions were started."""
        return len(self.sources)

    def permit(self, count: int) -> None:
        """Allow so many further steps: one for each number and one for the end."""
        for _ in range(count):
            self.permits.release()

    async def __call__(self, source: Any, options: Options) -> AsyncGenerator[Any]:
        self.sources.append(source)
        with source:
            for number in range(self.count):
                await self.permits.acquire()
                yield number
            await self.permits.acquire()
            if self.failure is not None:
                raise self.failure
            self.finished += 1


@pytest.fixture
def transcribe() -> Transcribe:
    """Give a transcriber double."""
    return Transcribe()


def _wrapped(transcribe: Transcribe, kept: int = 0) -> CoalescingTranscriber:
    return CoalescingTranscriber(transcribe, StepRunner(clock=Clock()), kept=kept)


def _ask(wrapper: CoalescingTranscriber, upload: bytes = b"a") -> AsyncGenerator[Any]:
    return wrapper.transcribe(io.BytesIO(upload), Options())


async def _all(wrapper: CoalescingTranscriber, upload: bytes = b"a", options: Options | None = None) -> list[Any]:
    source = io.BytesIO(upload)
    async with asyncio.timeout(SECONDS):
        items = [item async for item in wrapper.transcribe(source, options or Options())]
    assert source.closed
    return items


async def _until_started(transcribe: Transcribe, count: int = 1) -> None:
    async with asyncio.timeout(SECONDS):
        while transcribe.started < count:  # noqa: ASYNC110 - hashing takes place in a thread
            await asyncio.sleep(0)


async def test_the_same_upload_is_transcribed_once(transcribe: Transcribe) -> None:
    """All callers get every item."""
    wrapper = _wrapped(transcribe)
    callers = [_ask(wrapper) for _ in range(5)]
    transcribe.permit(1)
    assert [await anext(caller) for caller in callers] == [0] * 5
    transcribe.permit(3)
    assert [[item async for item in caller] for caller in callers] == [[1, 2]] * 5
    assert (transcribe.started, transcribe.finished) == (1, 1)


async def test_other_bytes_or_options_are_transcribed_apart(transcribe: Transcribe) -> None:
    """Everything that decides the answer is part of the key, also what is beyond the first step of hashing."""
    wrapper = _wrapped(transcribe)
    large = bytes(17 << 20)
    questions = [(b"a", Options()), (b"b", Options()), (b"a", Options(Decoding(words=True))), (large, Options())]
    callers = [asyncio.create_task(_all(wrapper, *question)) for question in (*questions, (large + b"x", Options()))]
    transcribe.permit(100)
    await asyncio.gather(*callers)
    assert transcribe.started == 5


async def test_a_late_caller_gets_every_item(transcribe: Transcribe) -> None:
    """Those found before at once, the others as they are found."""
    wrapper = _wrapped(transcribe)
    async with aclosing(_ask(wrapper)) as early:
        transcribe.permit(2)
        assert [await anext(early), await anext(early)] == [0, 1]
        late = _ask(wrapper)
        assert [await anext(late), await anext(late)] == [0, 1]
        transcribe.permit(2)
        assert [item async for item in late] == [2]
        assert [item async for item in early] == [2]
    assert transcribe.started == 1


async def test_a_caller_who_leaves_takes_nothing_from_the_others(transcribe: Transcribe) -> None:
    """Not even the first, whose upload is transcribed."""
    wrapper = _wrapped(transcribe)
    first, second = _ask(wrapper), _ask(wrapper)
    transcribe.permit(1)
    assert [await anext(first), await anext(second)] == [0, 0]
    await first.aclose()
    assert not transcribe.sources[0].closed
    transcribe.permit(3)
    assert [item async for item in second] == [1, 2]
    assert transcribe.sources[0].closed


async def test_the_last_caller_to_leave_ends_the_transcription(transcribe: Transcribe) -> None:
    """It has ended when the caller has left. The next caller starts a new one."""
    wrapper = _wrapped(transcribe, kept=1)
    callers = [_ask(wrapper), _ask(wrapper)]
    transcribe.permit(1)
    for caller in callers:
        assert await anext(caller) == 0
    for caller in callers:
        await caller.aclose()
    assert transcribe.sources[0].closed
    assert transcribe.finished == 0
    transcribe.permit(4)
    assert await _all(wrapper) == [0, 1, 2]
    assert transcribe.started == 2


async def test_a_cancelled_caller_has_left(transcribe: Transcribe) -> None:
    """Even before the first item."""
    wrapper = _wrapped(transcribe)
    caller = asyncio.create_task(_all(wrapper))
    await _until_started(transcribe)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert transcribe.sources[0].closed


@pytest.mark.parametrize("kept", [0, 5])
async def test_a_failure_reaches_all_callers_and_is_not_kept(kept: int) -> None:
    """After the items before it. The next caller starts again."""
    transcribe = Transcribe(1, ValueError("no sound"))
    wrapper = _wrapped(transcribe, kept)
    callers = [_ask(wrapper) for _ in range(3)]
    transcribe.permit(1)
    for caller in callers:
        assert await anext(caller) == 0
    transcribe.permit(1)
    for caller in callers:
        with pytest.raises(ValueError, match="no sound"):
            await anext(caller)
    transcribe.failure = None
    transcribe.permit(2)
    assert await _all(wrapper) == [0]
    assert transcribe.started == 2


async def test_nothing_is_kept_by_default(transcribe: Transcribe) -> None:
    """A finished transcript does not stay in memory."""
    wrapper = _wrapped(transcribe)
    for times in (1, 2):
        transcribe.permit(4)
        assert await _all(wrapper) == [0, 1, 2]
        assert transcribe.started == times


async def test_the_last_transcripts_are_kept() -> None:
    """The least recently used is dropped first. A caller who leaves one early does no harm to it."""
    transcribe = Transcribe(2)
    wrapper = _wrapped(transcribe, kept=2)
    transcribe.permit(100)
    for upload, started in ((b"a", 1), (b"b", 2), (b"a", 2), (b"c", 3), (b"a", 3), (b"b", 4), (b"b", 4)):
        assert await _all(wrapper, upload) == [0, 1]
        assert transcribe.started == started
    early = _ask(wrapper, b"b")
    assert await anext(early) == 0
    await early.aclose()
    assert await _all(wrapper, b"b") == [0, 1]
    assert transcribe.started == 4
