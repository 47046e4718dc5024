"""What the model decoded, and whether it stands: token parsing, temperature fallback, acceptance check. Pure.

The temperature fallback tries higher temperatures until an answer is good. It needs the full window.

The acceptance check: a short window now and then loops, breaks off, or invents an ending. Each such case that was
measured showed one of the signs in `rejection`, and is then decoded again with the full window.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localwhisper_server.whisper.chunks import MIN_REMAINDER_SECONDS, Chunk

TIMESTAMP_SECONDS = 0.02  # the step of timestamp tokens
# The model's own limit for one window.
MAX_TOKENS = 224
# Fast speech is five to six tokens a second; twice that is a loop, which would hold up its whole batch.
MAX_TOKENS_PER_SECOND = 11.0
# With the full window a loop is likelier, and longer. Korean and Greek take up to 13 tokens a second.
MAX_TOKENS_PER_SECOND_AGAIN = 16.0
SPARE_TOKENS = 16

# The temperature fallback: the numbers of the Whisper paper, §4.5, as in its reference code
# (https://github.com/openai/whisper, `whisper/transcribe.py`).

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
COMPRESSION_RATIO_THRESHOLD = 2.4
LOGPROB_THRESHOLD = -1.0
NO_SPEECH_THRESHOLD = 0.6

# The acceptance check. BENCHMARKS.md has the figures that chose the thresholds: for prompts under "Short words and
# prompts", for the others under "The acceptance check". Those that are measured only together say so there.

# Below Whisper's own threshold, since the full window makes no fewer errors in chunks between the two.
MIN_LOGPROB = -1.2
MIN_LANGUAGE_PROBABILITY = 0.3
MAX_COMPRESSION_RATIO = 2.0
# Tokens of text per second of speech. Less speech or text than the minimum says nothing about the rate. Languages of
# which the vocabulary has few words, such as Greek and Korean, take 9 to 13.
MIN_SPEECH_RATE = 1.2
MAX_SPEECH_RATE = 14.0
MIN_RATED_SECONDS = 0.5
MIN_RATED_TOKENS = 12
# More speech than this has words in it.
MAX_WORDLESS_SECONDS = 0.3
# Over music Whisper repeats the prompt, with a log probability just above the threshold for silence.
PROMPTED_NO_SPEECH = 0.5
# How far the last timestamp may lie behind the end of the sound, and before the end of speech.
MAX_SECONDS_PAST_END = 2.0
MAX_SECONDS_CUT_OFF = 0.8
# A phrase is a loop if it is repeated this often, or if the repetitions have this many words.
MAX_REPETITIONS = 2
MIN_REPEATED_WORDS = 3
MAX_PHRASE_WORDS = 8


def max_tokens(seconds: float, *, full_window: bool) -> int:
    """Return how many tokens may be decoded for a chunk of this length."""
    rate = MAX_TOKENS_PER_SECOND_AGAIN if full_window else MAX_TOKENS_PER_SECOND
    return min(MAX_TOKENS, SPARE_TOKENS + math.ceil(rate * seconds))


@dataclass(frozen=True, slots=True)
class TimedText:
    """Text tokens between two timestamps, in seconds from the chunk's start and never past its end."""

    start: float
    end: float
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded token sequence, cut at its timestamps, with the measures that the thresholds apply to.

    `last_timestamp` may lie past the chunk's end. A complete sequence `ends_in_timestamp`. `continues_at` is where the
    model stopped although speech goes on; None if it did not.
    """

    tokens: tuple[int, ...]
    text: str
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    texts: tuple[TimedText, ...] = ()
    last_timestamp: float = 0.0
    ends_in_timestamp: bool = False
    continues_at: float | None = None

    @property
    def silence(self) -> bool:
        """Whether the chunk is taken for silence: no speech is likely, and the text is unlikely."""
        return self.no_speech_prob > NO_SPEECH_THRESHOLD and self.avg_logprob <= LOGPROB_THRESHOLD

    @property
    def repetitive(self) -> bool:
        """Whether the text repeats itself."""
        return self.compression_ratio > COMPRESSION_RATIO_THRESHOLD

    @property
    def good(self) -> bool:
        """Whether Whisper's reference code takes it; if not, its fallback tries the next temperature."""
        return self.silence or (not self.repetitive and self.avg_logprob >= LOGPROB_THRESHOLD)


def parsed(
    tokens: Sequence[int], tokenizer: Any, seconds: float, temperature: float, *, score: float, no_speech_prob: float
) -> Hypothesis:
    """Return a sequence, decoded for a chunk of this length, as a hypothesis.

    `tokenizer` is faster-whisper's. `score` is CTranslate2's: the mean log probability of the tokens, without the end
    of text. Two timestamps at the end mean that more speech begins there. Text without an end lasts to the end of the
    chunk.
    """
    start, last, timestamps_at_end = 0.0, 0.0, 0
    text: list[int] = []
    texts: list[TimedText] = []

    def end_text(end: float) -> None:
        spoken = tokenizer.decode(text)
        if spoken.strip():
            texts.append(TimedText(min(start, end), end, tuple(text), spoken.rstrip()))
        text.clear()

    for token in tokens:
        if token < tokenizer.timestamp_begin:
            text.append(token)
            timestamps_at_end = 0
            continue
        timestamps_at_end += 1
        last = (token - tokenizer.timestamp_begin) * TIMESTAMP_SECONDS
        end_text(min(last, seconds))
        start = min(last, seconds)
    end_text(seconds)
    whole = tokenizer.decode(list(tokens)).strip()
    return Hypothesis(
        tokens=tuple(tokens),
        text=whole,
        temperature=temperature,
        # Whisper's average counts the end of text as well.
        avg_logprob=score * len(tokens) / (len(tokens) + 1),
        compression_ratio=compression_ratio(whole),
        no_speech_prob=no_speech_prob,
        texts=tuple(texts),
        last_timestamp=last,
        ends_in_timestamp=timestamps_at_end > 0,
        continues_at=start if timestamps_at_end > 1 and start > 0 else None,
    )


