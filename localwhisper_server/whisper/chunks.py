"""What goes through the model and what comes out: chunks and their results. Pure."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from localwhisper_server.types import AudioChunk, Decoding, Segment, Span
from localwhisper_server.whisper.decoding_rules import FRAMES_PER_SECOND, Hypothesis, window_frames

# A shorter remainder is not decoded.
MIN_REMAINDER_SECONDS = 1.0
# Above this temperature the text may be invented, and as a prefix it would lead to more of the same; Whisper's
# reference code has the same limit.
MAX_PREFIX_TEMPERATURE = 0.5
# Texts whose tokens are cached: about as many as there are open requests.
CACHED_TEXTS = 128

Features = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A piece of a recording, ready for the model.

    `features` are its log-mel frames of 10 ms, shape (mels, n). It is `seconds` long and begins `offset` seconds into
    the recording. `speech` holds the spans of speech and `speech_end` the end of the last one, in seconds from the
    chunk's start; `speech_seconds` is their sum. With `full_window` the chunk is always decoded with the full window;
    with `is_retry` only this time, because the acceptance check rejected the answer of a shorter one.
    `prefix_tokens` are the tokens decoded right before this chunk. With `language_provisional` another chunk
    decides the language later, so a low probability of the detected one is no reason for a retry. `prompt` and
    `hotwords` are those of `decoding`, as tokens.
    """

    features: Features
    seconds: float
    offset: float
    decoding: Decoding
    speech_seconds: float = 0.0
    speech_end: float = 0.0
    speech: tuple[Span, ...] = ()
    full_window: bool = False
    is_retry: bool = False
    prefix_tokens: tuple[int, ...] = ()
    language_provisional: bool = False
    prompt: tuple[int, ...] = ()
    hotwords: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        """How many frames of 10 ms the encoder is given, which is what the chunk costs."""
        # The acceptance check's thresholds are for temperature 0 alone.
        full = self.full_window or self.is_retry or bool(self.decoding.temperature)
        return window_frames(self.seconds, full_window=full)


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What was decoded from a chunk.

    `language` is None if the answer was rejected. `remainder` is what is still to be decoded: the end of the chunk, if
    the model stopped before it, or the whole chunk again if the answer was rejected. `rejected` is the reason: "prompt"
    for a retry without prompt and hotwords, any other for a retry with the full window.
    """

    language: str | None
    segments: tuple[Segment, ...]
    remainder: Chunk | None = None
    rejected: str | None = None


class Preparer:
    """Turns sound and hints into chunks, in any thread. It holds no reference to the model, which may be unloaded.

    `extractor` turns samples into log-mel frames, `encode` text into tokens. A text is encoded once for all chunks of
    a recording.
    """

    def __init__(self, extractor: Any, encode: Callable[[str], Sequence[int]]) -> None:
        self._extractor = extractor
        self._encode = encode
        self._tokens = lru_cache(maxsize=CACHED_TEXTS)(self._encode_as_text)

    def __call__(self, piece: AudioChunk, decoding: Decoding, *, full_window: bool = False) -> Chunk:
        """Return a chunk with the piece's log-mel frames."""
        features = self._extractor(piece.samples)[:, :-1]
        return Chunk(
            np.ascontiguousarray(features, dtype=np.float32),
            piece.seconds,
            piece.offset,
            decoding,
            speech_seconds=sum(span.seconds for span in piece.speech),
            speech_end=piece.speech[-1].end if piece.speech else 0.0,
            speech=piece.speech,
            full_window=full_window,
            prompt=self._tokens(decoding.prompt.strip()),
            hotwords=self._tokens(decoding.hotwords.strip()),
        )

    def _encode_as_text(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, none of them special: the text is split inside the names of special tokens."""
        parts = re.split(r"(?<=<)(?=\|)", f" {text}") if text else ()
        return tuple(token for part in parts for token in self._encode(part))


def padded(features: Features, frames: int) -> Features:
    """Cut or pad with zeros to shape (mels, frames), as Whisper pads its own window."""
    kept = features[:, :frames]
    return np.pad(kept, ((0, 0), (0, frames - kept.shape[1])))


def remainder_of(chunk: Chunk, hypothesis: Hypothesis, continues_at: float | None) -> Chunk | None:
    """Return the part of a chunk from `continues_at` on, in seconds from its start; None if there is no such part.

    Its prefix tokens are those of the chunk and of the hypothesis, without the second of the two timestamps at the end.
    """
    if hypothesis.silence or continues_at is None or chunk.seconds - continues_at < MIN_REMAINDER_SECONDS:
        return None
    at = continues_at
    keeps_prefix = hypothesis.temperature <= MAX_PREFIX_TEMPERATURE
    return replace(
        chunk,
        is_retry=False,
        prefix_tokens=chunk.prefix_tokens + hypothesis.tokens[:-1] if keeps_prefix else (),
        features=chunk.features[:, round(at * FRAMES_PER_SECOND) :],
        seconds=chunk.seconds - at,
        offset=chunk.offset + at,
        speech_seconds=max(0.0, chunk.speech_seconds - at),
        speech_end=max(0.0, chunk.speech_end - at),
        speech=tuple(Span(max(0.0, span.start - at), span.end - at) for span in chunk.speech if span.end > at),
    )
