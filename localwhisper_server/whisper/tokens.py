"""What a token sequence says: pieces between timestamps, words, log probabilities. Pure, given a tokenizer.

Times inside are in seconds from the chunk's start; nothing that leaves lies past the chunk's end.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from localwhisper_server.types import Span, TokenLogprob, Word

TIMESTAMP_SECONDS = 0.02  # what one timestamp token counts
# A word may begin so much before the voice activity detector notices it, and end so much after.
LEAD_SECONDS = 0.2
LEAST_PROBABILITY = 1e-10  # so that a probability of zero has a logarithm


class Tokenizer(Protocol):
    """The part of faster-whisper's tokenizer that reading needs."""

    @property
    def eot(self) -> int:
        """The token that ends a text; those below it are text."""

    @property
    def timestamp_begin(self) -> int:
        """The token for 0.00 s; those above it count up in steps of 20 ms."""

    @property
    def tokenizer(self) -> Any:
        """The underlying vocabulary."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, leaving out those that are not text."""

    def split_to_word_tokens(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Group tokens to words."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text tokens between two timestamps."""

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """A token sequence, read. `stops_at` is where it says that more speech begins, `last` its last timestamp.

    `closed` says that the sequence ends in a timestamp, as a complete one does.
    """

    pieces: tuple[Piece, ...]
    last: float
    closed: bool
    stops_at: float | None


def read(tokens: Sequence[int], tokenizer: Tokenizer, seconds: float) -> Reading:
    """Cut a sequence at its timestamps, for a chunk of this length.

    A sequence that ends in a pair of timestamps says that more speech begins there. Text without an end lasts to the
    end of the chunk.
    """
    begin, start, text = tokenizer.timestamp_begin, 0.0, list[int]()
    pieces: list[Piece] = []
    stamps_at_end, last = 0, 0.0
    for token in tokens:
        if token < begin:
            text.append(token)
            stamps_at_end = 0
            continue
        stamps_at_end += 1
        last = (token - begin) * TIMESTAMP_SECONDS
        time = min(last, seconds)
        if text:
            pieces.append(Piece(min(start, time), time, tuple(text)))
            text = []
        start = time
    if text:
        pieces.append(Piece(min(start, seconds), seconds, tuple(text)))
    spoken = tuple(piece for piece in pieces if tokenizer.decode(list(piece.tokens)).strip())
    stops_at = start if stamps_at_end > 1 and start > 0 else None
    return Reading(spoken, last, stamps_at_end > 0, stops_at)


def compression_ratio(text: str) -> float:
    """Return how many times shorter zlib makes the text: high where it repeats itself; 0 for none."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def token_starts(path: Sequence[tuple[int, int]], count: int) -> list[float]:
    """Return the second at which each of `count` tokens begins, and the end of the last: `count` + 1 numbers.

    `path` is an alignment as (token, time) steps in order, time in units of 20 ms.
    """
    first: dict[int, int] = {}
    for token, time in path:
        first.setdefault(token, time)
    last = max((time for _, time in path), default=0)
    return [first.get(token, last) * TIMESTAMP_SECONDS for token in range(count + 1)]


def words(tokens: list[int], starts: Sequence[float], tokenizer: Tokenizer, *, seconds: float) -> list[Word]:
    """Join tokens to words; `starts` has a second for each token and one for the end of the last."""
    found: list[Word] = []
    position = 0
    texts, groups = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
    for text, group in zip(texts[:-1], groups[:-1], strict=True):
        start = min(starts[position], seconds)
        position += len(group)
        end = min(starts[position], seconds)
        if found and not any(letter.isalnum() for letter in text):
            # Punctuation belongs to the word before it.
            found[-1] = replace(found[-1], text=found[-1].text + text)
            continue
        found.append(Word(text, start, max(start, end)))
    return found


def in_speech(start: float, end: float, speech: Sequence[Span]) -> tuple[float, float]:
    """Return the times of a text without the silence at its start and its end, except for LEAD_SECONDS.

    The model's alignment counts the silence before a word as part of the word, however long it is. A text that lies
    wholly in silence keeps its times: the detector has missed it.
    """
    spoken = [span for span in speech if span.end > start and span.start < end]
    if not spoken:
        return start, end
    return max(start, spoken[0].start - LEAD_SECONDS), min(end, spoken[-1].end + LEAD_SECONDS)


def logprobs(tokens: Sequence[int], probabilities: Sequence[float], tokenizer: Tokenizer) -> list[TokenLogprob]:
    """Pair each text token's bytes with the natural logarithm of its probability."""
    return [
        TokenLogprob(token_bytes(tokenizer, token), math.log(max(probability, LEAST_PROBABILITY)))
        for token, probability in zip(tokens, probabilities, strict=True)
    ]


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """Return the UTF-8 of a text token, which may begin or end inside a character."""
    table = _byte_of_letter()
    return bytes(table[letter] for letter in tokenizer.tokenizer.id_to_token(token))


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """Return GPT-2's letters for bytes: printable ones stand for themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(rest)}