def compression_ratio(text: str) -> float:
    """Return how many times shorter zlib makes the text: high for repeated text, 0 for no text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def decode_with_fallback(
    generate: Callable[[list[int], float], Sequence[Hypothesis]],
    schedules: Sequence[Sequence[float]],
    prompt_lengths: Sequence[int],
    loops_only: Sequence[bool],
) -> list[Hypothesis]:
    """Return the hypothesis of each row; rows that are no good yet go on to the next temperature of their schedule.

    `generate` decodes the rows with the given numbers at a temperature. It gets rows with prompts of one length only,
    since CTranslate2 takes no others together. A row of `loops_only` keeps an improbable text: each further attempt
    takes as long as the first, and the words are no better (BENCHMARKS.md, "The acceptance check"). If no hypothesis is
    good, the most probable of those that are not repetitive is returned.
    """

    def stands(number: int, hypothesis: Hypothesis) -> bool:
        return hypothesis.good or (loops_only[number] and not hypothesis.repetitive)

    tried: list[list[Hypothesis]] = [[] for _ in schedules]
    waiting = list(range(len(schedules)))
    step = 0
    while waiting:
        groups: dict[tuple[int, float], list[int]] = {}
        for number in waiting:
            groups.setdefault((prompt_lengths[number], schedules[number][step]), []).append(number)
        for (_, temperature), numbers in groups.items():
            for number, hypothesis in zip(numbers, generate(numbers, temperature), strict=True):
                tried[number].append(hypothesis)
        step += 1
        waiting = [
            number for number in waiting if step < len(schedules[number]) and not stands(number, tried[number][-1])
        ]
    return [each[-1] if stands(number, each[-1]) else _most_probable(each) for number, each in enumerate(tried)]


def _most_probable(tried: Sequence[Hypothesis]) -> Hypothesis:
    varied = [hypothesis for hypothesis in tried if not hypothesis.repetitive]
    return max(varied or tried, key=lambda hypothesis: hypothesis.avg_logprob)


def rejection(
    chunk: Chunk, answer: Hypothesis, *, language_probability: float | None, full_window: bool
) -> tuple[str, Chunk] | None:
    """Return why an answer is not accepted, in a word or two for the metrics, and the chunk to decode instead.

    None to accept it. `language_probability` is None if the language was given. The answer of the full window is
    rejected for one reason alone: it may come from the prompt.
    """
    if (chunk.prompt or chunk.hotwords) and answer.text and answer.no_speech_prob > PROMPTED_NO_SPEECH:
        return "prompt", replace(chunk, prompt=(), hotwords=())
    if full_window:
        return None
    speech_seconds = sum(span.end - span.start for span in chunk.speech)
    speech_end = chunk.speech[-1].end if chunk.speech else 0.0
    continues_at = answer.continues_at or 0.0
    if MIN_REMAINDER_SECONDS <= continues_at <= chunk.seconds - MIN_REMAINDER_SECONDS:
        speech_end = continues_at  # later speech is the remainder's and has not been cut off
    count = sum(len(text.tokens) for text in answer.texts)
    rate = count / speech_seconds if speech_seconds > MIN_RATED_SECONDS else None
    complete = answer.ends_in_timestamp and len(answer.tokens) < max_tokens(chunk.seconds, full_window=False)
    signs = {
        "language": language_probability is not None and language_probability < MIN_LANGUAGE_PROBABILITY,
        "logprob": answer.avg_logprob < MIN_LOGPROB,
        "compression": answer.compression_ratio > MAX_COMPRESSION_RATIO,
        "speech rate": rate is not None
        and (rate < MIN_SPEECH_RATE or (rate > MAX_SPEECH_RATE and count > MIN_RATED_TOKENS)),
        "past the end": answer.last_timestamp > chunk.seconds + MAX_SECONDS_PAST_END,
        "stops early": speech_end - answer.last_timestamp > MAX_SECONDS_CUT_OFF,
        "repetition": repeats(answer.text),
        "unfinished": not complete,
        "silence": not answer.text and speech_seconds > MAX_WORDLESS_SECONDS,
    }
    reason = next((name for name, holds in signs.items() if holds), None)
    return (reason, replace(chunk, is_retry=True)) if reason else None


def repeats(text: str) -> bool:
    """Return whether a phrase of up to 8 words comes three times in a row, or one of three words or more twice."""
    words = text.lower().split()
    for length in range(1, min(MAX_PHRASE_WORDS, len(words) // 2) + 1):
        run = 0
        for earlier, word in zip(words, words[length:], strict=False):
            run = run + 1 if earlier == word else 0
            repetitions = run // length
            if repetitions >= MAX_REPETITIONS or repetitions * length >= MIN_REPEATED_WORDS:
                return True
    return False
