"""The engine's text against that of faster-whisper, with the same weights."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import faster_whisper
import jiwer
import numpy as np
import pytest

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Span
from localwhisper_server.whisper import weights
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.engine import Engine
from tests.server.whisper.recordings import prepared, samples_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from localwhisper_server.types import Segment
    from localwhisper_server.whisper.chunks import Chunk, ChunkResult

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(model_cache: Path) -> Engine:
    """Give the smallest real model."""
    return Engine(weights.find("tiny.en", cache_dir=model_cache), Device("cpu", "int8", "test"), Workers(1, 2))


def _decoded(engine: Engine, chunks: Sequence[Chunk]) -> tuple[list[Segment], list[ChunkResult]]:
    """Run a batch, and each remainder until there is none; return all segments in order, and all results."""
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
def test_the_full_window_is_faster_whispers(
    tiny: Engine, model_cache: Path, voices: dict[str, Path], name: str, seconds: float
) -> None:
    """The same text in the same segments, for what fits into one window."""
    samples = samples_of(voices[name], seconds)
    folder = weights.find("tiny.en", cache_dir=model_cache)
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=2)
    found, _ = model.transcribe(samples, language="en", beam_size=5)
    theirs = list(found)
    ours, _ = _decoded(tiny, [prepared(tiny, samples, language="en", full_window=True)])
    assert [segment.text for segment in ours] == [segment.text for segment in theirs]
    length = samples.size / SAMPLE_RATE
    assert [segment.end for segment in ours] == pytest.approx(
        [min(segment.end, length) for segment in theirs], abs=0.02
    )
    assert all(segment.end <= length + 1e-3 for segment in ours)
    assert [segment.avg_logprob for segment in ours] == pytest.approx(
        [segment.avg_logprob for segment in theirs], abs=0.02
    )


def test_short_windows_in_one_batch_give_the_same_words(tiny: Engine, voices: dict[str, Path]) -> None:
    """Chunks of different lengths are padded to the longest; what is rejected is decoded again."""
    minute = samples_of(voices["en-60s"])
    cuts = [0, 5, 12, 20]
    chunks, references = [], []
    for first, last in pairwise(cuts):
        samples = minute[first * SAMPLE_RATE : last * SAMPLE_RATE]
        chunks.append(prepared(tiny, samples, offset=first, language="en", full_window=False))
        references.append(prepared(tiny, samples, offset=first, language="en", full_window=True))
    short, results = _decoded(tiny, chunks)
    full, _ = _decoded(tiny, references)
    expected = _words("".join(segment.text for segment in full))
    assert len(expected.split()) > 30
    # A cut through a word leaves half of it on both sides, of which the model makes other words.
    assert jiwer.wer(expected, _words("".join(segment.text for segment in short))) < 0.1
    assert [segment.start for segment in short] == sorted(segment.start for segment in short)
    assert all(0 <= segment.start <= segment.end <= cuts[-1] + 1e-3 for segment in short)
    assert sum(result.rejected is not None for result in results) < len(chunks)


def test_an_invented_text_is_rejected(tiny: Engine) -> None:
    """If the detector takes noise for speech, a text counts only if the full window gives it too."""
    noise = np.random.default_rng(1).normal(0, 0.05, 6 * SAMPLE_RATE).astype(np.float32)
    chunk = tiny.prepare(AudioChunk(noise, 0.0, (Span(0.0, 6.0),)), Decoding(language="en"))
    (result,) = tiny.run([chunk])
    assert result.rejected
    assert not result.segments
    assert result.remainder is not None
    assert (result.remainder.is_retry, result.remainder.frames) == (True, 3000)
    (again,) = tiny.run([result.remainder])
    assert again.rejected is None
