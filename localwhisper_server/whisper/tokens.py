"""Token sequences: parsing at timestamps, words, log probabilities, the prompt. Pure, given a tokenizer.

Times are in seconds from the chunk's start, and never past its end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from localwhisper_server.types import Span, TokenLogprob, Word

TIMESTAMP_SECONDS = 0.02  # the step of timestamp tokens
MIN_PROBABILITY = 1e-10  # a probability of zero has no logarithm
# Speech may begin this long before the detector notices it, and end this long after.
LEAD_SECONDS = 0.2


class Tokenizer(Protocol):
    """The part of faster-whisper's tokenizer that is used here."""

    @property
    def eot(self) -> int:
        """The end of text; tokens below it are text."""

    @property
    def timestamp_begin(self) -> int:
        """The token for 0.00 s; those above it count up in steps of 20 ms."""

    @property
    def sot_prev(self) -> int:
        """The token that begins a prompt."""

    @property
    def sot_sequence(self) -> list[int]:
        """The tokens for language and task."""

    @property
    def tokenizer(self) -> Any:
        """The underlying vocabulary."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of the text tokens."""

    def split_to_word_tokens(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Group tokens by word."""


@dataclass(frozen=True, slots=True)
class TimedText:
    """Text tokens between two timestamps, in seconds."""

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParsedTokens:
    """A token sequence, cut at its timestamps.

    `last_timestamp` may lie past the chunk's end. A complete sequence `ends_in_timestamp`. `continues_at` is where the
    model stopped although speech goes on; None if it did not.
    """

    texts: tuple[TimedText, ...]
    last_timestamp: float
    ends_in_timestamp: bool
    continues_at: float | None


def parse_tokens(tokens: Sequence[int], tokenizer: Tokenizer, seconds: float) -> ParsedTokens:
    """Cut a sequence at its timestamps, for a chunk of this length.

    Two timestamps at its end mean that more speech begins there. Text without an end lasts to the end of the chunk.
    """
    begin, start, text = tokenizer.timestamp_begin, 0.0, list[int]()
    texts: list[TimedText] = []
    timestamps_at_end, last = 0, 0.0
    for token in tokens:
        if token < begin:
            text.append(token)
            timestamps_at_end = 0
            continue
        timestamps_at_end += 1
        last = (token - begin) * TIMESTAMP_SECONDS
        time = min(last, seconds)
        if text:
            texts.append(TimedText(min(start, time), time, tuple(text)))
            text = []
        start = time
    if text:
        texts.append(TimedText(min(start, seconds), seconds, tuple(text)))
    spoken = tuple(found for found in texts if tokenizer.decode(list(found.tokens)).strip())
    continues_at = start if timestamps_at_end > 1 and start > 0 else None
    return ParsedTokens(spoken, last, timestamps_at_end > 0, continues_at)


def prompt_tokens(hotwords: Sequence[int], previous: Sequence[int], tokenizer: Tokenizer, *, room: int) -> list[int]:
    """Return what the decoder is given first: hotwords, the text before the chunk, language and task.

    Hotwords and text get `room` tokens together; the beginning of the text is dropped first.
    """
    hotwords = hotwords[:room]
    prompt = [*hotwords, *previous[max(0, len(previous) + len(hotwords) - room) :]]
    return [*([tokenizer.sot_prev, *prompt] if prompt else ()), *tokenizer.sot_sequence]


def in_speech(start: float, end: float, speech: Sequence[Span]) -> tuple[float, float]:
    """Return the times of a text without the silence at both ends, but for `LEAD_SECONDS`.

    The model's alignment adds the silence before a word to that word, however long it is. A text outside of all speech
    keeps its times, since then the detector must have missed it.
    """
    spoken = [span for span in speech if span.end > start and span.start < end]
    if not spoken:
        return start, end
    return max(start, spoken[0].start - LEAD_SECONDS), min(end, spoken[-1].end + LEAD_SECONDS)


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


def logprobs(tokens: Sequence[int], probabilities: Sequence[float], tokenizer: Tokenizer) -> list[TokenLogprob]:
    """Pair the bytes of each text token with the natural logarithm of its probability."""
    table = _byte_of_letter()
    return [
        TokenLogprob(
            # UTF-8, which may begin or end inside a character.
            bytes(table[letter] for letter in tokenizer.tokenizer.id_to_token(token)),
            math.log(max(probability, MIN_PROBABILITY)),
        )
        for token, probability in zip(tokens, probabilities, strict=True)
    ]


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """Return GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(others)}
