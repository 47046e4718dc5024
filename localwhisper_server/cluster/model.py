"""A served model whose weights are in replicas on other machines, or in other processes of this one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray import exceptions
from ray.serve.exceptions import ReplicaUnavailableError

from localwhisper_server.cluster.loads import loads_of
from localwhisper_server.cluster.scheduler import ClusterScheduler
from localwhisper_server.served_model import ServedModel, Shared
from localwhisper_server.transcription.transcriber import Decoder

if TYPE_CHECKING:
    from localwhisper_server.cluster.messages import Description

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
