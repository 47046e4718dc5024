"""The model behind the routes: while it loads, while it serves, while it stops, and when it failed."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from localwhisper_client._version import __version__
from localwhisper_server.audio import pool
from localwhisper_server.errors import Busy, EngineFailed, Stopping
from localwhisper_server.observer import NullObserver, Observer, watched
from localwhisper_server.settings import Settings
from localwhisper_server.transcription.preparation import Steps
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.transcriber import Transcriber
from localwhisper_server.types import Decoding, Options, Segment, Transcript
from localwhisper_server.whisper import calibration, devices, engine, weights
from localwhisper_server.whisper.engine import Engine
from localwhisper_server.whisper.model_manager import ModelManager

if TYPE_CHECKING:
    from localwhisper_server.whisper.chunks import Chunk, ChunkResult

logger = logging.getLogger(__name__)

# A guess for the callers who come while the model is loaded; a local one takes seconds.
LOADING_RETRY_SECONDS = 2.0
# How long a stop waits for the batch in flight.
STOP_SECONDS = 5.0
# What CTranslate2 and CUDA speak of where a device is the trouble and not the model's files.
DEVICE_TROUBLE = ("cuda", "cublas", "cudnn", "driver", "device", "libcu")

# Where no watchdog says how patient it is.
WATCHDOG_SECONDS = 240.0
# The part of the watchdog's time after which a batch counts as stuck.
PATIENCE_PER_WATCHDOG = 0.5
# So many batches in a row that give nothing are the engine's fault: OpenAI's SDK sends a file that fails three times.
FAILURES_IN_A_ROW = 4

Load = Callable[[Path, devices.Device], Engine]


class Runtime:
    """What the routes talk to: the model while it loads, while it serves, and when it failed.

    `load` builds the engine; a test gives its own. `environ` is what the decoding processes take their few variables
    from. The engine is stuck when a batch takes longer than `patience` seconds; with `examine`, it is tested even
    where nothing speaks against it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        load: Load | None = None,
        cuda_devices: int | None = None,
        environ: Mapping[str, str] | None = None,
        patience: float = WATCHDOG_SECONDS * PATIENCE_PER_WATCHDOG,
        examine: bool = False,
        observer: Observer | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._settings = settings
        self._pause = pause
        self._observer = observer or NullObserver()
        self._decoders = pool.Pool(environ=environ or {})
        self._patience = patience
        # A test would keep a model in memory that is to leave it.
        self._examine = examine and not settings.idle_unload
        self._examiner: SelfTest | None = None
        self._message: Chunk | None = None
        self._draining = False
        self._starting = False
        count = engine.cuda_devices() if cuda_devices is None else cuda_devices
        cuda_types = engine.cuda_compute_types()
        self._cuda_devices = count
        self._device = devices.choose_device(
            settings.device, settings.compute_type, cuda_devices=count, cuda_types=cuda_types
        )
        self._smaller = devices.smaller(self._device, cuda_types)
        self._workers = devices.workers(self._device.name, settings.threads, cores=devices.cores())
        self._load = load or (lambda folder, device: Engine(folder, device, self._workers))
        self.model = settings.model if settings.model != "auto" else weights.default_model(self._device.name)
        self.names = weights.served_names(self.model)
        self.aliases = weights.aliases(self.model)
        self.created = 0
        self.languages: frozenset[str] = frozenset()
        self.failure: Exception | None = None
        self._service: Transcriber | None = None
        self._scheduler: Scheduler[Chunk, ChunkResult] | None = None
        self._model_manager: ModelManager | None = None

    def start(self) -> None:
        """Find and load the model; returns when it is warm, however long the device's memory is taken by others.

        Raises:
            ModelError: it cannot be had, or is damaged.
            RuntimeError, ValueError: CTranslate2 cannot load it on this device.

        """
        self._starting = True
        try:
            self._start()
        finally:
            self._starting = False

    def _start(self) -> None:
        if self._device.name == "cuda" and not self._cuda_devices:
            # Before gigabytes are fetched for it.
            raise RuntimeError("--device cuda is set, but the driver shows no CUDA device")
        self._decoders.start()
        folder = weights.find(self.model, cache_dir=self._settings.cache_dir)
        started = time.monotonic()
        model_manager = ModelManager(
            lambda device: self._load(folder, device),
            self._device,
            clock=time.monotonic,
            smaller=self._smaller,
            unload_after=self._settings.idle_unload or None,
            observer=self._observer,
        )
        loaded = self._warmed(model_manager, folder)
        self.created = int((folder / "model.bin").stat().st_mtime)
        self.languages = loaded.languages
        prepare = loaded.prepare
        self._message = prepare(calibration.voice_message(), Decoding(language="en"))
        limits = calibration.limits(
            loaded,
            self._message,
            on_cpu=self._device.name == "cpu",
            items=self._settings.batch,
            clock=time.perf_counter,
        )
        del loaded  # the model_manager alone holds the engine, so that it can let go of it
        self._model_manager = model_manager
        steps = Steps()
        self._scheduler = Scheduler(
            watched(model_manager.run, self._observer, most=limits.items, clock=time.monotonic),
            capacity=self._settings.queue,
            limits=limits,
            clock=time.monotonic,
            max_wait=self._settings.max_wait,
            ahead=steps.seconds_ahead,
            idle=model_manager.idle,
            waited=self._observer.waited,
            workers=self._workers.count,
        )
        self._examiner = SelfTest(self._scheduler, self._test, patience=self._patience, always=self._examine)
        self._service = Transcriber(
            self._scheduler,
            prepare,
            max_seconds=self._settings.max_seconds,
            blocks=self._decoders.blocks,
            steps=steps,
            kept=self._settings.cache,
            observer=self._observer,
        )
        logger.info(
            "ready: %s on %s, %s (%s), loaded and warmed in %.1f s, batches of up to %d",
            self.model,
            self._device.name,
            self._device.compute_type,
            self._device.reason,
            time.monotonic() - started,
            limits.items,
        )

    def _warmed(self, model_manager: ModelManager, folder: Path) -> Engine:
        """Load the model, as often as it takes: a game that has the memory ends some time."""
        while True:
            try:
                return model_manager.warm_up()
            except Busy as busy:
                if self._device.name == "cpu" and busy.__cause__ is not None:
                    raise busy.__cause__ from None  # nobody plays games in the main memory
                logger.warning(
                    "no room for the model on the card (%s); trying again in %d s. If nothing else uses the card, "
                    "take a smaller model (--model) or precision (--compute-type).",
                    busy.__cause__,
                    busy.retry_after,
                )
                self._pause(busy.retry_after)
            except (OSError, ValueError, MemoryError):
                raise
            except Exception as failure:
                # RuntimeError from CTranslate2, bare Exception from the tokenizer: no class tells the model's fault.
                if any(word in str(failure).lower() for word in DEVICE_TROUBLE):
                    raise
                raise weights.ModelDamaged(folder, failure) from failure

    def drain(self, seconds: float) -> None:
        """Take no new requests, and send away those that would not be through in so many seconds."""
        self._draining = True
        if self._scheduler is not None:
            self._scheduler.send_away(Stopping(), later_than=seconds)

    def give_up(self) -> None:
        """Send away whoever still waits for the model."""
        if self._scheduler is not None:
            self._scheduler.refuse(Stopping())

    def stop(self) -> bool:
        """Stop the engine after the batch in flight; False if that, or the model's load, takes too long to wait for."""
        self._decoders.close()
        if self._starting:
            return False
        return self._scheduler is None or self._scheduler.close(timeout=STOP_SECONDS)

    @property
    def queue_seconds(self) -> float:
        """Estimate how long a request that came now would wait, in seconds."""
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
        """Raise Busy while the model is being loaded or the server stops, EngineFailed if it could not be loaded."""
        self._require_model()
        if self._draining:
            raise Stopping

    def require_room(self) -> None:
        """Raise Busy where a request would be turned away once it is here."""
        if self._scheduler is not None:
            self._scheduler.require_room()

    def _require_model(self) -> Transcriber:
        if self.failure is not None:
            raise EngineFailed("The model could not be loaded; the server's log says why.")
        if self._service is None:
            raise Busy("The model is still being loaded. Try again shortly.", retry_after=LOADING_RETRY_SECONDS)
        return self._service

    def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments, then the transcript; see `Transcriber.transcribe`.

        Also while the server stops: what was let in before may finish.
        """
        service = self._require_model()
        if self._settings.window == "exact":
            options = replace(options, full_window=True)
        return service.transcribe(source, options)

    async def well(self) -> bool:
        """Whether the engine is as it should be; tests it where there is reason to. True while the model loads."""
        return self._examiner is None or await self._examiner.well()

    async def _test(self) -> None:
        """Put a voice message through the scheduler and the model.

        Raises:
            Busy, EngineFailed: it did not come through.

        """
        assert self._scheduler is not None  # noqa: S101 - who tests it has it
        assert self._message is not None  # noqa: S101 - made before the scheduler
        ticket = self._scheduler.admit()
        try:
            await asyncio.wrap_future(*ticket.submit([self._message]))
        finally:
            ticket.close()

    def unready(self) -> str | None:
        """Say why requests had better go elsewhere; None where they are welcome.

        A model that left the memory for want of work is no reason: the next request brings it back.
        """
        scheduler, examiner = self._scheduler, self._examiner
        if self.failure is not None:
            return "The model could not be loaded."
        if scheduler is None or examiner is None:
            return "The model is still being loaded."
        reasons = (
            (self._draining, "The server is stopping."),
            (examiner.stuck, f"The batch in flight has taken more than {self._patience:g} s."),
            (examiner.failing, "The model fails whatever it is given."),
            (scheduler.full, "The queue is full."),
        )
        return next((reason for holds, reason in reasons if holds), None)

    def health(self) -> dict[str, Any]:
        """Describe the state; answers at once whatever the model is doing."""
        ready = self._service is not None
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


class Watched(Protocol):
    """What is looked at to see whether an engine lives."""

    @property
    def requests(self) -> int:
        """How many requests are open."""

    @property
    def running_seconds(self) -> float | None:
        """How long the batch in flight has been running; None where there is none."""

    @property
    def failures(self) -> int:
        """How many batches in a row, up to the last, gave nothing but faults of the engine."""


class SelfTest:
    """Says whether the engine is well, by its work, or by a test where it has none.

    `test` sends something through the model. It is run when the last inference failed, and whenever there is nothing
    else to judge by if `always`. Whatever takes longer than `patience` seconds is stuck.
    """

    def __init__(
        self, engine: Watched, test: Callable[[], Awaitable[None]], *, patience: float, always: bool = False
    ) -> None:
        self._engine = engine
        self._test = test
        self._patience = patience
        self._always = always
        self._failed = False

    @property
    def failing(self) -> bool:
        """Whether the engine is at fault, and not one recording: its test or many batches in a row have failed."""
        failures = self._engine.failures
        return failures >= FAILURES_IN_A_ROW or (failures > 0 and self._failed)

    @property
    def stuck(self) -> bool:
        """Whether the batch in flight has taken too long."""
        return (self._engine.running_seconds or 0.0) > self._patience

    async def well(self) -> bool:
        """Look, and test where there is reason to."""
        if self.stuck:
            return False
        if self._engine.requests or self._engine.running_seconds is not None:
            return not self.failing
        if not self._engine.failures and not self._always:
            return True
        self._failed = False
        try:
            await asyncio.wait_for(self._test(), self._patience)
        except Busy:
            pass  # somebody else's work, or somebody else's memory; a restart would help neither
        except Exception:  # noqa: BLE001 - the engine logs what it was; TimeoutError among them
            self._failed = True
        return not self._failed
