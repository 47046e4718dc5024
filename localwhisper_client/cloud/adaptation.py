"""Turns a call made for the LAN server into one that the cloud can answer; pure.

The LAN server gives every format under every model's name. Each of the cloud's models gives only some, and fewer as
models are shut down. What the cloud cannot give is found here, before anything is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localwhisper_client.cloud.models import BY_CHOICE, MODELS
from localwhisper_client.shared.languages import means_detect, whisper_code

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from localwhisper_client.cloud.models import CloudModel


class Unsupported(Exception):
    """The cloud cannot answer this call; says why."""


def adapted(path: str, fields: Mapping[str, Any], day: date) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields as the cloud takes them, and the languages that were left out because it refuses them.

    Where the caller's model cannot do it, another of the cloud's models replaces it.

    Args:
        path: the endpoint, `/audio/transcriptions` or `/audio/translations`.
        fields: the form's fields by the SDK's names, without the file.
        day: today, in UTC.

    Raises:
        Unsupported: no model can do it.

    """
    asked = MODELS.get(str(fields.get("model")))
    translate = path.strip("/").endswith("translations")
    candidates = [model for model in (asked, *BY_CHOICE) if model is not None]
    able = [model for model in candidates if _can(model, fields, translate=translate)]
    model = next((model for model in able if model.alive(day)), None)
    if model is None:
        raise Unsupported(_why(able[0] if able else None, fields, translate=translate))
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


def _can(model: CloudModel, fields: Mapping[str, Any], *, translate: bool) -> bool:
    return (
        _format(fields) in model.formats
        and (model.translates or not translate)
        and (model.streams or not fields.get("stream"))
        and (model.logprobs or not _wants_logprobs(fields))
    )


def _why(gone: CloudModel | None, fields: Mapping[str, Any], *, translate: bool) -> str:
    asked = f"response_format={_format(fields)!r}"
    if fields.get("stream"):
        asked += " with stream=True"
    if _wants_logprobs(fields):
        asked += " with logprobs"
    if translate:
        asked = f"a translation with {asked}"
    if gone is None:
        return f"OpenAI has no model that gives {asked}; only the LAN server does"
    return f"OpenAI has no model that gives {asked} since {gone.name} was shut down on {gone.gone_from}"


def _format(fields: Mapping[str, Any]) -> str:
    asked = fields.get("response_format")
    return asked if isinstance(asked, str) else "json"


def _wants_logprobs(fields: Mapping[str, Any]) -> bool:
    return "logprobs" in (fields.get("include") or ())
