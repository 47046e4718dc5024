"""Plain values that every folder of the server may import: audio, the options of a request, and its transcript."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
Samples = npt.NDArray[np.float32]
"""Audio: float32 in [-1, 1], shape (n,), at 16 kHz, mono."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of audio; `start` and `end` are seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, eq=False)
class AudioChunk:
    """A part of a recording, cut in the pauses, that the model decodes at once.

    `samples` has the shape (n,). The chunk begins `offset` seconds into the recording. `speech` is where somebody
    speaks, in seconds from the chunk's start.
    """

    samples: Samples
    offset: float
    speech: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.samples.size / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may be: at most `items` chunks, and `frames` frames of 10 ms in all.

    `share` is how many frames one request may have in a batch. It bounds how long the batch of an hour-long file keeps
    a short message waiting. The share does not apply to a request that has at most `end` frames waiting: it soon ends.
    """

    items: int
    frames: int
    share: int
    end: int = 0


Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class Word:
    """One spoken word. `text` has no spaces around it; `start` and `end` are seconds in the recording."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the text and the natural logarithm of its probability.

    `data` is its UTF-8. A character may be split between two tokens.
    """

    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech between two timestamps of the model.

    `start` and `end` are seconds in the recording, never past its end. `text` keeps the model's leading space.
    `seek` is where the decoded window begins, in frames of 10 ms. `temperature`, `avg_logprob`, `compression_ratio`
    and `no_speech_prob` belong to the whole window, as Whisper defines them. `speaker` is empty without diarization.
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
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A finished transcription.

    `language` is a code such as "en", or None if there is no speech. `duration` is seconds.
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
class Draft:
    """A rejected text of sound that still grows: words that a later, accepted one has too are taken for right."""

    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the model decodes a chunk.

    With `language` None, the model detects it, among `languages` if there are any. With `temperature` None or 0, the
    model falls back from 0 to higher temperatures up to 1; any other number is the only temperature. `prompt` is text
    that the model takes as said before the chunk. `hotwords` are spellings to prefer. `words` and `logprobs` ask for
    the times of words and the probabilities of tokens.
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

    The detector drops bursts shorter than `min_speech_ms`: they are clicks, not words.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 160
    min_speech_ms: int = 150


@dataclass(frozen=True, slots=True)
class KnownSpeaker:
    """A speaker's name, and a recording of that voice as an encoded audio file."""

    name: str
    reference: bytes


@dataclass(frozen=True, slots=True)
class Speakers:
    """Asks who says each word: the `known` speakers by their names, others as A, B and so on.

    `most` bounds the number of speakers, the known included; None: as many as are heard. With `chunked` False, only a
    recording of up to 30 s is accepted, as OpenAI does for a request without a chunking strategy.
    """

    known: tuple[KnownSpeaker, ...] = ()
    most: int | None = None
    chunked: bool = True


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that a request asks for, except its audio.

    `full_window` decodes every chunk with Whisper's whole window of 30 s. `bulk` requests wait for interactive ones.
    With `speakers` None, nobody asks who speaks.
    """

    decoding: Decoding = field(default_factory=Decoding)
    voice: Voice = field(default_factory=Voice)
    full_window: bool = False
    bulk: bool = False
    speakers: Speakers | None = None
