from __future__ import annotations

import io
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server.audio import pool
from localwhisper_server.diarization.diarizer import Diarizer
from localwhisper_server.errors import InvalidRequest, NoDiarization
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.speakers import SpeakerTranscriber
from localwhisper_server.transcription.transcriber import StepRunner, Transcriber
from localwhisper_server.types import (
    SAMPLE_RATE,
    BatchLimits,
    KnownSpeaker,
    Options,
    Samples,
    Segment,
    Span,
    Speakers,
    Transcript,
    Word,
)
from localwhisper_server.whisper.chunks import ChunkResult
from tests.server.diarization.networks_double import NetworksDouble, voice
from tests.server.engine_double import Clock, EngineDouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from localwhisper_server.whisper.chunks import Chunk

pytestmark = pytest.mark.anyio


def _a_word_a_second(chunk: Chunk) -> ChunkResult:
    """Return one segment with the words "w0", "w1" and so on, by their second in the recording."""
    seconds = range(round(chunk.offset), round(chunk.offset + chunk.seconds))
    words = tuple(Word(f"w{at}", at + 0.3, at + 0.7) for at in seconds)
    text = "".join(f" {word.text}" for word in words)
    return ChunkResult("en", (Segment(chunk.offset, chunk.offset + chunk.seconds, text, words=words),))


def _blocks(source: Any, *, max_seconds: float, language: str | None = None) -> Iterator[Samples]:
    """Decode samples that are written as they are, four seconds at a time."""
    data = np.frombuffer(source.read(), np.float32)
    if not data.size:
        raise InvalidRequest("This is no audio.", param="file")
    for at in range(0, data.size, 4 * SAMPLE_RATE):
        yield data[at : at + 4 * SAMPLE_RATE]


@pytest.fixture
async def transcribe() -> AsyncIterator[Callable[..., Any]]:
    """Return a function from samples and speakers to all items."""
    engine, networks = EngineDouble(answer=_a_word_a_second), NetworksDouble()
    clock = Clock()
    scheduler = Scheduler(
        engine.run, capacity=8, limits=BatchLimits(items=8, frames=10**9, share=10**9), clock=clock, max_wait=300.0
    )
    transcriber = Transcriber(
        scheduler=scheduler,
        prepare=engine.prepare,
        find_speech=lambda samples, _, longest: [Span(0.0, samples.size / SAMPLE_RATE)],  # noqa: ARG005 - the interface's names
        blocks=_blocks,  # type: ignore[arg-type]
        steps=StepRunner(clock=clock),
        max_seconds=3600.0,
    )
    diarizer = Diarizer(lambda: networks)
    speaking = SpeakerTranscriber(transcriber=transcriber, diarizer=diarizer, blocks=_blocks)  # type: ignore[arg-type]

    async def run(*parts: Samples, speakers: Speakers | None) -> list[Segment | Transcript]:
        source = io.BytesIO(np.concatenate(parts).tobytes())
        async with aclosing(speaking.transcribe(source, Options(speakers=speakers))) as items:
            found = [item async for item in items]
        assert source.closed
        return found

    run.networks = networks  # type: ignore[attr-defined]
    yield run
    diarizer.close()
    scheduler.close()


def _known(name: str, samples: Samples) -> KnownSpeaker:
    return KnownSpeaker(name, samples.tobytes())


async def test_the_transcript_has_speakers_and_the_segments_before_it_have_not(transcribe: Any) -> None:
    """Segments come as they are decoded; who speaks is known at the end."""
    *early, whole = await transcribe(voice(0, seconds=8), voice(1, seconds=7), speakers=Speakers())
    assert {segment.speaker for segment in early} == {""}
    assert [(segment.speaker, segment.words[0].text, segment.words[-1].text) for segment in whole.segments] == [
        ("A", "w0", "w7"),
        ("B", "w8", "w14"),
    ]
    assert whole.text == "".join(segment.text for segment in early).strip()


async def test_no_speakers_are_asked_for(transcribe: Any) -> None:
    """The networks are not used at all."""
    *_, whole = await transcribe(voice(0, seconds=8), voice(1, seconds=4), speakers=None)
    assert {segment.speaker for segment in whole.segments} == {""}
    assert not transcribe.networks.heard


async def test_known_speakers(transcribe: Any) -> None:
    """Their references are decoded as uploads are."""
    known = (_known("Bo", voice(1, seconds=3)), _known("Cy", voice(5, seconds=3)))
    *_, whole = await transcribe(voice(0, seconds=8), voice(1, seconds=7), speakers=Speakers(known))
    assert [segment.speaker for segment in whole.segments] == ["A", "Bo"]


async def test_most_speakers(transcribe: Any) -> None:
    """The bound holds for the whole recording."""
    *_, whole = await transcribe(voice(0, seconds=8), voice(1, seconds=7), speakers=Speakers(most=1))
    assert {segment.speaker for segment in whole.segments} == {"A"}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (voice(0, seconds=1.0), "is 1.0 s long. It must be 2 to 10 s."),
        (voice(0, seconds=11.0), "is 11.0 s long. It must be 2 to 10 s."),
        (voice(0, seconds=0.0), "cannot be used: This is no audio."),
        (voice(0, seconds=5.0) * np.float32(1e-6), "is silent. Send 2 to 10 s of this speaker alone."),
    ],
)
async def test_unusable_references(transcribe: Any, reference: Samples, message: str) -> None:
    """The error names the speaker and the field, not the upload."""
    with pytest.raises(InvalidRequest) as failure:
        await transcribe(voice(0, seconds=8), speakers=Speakers((_known("Ann", reference),)))
    assert failure.value.message == f"The reference of 'Ann' {message}"
    assert failure.value.param == "known_speaker_references"


async def test_a_long_recording_without_a_chunking_strategy(transcribe: Any) -> None:
    """As with OpenAI's model, 30 s are the most; the words of the refusal are OpenAI's."""
    assert await transcribe(voice(0, seconds=30), speakers=Speakers(chunked=False))
    with pytest.raises(InvalidRequest) as failure:
        await transcribe(voice(0, seconds=31), speakers=Speakers(chunked=False))
    assert failure.value.message == "chunking_strategy is required for diarization models"
    assert (failure.value.param, failure.value.code) == ("chunking_strategy", "invalid_value")


async def test_without_the_packages_nothing_is_decoded() -> None:
    """The refusal comes first, and the upload is closed."""

    def missing() -> None:
        raise NoDiarization("not installed")

    source = io.BytesIO(b"sound")
    speaking = SpeakerTranscriber(
        transcriber=None,  # type: ignore[arg-type]
        diarizer=Diarizer(NetworksDouble, missing),
        blocks=pool.blocks,
    )
    with pytest.raises(NoDiarization):
        await anext(speaking.transcribe(source, Options(speakers=Speakers())))
    assert source.closed
