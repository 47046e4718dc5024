"""A double of the engine: no model, but chunks, batches and the errors of CTranslate2."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from localwhisper_client.shared.languages import NAMES
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Segment
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS = 10.0  # the longest that a test waits
# CTranslate2 raises RuntimeError for everything.
CUDNN = "Library libcudnn_ops.so.9 is not found or cannot be loaded"
OUT_OF_MEMORY = "CUDA failed with error out of memory"


class EngineDouble:
    """Decodes " Hello." in English from each chunk, or what `answer` returns for it.

    It keeps its batches and waits in `run` while `gate` is closed. `failures` are raised in turn, one a batch, and then
    `on_batch` is called with each batch: it may raise, or move a clock.
    """

    languages = frozenset(NAMES)

    def __init__(
        self,
        *failures: Exception,
        on_batch: Callable[[Sequence[Chunk]], object] | None = None,
        answer: Callable[[Chunk], ChunkResult] | None = None,
    ) -> None:
        self.failures = list(failures)
        self.batches: list[list[Chunk]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self._on_batch = on_batch
        self._answer = answer or hello

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, in the order they came."""
        return [chunk for batch in self.batches for chunk in batch]

    def prepare(self, piece: AudioChunk, decoding: Decoding, *, full_window: bool = False) -> Chunk:
        """Make a chunk whose features are the samples."""
        return Chunk(piece.samples[None], piece.seconds, piece.offset, decoding, full_window=full_window)

    def warm_up(self) -> None:
        """Run a second of silence."""
        self.run([self.prepare(AudioChunk(np.zeros(SAMPLE_RATE, np.float32), 0.0, ()), Decoding())])

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Run one batch."""
        self.batches.append(list(chunks))
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if self.failures:
            raise self.failures.pop(0)
        if self._on_batch is not None:
            self._on_batch(chunks)
        return [self._answer(chunk) for chunk in chunks]


def hello(chunk: Chunk) -> ChunkResult:
    """Return one segment as long as the chunk."""
    text = Segment(chunk.offset, chunk.offset + chunk.seconds, " Hello.")
    return ChunkResult(chunk.decoding.language or "en", (text,))


def chunk(offset: float = 0.0, seconds: float = 1.0, **fields: Any) -> Chunk:
    """Return a chunk without sound."""
    return Chunk(np.zeros((80, 0), np.float32), seconds, offset, fields.pop("decoding", Decoding()), **fields)
