"""Plain values that every part of the server may use: sound, what is asked of the model, and what it heard."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
Samples = npt.NDArray[np.float32]
"""Sound: float32 in [-1, 1], shape (n,), at 16 kHz."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of sound, in seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of a recording: samples of shape (n,) that begin `offset` seconds into it.

    `speech` is where somebody speaks, in seconds from the first sample.
    """

    samples: Samples
    offset: float
    speech: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples.size / SAMPLE_RATE


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


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a chunk is to be decoded.

    `language` None means: detect it, among `languages` if there are any. `temperature` None or 0 is the ladder from 0
    to 1; another number is used alone.
    `prompt` is text the model takes as having been said before; `hotwords` are spellings to prefer.
    """

    task: Task = "transcribe"
    language: str | None = None
    languages: tuple[str, ...] = ()
    prompt: str = ""
    hotwords: str = ""
    temperature: float | None = None
    words: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Voice:
    """Settings of the voice activity detector, with the field names of OpenAI's `server_vad`; times in ms.

    Bursts shorter than `min_speech_ms` are clicks, not words; `engine.find_speech` is strict with those little longer.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 160
    min_speech_ms: int = 150


@dataclass(frozen=True, slots=True)
class Options:
    """Everything about one transcription but its sound.

    `full_window` decodes every chunk with Whisper's whole window. `bulk` work lets interactive work go first.
    """

    decoding: Decoding = field(default_factory=Decoding)
    voice: Voice = field(default_factory=Voice)
    full_window: bool = False
    bulk: bool = False
