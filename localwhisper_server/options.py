"""What a request can ask of the model: plain values that the form fills and the engine reads."""

from dataclasses import dataclass, field

from localwhisper_server.transcript import Task


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
