"""An engine replica: one model and the same queue as on one machine, fed by the faces."""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import filelock
import platformdirs
from prometheus_client import CollectorRegistry, ProcessCollector

from localwhisper_server.cluster.messages import Answer, Call, Description, Refusal, State, without_features
from localwhisper_server.errors import Busy, ServerError, Stopping
from localwhisper_server.observer import request_id
from localwhisper_server.operations.metrics import Metrics, video_memory
from localwhisper_server.runtime import Runtime
from localwhisper_server.settings import Settings
from localwhisper_server.transcription.scheduling import Ticket
from localwhisper_server.whisper import weights
from localwhisper_server.whisper.chunks import Preparer

logger = logging.getLogger(__name__)

# Chunks of one request come one by one. So long after the last one the request is still open: the fair queue then knows
# how much of it was decoded.
LINGER_SECONDS = 1.0
# A face counts requests and estimates waits for all replicas. The queue of a replica itself has no bounds.
NO_BOUND = 1_000_000


@dataclass(slots=True)
class _Open:
    """A request with chunks here: its ticket, how many calls run, and what closes it after the last one."""

    ticket: Ticket
    calls: int = 0
    closing: asyncio.TimerHandle | None = None


class EngineReplica:
    """Holds the one model of `settings`, on `cores` CPU cores. `name` returns the name of this replica.

    Raises:
        ModelError, RuntimeError, ValueError, OSError: see `ServedModel.start`.

    """

    def __init__(self, settings: Settings, cores: int, name: Callable[[], str]) -> None:
        self.name = name()
        settings = settings.model_copy(update={"queue": NO_BOUND, "max_wait": float(NO_BOUND)})
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._metrics = Metrics(self._registry)
        self._runtime = Runtime(settings, environ=os.environ, observer=self._metrics, cores=cores)
        (self._model,) = self._runtime.models
        find_once(self._model.model, settings)
        self._model.start()
        self._metrics.read_at_scrape(self._model.names[0], self._model)
        self._metrics.read_video_memory(video_memory())
        self._open: dict[str, _Open] = {}
        self._sound = 0.0

    def describe(self) -> Description:
        """Return what a face has to know of the model."""
        decoder, health = self._model.decoder, self._model.health()
        if decoder is None or not isinstance(decoder.prepare, Preparer):
            raise RuntimeError("the model has not been started")
        return Description(
            languages=self._model.languages,
            created=self._model.created,
            device=health["device"],
            compute_type=health["compute_type"],
            limits=decoder.limits,
            prepare=decoder.prepare,
        )

    async def decode(self, call: Call) -> Answer:
        """Put a chunk into the queue and return its answer; leave the queue if the call is cancelled."""
        opened = self._enter(call)
        request_id.set(call.request_id)
        try:
            result = await asyncio.wrap_future(*opened.ticket.submit([call.chunk], first=call.first))
        except Busy as busy:
            refusal = Refusal(busy.message, busy.retry_after, isinstance(busy, Stopping))
            return Answer(self.state(), refusal=refusal)
        except ServerError:
            return Answer(self.state())
        else:
            return Answer(self.state(), without_features(result))
        finally:
            self._leave(call, opened)

    def state(self) -> State:
        """Return how busy this replica is."""
        model = self._model
        speed = model.health()["speed"] or 0.0
        return State(self.name, self._sound, model.queue_seconds, speed, len(self._open), model.loaded)

    def families(self) -> tuple[str, bytes]:
        """Return this replica's name, and its numbers in the text format of Prometheus."""
        return self.name, self._metrics.exposition("")[0]

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the seconds of sound that wait or run here, for `scaling.replicas_for_sound`."""
        return {"sound": self._sound}

    async def check_health(self) -> None:
        """Let Serve replace this replica if its model is stuck or fails.

        Raises:
            RuntimeError: the engine does not work.

        """
        if not await self._model.healthy():
            raise RuntimeError(self._model.at_fault() or "the engine does not work")

    def __del__(self) -> None:
        """Stop when Serve has taken this replica out of service and its calls have ended."""
        if hasattr(self, "_runtime"):
            self._runtime.stop()

    def _enter(self, call: Call) -> _Open:
        opened = self._open.get(call.request)
        if opened is None:
            ticket = self._scheduler_ticket(call)
            opened = self._open[call.request] = _Open(ticket)
        if opened.closing is not None:
            opened.closing.cancel()
            opened.closing = None
        opened.calls += 1
        self._sound += call.seconds
        return opened

    def _scheduler_ticket(self, call: Call) -> Ticket:
        decoder = self._model.decoder
        if decoder is None:
            raise RuntimeError("the model has not been started")
        return decoder.scheduler.admit(bulk=call.bulk, live=call.live)

    def _leave(self, call: Call, opened: _Open) -> None:
        self._sound = max(0.0, self._sound - call.seconds)
        opened.calls -= 1
        if not opened.calls:
            opened.closing = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._close, call.request)

    def _close(self, request: str) -> None:
        self._open.pop(request).ticket.close()


def find_once(model: str, settings: Settings) -> None:
    """Fetch the weights, once for all replicas of this node: those that start at the same time wait.

    Raises:
        ModelError, OSError: see `weights.find`.

    """
    folder = settings.cache_dir or platformdirs.user_cache_path("localwhisper", appauthor=False)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f".fetch-{model.replace('/', '--')}.lock"):
        weights.find(model, cache_dir=settings.cache_dir)
