"""The observer that the server reports its work to, and the id of the request that a log line belongs to."""

import contextvars
import re
import secrets
from typing import Protocol

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id(given: str | None) -> str:
    """Keep a caller's `x-request-id` if it is safe to print; otherwise make one in OpenAI's form."""
    if given and _GIVEN_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(16)}"


class Observer(Protocol):
    """Is told what the server does.

    The event loop and the engine's threads call these methods, which must not block or raise.
    """

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Note a reply. `route` is the template that matched, None if none did; status 0: the caller hung up."""

    def transcribed(self, seconds: float) -> None:
        """Note that a recording of so many seconds was transcribed."""

    def waited(self, seconds: float) -> None:
        """Note that a chunk waited for so many seconds for its batch."""

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        """Note a batch: how many chunks it had and might have had, seconds of audio, and seconds that it took."""

    def retried(self, reason: str) -> None:
        """Note that a chunk is decoded again because the acceptance check rejected its text for this reason."""

    def model_loaded(self) -> None:
        """Note that the model was loaded."""

    def out_of_memory(self) -> None:
        """Note that the device ran out of memory."""


class NullObserver:
    """An observer that ignores everything."""

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Ignore it."""

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
