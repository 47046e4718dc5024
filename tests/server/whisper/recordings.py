"""Recordings as samples, chunks of them, and what is decoded from those."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from localwhisper_server.audio import pool
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Voice
from localwhisper_server.whisper.chunks import find_speech

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from localwhisper_server.types import Samples, Segment
    from localwhisper_server.whisper.chunks import Chunk, ChunkResult
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


def decoded(engine: Engine, chunks: Sequence[Chunk]) -> list[list[ChunkResult]]:
    """Run a batch, and what is left of each chunk until nothing is; return the results of each chunk."""
    found = [[result] for result in engine.run(chunks)]
    for results in found:
        while (remainder := results[-1].remainder) is not None:
            results.extend(engine.run([remainder]))
    return found


def segments_of(results: Sequence[ChunkResult]) -> list[Segment]:
    """Return all segments of a chunk or of several."""
    return [segment for result in results for segment in result.segments]


def words_of(text: str | Sequence[Segment]) -> list[str]:
    """Return the words of a text or of segments, in lower case and without punctuation."""
    whole = text if isinstance(text, str) else "".join(segment.text for segment in text)
    return re.findall(r"\w+", whole.lower().replace("you're", "you are"))
