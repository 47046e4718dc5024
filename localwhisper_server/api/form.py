"""The form of the speech routes: one table of OpenAI's fields, their checks, and the OpenAPI document made of them.

To add a field, add a line to FIELDS. Fields that neither OpenAI nor this server knows are ignored, as the live API
does; a known one that cannot be honoured is refused by name. `window` and `priority` are this server's own.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from localwhisper_client.shared import languages, openai_models
from localwhisper_client.shared.file_endings import ENDINGS
from localwhisper_server.errors import InvalidRequest
from localwhisper_server.types import Decoding, Options, Task, Voice

FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
STREAMABLE: Final = ("json", "text", "verbose_json")
GRANULARITIES: Final = ("segment", "word")
# Characters of a prompt, and of all keywords together. Whisper reads 224 tokens of them, about a thousand characters.
LONGEST_TEXT: Final = 8_000

Values = Mapping[str, Sequence[str]]
"""Every value that a name was sent with, in order."""


# How a field is read: from the name and all values of the form to the value that counts.


def _last(name: str, values: Values) -> str:
    """Return the last value, as OpenAI does with a field that is sent twice; empty where there is none."""
    sent = values.get(name)
    return sent[-1] if sent else ""


def _text(name: str, values: Values) -> str:
    return _bounded(_last(name, values), name)


def _bounded(text: str, param: str) -> str:
    if len(text) > LONGEST_TEXT:
        raise _invalid(
            f"'{param}' is too long: {len(text)} characters. The limit is {LONGEST_TEXT}; the model reads no more "
            "than 224 tokens of them.",
            param,
            "string_above_max_length",
        )
    return text


def _choice(name: str, values: Values, *, allowed: Sequence[str]) -> str:
    return _one_of(name, _last(name, values) or allowed[0], allowed)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        quoted = ", ".join(f"'{other}'" for other in allowed)
        message = f"Invalid value: '{value[:64]}'. Supported values are: {quoted}."
        if value == "diarized_json":
            raise _invalid(f"{message} This server does no speaker diarization.", name, "unsupported_value")
        raise _invalid(message, name)
    return value


def _flag(name: str, values: Values) -> bool:
    value = (_last(name, values) or "false").strip().lower()
    if value not in ("true", "1", "false", "0"):
        raise _invalid(f"Invalid value for '{name}': expected a boolean.", name, "invalid_type")
    return value in ("true", "1")


def _temperature(name: str, values: Values) -> float | None:
    text = _last(name, values).strip()
    return _number(text, name, name, 1) if text else None


def _number(value: Any, shown: str, param: str, most: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 <= number <= most:
        raise _invalid(f"Invalid value for '{shown}': expected a number between 0 and {most:g}.", param)
    return number


def _list(name: str, values: Values) -> list[str]:
    """Return a list's values, with and without the brackets that the SDKs append to its name."""
    return [value for key in (f"{name}[]", name) for value in values.get(key, ()) if value]


def _keywords(name: str, values: Values) -> str:
    keywords = [keyword.strip() for keyword in _list(name, values)]
    joined = _bounded(", ".join(keywords), name)
    if any(re.search(r"[<>\r\n]", keyword) for keyword in keywords):
        raise _invalid("Keywords must be single lines without '<' or '>'.", name)
    return joined


def _include(name: str, values: Values) -> bool:
    """Return whether log probabilities are wanted. The live API ignores the name without brackets."""
    asked = [_one_of(name, value, ("logprobs",)) for value in values.get(f"{name}[]", ())]
    return bool(asked)


def _granularities(name: str, values: Values) -> list[str]:
    """Return what to time with verbose_json, the only format for which the field counts.

    With others, OpenAI refuses the field for whisper-1 and ignores it for its gpt models. It knows the field with
    brackets only; some clients send one without, or a list with commas, in every request.
    """
    if _last("response_format", values) != "verbose_json":
        model = requested_model(values).removeprefix("openai/")
        if any(values.get(f"{name}[]", ())) and not model.startswith("gpt-"):
            raise _invalid(f"{name} needs response_format 'verbose_json'.", name)
        return ["segment"]
    asked = [part.strip() for value in _list(name, values) for part in value.split(",")]
    return [_one_of(name, value, GRANULARITIES) for value in asked] or ["segment"]


