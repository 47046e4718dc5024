"""What the app needs of a scheduler: of this process's (`scheduler`), or of one that sends chunks elsewhere."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from localwhisper_server.errors import ServerError
from localwhisper_server.whisper.chunks import Chunk, ChunkResult


class Ticket(Protocol):
    """An admitted request. Close it when the request ends, for whatever reason."""

    def submit(self, chunks: Sequence[Chunk], *, first: bool = False) -> list[Future[ChunkResult]]:
        """Queue chunks; each future gives a result or raises a ServerError, and removes its chunk when cancelled."""

    def close(self) -> None:
        """Leave the queue and cancel the chunks that still wait."""


class Scheduling(Protocol):
    """Admits requests and decodes their chunks; see `scheduler.Scheduler` for each method."""

    @property
    def requests(self) -> int:
        """How many requests are open."""

    @property
    def full(self) -> bool:
        """Whether the queue has no room for one more request."""

    @property
    def speed(self) -> float:
        """Seconds of audio decoded in a second: a running estimate."""

    @property
    def queue_seconds(self) -> float:
        """Estimate how long the first chunk of a new request would wait, in seconds."""

    @property
    def finishing(self) -> bool:
        """Whether a message that comes now has to wait for `resume`."""

    def require_room(self) -> None:
        """Raise Busy if one more request would not be admitted."""

    def admit(self, *, bulk: bool = False, live: bool = False) -> Ticket:
        """Open a request; raise Busy as `require_room` does."""

    def expect(self) -> None:
        """Tell of a request that will be admitted in a moment: the model is not unloaded just before."""

    def send_away(self, refusal: ServerError, *, later_than: float) -> None:
        """Fail the requests that have not begun and would not end within so many seconds."""

    def refuse(self, refusal: ServerError) -> None:
        """Fail every chunk that waits or runs, and every chunk submitted from now on."""

    def finish(self) -> bool:
        """Work only for messages that came shortly, until `resume`; return whether all is done."""

    def resume(self) -> None:
        """Work for all requests again."""

    def wake(self) -> None:
        """Look again whether a batch may begin."""

    def close(self, timeout: float | None = None) -> bool:
        """Refuse the waiting chunks; return whether all that run end within `timeout` seconds."""
