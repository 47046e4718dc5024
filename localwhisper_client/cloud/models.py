"""OpenAI's models for speech-to-text: what each can give, what it costs, until when, and how a call fits one; pure.

The LAN server gives every format under every model's name. What the cloud cannot give is found here, before anything
is sent.

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
from datetime import UTC, date, datetime
from typing import Any

from localwhisper_client.shared import openai_models as names
from localwhisper_client.shared.languages import means_detect, whisper_code

SHUTDOWN = date(2027, 2, 26)
"""The day on which all models but `gpt-transcribe` are shut down, and `/v1/audio/translations` with them."""


class Unsupported(Exception):
    """The cloud cannot answer a call; says why."""


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

    def alive(self, now: float) -> bool:
        """Whether OpenAI still serves it; `now` in seconds since the epoch."""
        return self.gone_from is None or datetime.fromtimestamp(now, UTC).date() < self.gone_from


_TEXT = frozenset({"json", "text"})
_WHISPER = CloudModel(names.WHISPER_1, 0.006, _TEXT | {"verbose_json", "srt", "vtt"}, streams=False, translates=True)
_LANGUAGES = """
    af ar hy az be bn bs bg yue ca zh hr cs da nl en et fi fr gl ka de el gu he hi hu is id it ja kn kk ko lv lt mk ms
    ml mi mr ne no fa pl pt ro ru sr sk sl es sw sv tl ta te th tr uk ur vi cy
"""
_SUCCESSOR = CloudModel(
    names.GPT_TRANSCRIBE,
    0.0045,
    _TEXT,
    streams=True,
    logprobs=True,
    keywords=True,
    languages=frozenset(_LANGUAGES.split()),
    gone_from=None,
)
_TOKENS = (2.5, 10.0)
# The models that replace a local one, best first.
_BY_CHOICE = (_WHISPER, _SUCCESSOR)

MODELS = {
    model.name: model
    for model in (
        *_BY_CHOICE,
        CloudModel(names.GPT_4O_TRANSCRIBE, 0.006, _TEXT, streams=True, token_usd=_TOKENS, logprobs=True),
        CloudModel(names.GPT_4O_TRANSCRIBE_DIARIZE, 0.006, _TEXT | {"diarized_json"}, streams=True, token_usd=_TOKENS),
        CloudModel(names.GPT_4O_MINI_TRANSCRIBE, 0.003, _TEXT, streams=True, logprobs=True),
        CloudModel(names.GPT_4O_MINI_TRANSCRIBE_2025_12_15, 0.003, _TEXT, streams=True, logprobs=True),
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


def saved(name: str, usage: Usage, now: float) -> float | None:
    """Return what the cloud would have charged, or the model that replaces one that OpenAI does not have."""
    return cost(name if name in MODELS else next(model.name for model in _BY_CHOICE if model.alive(now)), usage)


def adapted(path: str, fields: object, now: float) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a call's fields as the cloud takes them, and the languages that were left out because it refuses them.

    Where the caller's model cannot do it, another of the cloud's models replaces it.

    Args:
        path: the endpoint, `/audio/transcriptions` or `/audio/translations`.
        fields: the form's fields by the SDK's names, without the file; something else if the program wrote the body.
        now: seconds since the epoch.

    Raises:
        Unsupported: no model can do it.

    """
    if not isinstance(fields, dict):
        raise Unsupported("the program wrote the body itself, so no model can be chosen for it")
    format_ = fields.get("response_format")
    format_ = format_ if isinstance(format_, str) else "json"
    translates = path.strip("/").endswith("translations")
    streams = bool(fields.get("stream"))
    logprobs = "logprobs" in (fields.get("include") or ())
    able = [
        model
        for model in (MODELS.get(str(fields.get("model"))), *_BY_CHOICE)
        if model is not None
        and format_ in model.formats
        and (model.translates or not translates)
        and (model.streams or not streams)
        and (model.logprobs or not logprobs)
    ]
    model = next((model for model in able if model.alive(now)), None)
    if model is None:
        asked = "a translation with " * translates + f"response_format={format_!r}"
        asked += " with stream=True" * streams + " with logprobs" * logprobs
        shut = f" since {able[0].name} was shut down on {able[0].gone_from}" if able else "; only the LAN server does"
        raise Unsupported(f"OpenAI has no model that gives {asked}{shut}")
    mine = dict(fields, model=model.name)
    if not model.keywords:
        mine.pop("keywords", None)
    language, languages = _code(mine.pop("language", None)), mine.pop("languages", None) or ()
    if model.languages is None:
        return mine | ({"language": language} if language else {}), ()
    wanted = dict.fromkeys(map(_code, [languages] if isinstance(languages, str) else languages))
    codes = list(wanted) or [language]
    if taken := [code for code in codes if code in model.languages]:
        mine["languages"] = taken
    return mine, tuple(code for code in codes if code and code not in model.languages)


def _code(language: object) -> str:
    """Return a language by the cloud's code for it; empty for `auto`, which the cloud has no word for."""
    if not isinstance(language, str) or means_detect(language):
        return ""
    return whisper_code(language) or language.strip().lower()
