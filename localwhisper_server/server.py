"""The parts put together: a model found and loaded beside a server that already answers `/health`."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector

from localwhisper_client._version import __version__
from localwhisper_server import _front
from localwhisper_server.api import routes
from localwhisper_server.audio import pool
from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.operations import logs, mdns, vram
from localwhisper_server.operations import watchdog as lifecycle
from localwhisper_server.operations.metrics import Metrics
from localwhisper_server.options import Decoding, Options
from localwhisper_server.settings import Settings
from localwhisper_server.transcript import Segment, Transcript
from localwhisper_server.transcription.preparation import Steps
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.transcriber import Service
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
# When to come back to a server that stops: whoever keeps it running starts it again within seconds.
RESTART_RETRY_SECONDS = 10.0
# What CTranslate2 and CUDA speak of where a device is the trouble and not the model's files.
DEVICE_TROUBLE = ("cuda", "cublas", "cudnn", "driver", "device", "libcu")

Load = Callable[[Path, devices.Device], Engine]


class Backend:
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
        patience: float = lifecycle.WATCHDOG_SECONDS * lifecycle.PATIENCE_PER_WATCHDOG,
        examine: bool = False,
        observer: logs.Observer | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._settings = settings
        self._pause = pause
        self._observer = observer or logs.NullObserver()
        self._decoders = pool.Pool(environ=environ or {})
        self._patience = patience
        # A test would keep a model in memory that is to leave it.
        self._examine = examine and not settings.idle_unload
        self._examiner: lifecycle.SelfTest | None = None
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
        self._service: Service | None = None
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
            logs.watched(model_manager.run, self._observer, most=limits.items, clock=time.monotonic),
            capacity=self._settings.queue,
            limits=limits,
            clock=time.monotonic,
            max_wait=self._settings.max_wait,
            ahead=steps.seconds_ahead,
            idle=model_manager.idle,
            waited=self._observer.waited,
            workers=self._workers.count,
        )
        self._examiner = lifecycle.SelfTest(self._scheduler, self._test, patience=self._patience, always=self._examine)
        self._service = Service(
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
            self._scheduler.send_away(_stopping(), later_than=seconds)

    def give_up(self) -> None:
        """Send away whoever still waits for the model."""
        if self._scheduler is not None:
            self._scheduler.refuse(_stopping())

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
            raise _stopping()

    def require_room(self) -> None:
        """Raise Busy where a request would be turned away once it is here."""
        if self._scheduler is not None:
            self._scheduler.require_room()

    def _require_model(self) -> Service:
        if self.failure is not None:
            raise EngineFailed("The model could not be loaded; the server's log says why.")
        if self._service is None:
            raise Busy("The model is still being loaded. Try again shortly.", retry_after=LOADING_RETRY_SECONDS)
        return self._service

    def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments, then the transcript; see `Service.transcribe`.

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


def listen(host: str, port: int) -> socket.socket:
    """Bind the listening socket before anything slow happens, so that a busy port is known at once.

    Raises:
        OSError: the address is in use or not this machine's.

    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "win32":
            # Where SO_REUSEADDR would mean to share a port with whoever has it.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # A server that restarts must not wait for the connections of its former self to time out.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def url(listening: socket.socket, *, tls: bool = False) -> str:
    """Return the base address of a bound socket; of one that is bound to all, the one that others most likely use."""
    host, port = listening.getsockname()[:2]
    host = _front.own_address() if host in ("0.0.0.0", "::") else host
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(settings: Settings, listening: socket.socket, *, environ: Mapping[str, str]) -> bool:
    """Serve on a bound socket until a signal stops it; False if a batch was left behind in flight.

    `environ` says whether systemd wants to be told.

    Raises:
        Misconfigured: a certificate or a file of keys cannot be used, or a package is missing.
        ModelError, RuntimeError, ValueError, OSError: the model could not be found or loaded; nothing is served.

    """
    notifier = lifecycle.Notifier(environ.get("NOTIFY_SOCKET"))
    watchdog = lifecycle.watchdog_seconds(environ, os.getpid())
    rules = _front.rules(settings, _front.own_names())
    surroundings = _front.Surroundings(settings, rules.keys)
    web_options = _front.web_options(settings, _front.room(settings, lifecycle.raise_file_limit()))
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    numbers = Metrics(registry)
    backend = Backend(
        settings,
        environ=environ,
        patience=(watchdog or lifecycle.WATCHDOG_SECONDS) * lifecycle.PATIENCE_PER_WATCHDOG,
        examine=watchdog is not None,
        observer=numbers,
    )
    numbers.look_at(backend, vram.reader())

    def load() -> None:
        try:
            backend.start()
            notifier.ready()
        except Exception as failure:  # noqa: BLE001 - raised again below, in the main thread
            backend.failure = failure
            server.should_exit = True

    @contextlib.asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        # Not awaited: the server answers while the model loads.
        threading.Thread(target=load, name="localwhisper-load", daemon=True).start()
        logger.info("listening on %s and loading the model", url(listening, tls=settings.certfile is not None))
        seconds = (watchdog or lifecycle.WATCHDOG_SECONDS) / lifecycle.CHECKS_PER_WATCHDOG
        watching = asyncio.create_task(lifecycle.watch(backend.well, notifier, seconds=seconds))
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(surroundings.open())
            if settings.announce:
                host, port = listening.getsockname()[:2]
                tls = settings.certfile is not None
                await stack.enter_async_context(mdns.announced(host, port, backend.model, tls=tls))
            yield
        watching.cancel()

    app = routes.create_app(
        backend,
        rules=rules,
        metrics=numbers,
        upstream=surroundings.upstream,
        lifespan=lifespan,
    )
    config = uvicorn.Config(surroundings.around(app), log_config=None, access_log=False, lifespan="on", **web_options)
    server = lifecycle.Server(config, backend, notifier, drain=settings.drain)
    server.run(sockets=[listening])
    if backend.failure is not None:
        backend.stop()
        raise backend.failure
    return backend.stop()


def _stopping() -> Busy:
    return Busy("The server is being stopped or restarted. Try again shortly.", retry_after=RESTART_RETRY_SECONDS)
