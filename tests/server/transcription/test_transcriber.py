from __future__ import annotations

import asyncio
import gc
import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server.audio import pool
from localwhisper_server.errors import Busy, EngineFailed, InvalidRequest, UnreadableAudio
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.segmentation import LONGEST_SECONDS
from localwhisper_server.transcription.transcriber import DECODERS, LOOKAHEAD, StepRunner, Transcriber
from localwhisper_server.types import (
    SAMPLE_RATE,
    BatchLimits,
    Decoding,
    Options,
    Segment,
    Span,
    Transcript,
    Voice,
)
from localwhisper_server.whisper.chunks import Chunk, ChunkResult, find_speech
from tests.server.engine_double import SECONDS, Clock, EngineDouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.anyio

LIMITS = BatchLimits(items=2, frames=10**9, share=10**9)
NO_PADDING = Voice(prefix_padding_ms=0)
# Three stretches of speech in 55 s: no two fit into one chunk.
THREE = [Span(2, 12), Span(21, 31), Span(40, 50)]


class Engine(EngineDouble):
    """Answers each chunk with its offset; some offsets fail, or have a language or a remainder of their own."""

    def __init__(self) -> None:
        super().__init__(answer=self._decoded)
        self.remainders: dict[float, Chunk] = {}
        self.failing: set[float] = set()
        self.others: dict[float, str] = {}

    def _decoded(self, chunk: Chunk) -> ChunkResult:
        if chunk.offset in self.failing:
            raise RuntimeError("CUDA failed with error out of memory")
        return ChunkResult(
            chunk.decoding.language or self.others.get(chunk.offset, "de"),
            (Segment(float(chunk.offset), chunk.offset + chunk.seconds, f" {chunk.offset:g}"),),
            self.remainders.pop(chunk.offset, None),
        )


class Detector:
    """Finds speech where the samples are not 0; remembers the voice settings and the most seconds it was given."""

    def __init__(self) -> None:
        self.voices: list[Voice] = []
        self.lengths: list[float] = []

    def __call__(self, samples: Any, voice: Voice, *, longest: float) -> list[Span]:
        self.voices.append(voice)
        self.lengths.append(samples.size / SAMPLE_RATE)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], samples != 0, [0]]).astype(np.int8)))
        return [Span(a / SAMPLE_RATE, b / SAMPLE_RATE) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def upload(speech: Sequence[Span], seconds: float = 55.0) -> bytes:
    """Return an upload in the format of `decode`: a byte for each sample, 1 in speech and 0 elsewhere."""
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.int8)
    for span in speech:
        samples[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)] = 1
    return samples.tobytes()


def decode(source: Any, *, max_seconds: float, language: str | None = None) -> Iterator[Any]:
    """Decode such an upload in blocks of 3 s."""
    source.seek(0)
    samples = np.frombuffer(source.read(), np.int8).astype(np.float32)
    for first in range(0, samples.size, 3 * SAMPLE_RATE):
        yield samples[first : first + 3 * SAMPLE_RATE]


@pytest.fixture
def engine() -> Engine:
    """Give an engine double."""
    return Engine()


@pytest.fixture
def detector() -> Detector:
    """Give a detector double."""
    return Detector()


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    """Give a scheduler on the engine double."""
    made = Scheduler(engine.run, capacity=2, limits=LIMITS, clock=Clock())
    yield made
    engine.gate.set()
    assert made.close(SECONDS)


@pytest.fixture
def make(scheduler: Scheduler, engine: Engine, detector: Detector) -> Callable[..., Transcriber]:
    """Give a function that makes a transcriber; any of its parts may be replaced."""

    def made(**parts: Any) -> Transcriber:
        defaults: dict[str, Any] = {
            "scheduler": scheduler,
            "prepare": engine.prepare,
            "find_speech": detector,
            "blocks": decode,
            "steps": StepRunner(clock=Clock()),
            "max_seconds": 400.0,
        }
        return Transcriber(**defaults | parts)

    return made


@pytest.fixture
def transcriber(make: Callable[..., Transcriber]) -> Transcriber:
    """Give a transcriber with doubles for the decoder, the detector and the engine."""
    return make()


