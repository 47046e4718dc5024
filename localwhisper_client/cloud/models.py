"""Which of OpenAI's models can give what, and until when: a table with its date and sources.

As of 2026-11-22. Formats: OpenAI's OpenAPI description of 2026-08-21, and the service's own words in its errors
("Use 'json' or 'text' instead"). Shutdown dates: developers.openai.com/api/docs/deprecations, announced 2026-08-26, and
`shutdown_date` of `GET /v1/models`. From that date on a model is counted as gone, in UTC. Languages: what
`gpt-transcribe` took of each code when it was tried live on 2026-07-31.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

SHUTDOWN = date(2027, 2, 26)
"""The day on which all models but `gpt-transcribe` go, and `/v1/audio/translations` with them."""


@dataclass(frozen=True, slots=True)
class CloudModel:
    """What one model can do."""

    name: str
    formats: frozenset[str]
    streams: bool
    """Whether `stream=True` gives events; a model that ignores it gives the SDK a stream without any."""
    translates: bool = False
    logprobs: bool = False
    keywords: bool = False
    """Whether it takes `keywords`."""
    languages: frozenset[str] | None = None
    """The codes that it takes as `languages`, where it ignores `language`; it refuses others. `None`: the reverse."""
    gone_from: date | None = SHUTDOWN

    def alive(self, day: date) -> bool:
        """Whether OpenAI still serves it on that day."""
        return self.gone_from is None or day < self.gone_from


_TEXT = frozenset({"json", "text"})
_WHISPER = CloudModel("whisper-1", _TEXT | {"verbose_json", "srt", "vtt"}, streams=False, translates=True)
_LANGUAGES = """
    af ar hy az be bn bs bg yue ca zh hr cs da nl en et fi fr gl ka de el gu he hi hu is id it ja kn kk ko lv lt mk ms
    ml mi mr ne no fa pl pt ro ru sr sk sl es sw sv tl ta te th tr uk ur vi cy
"""
_SUCCESSOR = CloudModel(
    "gpt-transcribe",
    _TEXT,
    streams=True,
    logprobs=True,
    keywords=True,
    languages=frozenset(_LANGUAGES.split()),
    gone_from=None,
)

BY_CHOICE = (_WHISPER, _SUCCESSOR)
"""Those that stand in for a local model, best first."""

MODELS = {
    model.name: model
    for model in (
        *BY_CHOICE,
        *(
            CloudModel(name, _TEXT, streams=True, logprobs=True)
            for name in ("gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-mini-transcribe-2025-12-15")
        ),
        CloudModel("gpt-4o-transcribe-diarize", _TEXT | {"diarized_json"}, streams=True),
    )
}
"""Every model that transcribes files, by name."""
