"""A multipart form to a checked request: OpenAI's fields, their rules, and what each breach is answered with.

Fields that neither OpenAI nor we know are ignored, as the live API does. One that we know and cannot honour is
refused by name. Two are ours: `window=exact` and `priority=bulk`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from localwhisper_client.shared import languages
from localwhisper_client.shared.file_endings import ENDINGS
from localwhisper_server.errors import InvalidRequest
from localwhisper_server.types import Decoding, Options, Task, Voice

FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
STREAMABLE: Final = ("json", "text")
GRANULARITIES: Final = ("segment", "word")
# Characters of a prompt, and of all keywords together. Whisper reads 224 tokens of them, about a thousand characters.
LONGEST_TEXT: Final = 8_000
LISTS_LANGUAGES: Final = "gpt-transcribe"  # the one model whose json has `languages`

Fields = Mapping[str, Sequence[str]]  # every value that a name was sent with, in order


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A request that passed its checks."""

    model: str
    options: Options
    response_format: str = "json"
    stream: bool = False
    segments: bool = True
    words: bool = False
    logprobs: bool = False

    @property
    def lists_languages(self) -> bool:
        """Whether json carries the `languages` field."""
        return self.model == LISTS_LANGUAGES


def parse(fields: Fields, task: Task, *, known_languages: frozenset[str], model: str) -> SpeechRequest:
    """Check the text fields of a form; `model` is the name that was asked for.

    Raises:
        InvalidRequest: a field is malformed or cannot be honoured; `param` names it.

    """
    model = model.removeprefix("openai/")
    response_format = _one_of(fields, "response_format", FORMATS) or "json"
    stream = _flag(fields, "stream")
    if stream and response_format not in STREAMABLE:
        raise InvalidRequest(
            f"response_format '{response_format}' cannot be streamed. Use 'json' or 'text' with stream=true.",
            param="response_format",
            code="unsupported_value",
        )
    for field in ("known_speaker_names", "known_speaker_references"):
        if _values(fields, field):
            raise InvalidRequest(
                f"{field} needs speaker diarization, which this server does not do.",
                param=field,
                code="unsupported_value",
            )
    granularities = _granularities(fields, response_format, model)
    hints = _languages(fields, known_languages, task)
    logprobs = _logprobs(fields, response_format)
    decoding = Decoding(
        task=task,
        language=hints[0] if len(hints) == 1 else None,
        languages=hints if len(hints) > 1 else (),
        prompt=_bounded(_last(fields, "prompt") or "", "prompt"),
        hotwords=_keywords(fields),
        temperature=_temperature(fields),
        words="word" in granularities,
        logprobs=logprobs,
    )
    return SpeechRequest(
        model=model,
        options=Options(
            decoding,
            _voice(fields),
            full_window=_one_of(fields, "window", ("adaptive", "exact")) == "exact",
            bulk=_one_of(fields, "priority", ("interactive", "bulk")) == "bulk",
        ),
        response_format=response_format,
        stream=stream,
        segments="segment" in granularities,
        words="word" in granularities,
        logprobs=logprobs,
    )


def requested_model(fields: Fields) -> str:
    """Return the `model` field, empty where there is none."""
    return (_last(fields, "model") or "").strip()


def missing_file() -> InvalidRequest:
    """Return the error for a form without an upload."""
    return InvalidRequest(
        "Missing required parameter: 'file'. Send the recording as multipart/form-data, with a file name: "
        "curl -F file=@voice.ogg",
        param="file",
        code="missing_required_parameter",
    )


def unreadable(filename: str | None) -> InvalidRequest | None:
    """Return OpenAI's error for an upload that no decoder reads and whose name says why, or None."""
    extension = (filename or "").rpartition(".")[2].lower() if "." in (filename or "") else ""
    if not extension or extension in ENDINGS:
        return None
    shown = re.sub(r"[^a-z0-9]", "?", extension)[:16]
    return InvalidRequest(f"Unsupported file format {shown}", param="file", code="unsupported_value")


def _values(fields: Fields, name: str) -> list[str]:
    """Return a list field's values, with and without the brackets that the SDKs put behind its name."""
    return [value for key in (f"{name}[]", name) for value in fields.get(key, ()) if value != ""]


def _last(fields: Fields, name: str) -> str | None:
    values = fields.get(name)
    return values[-1] if values else None


def _one_of(fields: Fields, name: str, allowed: Sequence[str]) -> str | None:
    value = _last(fields, name)
    if value is None or value == "":
        return None
    if value not in allowed:
        reason = " This server does no speaker diarization." if value == "diarized_json" else ""
        raise InvalidRequest(
            f"Invalid value: '{value[:64]}'. Supported values are: {_quoted(allowed)}.{reason}",
            param=name,
            code="unsupported_value" if value == "diarized_json" else "invalid_value",
        )
    return value


