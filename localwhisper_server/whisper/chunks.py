"""What goes into the model: where a recording has speech, the window that a chunk gets, and its log-mel features.

Whisper was trained on windows of 30 s and costs as much as 30 s of sound each time. A shorter window is several times
cheaper, but too tight a one loops or invents an ending, so every chunk gets a margin. `acceptance` judges the answers.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_whisper.vad import VadOptions, get_speech_timestamps

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Samples, Segment, Span, Voice

# The window

# Whisper's own numbers: frames of 10 ms, and windows of 30 s.
FRAMES_PER_SECOND = 100
FULL_SECONDS = 30.0
FULL_FRAMES = int(FULL_SECONDS * FRAMES_PER_SECOND)
# Measured (BENCHMARKS.md, "Word error rates"): more margin gains nothing for messages, but does for longer chunks;
# windows of 8 s had two more wrong words on 114 clips than those of 10 s.
MARGIN_SECONDS = 3.0
LONG_MARGIN_SECONDS = 8.0
MESSAGE_SECONDS = 12.0
MIN_WINDOW_SECONDS = 10.0
# No chunk is cut longer than this. Shorter chunks cost less on a CPU, and words: a sentence goes on in the next chunk.
LONGEST_SECONDS = 28.0
# A shorter remainder is not decoded.
MIN_REMAINDER_SECONDS = 1.0

# Voice activity detection

# A burst shorter than this counts as speech only above the higher threshold. The shortest words ("yes") last 0.3 s;
# so do beeps.
SHORT_SECONDS = 0.25
SHORT_THRESHOLD = 0.7
# The detector finds nothing below -50 dB, so the 99.9th percentile of the samples is raised from below the first level
# to the second. A percentile, since a single click must not count.
FAINT_LEVEL, AUDIBLE_LEVEL = 0.01, 0.03
# Speech may begin this long before the detector notices it, and end this long after.
LEAD_SECONDS = 0.2

# Texts whose tokens are cached: about as many as there are open requests.
CACHED_TEXTS = 128

Features = npt.NDArray[np.float32]


def window_frames(seconds: float) -> int:
    """Return how many frames of 10 ms to encode for a chunk of this length."""
    margin = MARGIN_SECONDS if seconds <= MESSAGE_SECONDS else LONG_MARGIN_SECONDS
    wanted = max(seconds + margin, MIN_WINDOW_SECONDS)
    # Whole seconds, so that chunks of about the same length share a batch.
    return min(FULL_FRAMES, math.ceil(wanted) * FRAMES_PER_SECOND)


def most_speech(padding: float, longest: float = LONGEST_SECONDS) -> float:
    """Return the most seconds from the start of a chunk's first word to the end of its last.

    `longest` is the chunk's greatest length. `padding` seconds on both sides are subtracted, but at most half of it.
    """
    return max(longest - 2 * padding, longest / 2)


def find_speech(samples: Samples, voice: Voice, *, longest: float = LONGEST_SECONDS) -> list[Span]:
    """Return the spans of speech in `samples` (shape (n,), 16 kHz), in seconds, without padding.

    Speech that does not fit into a chunk of `longest` seconds is cut at its best pauses. The model is Silero's, as
    faster-whisper ships it.
    """
    level = float(np.quantile(np.abs(samples), 0.999)) if samples.size else 0.0
    if 0 < level < FAINT_LEVEL:
        samples = samples * np.float32(AUDIBLE_LEVEL / level)

    def detect(threshold: float) -> list[Span]:
        options = VadOptions(
            threshold=threshold,
            min_speech_duration_ms=voice.min_speech_ms,
            min_silence_duration_ms=voice.silence_duration_ms,
            # Segmentation would cut longer speech without regard to pauses.
            max_speech_duration_s=most_speech(voice.prefix_padding_ms / 1000, longest),
            speech_pad_ms=0,
        )
        found = get_speech_timestamps(samples, options)
        return [Span(span["start"] / SAMPLE_RATE, span["end"] / SAMPLE_RATE) for span in found]

    found = detect(voice.threshold)
    short = [span for span in found if span.end - span.start < SHORT_SECONDS]
    certain = detect(max(voice.threshold, SHORT_THRESHOLD)) if short else []
    return [
        span
        for span in found
        if span not in short or any(span.start < other.end and other.start < span.end for other in certain)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A piece of a recording, ready for the model.

    `features` are its log-mel frames of 10 ms, shape (mels, n). It is `seconds` long and begins `offset` seconds into
    the recording. `speech` holds the spans of speech, in seconds from the chunk's start. With `full_window` the chunk
    is always decoded with the full window; with `is_retry` only this time, because the acceptance check rejected the
    answer of a shorter one. `prefix_tokens` are the tokens decoded right before this chunk. With
    `language_provisional` another chunk decides the language later, so a low probability of the detected one is no
    reason for a retry. `prompt` and `hotwords` are those of `decoding`, as tokens.

    `frames` is how many frames of 10 ms the encoder is given, which is what the chunk costs.
    """

    features: Features
    seconds: float
    offset: float
    decoding: Decoding
    speech: tuple[Span, ...] = ()
    full_window: bool = False
    is_retry: bool = False
    prefix_tokens: tuple[int, ...] = ()
    language_provisional: bool = False
    prompt: tuple[int, ...] = ()
    hotwords: tuple[int, ...] = ()
    frames: int = field(init=False)

    def __post_init__(self) -> None:
        # The acceptance check's thresholds are for temperature 0 alone.
        full = self.full_window or self.is_retry or bool(self.decoding.temperature)
        object.__setattr__(self, "frames", FULL_FRAMES if full else window_frames(self.seconds))

    def remainder(self, at: float, prefix_tokens: tuple[int, ...]) -> "Chunk | None":
        """Return the part from `at` on, in seconds from the start; None if there is next to nothing."""
        if self.seconds - at < MIN_REMAINDER_SECONDS:
            return None
        return replace(
            self,
            is_retry=False,
            prefix_tokens=prefix_tokens,
            features=self.features[:, round(at * FRAMES_PER_SECOND) :],
            seconds=self.seconds - at,
            offset=self.offset + at,
            speech=tuple(Span(max(0.0, span.start - at), span.end - at) for span in self.speech if span.end > at),
        )

    def in_recording(self, start: float, end: float, digits: int) -> tuple[float, float]:
        """Return when a text of the chunk is spoken, as rounded seconds of the recording, never past the chunk's end.

        The model adds the silence before a text to it, however long it is: all but `LEAD_SECONDS` is taken away at both
        ends. A text outside of all speech keeps its times, since then the detector must have missed it.
        """
        spoken = [span for span in self.speech if span.end > start and span.start < end]
        if spoken:
            start, end = max(start, spoken[0].start - LEAD_SECONDS), min(end, spoken[-1].end + LEAD_SECONDS)
        last = self.offset + self.seconds
        return min(round(self.offset + start, digits), last), min(round(self.offset + end, digits), last)


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What was decoded from a chunk.

    `language` is None if the answer was rejected. `remainder` is what is still to be decoded: the end of the chunk, if
    the model stopped before it, or the whole chunk again if the answer was rejected. `rejected` is the reason: "prompt"
    for a retry without prompt and hotwords, any other for a retry with the full window. `draft` is the rejected text.
    """

    language: str | None
    segments: tuple[Segment, ...]
    remainder: Chunk | None = None
    rejected: str | None = None
    draft: tuple[Segment, ...] = ()


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
            speech=piece.speech,
            full_window=full_window,
            prompt=self._tokens(decoding.prompt.strip()),
            hotwords=self._tokens(decoding.hotwords.strip()),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the cache, which Python cannot pickle."""
        return Preparer, (self._extractor, self._encode)

    def _encode_as_text(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, none of them special: the text is split inside the names of special tokens."""
        parts = re.split(r"(?<=<)(?=\|)", f" {text}") if text else ()
        return tuple(token for part in parts for token in self._encode(part))
