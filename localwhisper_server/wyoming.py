"""The Wyoming protocol, by which Home Assistant asks for speech-to-text: the same models, another port.

A client sends `describe` and is answered `info`; or it sends `transcribe`, `audio-start`, `audio-chunk`s and
`audio-stop`, and is answered with the words as they are found and then the whole `transcript`. The protocol has no
keys, so that only the address says who may call. Source: the package `wyoming` 1.10 and its README.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import tempfile
import time
import wave
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from wyoming.asr import Transcribe, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.asr import Transcript as TranscriptEvent
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong

from localwhisper_client import __version__
from localwhisper_client.shared import languages
from localwhisper_client.shared.lan_ranges import Network, host_of, parse_address, within
from localwhisper_server.errors import Busy, EngineFailed, InvalidRequest, ServerError
from localwhisper_server.models import Model, Models
from localwhisper_server.observer import Observer, request_id
from localwhisper_server.types import Decoding, Options, Transcript

logger = logging.getLogger(__name__)

ROUTE: Final = "wyoming"
LONGEST_LINE: Final = 64 * 1024
MOST_EVENT_BYTES: Final = 1024 * 1024  # half a minute of 16 kHz in one event; clients send 0.1 s
MOST_CONNECTIONS: Final = 64
MOST_PER_ADDRESS: Final = 16
IN_MEMORY: Final = 4 * 1024 * 1024
NO_ROOM_RETRY_SECONDS: Final = 30.0  # as for uploads
LONGEST_HINT: Final = 8000  # characters, as for `keywords` of the API
WIDTHS: Final = (1, 2, 3, 4)  # bytes of a sample that a WAV file may have
_PROJECT: Final = Attribution("localwhisper", "")


@dataclass(frozen=True, slots=True)
class Service:
    """Where it listens, and what all connections share.

    Callers come from `allow_from`. A recording has at most `most_bytes`. A client that sends nothing for
    `silent_seconds` has gone.
    """

    models: Models
    observer: Observer
    host: str
    port: int
    allow_from: Sequence[Network]
    most_bytes: int
    clock: Callable[[], float] = time.monotonic
    silent_seconds: float = 60.0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Answer connections until the block ends; gives the port. Where it is in use, log that, and give 0."""
        running: dict[asyncio.Task[None], str] = {}  # and the host of each

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - asyncio runs this in a task
            peer = (writer.get_extra_info("peername") or ("",))[0]
            address = parse_address(peer)
            try:
                if address is None or not within(address, self.allow_from):
                    logger.info("wyoming: %s refused (--allow-from lets it in)", peer or "an unknown address")
                elif len(running) >= MOST_CONNECTIONS:
                    logger.info("wyoming: %s refused, %d connections are open", peer, len(running))
                elif list(running.values()).count(host_of(address)) >= MOST_PER_ADDRESS:
                    logger.info("wyoming: %s refused, it has %d connections open", peer, MOST_PER_ADDRESS)
                else:
                    running[task] = host_of(address)
                    await _Connection(self, reader, writer, peer).run()
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as failure:
                logger.debug("wyoming: %s: %s", peer, failure)
            finally:
                running.pop(task, None)
                writer.close()

        try:
            server = await asyncio.start_server(accept, self.host, self.port, limit=LONGEST_LINE)
        except OSError as failure:
            logger.error("no Wyoming on %s port %d: %s", self.host, self.port, failure.strerror)  # noqa: TRY400 - one line
            yield 0
            return
        port: int = server.sockets[0].getsockname()[1]
        logger.info("listening on %s port %d by the Wyoming protocol", self.host, port)
        try:
            yield port
        finally:
            server.close()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


class _Malformed(Exception):
    """What came is not an event of the protocol."""


async def _read_event(reader: asyncio.StreamReader) -> Event | None:
    """Return the next event, None at the end. The package's own reader takes events of any size.

    Raises:
        _Malformed: it is no event, or a larger one than any client sends.

    """
    try:
        line = await reader.readline()
        if not line:
            return None
        head = json.loads(line)
        lengths = [head.get("data_length") or 0, head.get("payload_length") or 0]
        if not all(isinstance(length, int) and 0 <= length <= MOST_EVENT_BYTES for length in lengths):
            raise _Malformed(f"An event may have {MOST_EVENT_BYTES} bytes.")
        data, payload = [await reader.readexactly(length) for length in lengths]
        fields = (head.get("data") or {}) | (json.loads(data) if data else {})
        event = Event(str(head["type"]), fields, payload or None)
        if b"\\u" in line + data:
            # An escape may stand for half a character, which no answer and no tokenizer can have.
            json.dumps([event.type, event.data], ensure_ascii=False).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
        raise _Malformed("This is not an event of the Wyoming protocol.") from failure
    return event


