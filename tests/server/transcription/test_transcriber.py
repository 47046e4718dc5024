from __future__ import annotations

import asyncio
import gc
import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server.errors import Busy, EngineFailed, InvalidRequest, UnreadableAudio
from localwhisper_server.transcription import segmentation as chunks_module
from localwhisper_server.transcription import transcriber as service_module
from localwhisper_server.transcription.pipeline import LOOKAHEAD
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.segmentation import LONGEST_SECONDS
from localwhisper_server.transcription.transcriber import Transcriber
from localwhisper_server.types import (
    SAMPLE_RATE,
    AudioChunk,
    BatchLimits,
    Decoding,
    Options,
    Segment,
    Span,
    Transcript,
    Voice,
)
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.anyio

SECONDS = 10.0
LIMITS = BatchLimits(items=2, frames=10**9, share=10**9)


class Engine:
    """Hears each chunk's offset in it; keeps its batches; stands still while `gate` is shut."""

    def __init__(self) -> None:
        self.batches: list[list[Chunk]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.rests: dict[float, Chunk] = {}
        self.failing: set[float] = set()
        self.languages: dict[float, str] = {}

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
                chunk.decoding.language or self.languages.get(chunk.offset, "de"),
                (Segment(float(chunk.offset), chunk.offset + chunk.seconds, f" {chunk.offset:g}"),),
                self.rests.pop(chunk.offset, None),
            )
            for chunk in chunks
        ]


@pytest.fixture
def engine() -> Engine:
    """Give an engine double."""
    return Engine()


def prepare(piece: AudioChunk, decoding: Decoding, *, full_window: bool = False) -> Chunk:
    """Stand in for the model's features: the samples themselves."""
    return Chunk(piece.samples[None], piece.seconds, piece.offset, decoding, full_window=full_window)


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler[Chunk, ChunkResult]]:
    """Give a scheduler on it."""
    made = Scheduler(engine.run, capacity=2, limits=LIMITS, clock=lambda: 0.0)
    yield made
    engine.gate.set()
    assert made.close(SECONDS)


@pytest.fixture
def service(scheduler: Scheduler[Chunk, ChunkResult]) -> Transcriber:
    """Give a service on that."""
    return Transcriber(scheduler, prepare, max_seconds=400.0)


