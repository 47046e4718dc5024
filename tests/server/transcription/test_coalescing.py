from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.transcription.coalescing import Coalescer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

SECONDS = 10.0


class Work:
    """Counts to `count`, a number at a time as it is let; counts its runs, how many ended and how many were closed."""

    def __init__(self, count: int = 3, failure: Exception | None = None) -> None:
        self.count, self.failure = count, failure
        self.started = self.ended = self.closed = 0
        self.permits = asyncio.Semaphore(0)

    def let(self, count: int) -> None:
        """Let it go so many steps further."""
        for _ in range(count):
            self.permits.release()

    async def __call__(self) -> AsyncGenerator[int]:
        """Count."""
        self.started += 1
        try:
            for number in range(self.count):
                await self.permits.acquire()
                yield number
            await self.permits.acquire()
            if self.failure is not None:
                raise self.failure
            self.ended += 1
        finally:
            self.closed += 1


@pytest.fixture
def work() -> Work:
    """Give a computation."""
    return Work()


async def _all(sharing: Coalescer[int], key: str, work: Work) -> list[int]:
    async with asyncio.timeout(SECONDS):
        return [value async for value in sharing.follow(key, work)]


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_key_is_computed_once(work: Work) -> None:
    """However many ask meanwhile, each gets every value."""
    sharing: Coalescer[int] = Coalescer()
    following = [asyncio.create_task(_all(sharing, "a", work)) for _ in range(5)]
    await _settle()
    assert sharing.known("a")
    work.let(4)
    assert await asyncio.gather(*following) == [[0, 1, 2]] * 5
    assert (work.started, work.ended, work.closed) == (1, 1, 1)


async def test_values_come_as_they_are_found(work: Work) -> None:
    """Not all at the end."""
    sharing: Coalescer[int] = Coalescer()
    async with aclosing(sharing.follow("a", work)) as values:
        for number in range(3):
            work.let(1)
            assert await anext(values) == number


async def test_who_comes_late_gets_all_of_it(work: Work) -> None:
    """From the first value on, at once as far as it is there."""
    sharing: Coalescer[int] = Coalescer()
    async with aclosing(sharing.follow("a", work)) as early:
        work.let(2)
        assert [await anext(early), await anext(early)] == [0, 1]
        late = sharing.follow("a", work)
        assert [await anext(late), await anext(late)] == [0, 1]
        work.let(2)
        assert [value async for value in late] == [2]
        assert [value async for value in early] == [2]
    assert work.started == 1


async def test_different_keys_are_different_work(work: Work) -> None:
    """Whatever decides the answer is in the key."""
    sharing: Coalescer[int] = Coalescer()
    other = Work(1)
    work.let(4)
    other.let(2)
    assert await asyncio.gather(_all(sharing, "a", work), _all(sharing, "b", other)) == [[0, 1, 2], [0]]


async def test_one_who_leaves_takes_nothing_from_the_others(work: Work) -> None:
    """The first, who started it, least of all."""
    sharing: Coalescer[int] = Coalescer()
    first = sharing.follow("a", work)
    work.let(1)
    assert await anext(first) == 0
    second = asyncio.create_task(_all(sharing, "a", work))
    await _settle()
    await first.aclose()
    await _settle()
    assert work.closed == 0
    work.let(3)
    assert await second == [0, 1, 2]


async def test_the_last_to_leave_takes_the_work_along(work: Work) -> None:
    """At once: when the leaving is done, so is the work. The next to ask starts anew."""
    sharing: Coalescer[int] = Coalescer(kept=1)
    followers = [sharing.follow("a", work), sharing.follow("a", work)]
    work.let(1)
    for follower in followers:
        assert await anext(follower) == 0
    for follower in followers:
        await follower.aclose()
    assert (work.closed, work.ended) == (1, 0)
    assert not sharing.known("a")
    work.let(4)
    assert await _all(sharing, "a", work) == [0, 1, 2]
    assert work.started == 2


async def test_a_cancelled_follower_is_one_that_left(work: Work) -> None:
    """A caller who hangs up while nothing has come yet."""
    sharing: Coalescer[int] = Coalescer()
    following = asyncio.create_task(_all(sharing, "a", work))
    await _settle()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert (work.started, work.closed) == (1, 1)
    assert not sharing.known("a")


@pytest.mark.parametrize("kept", [0, 5])
async def test_a_failure_reaches_all_and_is_not_kept(kept: int) -> None:
    """After the values before it; the next to ask tries again."""
    work = Work(1, ValueError("no sound"))
    sharing: Coalescer[int] = Coalescer(kept)
    followers = [sharing.follow("a", work) for _ in range(3)]
    work.let(1)
    for follower in followers:
        assert await anext(follower) == 0
    work.let(1)
    for follower in followers:
        with pytest.raises(ValueError, match="no sound"):
            await anext(follower)
    assert not sharing.known("a")
    work.failure = None
    work.let(2)  # a value and the end
    assert await _all(sharing, "a", work) == [0]
    assert work.started == 2


async def test_nothing_is_kept_unless_asked(work: Work) -> None:
    """What somebody said is gone when they have their answer."""
    sharing: Coalescer[int] = Coalescer()
    for times in (1, 2):
        work.let(4)
        assert await _all(sharing, "a", work) == [0, 1, 2]
        assert work.started == times
        assert not sharing.known("a")


async def test_the_last_ones_are_kept() -> None:
    """The least recently asked for is forgotten first."""
    sharing: Coalescer[int] = Coalescer(kept=2)
    works = {key: Work(1) for key in "abc"}

    async def ask(key: str) -> None:
        works[key].let(2)
        assert await _all(sharing, key, works[key]) == [0]

    for key in "abacac":
        await ask(key)
    assert {key: work.started for key, work in works.items()} == {"a": 1, "b": 1, "c": 1}
    assert [key for key in "abc" if sharing.known(key)] == ["a", "c"]
    await ask("b")
    assert works["b"].started == 2
    assert not sharing.known("a")


async def test_leaving_what_is_kept_early_harms_nothing(work: Work) -> None:
    """It is whole for the next."""
    sharing: Coalescer[int] = Coalescer(kept=1)
    work.let(4)
    await _all(sharing, "a", work)
    kept = sharing.follow("a", work)
    assert await anext(kept) == 0
    await kept.aclose()
    assert await _all(sharing, "a", work) == [0, 1, 2]
    assert work.started == 1
