from __future__ import annotations

import asyncio
import io
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server import service as service_module
from localwhisper_server.audio import SAMPLE_RATE
from localwhisper_server.chunks import Span
from localwhisper_server.engine import Chunk, ChunkResult
from localwhisper_server.errors import Busy, EngineFailed, InvalidRequest, UnreadableAudio
from localwhisper_server.options import Decoding, Options, Voice
from localwhisper_server.scheduler import Scheduler
from localwhisper_server.service import LOOKAHEAD, Service
from localwhisper_server.transcript import Segment, Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.anyio

SECONDS = 10.0


class Engine:
    """Hears each chunk's offset in it; keeps its batches; stands still while `gate` is shut."""

    def __init__(self) -> None:
        self.batches: list[list[Chunk]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.rests: dict[float, Chunk] = {}
        self.failing: set[float] = set()

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, in the order they came."""
        return [chunk for batch in self.batches for chunk in batch]

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Run one batch."""
        self.batches.append(list(chunks))
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if any(chunk.offset in self.failing for chunk in chunks):
            raise RuntimeError("CUDA failed with error out of memory")
        return [
            ChunkResult(
                chunk.decoding.language or "de",
                (Segment(float(chunk.offset), chunk.offset + chunk.seconds, f" {chunk.offset:g}"),),
                self.rests.pop(chunk.offset, None),
            )
            for chunk in chunks
        ]


@pytest.fixture
def engine() -> Engine:
    """Give an engine double."""
    return Engine()


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler[Chunk, ChunkResult]]:
    """Give a scheduler on it."""
    made = Scheduler(engine.run, capacity=2, batch=2, clock=lambda: 0.0)
    yield made
    engine.gate.set()
    assert made.close(SECONDS)


@pytest.fixture
def service(scheduler: Scheduler[Chunk, ChunkResult]) -> Service:
    """Give a service on that."""
    return Service(scheduler, max_seconds=400.0)


