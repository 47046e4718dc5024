"""The numbers and rules of decoding: the window, the temperature fallback, the acceptance check. Pure.

The window: Whisper was trained on windows of 30 s and costs as much as 30 s of sound each time. A shorter window is
several times cheaper, but too tight a one loops or invents an ending, so every chunk gets a margin. The numbers come
from measurements (BENCHMARKS.md): with a margin of 3 s and at least 8 s in all, the acceptance check misses some wrong
words; with at least 10 s it misses none.

The temperature fallback: its thresholds and temperatures are those of the Whisper paper, §4.5, as in its reference
code (https://github.com/openai/whisper, `whisper/transcribe.py`). It needs the full window.

The acceptance check: a short window now and then loops, breaks off, or invents an ending. Each such case that was
measured showed one of the signs in `rejection`, and is then decoded again with the full window. BENCHMARKS.md has the
measurements behind the thresholds, on clips that they were not tuned on as well.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# The window

FRAMES_PER_SECOND = 100
FULL_SECONDS = 30.0
FULL_FRAMES = int(FULL_SECONDS * FRAMES_PER_SECOND)
MARGIN_SECONDS = 3.0
MIN_WINDOW_SECONDS = 10.0
# Windows are rounded up to whole seconds, so that chunks of about the same length share a batch.
WINDOW_STEP_SECONDS = 1.0
# The model's own limit for one window.
MAX_TOKENS = 224
# Fast speech is five to six tokens a second; twice that is a loop, which would hold up its whole batch.
MAX_TOKENS_PER_SECOND = 11.0
SPARE_TOKENS = 16

# No chunk is cut longer than this: on a CPU short chunks cost less than long ones (BENCHMARKS.md).
LONGEST_SECONDS = 12.0

# The temperature fallback

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
COMPRESSION_RATIO_THRESHOLD = 2.4
LOGPROB_THRESHOLD = -1.0
NO_SPEECH_THRESHOLD = 0.6

# The acceptance check

MIN_LOGPROB = -0.55
MAX_COMPRESSION_RATIO = 2.0
MIN_LANGUAGE_PROBABILITY = 0.8
# Tokens of text per second of speech. Less speech or text than the minimum says nothing about the rate.
MIN_SPEECH_RATE = 1.2
MAX_SPEECH_RATE = 9.0
MIN_RATED_SECONDS = 0.5
MIN_RATED_TOKENS = 12
# More speech than this has words in it.
MAX_WORDLESS_SECONDS = 0.3
# Over music Whisper repeats the prompt, with a log probability just above the threshold for silence (BENCHMARKS.md).
PROMPTED_NO_SPEECH = 0.5
# How far the last timestamp may lie behind the end of the sound, and before the end of speech.
MAX_SECONDS_PAST_END = 1.0
MAX_SECONDS_CUT_OFF = 1.0
# A phrase is a loop if it is repeated this often, or if the repetitions have this many words.
MAX_REPETITIONS = 2
MIN_REPEATED_WORDS = 3
MAX_PHRASE_WORDS = 8


def window_frames(seconds: float, *, full_window: bool) -> int:
    """Return how many frames of 10 ms to encode for a chunk of this length."""
    if full_window:
        return FULL_FRAMES
    wanted = max(seconds + MARGIN_SECONDS, MIN_WINDOW_SECONDS)
    return min(FULL_FRAMES, math.ceil(wanted / WINDOW_STEP_SECONDS) * int(WINDOW_STEP_SECONDS * FRAMES_PER_SECOND))


def max_tokens(seconds: float, *, full_window: bool) -> int:
    """Return how many tokens may be decoded for a chunk of this length."""
    if full_window:
        return MAX_TOKENS
    return min(MAX_TOKENS, SPARE_TOKENS + math.ceil(MAX_TOKENS_PER_SECOND * seconds))


def most_speech(padding: float, longest: float = LONGEST_SECONDS) -> float:
    """Return the most seconds from the start of a chunk's first word to the end of its last.

    `longest` is the chunk's greatest length. `padding` seconds on both sides are subtracted, but at most half of it.
    """
    return max(longest - 2 * padding, longest / 2)


def likeliest_language(ranked: Sequence[tuple[str, float]], among: Sequence[str]) -> tuple[str, float]:
    """Return the most probable language code and its probability; only codes in `among` count, if any is ranked.

    `ranked` has tokens (`<|en|>`) with their probabilities, in descending order.
    """
    named = [(token.strip("<|>"), probability) for token, probability in ranked]
    hinted = [(code, probability) for code, probability in named if code in among]
    if not hinted:
        return named[0]
    code, probability = hinted[0]
    return code, probability / max(sum(share for _, share in hinted), 1e-9)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded token sequence, with the measures that the thresholds apply to."""

    tokens: tuple[int, ...]
    text: str
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float

    @classmethod
    def scored(
        cls, tokens: Sequence[int], text: str, temperature: float, *, score: float, no_speech_prob: float
    ) -> "Hypothesis":
        """Make one from CTranslate2's `score`: the mean log probability of the tokens, without the end of text."""
        # Whisper's average counts the end of text as well.
        avg_logprob = score * len(tokens) / (len(tokens) + 1)
        return cls(tuple(tokens), text, temperature, avg_logprob, compression_ratio(text), no_speech_prob)

    @property
    def silence(self) -> bool:
        """Whether the chunk is taken for silence: no speech is likely, and the text is unlikely."""
        return self.no_speech_prob > NO_SPEECH_THRESHOLD and self.avg_logprob <= LOGPROB_THRESHOLD

    @property
    def good(self) -> bool:
        """Whether it stands; if not, the fallback tries the next temperature."""
        if self.silence:
            return True
        return self.compression_ratio <= COMPRESSION_RATIO_THRESHOLD and self.avg_logprob >= LOGPROB_THRESHOLD


