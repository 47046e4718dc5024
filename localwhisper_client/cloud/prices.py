"""What OpenAI asks for speech-to-text: a table with its date and sources.

As of 2026-11-22, in US dollars. By the token, and by the minute for `gpt-transcribe`:
developers.openai.com/api/docs/pricing. By the minute for `whisper-1`: what it was billed in 2026. For the `gpt-4o`
models, which are billed by tokens, the minute's price is an estimate, used where an answer tells no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

AS_OF = "2026-11-22"


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer said of its own cost: a duration, or tokens, or nothing."""

    seconds: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """One model's price in dollars."""

    minute: float
    """For a minute of audio."""
    input_million: float | None = None
    """For a million tokens in; `None` where tokens are not how it is known."""
    output_million: float | None = None


_GPT_4O = Price(0.006, 2.5, 10.0)
_GPT_4O_MINI = Price(0.003)

PRICES = {
    "whisper-1": Price(0.006),
    "gpt-transcribe": Price(0.0045),
    "gpt-4o-transcribe": _GPT_4O,
    "gpt-4o-transcribe-diarize": _GPT_4O,
    "gpt-4o-mini-transcribe": _GPT_4O_MINI,
    "gpt-4o-mini-transcribe-2025-12-15": _GPT_4O_MINI,
}


def cost(model: str, usage: Usage) -> float | None:
    """Return the dollars that the cloud asks for a transcription by this model; `None` where that is not known."""
    price = PRICES.get(model)
    if price is None:
        return None
    if price.input_million is not None and price.output_million is not None and usage.input_tokens is not None:
        return (usage.input_tokens * price.input_million + (usage.output_tokens or 0) * price.output_million) / 1e6
    return None if usage.seconds is None else usage.seconds / 60 * price.minute