@pytest.fixture
def speech(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """Give the spans that the detector will find; a test fills them in."""
    spans: list[Span] = []
    monkeypatch.setattr(service_module, "find_speech", lambda _samples, _voice: spans)
    return spans


MINUTES = [Span(2, 25), Span(31, 55), Span(62, 85)]


async def _all(service: Service, data: bytes, options: Options | None = None) -> tuple[list[Segment], Transcript]:
    *segments, transcript = [item async for item in service.transcribe(io.BytesIO(data), options or Options())]
    assert isinstance(transcript, Transcript)
    assert all(isinstance(segment, Segment) for segment in segments)
    return segments, transcript  # type: ignore[return-value]


async def test_segments_in_order_then_the_transcript(
    service: Service, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """Of a recording in three chunks: each cut where it was said to be, the whole with all of them."""
    speech += MINUTES
    segments, transcript = await _all(service, wav(90.0))
    assert [segment.text for segment in segments] == [" 2", " 31", " 62"]
    assert transcript == Transcript("transcribe", "de", 90.0, tuple(segments))
    assert [chunk.seconds for chunk in engine.chunks] == [23.0, 24.0, 23.0]
    assert all(chunk.samples.dtype == np.float32 for chunk in engine.chunks)


async def test_the_first_chunk_decides_the_language(
    service: Service, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """It goes alone; the others are told, so that one recording has one language."""
    speech += MINUTES
    await _all(service, wav(90.0))
    assert [[chunk.decoding.language for chunk in batch] for batch in engine.batches] == [[None], ["de", "de"]]


async def test_a_language_that_is_given_needs_no_waiting(
    service: Service, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """All chunks may share batches from the start, with everything that was asked."""
    speech += MINUTES
    engine.gate.clear()
    decoding = Decoding("translate", "fr", prompt="p", hotwords="h", temperature=0.5, words=True, logprobs=True)
    reading = asyncio.create_task(_all(service, wav(90.0), Options(decoding)))
    await asyncio.to_thread(engine.entered.acquire, timeout=SECONDS)
    engine.gate.set()
    _, transcript = await reading
    assert (transcript.task, transcript.language) == ("translate", "fr")
    assert {chunk.decoding for chunk in engine.chunks} == {decoding}


async def test_what_the_model_left_is_run_before_the_next_chunk(
    service: Service, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """A `rest`, and the rest of the rest, in their place, in the language that was found."""
    speech += MINUTES[:2]
    samples = np.zeros(SAMPLE_RATE, np.float32)
    engine.rests = {2.0: Chunk(samples, 10.0, Decoding()), 10.0: Chunk(samples, 20.0, Decoding())}
    segments, _ = await _all(service, wav(90.0))
    assert [segment.text for segment in segments] == [" 2", " 10", " 20", " 31"]
    assert {chunk.offset: chunk.decoding.language for chunk in engine.chunks} == {
        2.0: None,
        10.0: "de",
        20.0: "de",
        31.0: "de",
    }


async def test_a_long_recording_looks_ahead_and_no_further(
    service: Service, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """Enough chunks wait to fill batches, few enough to bound memory; all come out in order."""
    speech += [Span(start, start + 16.0) for start in range(0, 400, 20)]  # 20 chunks: no two fit one window
    engine.gate.clear()
    decoding = Decoding(language="en")
    reading = asyncio.create_task(_all(service, wav(400.0), Options(decoding)))
    await asyncio.to_thread(engine.entered.acquire, timeout=SECONDS)
    async with asyncio.timeout(SECONDS):
        while scheduler.queue_seconds < LOOKAHEAD:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert scheduler.queue_seconds == LOOKAHEAD  # of one second each, before anything is measured
    engine.gate.set()
    segments, _ = await reading
    assert [segment.start for segment in segments] == [span.start for span in speech]


async def test_silence_never_reaches_the_engine(service: Service, engine: Engine, wav: Callable[..., bytes]) -> None:
    """The real detector finds nobody in a tone, at any length; the transcript is empty and says how long it was."""
    for seconds in (0.1, 1.0, 45.0):
        segments, transcript = await _all(service, wav(seconds))
        assert not segments
        assert transcript == Transcript("transcribe", None, seconds)
        assert transcript.text == ""
    assert not engine.batches


async def test_silence_keeps_the_language_that_was_given(service: Service, wav: Callable[..., bytes]) -> None:
    """It is the caller's word."""
    _, transcript = await _all(service, wav(1.0), Options(Decoding(language="fr")))
    assert transcript.language == "fr"


async def test_the_voice_settings_reach_the_detector(
    service: Service, monkeypatch: pytest.MonkeyPatch, wav: Callable[..., bytes]
) -> None:
    """Those of chunking_strategy."""
    seen: list[Voice] = []
    monkeypatch.setattr(service_module, "find_speech", lambda _samples, voice: seen.append(voice) or [])
    await _all(service, wav(1.0), Options(voice=Voice(0.25, 1, 2)))
    assert seen == [Voice(0.25, 1, 2)]


async def test_closing_midway_takes_the_chunks_along(
    service: Service, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """A caller who hangs up after the first words leaves nothing in the queue."""
    speech += MINUTES
    items = service.transcribe(io.BytesIO(wav(90.0)), Options(Decoding(language="en")))
    first = await anext(items)
    assert isinstance(first, Segment)
    await items.aclose()
    assert scheduler.requests == 0
    assert len(engine.chunks) <= 3


async def test_cancelling_while_the_engine_works_takes_the_chunks_along(
    service: Service, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """Those that wait are never decoded."""
    speech += MINUTES
    engine.gate.clear()
    options = Options(replace(Decoding(), language="en"))
    reading = asyncio.create_task(_all(service, wav(90.0), options))
    await asyncio.to_thread(engine.entered.acquire, timeout=SECONDS)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert scheduler.requests == 0
    engine.gate.set()
    assert scheduler.close(SECONDS)
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("data", "failure"), [(b"no sound", UnreadableAudio), (None, InvalidRequest)], ids=["unreadable", "too short"]
)
async def test_bad_audio_leaves_the_queue(
    service: Service,
    scheduler: Scheduler[Chunk, ChunkResult],
    data: bytes | None,
    failure: type[Exception],
    wav: Callable[..., bytes],
) -> None:
    """The error comes with the first item, and the place is free again."""
    with pytest.raises(failure):
        await _all(service, wav(0.05) if data is None else data)
    assert scheduler.requests == 0


async def test_too_long_is_refused(service: Service, wav: Callable[..., bytes]) -> None:
    """By the limit that the service was given."""
    with pytest.raises(InvalidRequest, match="longer than 400 seconds"):
        await _all(service, wav(400.5, 8000))


async def test_a_full_queue_refuses_before_decoding(
    service: Service, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], wav: Callable[..., bytes]
) -> None:
    """Busy comes at once: no work is done for who cannot be served."""
    tickets = [scheduler.admit() for _ in range(4)]
    with pytest.raises(Busy):
        await _all(service, b"not even looked at")
    for ticket in tickets:
        ticket.close()
    await _all(service, wav(1.0))


async def test_a_failing_engine_fails_that_request_alone(
    service: Service, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """The one after it is served."""
    speech += MINUTES
    engine.failing = {31.0}
    data = wav(90.0)
    with pytest.raises(EngineFailed):
        await _all(service, data)
    assert scheduler.requests == 0
    engine.failing = set()
    segments, _ = await _all(service, data)
    assert len(segments) == 3


async def test_many_at_once_each_get_their_own(
    service: Service, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """Four requests of one queue share batches and nothing else."""
    speech.append(Span(0.0, 1.0))
    answers = await asyncio.gather(*(_all(service, wav(float(seconds))) for seconds in (1, 2, 3, 4)))
    assert [transcript.duration for _, transcript in answers] == [1.0, 2.0, 3.0, 4.0]
    assert sorted(chunk.seconds for chunk in engine.chunks) == [1.0, 2.0, 3.0, 4.0]
