"""Who is told what the server does, and on behalf of which request."""

import contextlib
import contextvars
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id(given: str | None) -> str:
    """Keep a caller's `x-request-id` if it is fit to print, else make one in OpenAI's shape."""
    if given and _GIVEN_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(16)}"


@contextlib.contextmanager
def on_behalf_of(ids: Iterable[str]) -> Iterator[None]:
    """Log as of these requests, from a thread that works for several."""
    token = request_id.set(",".join(dict.fromkeys(ids)) or "-")
    try:
        yield
    finally:
        request_id.reset(token)


class Observer(Protocol):
    """Who is told what happens. Called from the event loop and from the engine's thread; must not block or raise."""

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Note an answer; `route` is the template that matched, None where none did; status 0: the caller hung up."""

    def transcribed(self, seconds: float) -> None:
        """Note a recording of so many seconds that was transcribed."""

    def waited(self, seconds: float) -> None:
        """Note that a chunk waited so long for its batch."""

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        """Note a batch: its chunks, how many it may hold, their seconds of sound, the seconds it took."""

    def retried(self, reason: str) -> None:
        """Note a chunk that was done again with the full window, and why; see `gate`."""

    def model_loaded(self) -> None:
        """Note that the model was loaded."""

    def out_of_memory(self) -> None:
        """Note that the device's memory ran out."""


class NullObserver:
    """An observer who does not care."""

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Ignore it, as all of this."""

    def transcribed(self, seconds: float) -> None:
        """Ignore it."""

    def waited(self, seconds: float) -> None:
        """Ignore it."""

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        """Ignore it."""

    def retried(self, reason: str) -> None:
        """Ignore it."""

    def model_loaded(self) -> None:
        """Ignore it."""

    def out_of_memory(self) -> None:
        """Ignore it."""


class _Sounding(Protocol):
    @property
    def seconds(self) -> float: ...


class _Doubted(Protocol):
    @property
    def rejected(self) -> str | None: ...


Item = TypeVar("Item", bound=_Sounding)
Result = TypeVar("Result", bound=_Doubted)


def watched(
    run: Callable[[Sequence[Item]], Sequence[Result]],
    observer: Observer,
    *,
    most: int,
    clock: Callable[[], float],
) -> Callable[[Sequence[Item]], Sequence[Result]]:
    """Return `run` with every batch that succeeds told to the observer; `most` is how many chunks one may hold."""

    def running(items: Sequence[Item]) -> Sequence[Result]:
        started = clock()
        results = run(items)
        observer.decoded(len(items), most, sum(item.seconds for item in items), clock() - started)
        for result in results:
            if result.rejected is not None:
                observer.retried(result.rejected)
        return results

    return running
