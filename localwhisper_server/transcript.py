"""What a transcription is made of: plain values that the engine fills and the formats render."""

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class Word:
    """One spoken word. `text` is without spaces; `start` and `end` are seconds in the recording."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the text with its natural-log probability; `data` is its UTF-8, which may split a character."""

    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech between two timestamps of the model.

    `start` and `end` are seconds in the recording, never past its end. `text` keeps the model's leading space.
    `seek` is where the decoded window began, in frames of 10 ms. `temperature`, `avg_logprob`, `compression_ratio`
    and `no_speech_prob` are those of the window, as Whisper defines them.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    seek: int = 0
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """A finished transcription.

    `language` is a code such as "en", or None where nobody spoke; `duration` is seconds.
    """

    task: Task
    language: str | None
    duration: float
    segments: tuple[Segment, ...] = field(default=())

    @property
    def text(self) -> str:
        """The whole text, as the SDK's `.text` gives it."""
        return "".join(segment.text for segment in self.segments).strip()
