"""One upload to one transcript: decode, cut into chunks, queue, run the model, join the segments."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import IO

from localwhisper_server.audio import pool
from localwhisper_server.observer import Observer
from localwhisper_server.transcription._pipeline import ChunkPipeline
from localwhisper_server.transcription.preparation import Prepare, Recording, StepRunner
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.segmentation import FindSpeech, Segmenter
from localwhisper_server.types import Options, Segment, Transcript


class Transcriber:
    """Transcribes uploads with one scheduler. Safe for any number of concurrent calls on one event loop.

    `blocks` decodes an upload, `find_speech` detects speech in it, and `prepare` computes a chunk's features. `steps`
    runs the latter two. A recording may be `max_seconds` long.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prepare: Prepare,
        find_speech: FindSpeech,
        *,
        blocks: pool.Decode,
        steps: StepRunner,
        max_seconds: float,
        observer: Observer | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._prepare = prepare
        self._find_speech = find_speech
        self._blocks = blocks
        self._steps = steps
        self._max_seconds = max_seconds
        self._observer = observer or Observer()

    async def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield each segment as soon as it is known, in order, and the whole transcript last.

        `source` is closed at the end. Closing the generator removes the chunks that still wait in the queue.

        Raises:
            Busy: the queue is full, or the wait too long.
            UnreadableAudio, InvalidRequest: the upload is not audio, too short or too long.
            EngineFailed: the model failed.

        """
        language, segments = options.decoding.language, list[Segment]()
        with (
            closing(source),
            closing(self._recording(source, options)) as recording,
            closing(self._scheduler.admit(bulk=options.bulk)) as ticket,
        ):
            async with aclosing(ChunkPipeline(ticket, options.decoding).results(recording)) as results:
                async for result in results:
                    language = language or result.language
                    for segment in result.segments:
                        segments.append(segment)
                        yield segment
            self._observer.transcribed(recording.seconds)
            yield Transcript(options.decoding.task, language, recording.seconds, tuple(segments))

    def _recording(self, source: IO[bytes], options: Options) -> Recording:
        blocks = self._blocks(source, max_seconds=self._max_seconds, language=options.decoding.language)
        return Recording(blocks, Segmenter(self._find_speech, options), self._prepare, options, self._steps)
