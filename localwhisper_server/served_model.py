"""One served model: its weights, its queue, and its health."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from localwhisper_server.audio import pool
from localwhisper_server.diarization.diarizer import Diarizer
from localwhisper_server.errors import Busy, ServerError
from localwhisper_server.observer import ModelObserver
from localwhisper_server.settings import Settings
from localwhisper_server.transcription.coalescing import CoalescingTranscriber
from localwhisper_server.transcription.live import LiveDecoder
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.speakers import SpeakerTranscriber
from localwhisper_server.transcription.transcriber import Decoder, StepRunner, Transcriber, decoder_places
from localwhisper_server.types import AudioChunk, Decoding, Options, Segment, Transcript, Voice
from localwhisper_server.whisper import model_names, weights
from localwhisper_server.whisper.chunks import Chunk, find_speech
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.engine import Engine
from localwhisper_server.whisper.model_manager import ModelManager
from localwhisper_server.whisper.model_memory import ModelMemory
from localwhisper_server.whisper.streaming_vad import StreamingDetector

if TYPE_CHECKING:
    from localwhisper_server.transcription.scheduling import Scheduling

logger = logging.getLogger(__name__)

# `Retry-After` while the model is loaded: a guess, since a model on disk takes seconds and a download takes minutes.
LOADING_RETRY_SECONDS = 2.0
# How long a stop waits for the batch in flight.
STOP_SECONDS = 5.0
# A batch that takes longer is stuck, unless a watchdog sets another limit.
STUCK_SECONDS = 150.0
# After so many failed batches in a row the engine is at fault. More than three, since OpenAI's SDK sends a file that
# fails three times.
FAILURES_IN_A_ROW = 4
# Words in the errors of CTranslate2 and CUDA whose cause is the device, not the model's files.
DEVICE_ERRORS = ("cuda", "cublas", "cudnn", "driver", "device", "libcu")

Load = Callable[[Path, Device, Workers], Engine]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all models of a server share.

    `load` builds an engine. `smaller` is the precision to fall back to. `decoder_places` are as in a Transcriber. A
    batch that takes longer than `stuck_after` seconds is stuck. With `self_test`, a loaded engine is tested when it is
    idle. `pause` waits so many seconds.
    """

    settings: Settings
    load: Load
    device: Device
    smaller: str | None
    workers: Workers
    decoders: pool.Pool
    diarizer: Diarizer
    stuck_after: float
    self_test: bool
    pause: Callable[[float], object]
    steps: StepRunner = field(default_factory=lambda: StepRunner(clock=time.monotonic))
    decoder_places: Mapping[bool, asyncio.Semaphore] = field(default_factory=decoder_places)


