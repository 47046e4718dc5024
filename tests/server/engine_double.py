"""A double of the engine: no model, but chunks, batches, a clock and the errors of CTranslate2."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from localwhisper_client.shared.languages import NAMES
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Segment
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS = 60.0  # the longest that a test waits, on a machine that stands still for many seconds
SHORT = 800  # frames of a voice message
# CTranslate2 raises RuntimeError for everything.
CUDNN = "Library libcudnn_ops.so.9 is not found or cannot be loaded"
OUT_OF_MEMORY = "CUDA failed with error out of memory"


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class EngineDouble:
    """Decodes " Hello." in English from each chunk, or what `answer` returns for it.

    It keeps its batches, moves `clock` by `took` seconds for each, and waits in `run` while `gate` is closed.
    `failures` are raised in turn, one a batch, and then `on_batch` is called with each batch: it may raise.
    """

    languages = frozenset(NAMES)

    def __init__(
        self,
        *failures: Exception,
        on_batch: Callable[[Sequence[Chunk]], object] = lambda _: None,
        answer: Callable[[Any], Any] | None = None,
    ) -> None:
        self.failures = list(failures)
        self.clock, self.took = Clock(), 0.0
        self.batches: list[list[Any]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.together = self.inside = 0
        self._on_batch = on_batch
        self._answer = answer or hello

    @property
    def chunks(self) -> list[Any]:
        """All chunks, in the order they came."""
        return [chunk for batch in self.batches for chunk in batch]

    def prepare(self, piece: AudioChunk, decoding: Decoding, *, full_window: bool = False) -> Chunk:
        """Make a chunk whose features are the samples."""
        return Chunk(piece.samples[None], piece.seconds, piece.offset, decoding, full_window=full_window)

    def warm_up(self) -> None:
        """Run a second of silence."""
        self.run([self.prepare(AudioChunk(np.zeros(SAMPLE_RATE, np.float32), 0.0, ()), Decoding())])

    def unload(self) -> bool:
        """Keep nothing: a double is loaded anew."""
        return False

    def run(self, chunks: Sequence[Any]) -> list[Any]:
        """Run one batch."""
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.batches.append(list(chunks))
        self.entered.release()
        assert self.gate.wait(SECONDS)
        self.clock.now += self.took
        self.inside -= 1
        if self.failures:
            raise self.failures.pop(0)
        self._on_batch(chunks)
        return [self._answer(chunk) for chunk in chunks]

    def wait(self) -> None:
        """Return when a batch has come."""
        assert self.entered.acquire(timeout=SECONDS)

    def close_gate(self) -> None:
        """Let the next batches wait, and forget those that came."""
        self.gate.clear()
        while self.entered.acquire(blocking=False):
            pass


def hello(chunk: Chunk) -> ChunkResult:
    """Return one segment as long as the chunk."""
    text = Segment(chunk.offset, chunk.offset + chunk.seconds, " Hello.")
    return ChunkResult(chunk.decoding.language or "en", (text,))


def chunk(offset: float = 0.0, seconds: float = 1.0, **fields: Any) -> Chunk:
    """Return a chunk without sound."""
    return Chunk(np.zeros((80, 0), np.float32), seconds, offset, fields.pop("decoding", Decoding()), **fields)


@dataclass(frozen=True)
class Item:
    """A chunk as the queue sees it, with a number to recognise it by."""

    number: Any
    frames: int = SHORT

    @property
    def seconds(self) -> float:
        """The length of its window."""
        return self.frames / 100


class Answer(int):
    """A result that the acceptance check has not rejected."""

    rejected = None


def twice(item: Item) -> Answer:
    """Return twice the number of an item, or raise the number if it is an exception."""
    if isinstance(item.number, Exception):
        raise item.number
    return Answer(item.number * 2)
