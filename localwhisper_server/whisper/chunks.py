"""What goes through the model and what comes out: chunks and their results. Pure."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from localwhisper_server.types import AudioChunk, Decoding, Segment, Span
from localwhisper_server.whisper import window

# A window whose text ends well before the sound does is decoded again from there.
MIN_REMAINDER_SECONDS = 1.0

# Texts whose tokens are remembered: about as many as requests may be open.
TEXTS = 128

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
        """Frames the encoder will be given: what the chunk costs."""
        # A temperature of one's own is not judged by the gate's thresholds, so it gets the window they are for.
        return window.frames(self.seconds, full=self.full_window or self.is_retry or bool(self.decoding.temperature))


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What was heard in a chunk.

    `language` is None where that is still open. `remainder` is what remains to be run: what the model left undecoded at
    the chunk's end, or the whole chunk, with the full window or without its prompt, because `rejected` names a reason
    not to trust its answer.
    """

    language: str | None
    segments: tuple[Segment, ...]
    remainder: Chunk | None = None
    rejected: str | None = None


class Preparer:
    """Turns sound and hints into chunks. Needs no model, so it outlives one that is unloaded; callable from any thread.

    `encode` turns text into tokens. It is asked once for each prompt, however many chunks the recording has.
    """

    def __init__(self, extractor: Any, encode: Callable[[str], Sequence[int]]) -> None:
        self._extractor = extractor
        self._encode = encode
        self._tokens = lru_cache(maxsize=TEXTS)(self._encoded)

    def __call__(self, piece: AudioChunk, decoding: Decoding, *, full_window: bool = False) -> Chunk:
        """Return the piece's log-mel features and what is known of its speech."""
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

    def _encoded(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, none of them special: their names are cut in two, or they would be taken so."""
        parts = re.split(r"(?<=<)(?=\|)", f" {text}") if text else ()
        return tuple(token for part in parts for token in self._encode(part))


def padded(features: Features, frames: int) -> Features:
    """Cut or fill with zeros, as Whisper's own window is filled, to shape (mels, frames)."""
    kept = features[:, :frames]
    return np.pad(kept, ((0, 0), (0, frames - kept.shape[1])))


def remainder_of(chunk: Chunk, at: float | None, prefix_tokens: tuple[int, ...]) -> Chunk | None:
    """Return what is left of a chunk whose text ends `at` so many seconds into it; None where that is nothing.

    `prefix_tokens` are the tokens up to there, which tell the model how the rest goes on.
    """
    if at is None or chunk.seconds - at < MIN_REMAINDER_SECONDS:
        return None
    return replace(
        chunk,
        is_retry=False,
        prefix_tokens=prefix_tokens,
        features=chunk.features[:, round(at * window.FRAMES_PER_SECOND) :],
        seconds=chunk.seconds - at,
        offset=chunk.offset + at,
        speech_seconds=max(0.0, chunk.speech_seconds - at),
        speech_end=max(0.0, chunk.speech_end - at),
        speech=tuple(Span(max(0.0, span.start - at), span.end - at) for span in chunk.speech if span.end > at),
    )