def _voice(name: str, values: Values) -> Voice:
    """Read chunking_strategy: "auto", an object as JSON, or one part for each of its keys: `name[key]`."""
    chosen: Mapping[str, Any] = {
        key[len(name) + 1 : -1]: sent[-1]
        for key, sent in values.items()
        if key.startswith(f"{name}[") and key.endswith("]") and sent
    }
    text = _last(name, values).strip()
    if text not in ("", "auto"):
        try:
            chosen = json.loads(text)
        except (ValueError, RecursionError):
            chosen = {}
    elif not chosen:
        return Voice()
    if not chosen or not isinstance(chosen, dict):
        raise _invalid(f"Invalid value for '{name}': expected 'auto' or an object with type 'server_vad'.", name)
    if chosen.get("type") != "server_vad":
        raise _invalid(f"Invalid value for '{name}': its type must be 'server_vad'.", name)

    def number(key: str, default: float, most: float) -> float:
        return _number(chosen.get(key, default), f"{name}.{key}", name, most)

    return Voice(
        threshold=number("threshold", Voice().threshold, 1),
        prefix_padding_ms=int(number("prefix_padding_ms", 300, 10_000)),
        silence_duration_ms=int(number("silence_duration_ms", 200, 30_000)),
    )


def _unsupported(name: str, values: Values) -> None:
    if _list(name, values):
        message = f"{name} needs speaker diarization, which this server does not do."
        raise _invalid(message, name, "unsupported_value")


