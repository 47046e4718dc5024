"""Whether the answer from a short window stands, or the chunk is done again with the full one. Pure.

A short window now and then loops, breaks off, or invents an ending. Every case that was seen gave itself away in one
of the signs below; BENCHMARKS.md has the thresholds' measurements, on clips they were not chosen on as well.
"""

from dataclasses import dataclass

MIN_LOGPROB = -0.55
HIGHEST_COMPRESSION = 2.0
LOWEST_LANGUAGE_PROBABILITY = 0.8
# Tokens of text per second of speech.
SLOWEST_SPEECH = 1.2
FASTEST_SPEECH = 9.0
# Shorter stretches of speech and of text say nothing about pace.
LEAST_SPEECH_SECONDS = 0.5
LEAST_TOKENS = 12
HEARD_SPEECH_SECONDS = 0.3
# With a prompt, this probability that nobody speaks is doubt enough: over music Whisper gives the prompt back, with a
# log probability just above what would pass for silence (BENCHMARKS.md).
PROMPTED_NO_SPEECH = 0.5
# How far the last timestamp may be from where the sound and the speech end.
PAST_END_SECONDS = 1.0
STOPS_EARLY_SECONDS = 1.0
# A phrase that comes again so many times at once, or words so many of which do, are no way to speak.
MOST_AGAIN = 2
LEAST_REPEATED_WORDS = 3
LONGEST_PHRASE = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What a short window gave, and what is known of the chunk; times in seconds from the chunk's start.

    `tokens` counts those of the text; `finished` says that it ends in a timestamp and within its allowance of tokens;
    `last_timestamp` is the last one it wrote; `language_probability` is None where the language was given.
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


def doubt(answer: Answer) -> str | None:
    """Return why the answer should not be trusted, in a word or two for the metrics, or None where it stands."""
    reasons = {
        "language": answer.language_probability is not None
        and answer.language_probability < LOWEST_LANGUAGE_PROBABILITY,
        "logprob": answer.avg_logprob < MIN_LOGPROB,
        "compression": answer.compression_ratio > HIGHEST_COMPRESSION,
        "pace": _odd_pace(answer),
        "past the end": answer.last_timestamp > answer.seconds + PAST_END_SECONDS,
        "stops early": answer.speech_end - answer.last_timestamp > STOPS_EARLY_SECONDS,
        "repetition": repeats(answer.text),
        "unfinished": not answer.finished,
        "silence": not answer.text and answer.speech_seconds > HEARD_SPEECH_SECONDS,
    }
    return next((name for name, holds in reasons.items() if holds), None)


def is_prompts_doing(text: str, no_speech_prob: float, *, prompt: str) -> bool:
    """Whether the words may come from the prompt alone, so that the chunk is to be decoded again without it."""
    return bool(text and prompt.strip()) and no_speech_prob > PROMPTED_NO_SPEECH


def repeats(text: str) -> bool:
    """Whether a phrase of up to 8 words comes three times in a row, or three words or more of it twice."""
    words = text.lower().split()
    for length in range(1, min(LONGEST_PHRASE, len(words) // 2) + 1):
        run = 0
        for before, word in zip(words, words[length:], strict=False):
            run = run + 1 if before == word else 0
            again = run // length
            if again >= MOST_AGAIN or again * length >= LEAST_REPEATED_WORDS:
                return True
    return False


def _odd_pace(answer: Answer) -> bool:
    if answer.speech_seconds <= LEAST_SPEECH_SECONDS:
        return False
    pace = answer.tokens / answer.speech_seconds
    return pace < SLOWEST_SPEECH or (pace > FASTEST_SPEECH and answer.tokens > LEAST_TOKENS)
