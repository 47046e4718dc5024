"""Serve's router of calls to engine replicas: the replica with the least work gets the next chunk."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from localwhisper_server.cluster.loads import Loads, loads_of
from localwhisper_server.cluster.messages import Call


class LeastWorkRouter(RequestRouter):  # type: ignore[misc]  # Ray's types are not read
    """Orders replicas by the sound that they have, not by how many calls: a chunk has from 1 to 30 seconds.

    Serve makes one in each process that has a handle, and calls it on a thread of its own.
    """

    def initialize_state(self, **_given: Any) -> None:
        """Find the counts that the face's scheduler has too."""
        self._loads: Loads = loads_of(self._deployment_id.name)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order of their work, each a rank of its own."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = self._loads.ordered(list(by_name))
        if pending_request is not None:
            # Wait before the next attempt if no replica takes the call.
            pending_request.routing_context.should_backoff = True
            call = _call(pending_request)
            if call is not None and order:
                # At once: the next chunk of the same recording is on its way.
                self._loads.sent(call, order[0])
        return [[by_name[name]] for name in order]

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: object,  # noqa: ARG002 - Serve's signature
    ) -> None:
        """Correct the counts if it was not the first replica that took the call."""
        call = _call(pending_request)
        if call is not None:
            self._loads.sent(call, replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Note which replicas there are."""
        super().update_replicas(replicas)
        self._loads.running(replica.replica_id.unique_id for replica in replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Note that a replica is lost."""
        super().on_replica_actor_died(replica_id)
        self._loads.lost(replica_id.unique_id)


def _call(pending: PendingRequest) -> Call | None:
    return next((given for given in pending.args if isinstance(given, Call)), None)
