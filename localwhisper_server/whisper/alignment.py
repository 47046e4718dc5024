"""Words and log probabilities of a decoded text, from its alignment with the sound. Pure, given a tokenizer."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from localwhisper_server.types import Segment, TokenLogprob, Word
from localwhisper_server.whisper.acceptance import TIMESTAMP_SECONDS, TimedText
from localwhisper_server.whisper.chunks import Chunk

MIN_PROBABILITY = 1e-10  # a probability of zero has no logarithm


def aligned(
    chunk: Chunk, segments: Sequence[Segment], texts: Sequence[TimedText], alignment: Any, tokenizer: Any
) -> tuple[Segment, ...]:
    """Return the segments, one for each text, with the words and log probabilities that the request asks for.

    `alignment` is CTranslate2's, with `alignments` and `text_token_probs`; `tokenizer` is faster-whisper's.
    """
    starts = token_starts(alignment.alignments, sum(len(text.tokens) for text in texts))
    found, position = [], 0
    for segment, text in zip(segments, texts, strict=True):
        last = position + len(text.tokens)
        words = segment.words
        if chunk.decoding.words:
            words = tuple(words_of(text.tokens, starts[position : last + 1], tokenizer, chunk))
        logprobs = segment.logprobs
        if chunk.decoding.logprobs:
            logprobs = tuple(logprobs_of(text.tokens, alignment.text_token_probs[position:last], tokenizer))
        found.append(replace(segment, words=words, logprobs=logprobs))
        position = last
    return tuple(found)


def token_starts(path: Sequence[tuple[int, int]], count: int) -> list[float]:
    """Return the second at which each of `count` tokens begins, and the end of the last: `count` + 1 numbers.

    `path` is an alignment as (token, time) steps in order, time in units of 20 ms.
    """
    first: dict[int, int] = {}
    for token, time in path:
        first.setdefault(token, time)
    last = max((time for _, time in path), default=0)
    return [first.get(token, last) * TIMESTAMP_SECONDS for token in range(count + 1)]


def words_of(tokens: Sequence[int], starts: Sequence[float], tokenizer: Any, chunk: Chunk) -> list[Word]:
    """Join tokens to words; `starts` has a second of the chunk for each token and one for the end of the last."""
    found: list[Word] = []
    position = 0
    texts, groups = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
    for text, group in zip(texts[:-1], groups[:-1], strict=True):
        start = min(starts[position], chunk.seconds)
        position += len(group)
        end = max(start, min(starts[position], chunk.seconds))
        if found and not any(letter.isalnum() for letter in text):
            # Punctuation belongs to the word before it.
            found[-1] = replace(found[-1], text=found[-1].text + text)
        else:
            found.append(Word(text, *chunk.in_recording(start, end, 2)))
    return found


def logprobs_of(tokens: Sequence[int], probabilities: Sequence[float], tokenizer: Any) -> list[TokenLogprob]:
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
