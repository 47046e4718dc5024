from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server.types import Decoding
from localwhisper_server.whisper import calibration
from localwhisper_server.whisper.calibration import BATCH_SECONDS, SHARE_SECONDS, SIZES_ON_CPU, SIZES_ON_GPU
from localwhisper_server.whisper.chunks import Chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localwhisper_server.types import BatchLimits


class Engine:
    """Takes so many seconds a batch, by its size."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now = seconds, 100.0
        self.sizes: list[int] = []
        self.room, self.trouble = 1000, "CUDA failed with error out of memory"

    def run(self, chunks: Sequence[Chunk]) -> None:
        """Let time pass."""
        self.sizes.append(len(chunks))
        if len(chunks) > self.room:
            raise RuntimeError(self.trouble)
        self.now += self.seconds[len(chunks)]

    def limits(self, *, on_cpu: bool, items: int = 0) -> BatchLimits:
        """Measure it."""
        engine: Any = self
        message = Chunk(np.zeros((80, 1), np.float32), 5.0, 0.0, Decoding(language="en"))
        return calibration.limits(engine, message, on_cpu=on_cpu, items=items, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("on_cpu", "seconds", "best", "tried"),
    [
        (True, {2: 1.0, 8: 2.0}, 8, [2, 8]),
        (True, {2: 1.0, 8: 3.9}, 2, [2, 8]),  # saves too little to be worth the wait
        (True, {2: 1.0, 8: 9.0}, 2, [2, 8]),
        (False, {4: 1.0, 16: 2.0, 32: 3.0}, 32, [4, 16, 32]),
        (False, {4: 1.0, 16: 2.0, 32: 4.0}, 16, [4, 16, 32]),
        (False, {4: 1.0, 16: 9.0}, 4, [4, 16]),  # and no larger one is tried
    ],
)
def test_the_size_that_pays(on_cpu: bool, seconds: dict[int, float], best: int, tried: list[int]) -> None:  # noqa: FBT001
    """Larger batches are tried as long as they save time per chunk."""
    engine = Engine(seconds)
    assert engine.limits(on_cpu=on_cpu).items == best
    assert engine.sizes == tried
    assert set(tried) <= set(SIZES_ON_CPU if on_cpu else SIZES_ON_GPU)


def test_a_size_set_by_hand_is_kept() -> None:
    """How fast the engine is, is measured all the same, with a small one."""
    engine = Engine({1: 1.0, 2: 2.0})
    assert [engine.limits(on_cpu=True, items=items).items for items in (1, 200)] == [1, 200]
    assert engine.sizes == [1, 2]


@pytest.mark.parametrize(("room", "best"), [(20, 16), (4, 4), (3, 1)])
def test_what_does_not_fit_is_not_taken(room: int, best: int) -> None:
    """A card with a game on it is still a card; what is wrong with it otherwise is no matter of size."""
    engine = Engine({4: 1.0, 16: 2.0, 32: 3.0})
    engine.room = room
    limits = engine.limits(on_cpu=False)
    assert limits.items == best
    assert limits.frames >= 3000
    engine.trouble = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        engine.limits(on_cpu=False)


def test_a_fast_machine_gets_what_it_does_in_the_time() -> None:
    """Frames follow the speed: a batch, and one request's part of it, take about so many seconds."""
    limits = Engine({4: 0.25, 16: 0.5, 32: 0.5}).limits(on_cpu=False)
    assert limits.frames == int(BATCH_SECONDS * 32 * 1000 / 0.5)
    assert limits.share == int(SHARE_SECONDS * 32 * 1000 / 0.5)


def test_a_slow_machine_still_takes_a_whole_window() -> None:
    """And a chunk of a long recording from one request; a clock that stands still is no error either."""
    limits = Engine({2: 60.0, 8: 600.0}).limits(on_cpu=True)
    assert (limits.frames, limits.share) == (3000, 1500)
    assert Engine({2: 0.0, 8: 0.0}).limits(on_cpu=True).frames > 3000


def test_the_voice_message_is_a_voice_message() -> None:
    """Five seconds, most of them speech, on every install."""
    piece = calibration.voice_message()
    assert 4.5 < piece.seconds < 5.5
    assert sum(span.seconds for span in piece.speech) > piece.seconds / 2
