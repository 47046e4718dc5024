"""What a face and an engine replica send to each other. Plain values, no Ray."""

from dataclasses import dataclass, replace

import numpy as np

from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import FRAMES_PER_SECOND, Chunk, ChunkResult, Preparer


@dataclass(frozen=True, slots=True)
class Call:
    """One chunk for a replica's queue.

    `number` tells calls apart, and `request` the open requests; both are unique in the cluster. `first`, `bulk` and
    `live` are as in a Scheduler. `request_id` goes into the replica's log.
    """

    number: str
    request: str
    chunk: Chunk
    first: bool = False
    bulk: bool = False
    live: bool = False
    request_id: str = "-"

    @property
    def seconds(self) -> float:
        """The length of the encoded window, which is what the chunk costs."""
        return self.chunk.frames / FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True)
class State:
    """How busy a replica is.

    `sound` is seconds of audio that wait or run. `queue_seconds` is how long a new request would wait. `speed` is
    seconds of audio decoded in a second. `requests` are open.
    """

    replica: str
    sound: float
    queue_seconds: float
    speed: float
    requests: int
    loaded: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A replica's Busy: its message and `Retry-After`. `stopping`: another replica should be asked at once."""

    message: str
    retry_after: float
    stopping: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a call: a result without the features of its remainder, a refusal, or neither if the model failed."""

    state: State
    result: ChunkResult | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """What a face has to know of a model that it does not load.

    `created` is the time of the model's file, in Unix seconds. `prepare` makes features and tokens.
    """

    languages: frozenset[str]
    created: int
    device: str
    compute_type: str
    limits: BatchLimits
    prepare: Preparer


def without_features(result: ChunkResult) -> ChunkResult:
    """Return the result with a remainder that has no features: the face has them, in the chunk that it sent.

    The remainder's features get the shape (0, n), where n is how many frames it has.
    """
    if result.remainder is None:
        return result
    bare = np.empty((0, result.remainder.features.shape[1]), np.float32)
    return replace(result, remainder=replace(result.remainder, features=bare))


def with_features(result: ChunkResult, sent: Chunk) -> ChunkResult:
    """Undo `without_features`: a remainder is always the end of the chunk that was sent, or the whole of it."""
    if result.remainder is None:
        return result
    first = sent.features.shape[1] - result.remainder.features.shape[1]
    return replace(result, remainder=replace(result.remainder, features=sent.features[:, first:]))