def compression_ratio(text: str) -> float:
    """Return how many times shorter zlib makes the text: high for repeated text, 0 for no text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def temperatures(temperature: float | None) -> tuple[float, ...]:
    """Return the temperatures to try, in order, if a request asks for this one."""
    # OpenAI documents 0 as "increase the temperature automatically", so 0 and None mean the same.
    return (temperature,) if temperature else TEMPERATURES


def decode_with_fallback(
    generate: Callable[[list[int], float], Sequence[Hypothesis]],
    schedules: Sequence[Sequence[float]],
    prompt_lengths: Sequence[int],
) -> list[Hypothesis]:
    """Return the hypothesis of each row; rows that are no good yet go on to the next temperature of their schedule.

    `generate` decodes the rows with the given numbers at a temperature. It gets rows with prompts of one length only,
    since CTranslate2 takes no others together.
    """
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
        waiting = [number for number in waiting if not tried[number][-1].good and step < len(schedules[number])]
    return [_best(hypotheses) for hypotheses in tried]


def _best(tried: Sequence[Hypothesis]) -> Hypothesis:
    """Return the good one, which is the last, or else the most probable of those that are not repetitive."""
    if tried[-1].good:
        return tried[-1]
    varied = [hypothesis for hypothesis in tried if hypothesis.compression_ratio <= COMPRESSION_RATIO_THRESHOLD]
    return max(varied or tried, key=lambda hypothesis: hypothesis.avg_logprob)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a short window, and what is known of the chunk; times in seconds from the chunk's start.

    `tokens` counts the text tokens. `finished` says that the sequence ends in a timestamp and below `max_tokens`.
    `language_probability` is None if the language was given.
    """

    text: str
    tokens: int
    avg_logprob: float
    compression_ratio: float
    last_timestamp: float
    finished: bool
    seconds: float
    speech_seconds: float
    speech_end: float
    language_probability: float | None = None


def rejection(answer: Answer) -> str | None:
    """Return why an answer needs a retry with the full window, in a word or two for the metrics; None to accept it."""
    reasons = {
        "language": answer.language_probability is not None and answer.language_probability < MIN_LANGUAGE_PROBABILITY,
        "logprob": answer.avg_logprob < MIN_LOGPROB,
        "compression": answer.compression_ratio > MAX_COMPRESSION_RATIO,
        "speech rate": _implausible_speech_rate(answer),
        "past the end": answer.last_timestamp > answer.seconds + MAX_SECONDS_PAST_END,
        "stops early": answer.speech_end - answer.last_timestamp > MAX_SECONDS_CUT_OFF,
        "repetition": repeats(answer.text),
        "unfinished": not answer.finished,
        "silence": not answer.text and answer.speech_seconds > MAX_WORDLESS_SECONDS,
    }
    return next((name for name, holds in reasons.items() if holds), None)


def may_echo_prompt(text: str, no_speech_prob: float, *, prompt: str) -> bool:
    """Return whether the text may come from the prompt alone, so that the chunk is decoded again without it."""
    return bool(text and prompt.strip()) and no_speech_prob > PROMPTED_NO_SPEECH


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


def _implausible_speech_rate(answer: Answer) -> bool:
    if answer.speech_seconds <= MIN_RATED_SECONDS:
        return False
    rate = answer.tokens / answer.speech_seconds
    return rate < MIN_SPEECH_RATE or (rate > MAX_SPEECH_RATE and answer.tokens > MIN_RATED_TOKENS)
