"""The observer that the server reports its work to, and the id of the request that a log line belongs to."""

import contextvars

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


class ModelObserver:
    """Is told what one model does, and ignores it.

    The event loop and the engine's threads call these methods, which must not block or raise.
    """

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


class Observer:
    """Is told what the server does, and ignores it; `Metrics` counts it. Its methods must not block or raise either."""

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Note a reply. `route` is the template that matched, None if none did; status 0: the caller hung up."""

    def of_model(self, name: str) -> ModelObserver:  # noqa: ARG002 - only those that count need the name
        """Return the observer of a served model."""
        return ModelObserver()