def _quoted(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def _flag(fields: Fields, name: str) -> bool:
    value = (_last(fields, name) or "false").strip().lower()
    if value in ("true", "1"):
        return True
    if value in ("false", "0"):
        return False
    raise InvalidRequest(f"Invalid value for '{name}': expected a boolean.", param=name, code="invalid_type")


def _temperature(fields: Fields) -> float | None:
    text = _last(fields, "temperature")
    if text is None or not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:  # false for a NaN, too
        raise InvalidRequest(
            "Invalid value for 'temperature': expected a number between 0 and 1.",
            param="temperature",
            code="invalid_value",
        )
    return value


def _languages(fields: Fields, known: frozenset[str], task: Task) -> tuple[str, ...]:
    """Return the model's codes of the languages that may be spoken; none: any."""
    several = _values(fields, "languages")
    single = _last(fields, "language")
    if single and several:
        raise InvalidRequest(
            "'language' and 'languages[]' cannot be used together.", param="languages", code="invalid_value"
        )
    hints = [_code(tag, known, "languages") for tag in several]
    if single:
        hints = [_code(single, known, "language")]
    if task == "translate" and "en" in known and len(known) == 1:
        raise InvalidRequest(
            "The model served here knows English alone and cannot translate. Serve a multilingual one.",
            param="model",
            code="unsupported_value",
        )
    # "auto" among several hints rules nothing out.
    return () if None in hints else tuple(dict.fromkeys(code for code in hints if code))


def _code(tag: str, known: frozenset[str], param: str) -> str | None:
    """Return the model's code for a language tag; None where the tag asks for it to be detected."""
    if languages.means_detect(tag):
        return None
    code = languages.whisper_code(tag)
    if code in known:
        return code
    shown = tag.strip()[:32]
    if code is not None:
        raise InvalidRequest(
            f"The language '{shown}' is not supported by the model served here. Serve a multilingual one: "
            "large-v3 knows all of Whisper's languages.",
            param=param,
            code="unsupported_value",
        )
    if languages.is_language(tag):
        raise InvalidRequest(
            f"The language '{shown}' is not supported: Whisper was not trained on it.",
            param=param,
            code="unsupported_value",
        )
    raise InvalidRequest(
        f"Invalid language '{shown}'. Language parameter must be specified in ISO-639-1 format.",
        param=param,
        code="invalid_language_format",
    )


def _keywords(fields: Fields) -> str:
    keywords = [keyword.strip() for keyword in _values(fields, "keywords")]
    joined = _bounded(", ".join(keywords), "keywords")
    if any(re.search(r"[<>\r\n]", keyword) for keyword in keywords):
        raise InvalidRequest(
            "Keywords must be single lines without '<' or '>'.", param="keywords", code="invalid_value"
        )
    return joined


def _bounded(text: str, param: str) -> str:
    if len(text) > LONGEST_TEXT:
        raise InvalidRequest(
            f"'{param}' is too long: {len(text)} characters. The limit is {LONGEST_TEXT}; the model reads no more "
            "than 224 tokens of them.",
            param=param,
            code="string_above_max_length",
        )
    return text


def _granularities(fields: Fields, response_format: str, model: str) -> frozenset[str]:
    """Read timestamp_granularities, which counts with verbose_json.

    Without it, OpenAI refuses the field for whisper-1 and ignores it for its gpt models. It knows the field only with
    brackets; some clients send a bare one, or a list with commas, with every request.
    """
    name = "timestamp_granularities"
    if response_format != "verbose_json":
        if any(fields.get(f"{name}[]", ())) and not model.startswith("gpt-"):
            raise InvalidRequest(f"{name} needs response_format 'verbose_json'.", param=name, code="invalid_value")
        return frozenset(["segment"])
    asked = [part.strip() for value in _values(fields, name) for part in value.split(",")]
    for value in asked:
        if value not in GRANULARITIES:
            raise InvalidRequest(
                f"Invalid value: '{value[:64]}'. Supported values are: {_quoted(GRANULARITIES)}.",
                param=name,
                code="invalid_value",
            )
    return frozenset(asked or ["segment"])


def _logprobs(fields: Fields, response_format: str) -> bool:
    asked = fields.get("include[]", ())  # a bare `include` is ignored by the live API
    for value in asked:
        if value != "logprobs":
            raise InvalidRequest(
                f"Invalid value: '{value[:64]}'. Supported values are: 'logprobs'.",
                param="include",
                code="invalid_value",
            )
    if asked and response_format != "json":
        raise InvalidRequest("include[]=logprobs needs response_format 'json'.", param="include", code="invalid_value")
    return bool(asked)


def _voice(fields: Fields) -> Voice:
    """Read chunking_strategy: "auto", one JSON string, or a part per key in brackets."""
    name = "chunking_strategy"
    chosen: dict[str, Any] = {
        key[len(name) + 1 : -1]: values[-1]
        for key, values in fields.items()
        if key.startswith(f"{name}[") and key.endswith("]") and values
    }
    text = (_last(fields, name) or "").strip()
    if text and text != "auto":
        chosen = _json_object(text)
    if not chosen:
        if text in ("", "auto"):
            return Voice()
        raise InvalidRequest(
            "Invalid value for 'chunking_strategy': expected 'auto' or an object with type 'server_vad'.",
            param=name,
            code="invalid_value",
        )
    if chosen.get("type") != "server_vad":
        raise InvalidRequest(
            "Invalid value for 'chunking_strategy': its type must be 'server_vad'.", param=name, code="invalid_value"
        )
    return Voice(
        threshold=_number(chosen, "threshold", Voice().threshold, 1.0),
        prefix_padding_ms=int(_number(chosen, "prefix_padding_ms", 300, 10_000)),
        silence_duration_ms=int(_number(chosen, "silence_duration_ms", 200, 30_000)),
    )


def _json_object(text: str) -> dict[str, Any]:
    """Return the object that `text` encodes; an empty one where it encodes none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(chosen: Mapping[str, Any], key: str, default: float, most: float) -> float:
    try:
        value = float(chosen.get(key, default))
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if not 0 <= value <= most:
        raise InvalidRequest(
            f"Invalid value for 'chunking_strategy.{key}': expected a number between 0 and {most:g}.",
            param="chunking_strategy",
            code="invalid_value",
        )
    return value