async def _all(
    transcriber: Transcriber, data: bytes, options: Options | None = None
) -> tuple[list[Segment], Transcript]:
    source = io.BytesIO(data)
    found = transcriber.transcribe(source, options or Options(voice=NO_PADDING))
    try:
        *segments, transcript = [item async for item in found]
    finally:
        await found.aclose()
        assert source.closed
    assert isinstance(transcript, Transcript)
    assert all(isinstance(segment, Segment) for segment in segments)
    return segments, transcript  # type: ignore[return-value]


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)


async def test_segments_in_order_then_the_transcript(transcriber: Transcriber, engine: Engine) -> None:
    """A recording in three chunks: each is cut where the speech is, and the transcript has all segments."""
    segments, transcript = await _all(transcriber, upload(THREE))
    assert [segment.text for segment in segments] == [" 2", " 21", " 40"]
    assert transcript == Transcript("transcribe", "de", 55.0, tuple(segments))
    assert [chunk.seconds for chunk in engine.chunks] == [10.0, 10.0, 10.0]


# Languages


async def test_the_first_chunk_decides_the_language(transcriber: Transcriber, engine: Engine) -> None:
    """The second does not wait for that. Later chunks get its language, so that a recording has one."""
    await _all(transcriber, upload(THREE))
    assert [chunk.decoding.language for chunk in engine.chunks] == [None, None, "de"]
    assert len(engine.batches[0]) == 2


async def test_a_second_chunk_in_another_language_is_decoded_again(transcriber: Transcriber, engine: Engine) -> None:
    """In the language of the first chunk; only the second result counts."""
    engine.others = {21.0: "nl"}
    segments, transcript = await _all(transcriber, upload(THREE))
    assert [segment.text for segment in segments] == [" 2", " 21", " 40"]
    assert transcript.language == "de"
    languages = [(chunk.offset, chunk.decoding.language) for chunk in engine.chunks]
    assert languages[:2] == [(2.0, None), (21.0, None)]
    assert sorted(languages[2:]) == [(21.0, "de"), (40.0, "de")]


async def test_with_several_languages_each_chunk_has_its_own(transcriber: Transcriber, engine: Engine) -> None:
    """No chunk waits for the first to decide, and none is decoded again for another language."""
    engine.others = {20.0: "nl"}
    options = Options(Decoding(languages=("de", "nl")), NO_PADDING)
    segments, transcript = await _all(transcriber, upload([Span(2, 8), Span(20, 26), Span(40, 46)]), options)
    assert [segment.text for segment in segments] == [" 2", " 20", " 40"]
    assert transcript.language == "de"
    assert [(chunk.offset, chunk.decoding.language, chunk.language_provisional) for chunk in engine.chunks] == [
        (2.0, None, False),
        (20.0, None, False),
        (40.0, None, False),
    ]


async def test_with_a_given_language_no_chunk_waits(transcriber: Transcriber, engine: Engine) -> None:
    """All chunks get the request's decoding options unchanged."""
    decoding = Decoding("translate", "fr", prompt="p", hotwords="h", temperature=0.5, words=True, logprobs=True)
    _, transcript = await _all(transcriber, upload(THREE), Options(decoding, NO_PADDING))
    assert (transcript.task, transcript.language) == ("translate", "fr")
    assert {chunk.decoding for chunk in engine.chunks} == {decoding}


async def test_silence_keeps_the_given_language(transcriber: Transcriber, engine: Engine) -> None:
    """Silence never reaches the engine. Its transcript is empty and has its duration."""
    _, transcript = await _all(transcriber, upload([], 130.0), Options(Decoding(language="fr")))
    assert transcript == Transcript("transcribe", "fr", 130.0)
    assert not engine.batches


# The pipeline


async def test_remainders_come_before_the_next_chunk(transcriber: Transcriber, engine: Engine) -> None:
    """Also the remainder of a remainder, in the language of its chunk."""
    features = np.zeros((1, SAMPLE_RATE), np.float32)
    engine.remainders = {2.0: Chunk(features, 1.0, 10.0, Decoding()), 10.0: Chunk(features, 1.0, 15.0, Decoding())}
    segments, _ = await _all(transcriber, upload(THREE[:2]))
    assert [segment.text for segment in segments] == [" 2", " 10", " 15", " 21"]
    assert {chunk.offset: chunk.decoding.language for chunk in engine.chunks} == {
        2.0: None,
        10.0: "de",
        15.0: "de",
        21.0: None,  # submitted together with the first
    }