def _invalid(message: str, param: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(message, param=param, code=code)


# The table.


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, how it is read, and its schema in the OpenAPI document, where it may have brackets.

    `schema` None: the document does not show it.
    """

    name: str
    read: Callable[[str, Values], Any]
    schema: Mapping[str, Any] | None
    brackets: bool = False


def _choices(name: str, allowed: Sequence[str]) -> Field:
    schema = {"type": "string", "enum": list(allowed), "default": allowed[0]}
    return Field(name, partial(_choice, allowed=allowed), schema)


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _array(description: str = "", allowed: Sequence[str] = ()) -> dict[str, Any]:
    items = {"type": "string"} | ({"enum": list(allowed)} if allowed else {})
    return {"type": "array", "items": items} | ({"description": description} if description else {})


FIELDS: Final = (
    Field("model", _last, _string("A served model or an OpenAI name; else the one served.")),
    Field("language", _last, _string("ISO 639 code, BCP 47 tag or English name.")),
    Field(
        "languages", _list, _array("Those that may be spoken; each part is in the likeliest of them."), brackets=True
    ),
    Field("keywords", _keywords, _array("Spellings to prefer."), brackets=True),
    Field("prompt", _text, _string("Text taken as having been said before.")),
    _choices("response_format", FORMATS),
    Field("temperature", _temperature, {"type": "number", "minimum": 0, "maximum": 1, "default": 0}),
    Field("timestamp_granularities", _granularities, _array(allowed=GRANULARITIES), brackets=True),
    Field("include", _include, _array(allowed=["logprobs"]), brackets=True),
    Field("stream", _flag, {"type": "boolean", "default": False}),
    _choices("window", ("adaptive", "exact")),
    _choices("priority", ("interactive", "bulk")),
    Field("chunking_strategy", _voice, _string("auto, or an object as JSON.")),
    Field("known_speaker_names", _unsupported, None),
    Field("known_speaker_references", _unsupported, None),
)
_FILE: Final = {"type": "string", "format": "binary", "description": "The recording, in any container."}
_PROPERTIES: Final = {"file": _FILE} | {
    f"{field.name}[]" if field.brackets else field.name: field.schema for field in FIELDS if field.schema is not None
}
# The body of the speech routes in the OpenAPI document.
OPENAPI_BODY: Final = {
    "required": True,
    "content": {"multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": _PROPERTIES}}},
}


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A form that passed its checks: what the model is asked, and how the answer is written.

    `lists_languages` adds `languages` to json; `segments` tells whether verbose_json has them.
    """

    options: Options
    response_format: str = "json"
    stream: bool = False
    segments: bool = True
    lists_languages: bool = False


def parse(values: Values, task: Task, *, known_languages: frozenset[str]) -> SpeechRequest:
    """Check the text fields of a form.

    Raises:
        InvalidRequest: a field is malformed or cannot be honoured; `param` names it.

    """
    sent = {field.name: field.read(field.name, values) for field in FIELDS}
    response_format, logprobs = sent["response_format"], sent["include"]
    if sent["stream"] and response_format not in STREAMABLE:
        raise _invalid(
            f"response_format '{response_format}' cannot be streamed. Use 'json', 'text' or 'verbose_json' with "
            "stream=true.",
            "response_format",
            "unsupported_value",
        )
    if logprobs and response_format != "json":
        raise _invalid("include[]=logprobs needs response_format 'json'.", "include")
    if task == "translate" and known_languages == {"en"}:
        raise _invalid(
            "The model served here knows English alone and cannot translate. Serve a multilingual one.",
            "model",
            "unsupported_value",
        )
    language, among = _languages(sent["language"], sent["languages"], known_languages)
    decoding = Decoding(
        task=task,
        language=language,
        languages=among,
        prompt=sent["prompt"],
        hotwords=sent["keywords"],
        temperature=sent["temperature"],
        words="word" in sent["timestamp_granularities"],
        logprobs=logprobs,
    )
    return SpeechRequest(
        Options(
            decoding,
            sent["chunking_strategy"],
            full_window=sent["window"] == "exact",
            bulk=sent["priority"] == "bulk",
        ),
        response_format=response_format,
        stream=sent["stream"],
        segments="segment" in sent["timestamp_granularities"],
        lists_languages=requested_model(values).removeprefix("openai/") == openai_models.GPT_TRANSCRIBE,
    )


def requested_model(values: Values) -> str:
    """Return the `model` field, empty where there is none."""
    return _last("model", values).strip()


def _languages(single: str, several: Sequence[str], known: frozenset[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the model's code of the language that is spoken, or several that may be; None and none: any."""
    if single and several:
        raise _invalid("'language' and 'languages[]' cannot be used together.", "languages")
    if single:
        return _code(single, known, "language"), ()
    codes = list(dict.fromkeys(_code(tag, known, "languages") for tag in several))
    among = tuple(code for code in codes if code is not None)
    if len(among) < len(codes):  # one of them was "auto"
        return None, ()
    return (among[0], ()) if len(among) == 1 else (None, among)


def _code(tag: str, known: frozenset[str], param: str) -> str | None:
    """Return the model's code for a language tag; None for a tag that asks for detection."""
    if languages.means_detect(tag):
        return None
    code = languages.whisper_code(tag)
    if code in known:
        return code
    shown = tag.strip()[:32]
    if code is not None:
        raise _invalid(
            f"The language '{shown}' is not supported by the model served here. Serve a multilingual one: "
            "large-v3 knows all of Whisper's languages.",
            param,
            "unsupported_value",
        )
    if languages.is_language(tag):
        message = f"The language '{shown}' is not supported: Whisper was not trained on it."
        raise _invalid(message, param, "unsupported_value")
    raise _invalid(
        f"Invalid language '{shown}'. Language parameter must be specified in ISO-639-1 format.",
        param,
        "invalid_language_format",
    )


def missing_file() -> InvalidRequest:
    """Return the error for a form without an upload."""
    return _invalid(
        "Missing required parameter: 'file'. Send the recording as multipart/form-data, with a file name: "
        "curl -F file=@voice.ogg",
        "file",
        "missing_required_parameter",
    )


def unreadable(filename: str | None) -> InvalidRequest | None:
    """Return OpenAI's error for an unreadable upload with an ending that OpenAI does not take; None for other names."""
    _, dot, ending = (filename or "").rpartition(".")
    if not dot or not ending or ending.lower() in ENDINGS:
        return None
    shown = re.sub(r"[^a-z0-9]", "?", ending.lower())[:16]
    return _invalid(f"Unsupported file format {shown}", "file", "unsupported_value")
