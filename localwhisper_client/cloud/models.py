"""OpenAI's models for speech-to-text: what each can give, what it costs, and until when it is there. One table.

As of 2026-11-22, in US dollars.

Formats: OpenAI's OpenAPI description of 2026-08-21, and its error messages ("Use 'json' or 'text' instead").
Shutdown dates: developers.openai.com/api/docs/deprecations, announced 2026-08-26, and `shutdown_date` of
`GET /v1/models`; from that date on, in UTC, a model counts as gone.
Languages: the codes that `gpt-transcribe` accepted when each was tried on the live service on 2026-07-31.
Prices by the token, and by the minute for `gpt-transcribe`: developers.openai.com/api/docs/pricing. By the minute for
`whisper-1`: what it was billed in 2026. The `gpt-4o` models are billed by tokens; their price by the minute is an
estimate, for answers that report no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

SHUTDOWN = date(2027, 2, 26)
"""The day on which all models but `gpt-transcribe` are shut down, and `/v1/audio/translations` with them."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer reports about its own cost: a duration, or tokens, or nothing."""

    seconds: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class CloudModel:
    """What one model can do, and what it costs in dollars."""

    name: str
    minute_usd: float
    """For a minute of audio."""
    formats: frozenset[str]
    streams: bool
    """Whether `stream=True` gives events; a model that ignores it gives the SDK a stream without any."""
    token_usd: tuple[float, float] | None = None
    """For a million tokens in, and for a million out; `None` if the model is not billed so."""
    translates: bool = False
    logprobs: bool = False
    keywords: bool = False
    """Whether it takes `keywords`."""
    languages: frozenset[str] | None = None
    """The codes that it takes as `languages`. Such a model ignores `language`, and refuses other codes.

    `None`: it takes `language` and no `languages`.
    """
    gone_from: date | None = SHUTDOWN

    def alive(self, day: date) -> bool:
        """Whether OpenAI still serves it on that day."""
        return self.gone_from is None or day < self.gone_from


_TEXT = frozenset({"json", "text"})
_WHISPER = CloudModel("whisper-1", 0.006, _TEXT | {"verbose_json", "srt", "vtt"}, streams=False, translates=True)
_LANGUAGES = """
    af ar hy az be bn bs bg yue ca zh hr cs da nl en et fi fr gl ka de el gu he hi hu is id it ja kn kk ko lv lt mk ms
    ml mi mr ne no fa pl pt ro ru sr sk sl es sw sv tl ta te th tr uk ur vi cy
"""
_SUCCESSOR = CloudModel(
    "gpt-transcribe",
    0.0045,
    _TEXT,
    streams=True,
    logprobs=True,
    keywords=True,
    languages=frozenset(_LANGUAGES.split()),
    gone_from=None,
)
_GPT_4O_TOKENS = (2.5, 10.0)

BY_CHOICE = (_WHISPER, _SUCCESSOR)
"""The models that replace a local one, best first."""

MODELS = {
    model.name: model
    for model in (
        *BY_CHOICE,
        CloudModel("gpt-4o-transcribe", 0.006, _TEXT, streams=True, token_usd=_GPT_4O_TOKENS, logprobs=True),
        CloudModel(
            "gpt-4o-transcribe-diarize", 0.006, _TEXT | {"diarized_json"}, streams=True, token_usd=_GPT_4O_TOKENS
        ),
        CloudModel("gpt-4o-mini-transcribe", 0.003, _TEXT, streams=True, logprobs=True),
        CloudModel("gpt-4o-mini-transcribe-2025-12-15", 0.003, _TEXT, streams=True, logprobs=True),
    )
}
"""Every model that transcribes files, by name."""


def cost(name: str, usage: Usage) -> float | None:
    """Return what the cloud charges for a transcription by this model, in dollars; `None` if that is unknown."""
    model = MODELS.get(name)
    if model is None:
        return None
    if model.token_usd is not None and usage.input_tokens is not None:
        price_in, price_out = model.token_usd
        return (usage.input_tokens * price_in + (usage.output_tokens or 0) * price_out) / 1e6
    return None if usage.seconds is None else usage.seconds / 60 * model.minute_usd
