"""The models behind the API: which of them a request means, whether they are ready, the drain, and their health."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from localwhisper_client import __version__
from localwhisper_client.shared import openai_models
from localwhisper_server.audio import pool
from localwhisper_server.diarization.diarizer import Diarizer
from localwhisper_server.diarization.weights import NetworkLoader
from localwhisper_server.errors import Busy, EngineFailed, Stopping, UnknownModel
from localwhisper_server.observer import Observer
from localwhisper_server.served_model import LOADING_RETRY_SECONDS, STUCK_SECONDS, Load, ServedModel, Shared
from localwhisper_server.settings import Settings
from localwhisper_server.types import Task
from localwhisper_server.whisper import devices, model_names
from localwhisper_server.whisper.engine import Engine
from localwhisper_server.whisper.model_memory import ModelMemory

logger = logging.getLogger(__name__)


class Runtime:
    """Loads the models and runs transcriptions on them; knows whether it is loading, ready, draining or has failed.

    The first of `models` is what OpenAI's names mean. `names` are all that are listed.

    `load` builds an engine. `cuda_devices` is how many there are, None to ask the driver. `environ` is where the
    decoding processes get their variables from. A batch that takes longer than `stuck_after` seconds is stuck. With
    `self_test` the engines are tested when they are idle. `pause` waits so many seconds. `diarizer` tells speakers
    apart; None: as the settings say. `make_model` makes a served model; `cores` are those of this process.
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
        make_model: Callable[..., ServedModel] = ServedModel,
        cores: int | None = None,
    ) -> None:
        observer = observer or Observer()
        self._decoders = pool.Pool(environ=environ or {})
        loader = NetworkLoader(settings.diarization_models, clock=time.monotonic)
        self._diarizer = diarizer or Diarizer(loader.load, loader.check)
        self._cuda_devices = devices.device_count() if cuda_devices is None else cuda_devices
        cuda_types = devices.cuda_compute_types()
        self._device = devices.choose_device(
            settings.device, settings.compute_type, cuda_devices=self._cuda_devices, cuda_types=cuda_types
        )
        shared = Shared(
            settings=settings,
            load=load,
            device=self._device,
            smaller=devices.smaller_precision(self._device, cuda_types),
            workers=devices.choose_workers(self._device.name, settings.threads, cores=cores or devices.usable_cores()),
            decoders=self._decoders,
            diarizer=self._diarizer,
            stuck_after=stuck_after,
            # Not with idle unloading: the self-test would keep the models loaded.
            self_test=self_test and not settings.idle_unload,
            pause=pause,
        )
        self._memory = ModelMemory(most=settings.max_loaded, clock=time.monotonic)
        self._named: dict[str, ServedModel] = {}
        self.models: list[ServedModel] = []
        for given in settings.model:
            model = model_names.default_model(self._device.name) if given == "auto" else given
            names = model_names.served_names(model)
            if names[0] in self._named:
                logger.warning("--model %s is left out: another model is served as %s", given, names[0])
                continue
            served = make_model(
                model,
                shared,
                names=names if self.models else (*names, *openai_models.NAMES),
                memory=self._memory,
                others=partial(self._running_beside, len(self.models)),
                progressed=self._progressed,
                observer=observer.of_model(names[0]),
            )
            self.models.append(served)
            self._named |= {name: served for name in served.names if name not in self._named}
        self.names = tuple(self._named)
        for served in self.models:
            self._named = dict.fromkeys(model_names.aliases(served.model), served) | self._named
        self._named = dict.fromkeys(model_names.HABITUAL_NAMES, self.models[0]) | self._named
        self.failure: Exception | None = None
        self._ready = self._draining = False

    def _running_beside(self, at: int) -> int:
        return sum(model.running for number, model in enumerate(self.models) if number != at)

    def _progressed(self) -> None:
        if len(self.models) > 1:
            self._memory.changed()
            for model in self.models:
                model.wake()

    def start(self) -> None:
        """Load and measure each model, the first one last: it stays in memory, and others are loaded when asked for.

        Raises:
            ModelError, RuntimeError, ValueError: see `ServedModel.start`.

        """
        if self._device.name == "cuda" and not self._cuda_devices:
            # Before gigabytes are downloaded for it.
            raise RuntimeError("--device cuda is set, but the driver shows no CUDA device")
        self._decoders.start()
        for model in reversed(self.models):
            model.start(unload=model is not self.models[0])
        self._ready = True

    def drain(self, seconds: float) -> None:
        """Accept no new requests, and refuse those that have not begun and would take longer than so many seconds."""
        self._draining = True
        for model in self.models:
            model.send_away(Stopping(), later_than=seconds)

    def give_up(self) -> None:
        """Refuse all requests that are still open."""
        for model in self.models:
            model.refuse(Stopping())

    def stop(self) -> bool:
        """Stop after the batches in flight; False if one, or loading a model, takes too long to wait for."""
        self._decoders.close()
        self._diarizer.close()
        stopped = [model.stop() for model in self.models]
        return all(stopped)

    def find(self, name: str, task: Task = "transcribe") -> ServedModel:
        """Return the model that a name means, no name meaning the first.

        For a translation, if that model was not trained for it, return the first that was.

        Raises:
            UnknownModel: no model is served under this name.

        """
        model = self._named.get(name) if name else self.models[0]
        if model is None:
            raise UnknownModel(name, self.names)
        if task == "transcribe" or model.can_translate:
            return model
        return next((other for other in self.models if other.can_translate), model)

    @property
    def model(self) -> str:
        """The first model."""
        return self.models[0].model

    @property
    def queue_seconds(self) -> float:
        """Estimate how long a new request for the first model would wait, in seconds."""
        return self.models[0].queue_seconds

    @property
    def open_requests(self) -> int:
        """How many transcriptions wait or run."""
        return sum(model.requests for model in self.models)

    def require_ready(self) -> None:
        """Check that a new request may come.

        Raises:
            Busy: the models are still being loaded, or the server is stopping.
            EngineFailed: a model could not be loaded.

        """
        if self.failure is not None:
            raise EngineFailed("The model could not be loaded; the server's log says why.")
        if not self._ready:
            raise Busy("The model is still being loaded. Try again shortly.", retry_after=LOADING_RETRY_SECONDS)
        if self._draining:
            raise Stopping

    def require_room(self) -> None:
        """Raise Busy if no model's queue has room."""
        refusals = list[Busy]()
        for model in self.models:
            try:
                return model.require_room()
            except Busy as busy:
                refusals.append(busy)
        raise refusals[0]

    async def healthy(self) -> bool:
        """Return whether all engines work, by self-tests if necessary. True while the models load."""
        return all([await model.healthy() for model in self.models])

    def unready(self) -> str | None:
        """Return why requests should go to another server; None if they may come."""
        if self.failure is not None:
            return "The model could not be loaded."
        if not self._ready:
            return "The model is still being loaded."
        if self._draining:
            return "The server is stopping."
        faults = [fault for model in self.models if (fault := model.at_fault())]
        return faults[0] if faults else "The queue is full." if all(model.full for model in self.models) else None

    def health(self) -> dict[str, Any]:
        """Return the state for `/health`, without waiting for a model: of the first, and of each in `models`."""
        each = [model.health() for model in self.models]
        state = {
            "status": "ok" if self._ready else "failed" if self.failure else "loading",
            "ready": self._ready,
            "version": __version__,
        }
        return state | each[0] | {"requests": self.open_requests, "models": each}
