"""Turns the form of a call made for the LAN server into one that the cloud can answer; pure.

The LAN server gives every format under every model's name. The cloud does not, less and less of it as time goes by, and a
request that it refuses is a voice message lost at the worst moment. What it cannot give is said here, before anything
is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localwhisper_client.cloud.models import BY_CHOICE, MODELS
from localwhisper_client.shared.languages import means_detect, whisper_code

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from localwhisper_client.cloud.models import CloudModel


class Impossible(Exception):
    """The cloud cannot answer this call; says why."""


def adapted(path: str, fields: Mapping[str, Any], day: date) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields as the cloud takes them, and the languages in them that it does not take.

    Its own model stands in where the caller's is not one that can do it.

    Args:
        path: the endpoint, `/audio/transcriptions` or `/audio/translations`.
        fields: the form's fields by the SDK's names, the file not among them.
        day: today, in UTC.

    Raises:
        Impossible: no model can do it.

    """
    asked = MODELS.get(str(fields.get("model")))
    translate = path.strip("/").endswith("translations")
    candidates = [model for model in (asked, *BY_CHOICE) if model is not None]
    able = [model for model in candidates if not _missing(model, fields, translate=translate)]
    model = next((model for model in able if model.alive(day)), None)
    if model is None:
        raise Impossible(_why(able[0] if able else None, fields, translate=translate))
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
    """Return a language as the cloud names it; nothing for `auto`, which means the same to the LAN server."""
    if not isinstance(language, str) or means_detect(language):
        return ""
    return whisper_code(language) or language.strip().lower()


def _missing(model: CloudModel, fields: Mapping[str, Any], *, translate: bool) -> bool:
    return (
        _format(fields) not in model.formats
        or (translate and not model.translates)
        or (bool(fields.get("stream")) and not model.streams)
        or ("logprobs" in (fields.get("include") or ()) and not model.logprobs)
    )


def _why(gone: CloudModel | None, fields: Mapping[str, Any], *, translate: bool) -> str:
    wish = f"response_format={_format(fields)!r}"
    if fields.get("stream"):
        wish += " with stream=True"
    if "logprobs" in (fields.get("include") or ()):
        wish += " with logprobs"
    if translate:
        wish = f"a translation with {wish}"
    if gone is None:
        return f"OpenAI has no model that gives {wish}; only the LAN server does"
    return f"OpenAI has no model that gives {wish} since {gone.name} was shut down on {gone.gone_from}"


def _format(fields: Mapping[str, Any]) -> str:
    asked = fields.get("response_format")
    return asked if isinstance(asked, str) else "json"
