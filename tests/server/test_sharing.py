from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


class Source:
    """Counts to three, a step each time `go` is released; keeps how often it was started and closed."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.go = asyncio.Semaphore(0)
        self.started = self.closed = 0
        self.failure = failure

    async def __call__(self) -> AsyncGenerator[int]:
        """Count."""
        self.started += 1
        try:
            for number in (1, 2, 3):
                await self.go.acquire()
                yield number
            if self.failure:
                raise self.failure
        finally:
            self.closed += 1

    def release(self, count: int = 3) -> None:
        """Let it go on."""
        for _ in range(count):
            self.go.release()


async def _all(values: AsyncGenerator[int]) -> list[int]:
    return [value async for value in values]


async def test_followers_see_everything_from_the_first_value() -> None:
    """However late they come, of one computation."""
    sharing: Sharing[int] = Sharing()
    source = Source()
    first = sharing.follow("key", source)
    source.release(2)
    assert [await anext(first), await anext(first)] == [1, 2]
    late = asyncio.create_task(_all(sharing.follow("key", source)))
    source.release(1)
    assert await _all(first) == [3]
    assert await late == [1, 2, 3]
    assert (source.started, source.closed) == (1, 1)
    assert not sharing.known("key")


async def test_other_keys_are_other_computations() -> None:
    """Nothing is shared that does not decide the same."""
    sharing: Sharing[int] = Sharing()
    one, other = Source(), Source()
    one.release()
    other.release()
    await asyncio.gather(_all(sharing.follow(1, one)), _all(sharing.follow(2, other)))
    assert (one.started, other.started) == (1, 1)


async def test_the_last_to_leave_takes_it_along() -> None:
    """Not the first."""
    sharing: Sharing[int] = Sharing(kept=9)
    source = Source()
    source.release(1)
    followers = [sharing.follow("key", source) for _ in range(2)]
    assert [await anext(follower) for follower in followers] == [1, 1]
    await followers[0].aclose()
    assert source.closed == 0
    assert sharing.known("key")
    await followers[1].aclose()
    assert source.closed == 1
    assert not sharing.known("key")


async def test_a_failure_is_everybodys_and_not_kept() -> None:
    """After what came before it; who asks next starts anew."""
    sharing: Sharing[int] = Sharing(kept=9)
    source = Source(ValueError("broken"))
    followers = [sharing.follow("key", source) for _ in range(2)]
    source.release(1)
    assert [await anext(follower) for follower in followers] == [1, 1]
    source.release(2)
    for follower in followers:
        assert [await anext(follower) for _ in range(2)] == [2, 3]
        with pytest.raises(ValueError, match="broken"):
            await anext(follower)
    assert not sharing.known("key")
    assert source.started == 1
    source.failure = None
    source.release()
    assert await _all(sharing.follow("key", source)) == [1, 2, 3]
    assert source.started == 2


async def test_finished_ones_are_kept_the_least_used_forgotten_first() -> None:
    """Asking for one is using it."""
    sharing: Sharing[int] = Sharing(kept=2)
    source = Source()
    source.release(99)
    for key in ("a", "b", "a", "c"):
        assert await _all(sharing.follow(key, source)) == [1, 2, 3]
    assert source.started == 3
    assert [sharing.known(key) for key in "abc"] == [True, False, True]


async def test_a_follower_that_is_cancelled_leaves() -> None:
    """As one that closes."""
    sharing: Sharing[int] = Sharing()
    source = Source()
    waiting = asyncio.create_task(_all(sharing.follow("key", source)))
    async with asyncio.timeout(10):
        while not source.started:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert source.closed == 1
