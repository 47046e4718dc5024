"""Recordings as samples, and chunks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localwhisper_server.audio import pool
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Voice
from localwhisper_server.whisper.vad import find_speech

if TYPE_CHECKING:
    from pathlib import Path

    from localwhisper_server.types import Samples
    from localwhisper_server.whisper.chunks import Chunk
    from localwhisper_server.whisper.engine import Engine


def samples_of(path: Path, seconds: float = 600.0) -> Samples:
    """Return the first seconds of a recording."""
    with path.open("rb") as file:
        return pool.decode(file, max_seconds=600)[: round(seconds * SAMPLE_RATE)]


def prepared(
    engine: Engine, samples: Samples, offset: float = 0.0, *, full_window: bool = False, **decoding: Any
) -> Chunk:
    """Return a chunk of samples with the speech that is found in them."""
    piece = AudioChunk(samples, offset, tuple(find_speech(samples, Voice())))
    return engine.prepare(piece, Decoding(**decoding), full_window=full_window)