class _Recording:
    """The samples of one utterance, as a WAV file: in memory first, then on disk."""

    def __init__(self, rate: int, width: int, channels: int) -> None:
        if not (1000 <= rate <= 384_000 and width in WIDTHS and 1 <= channels <= 8):  # noqa: PLR2004 - of WAV files
            raise InvalidRequest(f"Audio of {rate} Hz, {width} bytes and {channels} channels cannot be decoded.")
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the model closes it
        self.size = 0
        self._wav = wave.open(self.file, "wb")  # noqa: SIM115 - closed by `finish`
        self._wav.setnchannels(channels)
        self._wav.setsampwidth(width)
        self._wav.setframerate(rate)

    def add(self, samples: bytes) -> None:
        """Append samples."""
        self._wav.writeframesraw(samples)
        self.size += len(samples)

    def finish(self) -> IO[bytes]:
        """Return the file, from its start."""
        self._wav.close()
        self.file.seek(0)
        return self.file

    def discard(self) -> None:
        """Forget the samples."""
        with contextlib.suppress(wave.Error, OSError):  # a file without samples has no header yet; or the disk is full
            self._wav.close()
        with contextlib.suppress(OSError):
            self.file.close()


class _Connection:
    """One client, which may send several utterances one after the other."""

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._asked = Transcribe()
        self._recording: _Recording | None = None
        self._refused = False
        self._early: asyncio.Task[Event | None] | None = None  # reads what comes while an utterance is answered

    async def run(self) -> None:
        """Answer until the client leaves, or sends what the protocol does not have."""
        try:
            while (event := await self._next_event()) is not None:
                try:
                    await self._handle(event)
                except ServerError as failure:
                    self._drop_recording()
                    # What is left of a refused utterance is no utterance of its own.
                    self._refused = not AudioStop.is_type(event.type)
                    await self._send(Error(failure.message, failure.code))
        except _Malformed as failure:
            await self._send(Error(str(failure), "malformed-event"))
        finally:
            self._drop_recording()
            if self._early is not None:
                self._early.cancel()
                await asyncio.gather(self._early, return_exceptions=True)

    async def _next_event(self) -> Event | None:
        early, self._early = self._early, None
        async with asyncio.timeout(self._service.silent_seconds):
            return await (early or _read_event(self._reader))

    async def _send(self, event: Eventable) -> None:
        async with asyncio.timeout(self._service.silent_seconds):
            await async_write_event(event.event(), self._writer)

    async def _handle(self, event: Event) -> None:
        try:
            if Describe.is_type(event.type):
                await self._send(_info(self._service.models))
            elif Ping.is_type(event.type):
                await self._send(Pong(Ping.from_event(event).text))
            elif Transcribe.is_type(event.type):
                self._asked = _checked(Transcribe.from_event(event))
            elif AudioStart.is_type(event.type):
                self._start(AudioStart.from_event(event))
            elif self._refused and (AudioChunk.is_type(event.type) or AudioStop.is_type(event.type)):
                self._refused = AudioChunk.is_type(event.type)
            elif AudioChunk.is_type(event.type):
                self._add(AudioChunk.from_event(event))
            elif AudioStop.is_type(event.type):
                await self._transcribe()
        except (KeyError, TypeError, ValueError, OverflowError) as failure:  # infinity is no whole number
            raise _Malformed(f"A field of the event {event.type[:64]!r} is missing or malformed.") from failure

    def _start(self, asked: AudioStart | AudioChunk) -> None:
        self._drop_recording()
        self._refused = False
        self._recording = _Recording(int(asked.rate), int(asked.width), int(asked.channels))

    def _add(self, chunk: AudioChunk) -> None:
        if self._recording is None:
            self._start(chunk)
        recording = self._recording
        assert recording is not None  # noqa: S101 - just started
        if recording.size + len(chunk.audio) > self._service.most_bytes:
            raise InvalidRequest(f"A recording may have {self._service.most_bytes} bytes (--max-upload).")
        try:
            recording.add(chunk.audio)
        except OSError as failure:  # a long recording is kept in an unnamed file
            logger.error("no room for a recording in the temporary folder: %s", failure.strerror)  # noqa: TRY400 - one line
            message = "The server has no room for this recording at the moment. Try again later."
            raise Busy(message, retry_after=NO_ROOM_RETRY_SECONDS) from failure

    def _drop_recording(self) -> None:
        if self._recording is not None:
            self._recording.discard()
            self._recording = None

    async def _transcribe(self) -> None:
        """Answer an utterance, and log how that went."""
        token = request_id.set(f"req_{secrets.token_hex(16)}")
        started, status, said = self._service.clock(), 0, ""
        try:
            transcript = await self._unless_gone(self._answer())
            status, said = 200, f", {transcript.duration:.1f} s of {transcript.language or 'silence'}"
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            raise  # the client has left, or the server stops
        except ServerError as failure:
            status = failure.status
            raise
        except Exception as failure:
            status = EngineFailed.status
            logger.exception("wyoming: a transcription failed")
            raise EngineFailed from failure
        finally:
            took = self._service.clock() - started
            self._service.observer.answered("OTHER", ROUTE, status, took)
            logger.info("wyoming %s %d %.3fs%s", self._peer, status, took, said)
            request_id.reset(token)

    async def _unless_gone(self, work: Coroutine[Any, Any, Transcript]) -> Transcript:
        """Await `work`, but cancel it as soon as the client leaves. What it sends meanwhile is kept for later."""
        working = asyncio.ensure_future(work)
        self._early = asyncio.ensure_future(_read_event(self._reader))
        try:
            await asyncio.wait({working, self._early}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and (self._early.exception() or self._early.result() is None):
                raise ConnectionResetError("the client left before its transcript")
            return await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _answer(self) -> Transcript:
        self._service.models.require_ready()
        model = self._service.models.find(str(self._asked.name or ""))
        options = self._options(model)
        recording, self._recording = self._recording, None
        if recording is None or not recording.size:
            if recording is not None:
                recording.discard()
            transcript = Transcript("transcribe", None, 0.0)
            await self._send(TranscriptEvent(""))
            return transcript
        await self._send(TranscriptStart(language=options.decoding.language))
        begun = False
        async with contextlib.aclosing(model.transcribe(recording.finish(), options)) as items:
            async for item in items:
                if isinstance(item, Transcript):
                    await self._send(TranscriptEvent(item.text, language=item.language))
                    await self._send(TranscriptStop())
                    return item
                text = item.text if begun else item.text.lstrip()
                if text:
                    begun = True
                    await self._send(TranscriptChunk(text))
        raise EngineFailed  # every transcription ends with a transcript

    def _options(self, model: Model) -> Options:
        asked = self._asked
        code = languages.whisper_code(str(asked.language or ""))
        hints = ", ".join(str(term) for term in (*(asked.transcript_names or ()), *(asked.transcript_terms or ())))
        return Options(
            Decoding(
                # Home Assistant sends the language of its own settings; one that the model lacks is detected instead.
                language=code if code in model.languages else None,
                hotwords=hints[:LONGEST_HINT],
            )
        )


def _checked(asked: Transcribe) -> Transcribe:
    """Raise TypeError if a field that is used is of another type: the package does not check them."""
    texts, lists = (asked.name, asked.language), (asked.transcript_names, asked.transcript_terms)
    if not all(isinstance(text or "", str) for text in texts) or not all(isinstance(one or [], list) for one in lists):
        raise TypeError
    return asked


def _info(served: Models) -> Info:
    described: dict[str, Any] = {"attribution": _PROJECT, "installed": True, "version": __version__}
    models = [
        AsrModel(name=name, description=f"Whisper {name}", languages=sorted(model.languages), **described)
        for model in served.models
        for name in model.names[:1]
    ]
    program = AsrProgram(
        name="localwhisper",
        description="Whisper on your own machine",
        models=models,
        supports_transcript_streaming=True,
        **described,
    )
    return Info(asr=[program])
