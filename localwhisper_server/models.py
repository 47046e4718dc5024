"""What the HTTP routes, realtime sessions and Wyoming know of the models that answer them."""

from collections.abc import AsyncGenerator, Sequence
from typing import IO, Any, Protocol

from localwhisper_server.observer import ModelObserver
from localwhisper_server.types import Decoding, Draft, Options, Samples, Segment, Span, Task, Transcript

Items = AsyncGenerator[Segment | Transcript]
"""The segments of a transcript as they are decoded, then the transcript."""


class Detector(Protocol):
    """Detects speech in one stream."""

    def __call__(self, samples: Samples) -> Sequence[float]:
        """Return the probability of speech for each window."""


class SessionDecoder(Protocol):
    """A model, for one realtime session."""

    async def decode(
        self, samples: Samples, speech: Sequence[Span], decoding: Decoding, *, thorough: bool
    ) -> Transcript | Draft | None:
        """Return the text; a draft or None if it is not accepted and need not be decoded again."""

    def close(self) -> None:
        """Free the session's place in the queue."""


class Model(Protocol):
    """One served model."""

    names: tuple[str, ...]  # under which it is listed, its own first
    languages: frozenset[str]
    created: int  # the time of its file, in Unix seconds
    observer: ModelObserver

    @property
    def can_translate(self) -> bool:
        """Whether it was trained to translate into English."""

    def transcribe(self, source: IO[bytes], options: Options) -> Items:
        """Yield segments, then the transcript; close `source` at the end."""

    def live(self) -> SessionDecoder:
        """Open a realtime session; raises Busy while the model is being loaded or the queue has no room."""

    def new_detector(self) -> Detector:
        """Return a detector for a new stream."""


class Models(Protocol):
    """The served models together, and their state."""

    names: tuple[str, ...]  # under which models are listed

    @property
    def models(self) -> Sequence[Model]:
        """The models; a request that names none means the first."""

    def find(self, name: str, task: Task = "transcribe") -> Model:
        """Return the model for a name, or, for a translation, another one if that one cannot translate.

        Raises:
            UnknownModel: no model is served under this name.

        """

    def health(self) -> dict[str, Any]:
        """Describe the state, with a boolean `ready`."""

    def unready(self) -> str | None:
        """Say why requests should go elsewhere; None if they need not."""

    @property
    def queue_seconds(self) -> float:
        """How long a request that came now would wait."""

    def require_ready(self) -> None:
        """Raise Busy while the models are being loaded."""

    def require_room(self) -> None:
        """Raise Busy if no queue has room."""
