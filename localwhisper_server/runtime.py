"""The model behind the API: loading, ready, draining, and its health."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from localwhisper_client import __version__
from localwhisper_server.audio import pool
from localwhisper_server.diarization.diarizer import Diarizer
from localwhisper_server.diarization.weights import load_networks, require_installed
from localwhisper_server.errors import Busy, EngineFailed, Stopping
from localwhisper_server.observer import Observer
from localwhisper_server.settings import Settings
from localwhisper_server.transcription.coalescing import CoalescingTranscriber
from localwhisper_server.transcription.live import LiveDecoder
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.speakers import SpeakerTranscriber
from localwhisper_server.transcription.transcriber import StepRunner, Transcriber
from localwhisper_server.types import AudioChunk, Decoding, Options, Segment, Transcript, Voice
from localwhisper_server.whisper import devices, weights
from localwhisper_server.whisper.chunks import Chunk, find_speech
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.engine import Engine
from localwhisper_server.whisper.model_manager import ModelManager
from localwhisper_server.whisper.streaming_vad import StreamingDetector

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


class Runtime:
    """Loads the model and runs transcriptions on it; knows whether it is loading, ready, draining or has failed.

    `load` builds the engine. `cuda_devices` is how many there are, None to ask the driver. `environ` is where the
    decoding processes get their variables from. A batch that takes longer than `stuck_after` seconds is stuck. With
    `self_test` the engine is tested when it is idle. `pause` waits so many seconds. `diarizer` tells speakers apart;
    None: as the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        load: Load = Engine,
        cuda_devices: int | None = None,
        environ: Mapping[str, str] | None = None,
        stuck_after: float = STUCK_SECONDS,
        self_test: bool = False,
        observer: Observer | None = None,
        pause: Callable[[float], object] = time.sleep,
        diarizer: Diarizer | None = None,
    ) -> None:
        self._settings = settings
        self._load = load
        self._observer = observer or Observer()
        self._pause = pause
        self._decoders = pool.Pool(environ=environ or {})
        self._diarizer = diarizer or Diarizer(lambda: load_networks(settings.diarization_models), require_installed)
        self._stuck_after = stuck_after
        # Not with idle unloading: the self-test would keep the model loaded.
        self._test_when_idle = self_test and not settings.idle_unload
        self._cuda_devices = devices.device_count() if cuda_devices is None else cuda_devices
        cuda_types = devices.cuda_compute_types()
        self._device = devices.choose_device(
            settings.device, settings.compute_type, cuda_devices=self._cuda_devices, cuda_types=cuda_types
        )
        self._smaller = devices.smaller_precision(self._device, cuda_types)
        self._workers = devices.choose_workers(self._device.name, settings.threads, cores=devices.usable_cores())
        self.model = settings.model if settings.model != "auto" else weights.default_model(self._device.name)
        self.names = weights.served_names(self.model)
        self.aliases = weights.aliases(self.model)
        self.created = 0
        self.languages: frozenset[str] = frozenset()
        self.failure: Exception | None = None
        self._starting = threading.Lock()
        self._draining = False
        self._model_manager: ModelManager | None = None
        self._scheduler: Scheduler | None = None
        self._transcriber: CoalescingTranscriber | None = None
        self._self_test: SelfTest | None = None
        self._live: Callable[[], LiveDecoder] | None = None

    def start(self) -> None:
        """Find, load and warm up the model. Waits as long as other programs use the device's memory.

        Raises:
            ModelError: it is not available, or is damaged.
            RuntimeError, ValueError: CTranslate2 cannot load it on this device.

        """
        with self._starting:
            self._start()

    def _start(self) -> None:
        if self._device.name == "cuda" and not self._cuda_devices:
            # Before gigabytes are downloaded for it.
            raise RuntimeError("--device cuda is set, but the driver shows no CUDA device")
        self._decoders.start()
        folder = weights.find(self.model, cache_dir=self._settings.cache_dir)
        started = time.monotonic()
        model_manager = ModelManager(
            lambda device: self._load(folder, device, self._workers),
            self._device,
            clock=time.monotonic,
            smaller=self._smaller,
            unload_after=self._settings.idle_unload or None,
            observer=self._observer,
        )
        loaded = self._warmed_up(model_manager, folder)
        self.created = int((folder / "model.bin").stat().st_mtime)
        self.languages = loaded.languages
        prepare = loaded.prepare
        message = prepare(voice_message(), Decoding(language="en"))
        limits = model_manager.measure_limits(message, items=self._settings.batch)
        del loaded  # only the model manager may keep the engine, or unloading it would free no memory
        self._model_manager = model_manager
        steps = StepRunner(clock=time.monotonic)
        self._scheduler = Scheduler(
            model_manager.run,
            capacity=self._settings.queue,
            limits=limits,
            clock=time.monotonic,
            max_wait=self._settings.max_wait,
            ahead=steps.seconds_ahead,
            idle=model_manager.idle,
            observer=self._observer,
            workers=self._workers.count,
        )
        self._self_test = SelfTest(
            self._scheduler, message, stuck_after=self._stuck_after, when_idle=self._test_when_idle
        )
        transcriber = Transcriber(
            scheduler=self._scheduler,
            prepare=prepare,
            find_speech=find_speech,
            blocks=self._decoders.blocks,
            steps=steps,
            max_seconds=self._settings.max_seconds,
            observer=self._observer,
        )
        speakers = SpeakerTranscriber(transcriber=transcriber, diarizer=self._diarizer, blocks=self._decoders.blocks)
        scheduler, exact = self._scheduler, self._settings.window == "exact"
        self._live = lambda: LiveDecoder(scheduler, prepare, steps, full_window=exact)
        self._transcriber = CoalescingTranscriber(speakers.transcribe, steps, kept=self._settings.cache)
        logger.info(
            "ready: %s on %s, %s (%s), loaded and warmed up in %.1f s, batches of up to %d",
            self.model,
            self._device.name,
            self._device.compute_type,
            self._device.reason,
            time.monotonic() - started,
            limits.items,
        )

    def _warmed_up(self, model_manager: ModelManager, folder: Path) -> Engine:
        """Load the model; on a card whose memory is in use, try again until it fits."""
        while True:
            try:
                return model_manager.warm_up()
            except Busy as busy:
                if self._device.name == "cpu" and busy.__cause__ is not None:
                    raise busy.__cause__ from None  # main memory is not used by a game that ends some time
                logger.warning(
                    "no room for the model on the card (%s); trying again in %d s. If nothing else uses the card, "
                    "choose a smaller model (--model) or precision (--compute-type).",
                    busy.__cause__,
                    busy.retry_after,
                )
                self._pause(busy.retry_after)
            except (OSError, ValueError, MemoryError):
                raise
            except Exception as failure:
                # CTranslate2 raises RuntimeError and the tokenizer a bare Exception, whatever the cause.
                if any(word in str(failure).lower() for word in DEVICE_ERRORS):
                    raise
                raise weights.ModelDamaged(folder, failure) from failure

    def drain(self, seconds: float) -> None:
        """Accept no new requests, and refuse those that have not begun and would take longer than so many seconds."""
        self._draining = True
        if self._scheduler is not None:
            self._scheduler.send_away(Stopping(), later_than=seconds)

    def give_up(self) -> None:
        """Refuse all requests that are still open."""
        if self._scheduler is not None:
            self._scheduler.refuse(Stopping())

    def stop(self) -> bool:
        """Stop after the batch in flight; False if that, or loading the model, takes too long to wait for."""
        self._decoders.close()
        self._diarizer.close()
        if self._starting.locked():
            return False
        return self._scheduler is None or self._scheduler.close(timeout=STOP_SECONDS)

    @property
    def queue_seconds(self) -> float:
        """Estimate how long a new request would wait, in seconds."""
        return self._scheduler.queue_seconds if self._scheduler else 0.0

    @property
    def open_requests(self) -> int:
        """How many transcriptions wait or run."""
        return self._scheduler.requests if self._scheduler else 0

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model_manager is not None and self._model_manager.loaded

    def require_ready(self) -> None:
        """Check that a new request may come.

        Raises:
            Busy: the model is still loading, or the server is stopping.
            EngineFailed: the model could not be loaded.

        """
        self._require_model()
        if self._draining:
            raise Stopping

    def require_room(self) -> None:
        """Raise Busy if the queue has no room."""
        if self._scheduler is not None:
            self._scheduler.require_room()

    def _require_model(self) -> CoalescingTranscriber:
        if self.failure is not None:
            raise EngineFailed("The model could not be loaded; the server's log says why.")
        if self._transcriber is None:
            raise Busy("The model is still being loaded. Try again shortly.", retry_after=LOADING_RETRY_SECONDS)
        return self._transcriber

    def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments, then the transcript; see `Transcriber.transcribe`.

        Works during a drain too, for requests that were accepted before.
        """
        transcriber = self._require_model()
        if self._settings.window == "exact":
            options = replace(options, full_window=True)
        return transcriber.transcribe(source, options)

    def live(self) -> LiveDecoder:
        """Open a live session, which counts as a request until it is closed.

        Raises:
            Busy, EngineFailed: as `require_ready`; the queue is full, or the wait too long.

        """
        self.require_ready()
        assert self._live is not None  # noqa: S101 - set with the transcriber
        return self._live()

    @staticmethod
    def new_detector() -> StreamingDetector:
        """Return a detector of speech for a new stream."""
        return StreamingDetector()

    async def healthy(self) -> bool:
        """Return whether the engine works, by a self-test if necessary. True while the model loads."""
        return self._self_test is None or await self._self_test.healthy()

    def unready(self) -> str | None:
        """Return why requests should go to another server; None if they may come.

        An unloaded model is no reason, since the next request loads it again.
        """
        scheduler, self_test = self._scheduler, self._self_test
        if self.failure is not None:
            return "The model could not be loaded."
        if scheduler is None or self_test is None:
            return "The model is still being loaded."
        if self._draining:
            return "The server is stopping."
        if self_test.stuck:
            return f"The batch in flight has taken more than {self._stuck_after:g} s."
        if self_test.failing:
            return "The model fails on every request."
        return "The queue is full." if scheduler.full else None

    def health(self) -> dict[str, Any]:
        """Return the state for `/health`, without waiting for the model."""
        ready = self._transcriber is not None
        device = self._model_manager.device if self._model_manager else self._device
        return {
            "status": "ok" if ready else "failed" if self.failure else "loading",
            "ready": ready,
            "model": self.model,
            "loaded": self.loaded,
            "device": device.name,
            "compute_type": device.compute_type,
            "version": __version__,
            "requests": self.open_requests,
            "queue_seconds": round(self.queue_seconds, 3),
            "speed": round(self._scheduler.speed, 2) if self._scheduler else None,
        }


@dataclass
class SelfTest:
    """Judges the engine by the work of its scheduler, or by decoding `message` if there is no work.

    The test is run if the last batch failed, and whenever the engine is idle if `when_idle`. A test or a batch that
    takes longer than `stuck_after` seconds is stuck.
    """

    scheduler: Scheduler
    message: Chunk
    stuck_after: float
    when_idle: bool = False
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
        if not self.scheduler.failures and not self.when_idle:
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
