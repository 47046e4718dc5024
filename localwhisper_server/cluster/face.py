"""The HTTP face: the app of one machine, whose models are in replicas. It decodes uploads and cuts them."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from ray import exceptions
from ray.serve.exceptions import ReplicaUnavailableError

from localwhisper_server import server
from localwhisper_server.api import routes
from localwhisper_server.cluster.exposition import Collected
from localwhisper_server.cluster.loads import loads_of
from localwhisper_server.cluster.messages import Description, State
from localwhisper_server.cluster.scheduler import ClusterScheduler
from localwhisper_server.operations.host import own_names
from localwhisper_server.operations.metrics import Metrics
from localwhisper_server.runtime import Runtime
from localwhisper_server.served_model import ServedModel, Shared
from localwhisper_server.settings import Settings
from localwhisper_server.transcription.transcriber import Decoder

# How often the replicas are asked how busy they are; each answer of theirs says it too.
STATE_SECONDS = 1.0
# How often they are asked for their metrics.
METRICS_SECONDS = 5.0
# How long they may take.
PATIENCE_SECONDS = 5.0

# What a call ends in if its replica, node or network is lost. What a replica's code raises is a RayTaskError.
LOST: tuple[type[Exception], ...] = (
    exceptions.RayActorError,
    exceptions.ObjectLostError,
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
    exceptions.LocalRayletDiedError,
    exceptions.TaskCancelledError,
    exceptions.RpcError,
    ReplicaUnavailableError,
)


class ClusterModel(ServedModel):
    """A ServedModel that loads nothing: `handles` has the handle of the engine deployment of each model."""

    def __init__(self, model: str, shared: Shared, *, handles: Mapping[str, Any], **given: Any) -> None:
        super().__init__(model, shared, **given)
        self.handle = handles[model]
        self._loads = loads_of(self.handle.deployment_name)
        self._description: Description | None = None

    def _start(self, *, unload: bool) -> None:  # noqa: ARG002 - replicas share no memory
        """Wait for the first replica, and ask it about the model."""
        description: Description = self.handle.describe.remote().result()
        self._description = description
        self.languages, self.created = description.languages, description.created
        settings = self._settings
        scheduler = ClusterScheduler(
            self.handle.decode.remote,
            self._loads,
            lost=LOST,
            limits=description.limits,
            capacity=settings.queue,
            max_wait=settings.max_wait,
            ahead=self._shared.steps.seconds_ahead,
        )
        self.answer_with(Decoder(description.prepare, scheduler, description.limits))

    @property
    def loaded(self) -> bool:
        """Whether a replica has it in memory."""
        return self._loads.loaded

    def at_fault(self) -> str | None:
        """Return why requests should go to another server; None if they may come."""
        if self.decoder is None:
            return "The model is still being loaded."
        return None if self._loads.count else "No engine replica is running."

    def health(self) -> dict[str, Any]:
        """Return the state for `/health`, without asking a replica."""
        known = self._description
        return {
            "model": self.model,
            "loaded": self.loaded,
            "device": known.device if known else None,
            "compute_type": known.compute_type if known else None,
            "requests": self.requests,
            "queue_seconds": round(self.queue_seconds, 3),
            "speed": round(self._loads.speed, 2),
            "replicas": self._loads.count,
        }


class Face:
    """Builds the app. `engines` has the handle of the engine deployment of each model in `settings`."""

    def __init__(self, settings: Settings, engines: Mapping[str, Any], name: str, own: Any) -> None:
        self._settings = settings
        self._name = name
        self._own = own
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._metrics = Metrics(registry)
        self._collected = Collected(registry)
        self._runtime = Runtime(
            settings,
            cuda_devices=0,
            environ=os.environ,
            observer=self._metrics,
            make_model=partial(ClusterModel, handles=engines),
        )
        for model in self._runtime.models:
            self._metrics.read_at_scrape(model.names[0], model)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the app; Serve asks for it by this name."""
        rules = server.access_rules(self._settings, own_names())
        return routes.create_app(
            self._runtime,
            rules=rules,
            limits=server.request_limits(self._settings),
            observer=self._metrics,
            exposition=self._collected.exposition,
            upstream=server.upstream(self._settings, rules.keys),
            lifespan=self._lifespan,
        )

    def families(self) -> tuple[str, bytes]:
        """Return this replica's name, and its numbers in the text format of Prometheus."""
        return self._name, self._metrics.exposition("")[0]

    async def check_health(self) -> None:
        """Let Serve replace this replica if its event loop does not answer: then this is not called in time."""

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: object) -> AsyncIterator[None]:
        # Before Serve sends the first request, so that an update has no moment without a face.
        await asyncio.to_thread(self._runtime.start)
        tasks = [asyncio.create_task(self._ask_states()), asyncio.create_task(self._ask_metrics())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self._runtime.give_up()
            self._runtime.stop()

    async def _ask_states(self) -> None:
        """Ask each replica how busy it is, again and again: other faces send it work too."""
        while True:
            for model in self._runtime.models:
                if isinstance(model, ClusterModel):
                    loads = loads_of(model.handle.deployment_name)
                    for state in await asked(model.handle, "state"):
                        if isinstance(state, State):
                            loads.told(state)
            await asyncio.sleep(STATE_SECONDS)

    async def _ask_metrics(self) -> None:
        """Ask all replicas, those of the face among them, for their metrics."""
        handles = [self._own, *(model.handle for model in self._runtime.models if isinstance(model, ClusterModel))]
        while True:
            answers = [answer for handle in handles for answer in await asked(handle, "families")]
            self._collected.replace({name: text for name, text in answers if name != self._name})
            await asyncio.sleep(METRICS_SECONDS)


async def asked(handle: Any, method: str) -> list[Any]:
    """Return the answers of all replicas that gave one; none if there is no replica."""
    try:
        answers = await handle.broadcast(method).results_async(timeout_s=PATIENCE_SECONDS, return_exceptions=True)
    except Exception:  # noqa: BLE001 - none runs, or one hangs: the next time will show
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]