@pytest.fixture
def speech(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """Give the spans that will be found in a recording of up to a minute; a test fills them in."""
    spans: list[Span] = []
    monkeypatch.setattr(chunks_module, "STRETCH_SECONDS", 60.0)
    monkeypatch.setattr(service_module, "find_speech", lambda _samples, _voice, **_: spans)
    return spans


# Three pieces: no two fit in one.
THIRDS = [Span(2, 12), Span(20, 30), Span(40, 50)]
NO_PADDING = Voice(prefix_padding_ms=0)


async def _all(service: Transcriber, data: bytes, options: Options | None = None) -> tuple[list[Segment], Transcript]:
    source = io.BytesIO(data)
    items = service.transcribe(source, options or Options(voice=NO_PADDING))
    try:
        *segments, transcript = [item async for item in items]
    finally:
        await items.aclose()
        assert source.closed  # it was the service's
    assert isinstance(transcript, Transcript)
    assert all(isinstance(segment, Segment) for segment in segments)
    return segments, transcript  # type: ignore[return-value]


async def test_segments_in_order_then_the_transcript(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """Of a recording in three chunks: each cut where it was said to be, the whole with all of them."""
    speech += THIRDS
    segments, transcript = await _all(service, wav(55.0))
    assert [segment.text for segment in segments] == [" 2", " 20", " 40"]
    assert transcript == Transcript("transcribe", "de", 55.0, tuple(segments))
    assert [chunk.seconds for chunk in engine.chunks] == [10.0, 10.0, 10.0]
    assert all(chunk.features.dtype == np.float32 for chunk in engine.chunks)


async def test_the_first_chunk_decides_the_language(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """It and the second do not wait for that; the others are told, so that one recording has one language."""
    speech += THIRDS
    await _all(service, wav(55.0))
    assert [chunk.decoding.language for chunk in engine.chunks] == [None, None, "de"]
    assert len(engine.batches[0]) == 2


async def test_what_was_heard_in_another_language_is_run_again(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """One that the first chunk did not speak: of the second chunk only the second hearing counts."""
    speech += THIRDS
    engine.languages = {20.0: "nl"}
    segments, transcript = await _all(service, wav(55.0))
    assert [segment.text for segment in segments] == [" 2", " 20", " 40"]
    assert transcript.language == "de"
    assert [(chunk.offset, chunk.decoding.language) for chunk in engine.chunks[:2]] == [(2.0, None), (20.0, None)]
    assert sorted((chunk.offset, chunk.decoding.language) for chunk in engine.chunks[2:]) == [
        (20.0, "de"),
        (40.0, "de"),
    ]


async def test_of_several_hinted_languages_each_chunk_has_its_own(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """No chunk waits for the first to decide, and none is run again for another language."""
    speech += [Span(2, 8), Span(20, 26), Span(40, 46)]
    engine.languages = {20.0: "nl"}
    options = Options(Decoding(languages=("de", "nl")), NO_PADDING)
    segments, transcript = await _all(service, wav(55.0), options)
    assert [segment.text for segment in segments] == [" 2", " 20", " 40"]
    assert transcript.language == "de"
    assert [(chunk.offset, chunk.decoding.language, chunk.language_provisional) for chunk in engine.chunks] == [
        (2.0, None, False),
        (20.0, None, False),
        (40.0, None, False),
    ]


async def test_a_language_that_is_given_needs_no_waiting(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """All chunks may share batches from the start, with everything that was asked."""
    speech += THIRDS
    engine.gate.clear()
    decoding = Decoding("translate", "fr", prompt="p", hotwords="h", temperature=0.5, words=True, logprobs=True)
    reading = asyncio.create_task(_all(service, wav(55.0), Options(decoding, NO_PADDING)))
    await asyncio.to_thread(engine.entered.acquire, timeout=SECONDS)
    engine.gate.set()
    _, transcript = await reading
    assert (transcript.task, transcript.language) == ("translate", "fr")
    assert {chunk.decoding for chunk in engine.chunks} == {decoding}


async def test_what_the_model_left_is_run_before_the_next_chunk(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """A `rest`, and the rest of the rest, in their place, in the language that was found."""
    speech += THIRDS[:2]
    features = np.zeros((1, SAMPLE_RATE), np.float32)
    engine.rests = {2.0: Chunk(features, 1.0, 10.0, Decoding()), 10.0: Chunk(features, 1.0, 15.0, Decoding())}
    segments, _ = await _all(service, wav(55.0))
    assert [segment.text for segment in segments] == [" 2", " 10", " 15", " 20"]
    assert {chunk.offset: chunk.decoding.language for chunk in engine.chunks} == {
        2.0: None,
        10.0: "de",
        15.0: "de",
        20.0: None,  # beside the first, before it was found
    }


async def test_a_long_recording_looks_ahead_and_no_further(
    service: Transcriber,
    engine: Engine,
    scheduler: Scheduler[Chunk, ChunkResult],
    monkeypatch: pytest.MonkeyPatch,
    wav: Callable[..., bytes],
) -> None:
    """Enough chunks wait to fill batches, few enough to bound memory; all come out in order."""
    monkeypatch.setattr(
        service_module,
        "find_speech",
        lambda samples, _voice, **_: [Span(0, samples.size / SAMPLE_RATE)] if samples.size else [],
    )
    asked = 0
    submit = scheduler._submit

    def count(number: int, items: Sequence[Chunk], **how: Any) -> Any:
        nonlocal asked
        asked += len(items)
        return submit(number, items, **how)

    monkeypatch.setattr(scheduler, "_submit", count)
    engine.gate.clear()
    options = Options(Decoding(language="en"), NO_PADDING)
    reading = asyncio.create_task(_all(service, wav(390.0, 8000), options))
    async with asyncio.timeout(SECONDS):
        while asked < LOOKAHEAD:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    assert asked == LOOKAHEAD
    engine.gate.set()
    segments, transcript = await reading
    assert asked >= 390 / LONGEST_SECONDS
    assert sum(segment.end - segment.start for segment in segments) == pytest.approx(390.0, abs=0.1)
    assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
    assert transcript.duration == 390.0


class Minutes:
    """Decodes any upload to minutes of speech, each when `permits` lets it; to be closed by whoever is done with it."""

    def __init__(self, minutes: int) -> None:
        self.minutes, self.read, self.closed = minutes, 0, 0
        self.permits, self.waiting = threading.Semaphore(1), threading.Event()

    def __call__(self, source: Any, *, max_seconds: float, language: str | None = None) -> Any:
        """Stand in for `decoder.blocks`."""
        return self

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        for _ in range(self.minutes):
            if not self.permits.acquire(blocking=False):
                self.waiting.set()
                assert self.permits.acquire(timeout=SECONDS)
            assert not self.closed
            self.read += 1
            yield np.ones(60 * SAMPLE_RATE, np.float32)

    def close(self) -> None:
        """Count."""
        self.closed += 1


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> Minutes:
    """Give three minutes of speech without a pause, of which the first is there."""
    monkeypatch.setattr(service_module, "find_speech", lambda samples, _, **__: [Span(0, samples.size / SAMPLE_RATE)])
    return Minutes(3)


async def test_the_first_words_come_before_the_last_are_read(
    scheduler: Scheduler[Chunk, ChunkResult], minutes: Minutes
) -> None:
    """An hour is decoded as it is transcribed: its first words are there before its second minute."""
    service = Transcriber(scheduler, prepare, max_seconds=400.0, blocks=minutes)
    items = service.transcribe(io.BytesIO(b"an hour"), Options(voice=NO_PADDING))
    first = await anext(items)
    assert isinstance(first, Segment)
    assert (first.start, minutes.read) == (0.0, 1)
    minutes.permits.release(2)
    *rest, transcript = [item async for item in items]
    assert isinstance(transcript, Transcript)
    assert transcript.duration == 180.0
    assert [first, *rest] == list(transcript.segments)
    assert minutes.closed


async def test_words_before_a_long_silence_do_not_wait_for_its_end(
    scheduler: Scheduler[Chunk, ChunkResult], minutes: Minutes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single chunk is heard while the decoder is still at the silence behind it."""
    spans = [[Span(1.0, 3.0)]]
    monkeypatch.setattr(service_module, "find_speech", lambda *_, **__: spans.pop() if spans else [])
    service = Transcriber(scheduler, prepare, max_seconds=400.0, blocks=minutes)
    minutes.permits.release()
    items = service.transcribe(io.BytesIO(b"a word, then nothing"), Options(voice=NO_PADDING))
    first = await asyncio.wait_for(anext(items), SECONDS)
    assert isinstance(first, Segment)
    assert minutes.read == 2
    minutes.permits.release()
    assert [type(item) async for item in items] == [Transcript]


async def test_decoders_that_take_long_hold_up_nobody(
    scheduler: Scheduler[Chunk, ChunkResult], minutes: Minutes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten uploads wait for their decoders: a message is prepared and answered all the same."""
    slow = threading.Event()

    def blocks(source: Any, *, max_seconds: float, language: str | None = None) -> Any:
        source.seek(0)
        if source.read() == b"slow":
            assert slow.wait(SECONDS)
        yield np.ones(SAMPLE_RATE, np.float32)

    many = Scheduler(lambda chunks: [ChunkResult("en", ()) for _ in chunks], capacity=20, limits=LIMITS, clock=float)
    service = Transcriber(many, prepare, max_seconds=400.0, blocks=blocks)
    uploads = [asyncio.create_task(_all(service, b"slow", Options(Decoding(prompt=str(at))))) for at in range(10)]
    async with asyncio.timeout(SECONDS):
        while many.requests < 10:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    _, transcript = await asyncio.wait_for(_all(service, b"a message"), SECONDS)
    assert transcript.duration == 1.0
    assert not any(upload.done() for upload in uploads)
    slow.set()
    await asyncio.gather(*uploads)
    assert many.close(SECONDS)


async def test_a_message_is_prepared_between_the_steps_of_long_recordings(
    scheduler: Scheduler[Chunk, ChunkResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four recordings of an hour of silence: each look is at 30 s at most, and a message comes in between."""
    looks: list[float] = []
    lock = threading.Lock()

    def looking(samples: Any, _voice: Voice, **_: Any) -> list[Span]:
        with lock:
            looks.append(samples.size / SAMPLE_RATE)
        return []

    def blocks(source: Any, *, max_seconds: float, language: str | None = None) -> Iterator[np.ndarray[Any, Any]]:
        source.seek(0)
        for _ in range(1200 if source.read() == b"hour" else 1):
            yield np.zeros(3 * SAMPLE_RATE, np.float32)

    monkeypatch.setattr(service_module, "find_speech", looking)
    service = Transcriber(scheduler, prepare, max_seconds=4000.0, blocks=blocks)
    hours = [asyncio.create_task(_all(service, b"hour", Options(Decoding(prompt=str(at))))) for at in range(3)]
    async with asyncio.timeout(SECONDS):
        while len(looks) < 12:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    before = len(looks)
    await _all(service, b"message")
    assert not any(hour.done() for hour in hours)
    assert len(looks) - before < 60  # of 360
    assert max(looks) <= 33.0
    for hour in hours:
        hour.cancel()
    await asyncio.gather(*hours, return_exceptions=True)


async def test_hanging_up_while_it_is_decoded(scheduler: Scheduler[Chunk, ChunkResult], minutes: Minutes) -> None:
    """The caller is gone at once; the decoder is closed by the thread that is using it, after the block in hand."""
    service = Transcriber(scheduler, prepare, max_seconds=400.0, blocks=minutes)
    options = Options(Decoding(language="en"), NO_PADDING)
    reading = asyncio.create_task(_all(service, b"an hour", options))
    assert await asyncio.to_thread(minutes.waiting.wait, SECONDS)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert scheduler.requests == 0
    assert not minutes.closed
    minutes.permits.release(2)
    async with asyncio.timeout(SECONDS):
        while not minutes.closed:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    assert minutes.read == 2


async def test_silence_never_reaches_the_engine(
    service: Transcriber, engine: Engine, wav: Callable[..., bytes]
) -> None:
    """The real detector finds nobody in a tone, at any length; the transcript is empty and says how long it was."""
    for seconds in (0.1, 1.0, 130.0):
        segments, transcript = await _all(service, wav(seconds))
        assert not segments
        assert transcript == Transcript("transcribe", None, seconds)
        assert transcript.text == ""
    assert not engine.batches


async def test_silence_keeps_the_language_that_was_given(service: Transcriber, wav: Callable[..., bytes]) -> None:
    """It is the caller's word."""
    _, transcript = await _all(service, wav(1.0), Options(Decoding(language="fr")))
    assert transcript.language == "fr"


async def test_the_voice_settings_reach_the_detector(
    service: Transcriber, monkeypatch: pytest.MonkeyPatch, wav: Callable[..., bytes]
) -> None:
    """Those of chunking_strategy."""
    seen: list[Voice] = []
    monkeypatch.setattr(service_module, "find_speech", lambda _samples, voice, **_: seen.append(voice) or [])
    await _all(service, wav(1.0), Options(voice=Voice(0.25, 1, 2)))
    assert seen == [Voice(0.25, 1, 2)]


async def test_the_full_window_is_for_who_asks(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """With `window=exact`; of every chunk, which are then as long as it."""
    speech += THIRDS
    await _all(service, wav(55.0), Options(voice=NO_PADDING, full_window=True))
    await _all(service, wav(54.0))
    assert [(chunk.full_window, chunk.seconds) for chunk in engine.chunks] == [
        (True, 28),
        (True, 10),
        *[(False, 10)] * 3,
    ]


async def test_closing_midway_takes_the_chunks_along(
    service: Transcriber, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """A caller who hangs up after the first words leaves nothing in the queue."""
    speech += THIRDS
    source = io.BytesIO(wav(55.0))
    items = service.transcribe(source, Options(Decoding(language="en"), NO_PADDING))
    first = await anext(items)
    assert isinstance(first, Segment)
    await items.aclose()
    assert source.closed
    assert scheduler.requests == 0
    assert len(engine.chunks) <= 3


async def test_cancelling_while_the_engine_works_takes_the_chunks_along(
    service: Transcriber, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """Those that wait are never decoded."""
    speech += THIRDS
    engine.gate.clear()
    options = Options(Decoding(language="en"), NO_PADDING)
    reading = asyncio.create_task(_all(service, wav(55.0), options))
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
    service: Transcriber,
    scheduler: Scheduler[Chunk, ChunkResult],
    data: bytes | None,
    failure: type[Exception],
    wav: Callable[..., bytes],
) -> None:
    """The error comes with the first item, and the place is free again."""
    with pytest.raises(failure):
        await _all(service, wav(0.05) if data is None else data)
    assert scheduler.requests == 0


async def test_too_long_is_refused(service: Transcriber, wav: Callable[..., bytes]) -> None:
    """By the limit that the service was given."""
    with pytest.raises(InvalidRequest, match="longer than 400 seconds"):
        await _all(service, wav(400.5, 8000))


async def test_a_full_queue_refuses_before_decoding(
    service: Transcriber, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], wav: Callable[..., bytes]
) -> None:
    """Busy comes at once: no work is done for who cannot be served."""
    tickets = [scheduler.admit() for _ in range(4)]
    with pytest.raises(Busy):
        await _all(service, b"not even looked at")
    for ticket in tickets:
        ticket.close()
    await _all(service, wav(1.0))


async def test_a_failing_engine_fails_that_request_alone(
    service: Transcriber, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """The one after it is served."""
    speech += THIRDS
    engine.failing = {20.0}
    data = wav(55.0)
    with pytest.raises(EngineFailed):
        await _all(service, data)
    assert scheduler.requests == 0
    engine.failing = set()
    segments, _ = await _all(service, data)
    assert len(segments) == 3


async def test_failures_that_nobody_waits_for_are_not_reported_as_lost(
    service: Transcriber,
    engine: Engine,
    scheduler: Scheduler[Chunk, ChunkResult],
    speech: list[Span],
    wav: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One chunk's failure ends the request; those of its other chunks are no news to the event loop's log."""
    speech += THIRDS
    engine.failing = {2.0, 20.0, 40.0}
    engine.gate.clear()
    other = scheduler.admit()
    other.submit([Chunk(np.zeros((1, 1), np.float32), 1.0, 0.0, Decoding())])
    await asyncio.to_thread(engine.entered.acquire, timeout=SECONDS)
    reading = asyncio.create_task(_all(service, wav(55.0), Options(Decoding(language="en"), NO_PADDING)))
    async with asyncio.timeout(SECONDS):
        while len(scheduler._queue) < 3:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    engine.gate.set()
    with pytest.raises(EngineFailed):
        await reading
    del reading
    for _ in range(3):
        await asyncio.sleep(0.01)
        gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_many_at_once_each_get_their_own(
    service: Transcriber, engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """Four requests of one queue share batches and nothing else."""
    speech.append(Span(0.0, 1.0))
    answers = await asyncio.gather(*(_all(service, wav(float(seconds))) for seconds in (1, 2, 3, 4)))
    assert [transcript.duration for _, transcript in answers] == [1.0, 2.0, 3.0, 4.0]
    assert sorted(chunk.seconds for chunk in engine.chunks) == [1.0, 2.0, 3.0, 4.0]


# The same upload asked for twice


async def test_the_same_bytes_in_flight_are_computed_once(
    service: Transcriber, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """Whoever asks for the same gets the same, from its first segment; other options are another question."""
    speech += THIRDS
    engine.gate.clear()
    data = wav(55.0)
    first = asyncio.create_task(_all(service, data))
    await asyncio.to_thread(engine.entered.acquire, timeout=SECONDS)
    second = asyncio.create_task(_all(service, data))
    other = asyncio.create_task(_all(service, data, Options(Decoding(words=True), NO_PADDING)))
    async with asyncio.timeout(SECONDS):
        while scheduler.requests < 2:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    engine.gate.set()
    assert await first == await second
    await other
    assert len(engine.chunks) == 6


async def test_one_of_two_may_hang_up(
    service: Transcriber, engine: Engine, scheduler: Scheduler[Chunk, ChunkResult], speech: list[Span], wav: Any
) -> None:
    """The other is served to the end, from the upload of the one who left."""
    speech += THIRDS
    data = wav(55.0)
    source = io.BytesIO(data)
    leaving = service.transcribe(source, Options(voice=NO_PADDING))
    await anext(leaving)
    staying = service.transcribe(io.BytesIO(data), Options(voice=NO_PADDING))
    heard = [await anext(staying)]
    await leaving.aclose()
    heard += [item async for item in staying]
    assert len(heard) == 4
    assert isinstance(heard[-1], Transcript)
    assert source.closed
    assert scheduler.requests == 0


async def test_finished_transcripts_are_kept_for_who_asks_again(
    scheduler: Scheduler[Chunk, ChunkResult], engine: Engine, speech: list[Span], wav: Callable[..., bytes]
) -> None:
    """As many as were asked for, the least used forgotten; none by default."""
    speech.append(Span(0, 1))
    keeping = Transcriber(scheduler, prepare, max_seconds=400.0, kept=1)
    forgetting = Transcriber(scheduler, prepare, max_seconds=400.0)
    for service, lengths, runs in ((keeping, (1, 1, 2, 2, 1), 3), (forgetting, (1, 1), 2)):
        engine.batches.clear()
        for seconds in lengths:
            _, transcript = await _all(service, wav(float(seconds)))
            assert transcript.duration == seconds
        assert len(engine.chunks) == runs