class ServedModel:
    """Loads one model, and transcribes with it; `memory` may unload it for another one.

    `names` are those that it is listed under. `created` is the time of its file, in Unix seconds. `languages` are the
    codes that it knows, none until it has been loaded once. `observer` is told of its work. `others` and `progressed`
    are as in a Scheduler.
    """

    def __init__(
        self,
        model: str,
        shared: Shared,
        *,
        names: tuple[str, ...],
        memory: ModelMemory,
        others: Callable[[], int] = lambda: 0,
        progressed: Callable[[], object] = lambda: None,
        observer: ModelObserver | None = None,
    ) -> None:
        self.model = model
        self.names = names
        self.created = 0
        self.languages: frozenset[str] = frozenset()
        self.used = 0.0
        self._shared, self._settings = shared, shared.settings
        self._memory = memory
        self._others = others
        self._progressed = progressed
        self.observer = observer or ModelObserver()
        self._starting = threading.Lock()
        self._model_manager: ModelManager | None = None
        self._scheduler: Scheduling | None = None
        self.decoder: Decoder | None = None
        self._transcriber: CoalescingTranscriber | None = None
        self._self_test: SelfTest | None = None
        self._live: Callable[[], LiveDecoder] | None = None
        memory.add(self)

    @property
    def can_translate(self) -> bool:
        """Whether it was trained to translate into English."""
        return self.languages != {"en"} and model_names.trained_to_translate(self.model)

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._model_manager is not None and self._model_manager.loaded

    @property
    def running(self) -> int:
        """How many batches it is decoding."""
        return self._model_manager.running if self._model_manager else 0

    @property
    def requests(self) -> int:
        """How many transcriptions wait or run."""
        return self._scheduler.requests if self._scheduler else 0

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        return self.requests > 0

    @property
    def queue_seconds(self) -> float:
        """Estimate how long a new request would wait, in seconds."""
        return self._scheduler.queue_seconds if self._scheduler else 0.0

    @property
    def full(self) -> bool:
        """Whether the queue has no room."""
        return self._scheduler is not None and self._scheduler.full

    def start(self, *, unload: bool = False) -> None:
        """Find, load, warm up and measure the model, then `unload` it or not.

        Waits as long as other programs use the device's memory.

        Raises:
            ModelError: it is not available, or is damaged.
            RuntimeError, ValueError: CTranslate2 cannot load it on this device.

        """
        with self._starting:
            self._start(unload=unload)

    def _start(self, *, unload: bool) -> None:
        shared, settings = self._shared, self._settings
        folder = weights.find(self.model, cache_dir=settings.cache_dir)
        started = time.monotonic()
        model_manager = ModelManager(
            lambda device: shared.load(folder, device, shared.workers),
            shared.device,
            clock=time.monotonic,
            smaller=shared.smaller,
            unload_after=settings.idle_unload or None,
            memory=self._memory,
            resident=self,
            observer=self.observer,
        )
        loaded = self._warmed_up(model_manager, folder)
        self.created = int((folder / "model.bin").stat().st_mtime)
        self.languages = loaded.languages
        prepare = loaded.prepare
        message = prepare(voice_message(), Decoding(language="en"))
        limits = model_manager.measure_limits(message, items=settings.batch)
        workers = model_manager.measure_workers(message, limits, most=shared.workers.count)
        del loaded  # only the model manager may keep the engine, or unloading it would free no memory
        if unload:
            model_manager.unload()
        self._model_manager = model_manager
        scheduler = Scheduler(
            model_manager.run,
            capacity=settings.queue,
            limits=limits,
            clock=time.monotonic,
            max_wait=settings.max_wait,
            ahead=shared.steps.seconds_ahead,
            idle=model_manager.idle,
            observer=self.observer,
            others=self._others,
            progressed=self._progressed,
            workers=workers,
        )
        self._self_test = SelfTest(
            scheduler,
            message,
            stuck_after=shared.stuck_after,
            when_idle=lambda: shared.self_test and self.loaded,  # the test alone must not load the model
        )
        self.answer_with(Decoder(prepare, scheduler, limits))
        device, took = shared.device, time.monotonic() - started
        text = "ready: %s on %s, %s (%s), loaded and warmed up in %.1f s, batches of up to %d"
        logger.info(text, self.model, device.name, device.compute_type, device.reason, took, limits.items)

    def answer_with(self, decoder: Decoder) -> None:
        """Take requests from now on."""
        shared, settings, scheduler, prepare = self._shared, self._settings, decoder.scheduler, decoder.prepare
        self.decoder, self._scheduler = decoder, scheduler
        transcriber = Transcriber(
            scheduler=scheduler,
            prepare=prepare,
            find_speech=find_speech,
            blocks=shared.decoders.blocks,
            steps=shared.steps,
            max_seconds=settings.max_seconds,
            decoders=shared.decoder_places,
            observer=self.observer,
        )
        exact = settings.window == "exact"
        self._live = lambda: LiveDecoder(scheduler, prepare, shared.steps, full_window=exact)
        speakers = SpeakerTranscriber(transcriber=transcriber, diarizer=shared.diarizer, blocks=shared.decoders.blocks)
        self._transcriber = CoalescingTranscriber(speakers.transcribe, shared.steps, kept=settings.cache)

    def _warmed_up(self, model_manager: ModelManager, folder: Path) -> Engine:
        """Load the model; on a card whose memory is in use, try again until it fits."""
        while True:
            try:
                return model_manager.warm_up()
            except Busy as busy:
                if self._shared.device.name == "cpu" and busy.__cause__ is not None:
                    raise busy.__cause__ from None  # main memory is not used by a game that ends some time
                logger.warning(
                    "no room for the model on the card (%s); trying again in %d s. If nothing else uses the card, "
                    "choose a smaller model (--model) or precision (--compute-type).",
                    busy.__cause__,
                    busy.retry_after,
                )
                self._shared.pause(busy.retry_after)
            except (OSError, ValueError, MemoryError):
                raise
            except Exception as failure:
                # CTranslate2 raises RuntimeError and the tokenizer a bare Exception, whatever the cause.
                if any(word in str(failure).lower() for word in DEVICE_ERRORS):
                    raise
                raise weights.ModelDamaged(folder, failure) from failure

    def finish_and_unload(self) -> bool:
        """Finish all messages, begin nothing else, then unload; return whether it is unloaded."""
        if self._scheduler is None or self._model_manager is None:
            return False  # it is being measured
        return self._scheduler.finish() and self._model_manager.unload()

    def resume(self) -> None:
        """Take all requests again."""
        if self._scheduler is not None:
            self._scheduler.resume()

    def wake(self) -> None:
        """Look again whether a batch may begin."""
        if self._scheduler is not None:
            self._scheduler.wake()

    def send_away(self, refusal: ServerError, *, later_than: float) -> None:
        """Refuse the requests that have not begun and would take longer than so many seconds."""
        if self._scheduler is not None:
            self._scheduler.send_away(refusal, later_than=later_than)

    def refuse(self, refusal: ServerError) -> None:
        """Refuse all requests that are still open."""
        if self._scheduler is not None:
            self._scheduler.refuse(refusal)

    def stop(self) -> bool:
        """Stop after the batch in flight; False if that, or loading the model, takes too long to wait for."""
        if self._starting.locked():
            return False
        return self._scheduler is None or self._scheduler.close(timeout=STOP_SECONDS)

    def require_room(self) -> None:
        """Raise Busy if the queue has no room."""
        if self._scheduler is not None:
            self._scheduler.require_room()

    def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments, then the transcript; see `Transcriber.transcribe`.

        Raises:
            Busy: the model is still being loaded for the first time.

        """
        if self._transcriber is None or self._scheduler is None:
            raise Busy("The model is still being loaded. Try again shortly.", retry_after=LOADING_RETRY_SECONDS)
        self.used = time.monotonic()
        self._scheduler.expect()  # the upload is hashed first
        if self._settings.window == "exact":
            options = replace(options, full_window=True)
        return self._transcriber.transcribe(source, options)

    def live(self) -> LiveDecoder:
        """Open a live session, which counts as a request until it is closed.

        Raises:
            Busy: the model is still being loaded for the first time, the queue is full, or the wait too long.

        """
        if self._live is None:
            raise Busy("The model is still being loaded. Try again shortly.", retry_after=LOADING_RETRY_SECONDS)
        self.used = time.monotonic()
        return self._live()

    @staticmethod
    def new_detector() -> StreamingDetector:
        """Return a detector of speech for a new stream."""
        return StreamingDetector()

    async def healthy(self) -> bool:
        """Return whether the engine works, by a self-test if necessary. True while the model loads."""
        return self._self_test is None or await self._self_test.healthy()

    def at_fault(self) -> str | None:
        """Return why requests should go to another server; None if they may come.

        An unloaded model is no reason, since the next request loads it again.
        """
        if self._self_test is None:
            return "The model is still being loaded."
        if self._self_test.stuck:
            return f"The batch in flight has taken more than {self._shared.stuck_after:g} s."
        return "The model fails on every request." if self._self_test.failing else None

    def health(self) -> dict[str, Any]:
        """Return the state for `/health`, without waiting for the model."""
        device = self._model_manager.device if self._model_manager else self._shared.device
        return {
            "model": self.model,
            # Not if a message that came now would wait for another model's load.
            "loaded": self.loaded and not (self._scheduler is not None and self._scheduler.finishing),
            "device": device.name,
            "compute_type": device.compute_type,
            "requests": self.requests,
            "queue_seconds": round(self.queue_seconds, 3),
            "speed": round(self._scheduler.speed, 2) if self._scheduler else None,
        }


@dataclass
class SelfTest:
    """Judges the engine by the work of its scheduler, or by decoding `message` if there is no work.

    The test is run if the last batch failed, and whenever the engine is idle and `when_idle` is true. A test or a batch
    that takes longer than `stuck_after` seconds is stuck.
    """

    scheduler: Scheduler
    message: Chunk
    stuck_after: float
    when_idle: Callable[[], bool] = lambda: False
    _failed: bool = field(default=False, init=False)

    @property
    def failing(self) -> bool:
        """Whether the engine is at fault, not one recording: several batches in a row or the test have failed."""
        failures = self.scheduler.failures
        return failures >= FAILURES_IN_A_ROW or (failures > 0 and self._failed)

    @property
    def stuck(self) -> bool:
        """Whether the batch in flight takes too long."""
        return (self.scheduler.running_seconds or 0.0) > self.stuck_after

    async def healthy(self) -> bool:
        """Return whether the engine works; runs the test if necessary."""
        if self.stuck:
            return False
        if self.scheduler.requests or self.scheduler.running_seconds is not None:
            return not self.failing
        if not self.scheduler.failures and not self.when_idle():
            return True
        self._failed = False
        try:
            with closing(self.scheduler.admit()) as ticket:
                await asyncio.wait_for(asyncio.wrap_future(*ticket.submit([self.message])), self.stuck_after)
        except Busy:
            pass  # a full queue or memory that another program uses: a restart would not help
        except Exception:  # noqa: BLE001 - the engine logs it; TimeoutError among them
            self._failed = True
        return not self._failed


def voice_message() -> AudioChunk:
    """Return the recording of the demo: five seconds of speech, part of every installation."""
    with files("localwhisper_client").joinpath("demo.ogg").open("rb") as file:
        samples = pool.decode(file, max_seconds=60)
    return AudioChunk(samples, 0.0, tuple(find_speech(samples, Voice())))
