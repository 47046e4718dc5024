from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server import calibration
from localwhisper_server.engine import Chunk
from localwhisper_server.window import FULL_FRAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localwhisper_server.chunks import Piece
    from localwhisper_server.options import Decoding


class Engine:
    """Takes `overhead` seconds a batch and `each` a chunk, on a clock of its own."""

    def __init__(self, overhead: float, each: float) -> None:
        self.now, self._overhead, self._each = 0.0, overhead, each
        self.sizes: list[int] = []

    def prepare(self, piece: Piece, decoding: Decoding) -> Chunk:
        """Make a chunk without features."""
        return Chunk(np.zeros((1, 1), np.float32), piece.seconds, 0.0, decoding)

    def run(self, chunks: Sequence[Chunk]) -> list[Any]:
        """Let the time pass."""
        self.sizes.append(len(chunks))
        self.now += self._overhead + self._each * len(chunks)
        return []


def _limits(engine: Engine, *, on_cpu: bool = True, items: int = 0) -> Any:
    return calibration.limits(engine, on_cpu=on_cpu, items=items, clock=lambda: engine.now)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("on_cpu", "overhead", "best", "tried"),
    [
        (True, 1.0, 8, [2, 8]),
        (True, 0.0, 2, [2, 8]),
        (False, 1.0, 32, [4, 16, 32]),
        (False, 0.0, 4, [4, 16]),
        (False, 0.02, 16, [4, 16, 32]),
    ],
    ids=["a CPU that gains", "a CPU that does not", "a GPU that gains", "a GPU that does not", "a GPU in between"],
)
def test_a_batch_grows_while_that_pays(on_cpu: bool, overhead: float, best: int, tried: list[int]) -> None:  # noqa: FBT001
    """And not beyond, whatever a table would say of the device."""
    engine = Engine(overhead, 0.02)
    assert _limits(engine, on_cpu=on_cpu).items == best
    assert engine.sizes == tried


def test_a_number_set_by_hand_is_kept() -> None:
    """It is measured for the other limits alone."""
    engine = Engine(1.0, 0.1)
    assert _limits(engine, items=5).items == 5
    assert engine.sizes == [5]


def test_frames_and_share_follow_the_speed() -> None:
    """A fast device may take more at once; a slow one at least a window, or nothing would ever run."""
    fast, slow = _limits(Engine(0.0, 0.001)), _limits(Engine(0.0, 60.0))
    assert fast.frames > fast.share > FULL_FRAMES
    assert slow.frames == FULL_FRAMES
    assert slow.share == FULL_FRAMES // 2


def test_the_message_is_in_every_install() -> None:
    """Five seconds of speech."""
    message = calibration.voice_message()
    assert message.seconds == pytest.approx(4.87, abs=0.1)
    assert sum(span.seconds for span in message.speech) > 3
