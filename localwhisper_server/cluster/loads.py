"""What a face knows of the engine replicas: how much sound each has, and which has the least work. No Ray, no I/O."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from localwhisper_server.cluster.messages import Call, State

# Seconds of audio decoded in a second: a guess until a replica has told its own.
FIRST_SPEED = 5.0


@dataclass(slots=True)
class _Replica:
    """The last state that a replica told, and what this face has sent it.

    `sent` has the seconds of each call of this face that it has not answered. `others` is the sound of other faces.
    `since` has the seconds by request that were sent since that state.
    """

    state: State | None = None
    sent: dict[str, float] = field(default_factory=dict)
    others: float = 0.0
    since: dict[str, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        return (self.state.speed if self.state else 0.0) or FIRST_SPEED

    @property
    def seconds_to_work(self) -> float:
        return (sum(self.sent.values()) + self.others) / self.speed

    def queue_seconds(self, share: float) -> float:
        told = self.state.queue_seconds if self.state else 0.0
        return told + sum(min(share, seconds) for seconds in self.since.values()) / self.speed


class Loads:
    """Counts for one deployment. Safe for any number of threads: Serve's router has one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._replicas: dict[str, _Replica] = {}
        self._where: dict[str, str | None] = {}  # calls by number: the replica that has it

    def running(self, names: Iterable[str]) -> None:
        """Note which replicas there are."""
        with self._lock:
            self._replicas = {name: self._replicas.get(name) or _Replica() for name in names}

    def lost(self, name: str) -> None:
        """Note that a replica has died."""
        with self._lock:
            self._replicas.pop(name, None)

    def begun(self, call: Call) -> None:
        """Note that a call waits for a replica."""
        with self._lock:
            self._where[call.number] = None

    def sent(self, call: Call, name: str) -> None:
        """Note that a call goes to a replica; the last one counts. Nothing if the call has ended."""
        with self._lock:
            if self._where.get(call.number, name) == name:
                return
            self._forget(call.number)
            replica = self._replicas.setdefault(name, _Replica())
            replica.sent[call.number] = call.seconds
            replica.since[call.request] = replica.since.get(call.request, 0.0) + call.seconds
            self._where[call.number] = name

    def ended(self, call: Call) -> None:
        """Note that a call was answered, cancelled or lost."""
        with self._lock:
            self._forget(call.number)

    def told(self, state: State) -> None:
        """Note what a replica says of itself; nothing if it is no longer there."""
        with self._lock:
            replica = self._replicas.get(state.replica)
            if replica is not None:
                replica.state = state
                replica.others = max(0.0, state.sound - sum(replica.sent.values()))
                replica.since.clear()

    def ordered(self, names: Sequence[str]) -> list[str]:
        """Return the names, that of the replica with the least work first."""
        with self._lock:
            work = {name: self._replicas[name].seconds_to_work if name in self._replicas else 0.0 for name in names}
        return sorted(names, key=lambda name: work[name])

    def queue_seconds(self, share: float) -> float:
        """Estimate how long a new request would wait at the best replica; no request has more than `share` seconds."""
        with self._lock:
            return min((replica.queue_seconds(share) for replica in self._replicas.values()), default=0.0)

    @property
    def count(self) -> int:
        """How many replicas there are."""
        return len(self._replicas)

    @property
    def speed(self) -> float:
        """Seconds of audio that all replicas decode in a second."""
        with self._lock:
            return sum(replica.speed for replica in self._replicas.values())

    @property
    def loaded(self) -> bool:
        """Whether any replica has its model in memory."""
        with self._lock:
            return any(replica.state is not None and replica.state.loaded for replica in self._replicas.values())

    def _forget(self, number: str) -> None:
        name = self._where.pop(number, None)
        if name is not None and name in self._replicas:
            self._replicas[name].sent.pop(number, None)


_LOADS: dict[str, Loads] = {}


def loads_of(deployment: str) -> Loads:
    """Return the counts of a deployment in this process, which its router and its scheduler share."""
    return _LOADS.setdefault(deployment, Loads())
