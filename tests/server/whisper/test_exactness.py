"""The engine's text against that of faster-whisper, with the same weights."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import faster_whisper
import jiwer
import numpy as np
import pytest

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Span
from tests.server.whisper.recordings import decoded, prepared, samples_of, segments_of, words_of

if TYPE_CHECKING:
    from pathlib import Path

    from localwhisper_server.whisper.engine import Engine
    from tests.server.whisper.conftest import Engines

pytestmark = pytest.mark.model


@pytest.mark.parametrize(("name", "seconds"), [("demo", 30.0), ("en-60s", 30.0)])
def test_the_full_window_is_faster_whispers(
    engines: Engines, voices: dict[str, Path], name: str, seconds: float
) -> None:
    """The same text in the same segments, for what fits into one window."""
    samples, tiny = samples_of(voices[name], seconds), engines["tiny.en"]
    folder = str(engines.folder("tiny.en"))
    model = faster_whisper.WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=2)
    theirs = list(model.transcribe(samples, language="en", beam_size=5)[0])
    (results,) = decoded(tiny, [prepared(tiny, samples, language="en", full_window=True)])
    ours = segments_of(results)
    assert [segment.text for segment in ours] == [segment.text for segment in theirs]
    length = samples.size / SAMPLE_RATE
    ends = [min(segment.end, length) for segment in theirs]
    assert [segment.end for segment in ours] == pytest.approx(ends, abs=0.02)
    assert all(segment.end <= length + 1e-3 for segment in ours)
    likely = [segment.avg_logprob for segment in theirs]
    assert [segment.avg_logprob for segment in ours] == pytest.approx(likely, abs=0.02)


def test_short_windows_in_one_batch_give_the_same_words(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Chunks of different lengths are padded to the longest; what is rejected is decoded again."""
    minute = samples_of(voices["en-60s"])
    cuts = [0, 5, 12, 20]
    pieces = [(minute[first * SAMPLE_RATE : last * SAMPLE_RATE], first) for first, last in pairwise(cuts)]
    short, full = (
        decoded(tiny_en, [prepared(tiny_en, *piece, language="en", full_window=full_window) for piece in pieces])
        for full_window in (False, True)
    )
    segments = [segment for results in short for segment in segments_of(results)]
    expected = words_of([segment for results in full for segment in segments_of(results)])
    assert len(expected) > 30
    # A cut through a word leaves half of it on both sides, of which the model makes other words: six of 44.
    assert jiwer.wer(" ".join(expected), " ".join(words_of(segments))) < 0.15
    assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
    assert all(0 <= segment.start <= segment.end <= cuts[-1] + 1e-3 for segment in segments)
    assert sum(result.rejected is not None for results in short for result in results) < len(pieces)


def test_an_invented_text_is_rejected(tiny_en: Engine) -> None:
    """If the detector takes noise for speech, a text counts only if the full window gives it too."""
    noise = np.random.default_rng(1).normal(0, 0.05, 6 * SAMPLE_RATE).astype(np.float32)
    chunk = tiny_en.prepare(AudioChunk(noise, 0.0, (Span(0.0, 6.0),)), Decoding(language="en"))
    ((first, *_, last),) = decoded(tiny_en, [chunk])
    assert first.rejected
    assert not first.segments
    assert first.remainder is not None
    assert (first.remainder.is_retry, first.remainder.frames) == (True, 3000)
    assert last.rejected is None
