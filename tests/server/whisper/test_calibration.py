from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server.whisper.calibration import BATCH_SECONDS, CPU_SIZES, GPU_SIZES, SHARE_SECONDS, measure_limits
from tests.server.engine_double import OUT_OF_MEMORY, EngineDouble, chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localwhisper_server.types import BatchLimits
    from localwhisper_server.whisper.chunks import Chunk


class Machine:
    """A machine on which a batch takes so many seconds, by its size."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now = seconds, 100.0
        self.room, self.failure = 1000, OUT_OF_MEMORY
        self.engine: Any = EngineDouble(on_batch=self._run)

    @property
    def sizes(self) -> list[int]:
        """The sizes that were tried."""
        return [len(batch) for batch in self.engine.batches]

    def limits(self, *, on_cpu: bool, items: int = 0) -> BatchLimits:
        """Measure it."""
        return measure_limits(self.engine, chunk(seconds=5.0), on_cpu=on_cpu, items=items, clock=lambda: self.now)

    def _run(self, chunks: Sequence[Chunk]) -> None:
        if len(chunks) > self.room:
            raise RuntimeError(self.failure)
        self.now += self.seconds[len(chunks)]


@pytest.mark.parametrize(
    ("on_cpu", "seconds", "best", "tried"),
    [
        (True, {2: 1.0, 8: 2.0}, 8, [2, 8]),
        (True, {2: 1.0, 8: 3.9}, 2, [2, 8]),  # saves too little
        (True, {2: 1.0, 8: 9.0}, 2, [2, 8]),
        (False, {4: 1.0, 16: 2.0, 32: 3.0}, 32, [4, 16, 32]),
        (False, {4: 1.0, 16: 2.0, 32: 4.0}, 16, [4, 16, 32]),
        (False, {4: 1.0, 16: 9.0}, 4, [4, 16]),  # no larger one is tried
    ],
)
def test_the_size_that_pays(on_cpu: bool, seconds: dict[int, float], best: int, tried: list[int]) -> None:  # noqa: FBT001
    """Larger batches are tried as long as they save time per chunk."""
    machine = Machine(seconds)
    assert machine.limits(on_cpu=on_cpu).items == best
    assert machine.sizes == tried
    assert set(tried) <= set(CPU_SIZES if on_cpu else GPU_SIZES)


def test_a_size_set_by_hand_is_kept() -> None:
    """The speed is measured all the same, with a small batch."""
    machine = Machine({1: 1.0, 2: 2.0})
    assert [machine.limits(on_cpu=True, items=items).items for items in (1, 200)] == [1, 200]
    assert machine.sizes == [1, 2]


@pytest.mark.parametrize(("room", "best"), [(20, 16), (4, 4), (3, 1)])
def test_a_batch_that_does_not_fit_is_not_used(room: int, best: int) -> None:
    """Larger batches are not tried then; any other error is raised."""
    machine = Machine({4: 1.0, 16: 2.0, 32: 3.0})
    machine.room = room
    limits = machine.limits(on_cpu=False)
    assert limits.items == best
    assert limits.frames >= 3000
    machine.failure = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        machine.limits(on_cpu=False)


def test_the_frames_of_a_batch_depend_on_the_speed() -> None:
    """A batch, and one request's share of it, may take so many seconds at the measured speed."""
    limits = Machine({4: 0.25, 16: 0.5, 32: 0.5}).limits(on_cpu=False)
    assert limits.frames == int(BATCH_SECONDS * 32 * 1000 / 0.5)
    assert limits.share == int(SHARE_SECONDS * 32 * 1000 / 0.5)


def test_a_slow_machine_still_takes_a_whole_window() -> None:
    """And a chunk of a long recording in one request's share; a clock without progress is no error."""
    limits = Machine({2: 60.0, 8: 600.0}).limits(on_cpu=True)
    assert (limits.frames, limits.share) == (3000, 1500)
    assert Machine({2: 0.0, 8: 0.0}).limits(on_cpu=True).frames > 3000
