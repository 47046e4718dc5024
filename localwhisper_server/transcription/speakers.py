"""Transcripts with speakers: the diarization runs beside the transcription, and words get their speakers at the end."""

import io
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import IO

import anyio.to_thread
import numpy as np

from localwhisper_server.audio import pool
from localwhisper_server.diarization.assignment import assign
from localwhisper_server.diarization.diarizer import Diarization, Diarizer
from localwhisper_server.errors import InvalidRequest
from localwhisper_server.transcription.transcriber import Listen, Transcriber
from localwhisper_server.types import SAMPLE_RATE, KnownSpeaker, Options, Samples, Segment, Speakers, Transcript

# OpenAI's limits: for a recording without a chunking strategy, and for a reference. A little more for the latter, since
# encoders add silence.
UNCHUNKED_SECONDS = 30.0
REFERENCE_SECONDS = (2.0, 10.0)
TOLERATED_SECONDS = 0.25
# The largest sample of a reference without a voice, -54 dB; a microphone that is switched off gives less.
SILENT = 0.002


@dataclass(frozen=True, kw_only=True)
class SpeakerTranscriber:
    """Wraps a transcriber, and has the same contract. `blocks` decodes the references of known speakers."""

    transcriber: Transcriber
    diarizer: Diarizer
    blocks: pool.Decode

    async def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments, then the transcript; see `Transcriber.transcribe`.

        If the request asks for speakers, only the segments of the transcript have them, and are split where the
        speaker changes: who is who is known when the whole recording is heard.

        Raises:
            NoDiarization: speakers are asked for, and the networks' files are missing.

        """
        if options.speakers is None:
            async with aclosing(self.transcriber.transcribe(source, options)) as items:
                async for item in items:
                    yield item
            return
        with closing(source), closing(self.diarizer.begin()) as diarization:
            known = [await anyio.to_thread.run_sync(self._reference, speaker) for speaker in options.speakers.known]
            listen = _listen(diarization, options.speakers)
            async with aclosing(self.transcriber.transcribe(source, options, listen=listen)) as items:
                async for item in items:
                    if isinstance(item, Transcript):
                        yield await _labelled(item, diarization, options.speakers, known)
                    else:
                        yield item

    def _reference(self, speaker: KnownSpeaker) -> Samples:
        """Return the samples of a known speaker's reference.

        Raises:
            InvalidRequest: it is no audio, or too short or too long.

        """
        least, most = REFERENCE_SECONDS
        try:
            with closing(self.blocks(io.BytesIO(speaker.reference), max_seconds=2 * most)) as blocks:
                samples = np.concatenate(list(blocks))
        except InvalidRequest as failure:
            message = f"The reference of '{speaker.name}' cannot be used: {failure.message}"
            raise InvalidRequest(message, param="known_speaker_references", code="invalid_value") from failure
        seconds = samples.size / SAMPLE_RATE
        if not least - TOLERATED_SECONDS <= seconds <= most + TOLERATED_SECONDS:
            message = f"The reference of '{speaker.name}' is {seconds:.1f} s long. It must be {least:g} to {most:g} s."
            raise InvalidRequest(message, param="known_speaker_references", code="invalid_value")
        if np.abs(samples).max() < SILENT:
            message = f"The reference of '{speaker.name}' is silent. Send 2 to 10 s of this speaker alone."
            raise InvalidRequest(message, param="known_speaker_references", code="invalid_value")
        return samples


def _listen(diarization: Diarization, speakers: Speakers) -> Listen:
    heard = 0

    def listen(block: Samples) -> None:
        nonlocal heard
        heard += block.size
        if not speakers.chunked and heard > UNCHUNKED_SECONDS * SAMPLE_RATE:
            message = "chunking_strategy is required for diarization models"
            raise InvalidRequest(message, param="chunking_strategy", code="invalid_value")
        diarization.add(block)

    return listen


async def _labelled(
    transcript: Transcript, diarization: Diarization, speakers: Speakers, known: Sequence[Samples]
) -> Transcript:
    timeline = await diarization.timeline(known, most=speakers.most)
    names = [speaker.name for speaker in speakers.known]
    return replace(transcript, segments=assign(transcript.segments, timeline, names))
