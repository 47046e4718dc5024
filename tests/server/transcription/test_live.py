"""The passes of a live session, on a real scheduler with an engine double."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from localwhisper_server.transcription.live import LiveDecoder
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.transcriber import StepRunner
from localwhisper_server.types import SAMPLE_RATE, BatchLimits, Decoding, Draft, Segment, Span, Transcript
from localwhisper_server.whisper.chunks import ChunkResult
from tests.server.engine_double import SECONDS, Clock, EngineDouble, hello

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localwhisper_server.whisper.chunks import Chunk

pytestmark = pytest.mark.anyio

SOUND = np.full(2 * SAMPLE_RATE, 0.1, np.float32)
SPEECH = (Span(0.0, 1.5),)


def rejecting(chunk: Chunk) -> ChunkResult:
    """Accept the answer of the full window alone."""
    if chunk.is_retry:
        return hello(chunk)
    draft = (Segment(0.0, 1.0, " Hell"),)
    return ChunkResult(None, (), replace(chunk, is_retry=True), "logprob", draft)


@pytest.fixture
def engine() -> EngineDouble:
    """An engine whose short windows are rejected."""
    return EngineDouble(answer=rejecting)


@pytest.fixture
def decoder(engine: EngineDouble) -> Iterator[LiveDecoder]:
    """A session on it, with two workers."""
    scheduler = Scheduler(
        engine.run,
        capacity=8,
        limits=BatchLimits(items=1, frames=100_000, share=100_000),
        clock=engine.clock,
        workers=2,
    )
    session = LiveDecoder(scheduler, engine.prepare, StepRunner(clock=Clock()))
    yield session
    session.close()
    assert scheduler.requests == 0
    engine.gate.set()
    assert scheduler.close(SECONDS)


def text(outcome: Transcript | Draft | None) -> str:
    """Return the text of an accepted answer."""
    assert isinstance(outcome, Transcript)
    return outcome.text


async def test_a_rejected_pass_goes_on_with_the_full_window(engine: EngineDouble, decoder: LiveDecoder) -> None:
    """A thorough pass of the same sound does not decode the short window again."""
    draft = await decoder.decode(SOUND, SPEECH, Decoding(), thorough=False)
    assert isinstance(draft, Draft)
    assert text(await decoder.decode(SOUND, SPEECH, Decoding(), thorough=True)) == "Hello."
    assert [chunk.is_retry for chunk in engine.chunks] == [False, True]


@pytest.mark.parametrize(
    ("samples", "speech", "decoding"),
    [
        (SOUND[:-1600], SPEECH, Decoding()),
        (SOUND * 2, SPEECH, Decoding()),
        (SOUND, (Span(0.0, 1.6),), Decoding()),
        (SOUND, SPEECH, Decoding(prompt="Anna")),
    ],
    ids=["shorter", "louder", "more speech", "a prompt"],
)
async def test_another_pass_begins_anew(
    samples: np.ndarray, speech: tuple[Span, ...], decoding: Decoding, engine: EngineDouble, decoder: LiveDecoder
) -> None:
    """Other sound or options: the short window first."""
    await decoder.decode(SOUND, SPEECH, Decoding(), thorough=False)
    assert text(await decoder.decode(samples, speech, decoding, thorough=True)) == "Hello."
    assert [chunk.is_retry for chunk in engine.chunks] == [False, False, True]


async def test_a_pass_does_not_wait_for_one_that_was_cancelled(engine: EngineDouble, decoder: LiveDecoder) -> None:
    """A batch in flight cannot be stopped; the next pass has the other worker."""
    engine.close_gate()
    first = asyncio.create_task(decoder.decode(SOUND, SPEECH, Decoding(), thorough=True))
    await asyncio.to_thread(engine.wait)
    first.cancel()
    second = asyncio.create_task(decoder.decode(SOUND[:-1600], SPEECH, Decoding(), thorough=True))
    await asyncio.to_thread(engine.wait)
    engine.gate.set()
    assert text(await second) == "Hello."
    assert first.cancelled()