class CountingTicket:
    """A scheduler's ticket that counts the chunks submitted."""

    def __init__(self, ticket: Any) -> None:
        self.ticket, self.submitted = ticket, 0
        self.close = ticket.close

    def submit(self, chunks: Sequence[Chunk], **how: Any) -> Any:
        self.submitted += len(chunks)
        return self.ticket.submit(chunks, **how)


class CountingScheduler:
    """A scheduler with one such ticket."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.ticket = CountingTicket(scheduler.admit())

    def admit(self, *, bulk: bool) -> CountingTicket:
        return self.ticket


async def test_a_long_recording_has_a_bounded_number_of_chunks_in_the_queue(
    make: Callable[..., Transcriber], scheduler: Scheduler, engine: Engine
) -> None:
    """Enough to fill batches, few enough to bound memory; all results come in order."""
    counting = CountingScheduler(scheduler)
    engine.gate.clear()
    options = Options(Decoding(language="en"), NO_PADDING)
    task = asyncio.create_task(_all(make(scheduler=counting), upload([Span(0, 390)], 390.0), options))
    await _until(lambda: counting.ticket.submitted >= LOOKAHEAD)
    for _ in range(200):
        await asyncio.sleep(0)
    assert counting.ticket.submitted == LOOKAHEAD
    engine.gate.set()
    segments, transcript = await task
    assert counting.ticket.submitted >= 390 / LONGEST_SECONDS
    assert sum(segment.end - segment.start for segment in segments) == pytest.approx(390.0, abs=0.1)
    assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
    assert transcript.duration == 390.0


class Minutes:
    """Decodes any upload to three minutes, of speech up to `speech` seconds in; each needs a permit, the first has one.

    It stands for the decoder and for the blocks it gives.
    """

    def __init__(self, speech: float = 180.0) -> None:
        self.speech, self.read, self.closed = speech, 0, 0
        self.permits, self.waiting = threading.Semaphore(1), threading.Event()

    def __call__(self, source: Any, *, max_seconds: float, language: str | None = None) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        times = np.arange(180 * SAMPLE_RATE) / SAMPLE_RATE
        for minute in (times < self.speech).astype(np.float32).reshape(3, -1):
            if not self.permits.acquire(blocking=False):
                self.waiting.set()
                assert self.permits.acquire(timeout=SECONDS)
            assert not self.closed
            self.read += 1
            yield minute

    def close(self) -> None:
        self.closed += 1


async def test_the_first_segment_comes_before_the_recording_is_decoded(make: Callable[..., Transcriber]) -> None:
    """A recording is transcribed while it is decoded."""
    minutes = Minutes()
    found = make(blocks=minutes).transcribe(io.BytesIO(b"an hour"), Options(voice=NO_PADDING))
    first = await anext(found)
    assert isinstance(first, Segment)
    assert (first.start, minutes.read) == (0.0, 1)
    minutes.permits.release(2)
    *others, transcript = [item async for item in found]
    assert isinstance(transcript, Transcript)
    assert transcript.duration == 180.0
    assert [first, *others] == list(transcript.segments)
    assert minutes.closed


async def test_a_chunk_before_a_long_silence_is_decoded_at_once(make: Callable[..., Transcriber]) -> None:
    """It does not wait for a second chunk while the decoder is at the silence behind it."""
    minutes = Minutes(speech=3.0)
    minutes.permits.release()
    found = make(blocks=minutes).transcribe(io.BytesIO(b"a word, then nothing"), Options(voice=NO_PADDING))
    assert isinstance(await asyncio.wait_for(anext(found), SECONDS), Segment)
    assert minutes.read == 2
    minutes.permits.release()
    assert [type(item) async for item in found] == [Transcript]


async def test_slow_decoders_delay_no_other_request(make: Callable[..., Transcriber], engine: Engine) -> None:
    """While ten uploads wait for their decoders, a message is prepared and answered."""
    gate = threading.Event()

    def blocks(source: Any, **_: Any) -> Any:
        source.seek(0)
        if source.read() == b"slow":
            assert gate.wait(SECONDS)
        yield np.ones(SAMPLE_RATE, np.float32)

    many = Scheduler(engine.run, capacity=20, limits=LIMITS, clock=Clock())
    transcriber = make(scheduler=many, blocks=blocks, decoder_seconds=0.0)
    slow = [asyncio.create_task(_all(transcriber, b"slow")) for _ in range(10)]
    await _until(lambda: many.requests == 10)
    _, transcript = await asyncio.wait_for(_all(transcriber, b"a message"), SECONDS)
    assert transcript.duration == 1.0
    assert not any(task.done() for task in slow)
    gate.set()
    await asyncio.gather(*slow)
    assert many.close(SECONDS)


async def test_few_recordings_are_decoded_at_a_time(make: Callable[..., Transcriber], engine: Engine) -> None:
    """Each decoder is a process that has to start: a hundred callers must not start one each, nor if they leave."""
    lock, gate, now, most, begun = threading.Lock(), threading.Event(), 0, 0, 0

    def blocks(_source: Any, **_: Any) -> Any:
        nonlocal now, most, begun
        with lock:
            now, most, begun = now + 1, max(most, now + 1), begun + 1
        assert gate.wait(SECONDS)
        with lock:
            now -= 1
        yield np.ones(SAMPLE_RATE, np.float32)

    many = Scheduler(engine.run, capacity=100, limits=LIMITS, clock=Clock())
    transcriber = make(scheduler=many, blocks=blocks, decoder_seconds=SECONDS)
    callers = [asyncio.create_task(_all(transcriber, b"%d" % number)) for number in range(20)]
    await _until(lambda: now == DECODERS)
    leaving, staying = callers[:10], callers[10:]
    for caller in leaving:
        caller.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    for _ in range(50):
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*staying)
    assert most == DECODERS
    assert begun == DECODERS + len(staying)  # nothing was begun for the others who left
    assert many.close(SECONDS)


async def test_a_message_is_prepared_between_the_steps_of_long_recordings(
    transcriber: Transcriber, detector: Detector
) -> None:
    """Of three hours of silence, the detector gets 33 s at most at a time, and a message comes in between."""
    silence, lengths = upload([], 3600.0), detector.lengths
    hours = [asyncio.create_task(_all(transcriber, silence)) for _ in range(3)]
    await _until(lambda: len(lengths) >= 12)
    before = len(lengths)
    await _all(transcriber, upload([Span(1, 2)], 3.0))
    assert not any(hour.done() for hour in hours)
    assert len(lengths) - before < 60  # of 360
    assert max(lengths) <= 33.0
    for hour in hours:
        hour.cancel()
    await asyncio.gather(*hours, return_exceptions=True)


# The detector and the window


async def test_the_voice_settings_reach_the_detector(transcriber: Transcriber, detector: Detector) -> None:
    """They are those of `chunking_strategy`."""
    await _all(transcriber, upload([], 1.0), Options(voice=Voice(0.25, 1, 2)))
    assert detector.voices == [Voice(0.25, 1, 2)]


async def test_the_full_window_is_for_requests_that_ask_for_it(transcriber: Transcriber, engine: Engine) -> None:
    """All their chunks have it, and are up to 30 s long."""
    await _all(transcriber, upload(THREE), Options(voice=NO_PADDING, full_window=True))
    await _all(transcriber, upload(THREE))
    assert [(chunk.full_window, chunk.seconds) for chunk in engine.chunks] == [
        (True, 29),
        (True, 10),
        *[(False, 10)] * 3,
    ]


@pytest.mark.parametrize("seconds", [0.1, 1.0, 130.0])
async def test_a_tone_is_no_speech(
    make: Callable[..., Transcriber], engine: Engine, wav: Callable[..., bytes], seconds: float
) -> None:
    """The real decoder and the real detector find none, at any length."""
    segments, transcript = await _all(make(blocks=pool.blocks, find_speech=find_speech), wav(seconds))
    assert not segments
    assert transcript == Transcript("transcribe", None, seconds)
    assert not engine.batches


# Callers that leave, and failures


async def test_a_caller_who_leaves_while_it_is_decoded(make: Callable[..., Transcriber], scheduler: Scheduler) -> None:
    """The request ends at once. The thread that waits for the decoder closes it after the current block."""
    minutes = Minutes()
    task = asyncio.create_task(_all(make(blocks=minutes), b"an hour", Options(Decoding(language="en"), NO_PADDING)))
    assert await asyncio.to_thread(minutes.waiting.wait, SECONDS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scheduler.requests == 0
    assert not minutes.closed
    minutes.permits.release(2)
    await _until(lambda: minutes.closed)
    assert minutes.read == 2


async def test_closing_after_the_first_segment(transcriber: Transcriber, scheduler: Scheduler) -> None:
    """The upload is closed, and no chunk is left in the queue."""
    source = io.BytesIO(upload(THREE))
    found = transcriber.transcribe(source, Options(Decoding(language="en"), NO_PADDING))
    assert isinstance(await anext(found), Segment)
    await found.aclose()
    assert source.closed
    assert scheduler.requests == 0


async def test_cancelling_while_the_engine_works(
    transcriber: Transcriber, engine: Engine, scheduler: Scheduler
) -> None:
    """The chunks that wait are never decoded."""
    engine.gate.clear()
    task = asyncio.create_task(_all(transcriber, upload(THREE), Options(Decoding(language="en"), NO_PADDING)))
    await asyncio.to_thread(engine.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scheduler.requests == 0
    engine.gate.set()
    assert scheduler.close(SECONDS)
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("seconds", "failure", "message"),
    [(None, UnreadableAudio, "corrupted"), (0.05, InvalidRequest, "too short"), (400.5, InvalidRequest, "than 400 s")],
)
async def test_bad_audio_leaves_the_queue(
    make: Callable[..., Transcriber],
    scheduler: Scheduler,
    wav: Callable[..., bytes],
    seconds: float | None,
    failure: type[Exception],
    message: str,
) -> None:
    """The decoder's error is raised, and there is room again."""
    data = b"no sound" if seconds is None else wav(seconds, 8000)
    with pytest.raises(failure, match=message):
        await _all(make(blocks=pool.blocks), data)
    assert scheduler.requests == 0


