from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from localwhisper_server.diarization.diarizer import AHEAD_SECONDS, Diarization, Diarizer
from localwhisper_server.diarization.networks import SPEAKERS, WINDOW_FRAMES, WINDOW_SAMPLES, Activity
from localwhisper_server.diarization.windows import FRAME_SECONDS, STEP_FRAMES, STEP_SAMPLES, Windower
from localwhisper_server.errors import NoDiarization, Stopping
from localwhisper_server.types import SAMPLE_RATE, Samples
from tests.server.diarization.networks_double import NetworksDouble, voice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localwhisper_server.diarization.timeline import Timeline

pytestmark = pytest.mark.anyio


class TakesAllForOne(NetworksDouble):
    """Hears who speaks, and takes all speakers of a window for one."""

    def activity(self, window: Samples) -> Activity:
        """Give all speakers the first column."""
        found = np.zeros((WINDOW_FRAMES, SPEAKERS), np.float32)
        found[:, 0] = super().activity(window).any(axis=1)
        return found


async def _timeline(
    *parts: Samples,
    references: tuple[Samples, ...] = (),
    most: int | None = None,
    networks: type[NetworksDouble] = NetworksDouble,
) -> Timeline:
    diarizer = Diarizer(networks)
    diarization = diarizer.begin()
    samples = np.concatenate(parts)
    for at in range(0, samples.size, 3 * SAMPLE_RATE):
        diarization.add(samples[at : at + 3 * SAMPLE_RATE])
    try:
        return await diarization.timeline(references, most=most)
    finally:
        diarizer.close()


@pytest.fixture
def networks() -> NetworksDouble:
    """Give networks that wait in their first window until the gate is opened."""
    networks = NetworksDouble()
    networks.gate.clear()
    return networks


@pytest.fixture
def diarizer(networks: NetworksDouble) -> Iterator[Diarizer]:
    """Give a diarizer with them; it is closed."""
    diarizer = Diarizer(lambda: networks)
    yield diarizer
    networks.gate.set()
    diarizer.close()


def _ahead(networks: NetworksDouble, diarizer: Diarizer) -> tuple[Diarization, threading.Thread]:
    """Add as much as may be ahead to a recording; start a thread that adds more."""
    diarization = diarizer.begin()
    diarization.add(voice(0, seconds=10))
    assert networks.entered.acquire(timeout=60)
    diarization.add(voice(0, seconds=AHEAD_SECONDS))
    waiting = threading.Thread(target=diarization.add, args=(voice(0, seconds=10),))
    waiting.start()
    return diarization, waiting


def _heard(timeline: Timeline) -> list[tuple[int, float, float]]:
    return [(turn.speaker, round(turn.start, 1), round(turn.end, 1)) for turn in timeline.turns()]


async def test_turns_of_three_speakers_over_several_windows() -> None:
    """Each turn has its place, whatever column its speaker has in each window."""
    timeline = await _timeline(
        voice(2, seconds=7), voice(seconds=2), voice(0, seconds=9), voice(2, seconds=8), voice(1, seconds=12)
    )
    (first, a, b), (second, c, d), (again, e, f), (third, g, h) = _heard(timeline)
    assert [a, b, c, d, e, f, g, h] == [0.0, 7.0, 9.0, 18.0, 18.0, 26.0, 26.0, 38.0]
    assert again == first
    assert len({first, second, third}) == 3


async def test_two_at_once_are_both_heard() -> None:
    """Turns may overlap; voices are embedded from where they are alone."""
    timeline = await _timeline(voice(0, seconds=6), voice(0, 1, seconds=2), voice(1, seconds=6))
    (one, _, one_end), (other, other_start, _) = _heard(timeline)
    assert one != other
    assert (one_end, other_start) == (8.0, 6.0)


async def test_references_have_the_first_columns() -> None:
    """A known speaker who is not heard keeps a column; others follow."""
    timeline = await _timeline(
        voice(3, seconds=8), voice(5, seconds=8), references=(voice(7, seconds=3), voice(5, seconds=3))
    )
    assert [speaker for speaker, *_ in _heard(timeline)] == [2, 1]


async def test_two_that_the_network_takes_for_one_are_told_apart() -> None:
    """By the similarity of what they say, second by second, to the speakers of the recording."""
    timeline = await _timeline(
        *(voice(1, seconds=7), voice(0, seconds=9), voice(1, seconds=3), voice(seconds=1), voice(0, seconds=12)),
        references=(voice(0, seconds=3), voice(1, seconds=3)),
        networks=TakesAllForOne,
    )
    turns = [(turn.speaker, turn.start, turn.end) for turn in timeline.turns()]
    assert [speaker for speaker, *_ in turns] == [1, 0, 1, 0]
    assert [start for _, start, _ in turns] == pytest.approx([0, 7, 16, 20], abs=0.6)
    assert [end for *_, end in turns] == pytest.approx([7, 16, 19, 32], abs=0.6)


def test_each_moment_is_in_the_parts_of_one_window() -> None:
    """Parts cover what is said alone from beginning to end, and nothing is embedded in two windows."""
    windower = Windower(NetworksDouble())
    windows = [*windower.add(voice(0, seconds=33)), *windower.end()]
    covered = np.zeros((len(windows) + 1) * STEP_FRAMES, int)
    for window in windows:
        frames = np.zeros(WINDOW_FRAMES, int)
        for part in window.parts:
            frames[part.first : part.last] = 1
        covered[window.number * STEP_FRAMES :][:WINDOW_FRAMES] += frames
    heard = round(33 / FRAME_SECONDS)
    assert covered[: heard - 2].all()
    assert covered.max() <= 2
    assert (covered == 2).mean() < 0.5  # parts at the edges of two windows overlap


