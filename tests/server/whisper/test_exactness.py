"""What the engine hears against what faster-whisper hears, with the same weights in the same process."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import jiwer
import numpy as np
import pytest

from localwhisper_server.audio import pool
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Span, Voice
from localwhisper_server.whisper import weights
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.engine import Engine, find_speech

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from localwhisper_server.types import Samples, Segment
    from localwhisper_server.whisper.chunks import Chunk, ChunkResult

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(model_cache: Path) -> Engine:
    """Give the smallest real model."""
    return Engine(weights.find("tiny.en", cache_dir=model_cache), Device("cpu", "int8", "test"), Workers(1, 2))


def _voice(path: Path, seconds: float = 600.0) -> Samples:
    with path.open("rb") as file:
        return pool.decode(file, max_seconds=600)[: round(seconds * SAMPLE_RATE)]


def _chunk(engine: Engine, samples: Samples, *, full: bool, offset: float = 0.0) -> Chunk:
    piece = AudioChunk(samples, offset, tuple(find_speech(samples, Voice())))
    return engine.prepare(piece, Decoding(language="en"), full_window=full)


def _heard(engine: Engine, chunks: Sequence[Chunk]) -> tuple[list[Segment], list[ChunkResult]]:
    """Run a batch, then each chunk's rest until there is none; return all segments of each in order."""
    segments: list[Segment] = []
    results: list[ChunkResult] = []
    for first in engine.run(chunks):
        result = first
        segments += result.segments
        results.append(result)
        while result.remainder is not None:
            (result,) = engine.run([result.remainder])
            segments += result.segments
            results.append(result)
    return segments, results


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize(("name", "seconds"), [("demo", 30.0), ("en-60s", 30.0)])
def test_the_full_window_is_faster_whispers(tiny: Engine, voices: dict[str, Path], name: str, seconds: float) -> None:
    """The same text in the same segments, for whatever fits one window: the reference for the short ones."""
    samples = _voice(voices[name], seconds)
    found, _ = tiny._whisper.transcribe(samples, language="en", beam_size=5)
    theirs = list(found)
    ours, _ = _heard(tiny, [_chunk(tiny, samples, full=True)])
    assert [segment.text for segment in ours] == [segment.text for segment in theirs]
    length = samples.size / SAMPLE_RATE
    assert [segment.end for segment in ours] == pytest.approx(
        [min(segment.end, length) for segment in theirs], abs=0.02
    )
    assert all(segment.end <= length + 1e-3 for segment in ours)
    assert [segment.avg_logprob for segment in ours] == pytest.approx(
        [segment.avg_logprob for segment in theirs], abs=0.02
    )


def test_short_windows_in_one_batch_hear_the_same_words(tiny: Engine, voices: dict[str, Path]) -> None:
    """Lengths may differ, and each is padded to the longest; what the gate doubts is done again."""
    minute = _voice(voices["en-60s"])
    cuts = [0, 5, 12, 20]
    chunks, references = [], []
    for first, last in pairwise(cuts):
        samples = minute[first * SAMPLE_RATE : last * SAMPLE_RATE]
        chunks.append(_chunk(tiny, samples, full=False, offset=first))
        references.append(_chunk(tiny, samples, full=True, offset=first))
    short, results = _heard(tiny, chunks)
    full, _ = _heard(tiny, references)
    expected = _words("".join(segment.text for segment in full))
    assert len(expected.split()) > 30
    # A cut through a word leaves half of it at either side, which may be heard as anything.
    assert jiwer.wer(expected, _words("".join(segment.text for segment in short))) < 0.1
    assert [segment.start for segment in short] == sorted(segment.start for segment in short)
    assert all(0 <= segment.start <= segment.end <= cuts[-1] + 1e-3 for segment in short)
    assert sum(result.rejected is not None for result in results) < len(chunks)


def test_an_invented_ending_is_doubted(tiny: Engine) -> None:
    """Noise that passes for speech gives nothing that stands unless the full window says so, too."""
    noise = np.random.default_rng(1).normal(0, 0.05, 6 * SAMPLE_RATE).astype(np.float32)
    chunk = tiny.prepare(AudioChunk(noise, 0.0, (Span(0.0, 6.0),)), Decoding(language="en"))
    (result,) = tiny.run([chunk])
    assert result.rejected
    assert not result.segments
    assert result.remainder is not None
    assert (result.remainder.is_retry, result.remainder.frames) == (True, 3000)
    (again,) = tiny.run([result.remainder])
    assert again.rejected is None