async def test_a_full_queue_refuses_before_decoding(make: Callable[..., Transcriber], scheduler: Scheduler) -> None:
    """No work is done for a request that cannot be served."""
    minutes = Minutes()
    for _ in range(4):
        scheduler.admit()
    with pytest.raises(Busy):
        await _all(make(blocks=minutes), b"an hour")
    assert not minutes.read


async def test_a_failing_engine_fails_that_request_alone(
    transcriber: Transcriber, engine: Engine, scheduler: Scheduler
) -> None:
    """The next one is served."""
    engine.failing = {21.0}
    with pytest.raises(EngineFailed):
        await _all(transcriber, upload(THREE))
    assert scheduler.requests == 0
    engine.failing = set()
    segments, _ = await _all(transcriber, upload(THREE))
    assert len(segments) == 3


async def test_the_failures_of_other_chunks_are_not_logged_as_lost(
    make: Callable[..., Transcriber], engine: Engine, scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """One chunk's failure ends the request; asyncio must not complain that those of its other chunks were ignored."""
    engine.failing = {2.0, 21.0, 40.0}
    engine.gate.clear()
    scheduler.admit().submit([Chunk(np.zeros((1, 1), np.float32), 1.0, 0.0, Decoding())])
    await asyncio.to_thread(engine.wait)
    counting = CountingScheduler(scheduler)
    options = Options(Decoding(language="en"), NO_PADDING)
    task = asyncio.create_task(_all(make(scheduler=counting), upload(THREE), options))
    await _until(lambda: counting.ticket.submitted == 2)
    engine.gate.set()
    with pytest.raises(EngineFailed):
        await task
    del task
    assert scheduler.close(SECONDS)
    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_requests_at_once_get_their_own_results(transcriber: Transcriber, engine: Engine) -> None:
    """Four requests share batches and nothing else."""
    uploads = [upload([Span(0, 1)], float(seconds)) for seconds in (1, 2, 3, 4)]
    answers = await asyncio.gather(*(_all(transcriber, data) for data in uploads))
    assert [transcript.duration for _, transcript in answers] == [1.0, 2.0, 3.0, 4.0]
    assert sorted(chunk.seconds for chunk in engine.chunks) == [1.0, 2.0, 3.0, 4.0]