async def test_the_number_of_speakers_is_bounded() -> None:
    """With fewer allowed than heard, the most similar are one."""
    parts = [voice(speaker, seconds=8) for speaker in (0, 1, 2, 3)]
    assert len({speaker for speaker, *_ in _heard(await _timeline(*parts))}) == 4
    assert len({speaker for speaker, *_ in _heard(await _timeline(*parts, most=2))}) == 2


@pytest.mark.parametrize("seconds", [0.0, 1.0, 12.0])
async def test_silence_has_no_speaker(seconds: float) -> None:
    """Nothing is heard, and nothing fails."""
    timeline = await _timeline(voice(seconds=seconds))
    assert _heard(timeline) == []
    assert timeline.speaker(0.0, 1.0) is None


def test_memory_is_one_window() -> None:
    """A windower yields each window once, in steps of half a window, and keeps no samples behind the next one."""
    networks = NetworksDouble()
    windower = Windower(networks)
    seen = []
    for _ in range(60):
        seen += [window.number for window in windower.add(voice(0, seconds=1))]
        assert windower._held.size < WINDOW_SAMPLES + SAMPLE_RATE
    seen += [window.number for window in windower.end()]
    assert seen == list(range(len(seen)))
    assert (len(seen) - 1) * STEP_SAMPLES + WINDOW_SAMPLES >= 60 * SAMPLE_RATE
    assert list(windower.end()) == []


async def test_recordings_take_turns(networks: NetworksDouble, diarizer: Diarizer) -> None:
    """A long recording that came first does not keep a short one waiting: its blocks alternate with the other's.

    Eight blocks of one are there before the first of the other, which is heard as soon as the one in hand is done.
    """
    long, short = diarizer.begin(), diarizer.begin()
    for _ in range(8):
        long.add(voice(0, seconds=10))
    assert networks.entered.acquire(timeout=60)
    short.add(voice(1, seconds=10))
    networks.gate.set()
    assert _heard(await short.timeline()) == [(0, 0.0, 10.0)]
    assert networks.heard[:2] == [0, 1]
    long.close()


def test_a_fast_decoder_waits(networks: NetworksDouble, diarizer: Diarizer) -> None:
    """No more than AHEAD_SECONDS are held; a recording that is closed lets the decoder go on."""
    diarization, waiting = _ahead(networks, diarizer)
    waiting.join(0.05)
    assert waiting.is_alive()
    diarization.close()
    waiting.join(60)
    assert not waiting.is_alive()


async def test_a_closed_diarization_does_no_more(networks: NetworksDouble, diarizer: Diarizer) -> None:
    """The request was cancelled: what waits is dropped."""
    gone, other = diarizer.begin(), diarizer.begin()
    for _ in range(5):
        gone.add(voice(0, seconds=10))
    assert networks.entered.acquire(timeout=60)
    gone.close()
    gone.add(voice(0, seconds=10))
    networks.gate.set()
    other.add(voice(1, seconds=10))
    await other.timeline()
    assert len(networks.heard) == 2


async def test_a_server_that_stops_fails_the_requests_that_wait(networks: NetworksDouble, diarizer: Diarizer) -> None:
    """The decoder may go on, and the request ends with the error of a server that stops."""
    diarization, waiting = _ahead(networks, diarizer)
    diarizer.close()
    waiting.join(60)
    assert not waiting.is_alive()
    with pytest.raises(Stopping):
        await diarization.timeline()


async def test_a_server_that_stops_fails_the_request_whose_speakers_are_next() -> None:
    """Its clustering waits behind another recording's block: the request fails, and is not taken for cancelled."""
    networks = NetworksDouble()
    networks.gate.clear()
    diarizer = Diarizer(lambda: networks)
    other, waiting = diarizer.begin(), diarizer.begin()
    other.add(voice(0, seconds=10))
    assert networks.entered.acquire(timeout=10)
    timeline = asyncio.create_task(waiting.timeline())
    while not diarizer._thread._work_queue.qsize():  # noqa: ASYNC110 - the queue has no event
        await asyncio.sleep(0)
    diarizer.close()
    with pytest.raises(Stopping):
        await timeline
    networks.gate.set()


async def test_missing_files_end_the_request() -> None:
    """The next block, or else the timeline, raises what loading raised; a later recording tries again."""
    networks, failures = NetworksDouble(), [NoDiarization("no files")]

    def load() -> NetworksDouble:
        if failures:
            raise failures.pop()
        return networks

    diarizer = Diarizer(load)
    failed = diarizer.begin()
    failed.add(voice(0, seconds=1))
    with pytest.raises(NoDiarization, match="no files"):
        await failed.timeline()
    with pytest.raises(NoDiarization, match="no files"):
        failed.add(voice(0, seconds=1))
    later = diarizer.begin()
    later.add(voice(0, seconds=10))
    assert _heard(await later.timeline()) == [(0, 0.0, 10.0)]
    diarizer.close()


def test_missing_packages_are_named_at_once() -> None:
    """Nothing is loaded or started."""

    def check() -> None:
        raise NoDiarization("not installed")

    with pytest.raises(NoDiarization, match="not installed"):
        Diarizer(NetworksDouble, check).begin()


def test_the_thread_has_a_low_priority() -> None:
    """Its priority is below that of the process, and only its own."""
    import os
    import sys

    from localwhisper_server.diarization.diarizer import NICENESS, _lower_priority

    if sys.platform != "linux":
        pytest.skip("threads have priorities of their own on Linux alone")
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1, initializer=_lower_priority) as thread:
        lowered = thread.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
    assert lowered == max(NICENESS, before)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
