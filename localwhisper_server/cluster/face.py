"""The HTTP face: the app of one machine, whose models are in engine replicas. It decodes uploads and cuts them."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from localwhisper_server import server
from localwhisper_server.api import routes
from localwhisper_server.cluster.exposition import Collected
from localwhisper_server.cluster.loads import loads_of
from localwhisper_server.cluster.messages import State
from localwhisper_server.cluster.model import ClusterModel
from localwhisper_server.operations.host import own_names
from localwhisper_server.operations.metrics import Metrics
from localwhisper_server.runtime import Runtime
from localwhisper_server.settings import Settings

# How often the replicas are asked how busy they are; each answer of theirs says it too.
STATE_SECONDS = 1.0
# How often they are asked for their metrics.
METRICS_SECONDS = 5.0
# How long they may take.
PATIENCE_SECONDS = 5.0


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
