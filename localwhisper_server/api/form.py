"""The form of the speech routes: one table of OpenAI's fields, their checks, and the OpenAPI document made of them.

To add a field, add a line to FIELDS. Fields that neither OpenAI nor this server knows are ignored, as the live API
does; a known one that cannot be honoured is refused by name. `window`, `priority`, `max_speakers` and the limits of
lines are this server's own; the limits have the names of Whisper's command line.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from localwhisper_client.shared import languages, openai_models
from localwhisper_client.shared.file_endings import ENDINGS
from localwhisper_server.api import known_speakers
from localwhisper_server.api.formats import CONTENT_TYPES, Format
from localwhisper_server.api.subtitles import DEFAULT_COUNT, DEFAULT_WIDTH, LineLimits
from localwhisper_server.errors import InvalidRequest
from localwhisper_server.types import Decoding, Options, Speakers, Task, Voice

STREAMABLE: Final = ("json", "text", "verbose_json", "diarized_json")
# The formats that show times, for which the limits of lines count.
TIMED: Final = ("srt", "vtt", "verbose_json")
MOST_SPEAKERS: Final = 32
GRANULARITIES: Final = ("segment", "word")
# Characters of a prompt, and of all keywords together. Whisper reads 224 tokens of them, about a thousand characters.
LONGEST_TEXT: Final = 8_000

Values = Mapping[str, Sequence[str]]
"""Every value that a name was sent with, in order."""


# How a field is read: from the name and all values of the form to the value that counts.


def _last(name: str, values: Values) -> str:
    """Return the last value, as OpenAI does with a field that is sent twice; empty where there is none."""
    return (values.get(name) or [""])[-1]


def _list(name: str, values: Values) -> list[str]:
    """Return a list's values, with and without the brackets that the SDKs append to its name."""
    return [value for key in (f"{name}[]", name) for value in values.get(key, ()) if value]


def _model(name: str, values: Values) -> str:
    return _last(name, values).strip()


def _text(name: str, values: Values) -> str:
    return _bounded(_last(name, values), name)


def _keywords(name: str, values: Values) -> str:
    joined = _bounded(", ".join(keyword.strip() for keyword in _list(name, values)), name)
    if re.search(r"[<>\r\n]", joined):
        raise _invalid("Keywords must be single lines without '<' or '>'.", name)
    return joined


def _bounded(text: str, param: str) -> str:
    if len(text) > LONGEST_TEXT:
        limit = f"The limit is {LONGEST_TEXT}; the model reads no more than 224 tokens of them."
        message = f"'{param}' is too long: {len(text)} characters. {limit}"
        raise _invalid(message, param, "string_above_max_length")
    return text


def _choice(name: str, values: Values, *, allowed: Sequence[str]) -> str:
    return _one_of(name, _last(name, values) or allowed[0], allowed)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value in allowed:
        return value
    quoted = ", ".join(f"'{other}'" for other in allowed)
    raise _invalid(f"Invalid value: '{value[:64]}'. Supported values are: {quoted}.", name)


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


def _whole_number(name: str, values: Values, *, most: int) -> int | None:
    text = _last(name, values).strip()
    if not text:
        return None
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise _invalid(f"Invalid value for '{name}': expected a whole number between 1 and {most}.", name)
    return int(text)


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
        if any(values.get(f"{name}[]", ())) and not _model("model", values).removeprefix("openai/").startswith("gpt-"):
            raise _invalid(f"{name} needs response_format 'verbose_json'.", name)
        return ["segment"]
    asked = [part.strip() for value in _list(name, values) for part in value.split(",")]
    return [_one_of(name, value, GRANULARITIES) for value in asked] or ["segment"]


def _voice(name: str, values: Values) -> Voice:
    """Read chunking_strategy: "auto", an object as JSON, or one part for each of its keys: `name[key]`."""
    chosen: Any = {
        key[len(name) + 1 : -1]: sent[-1]
        for key, sent in values.items()
        if key.startswith(f"{name}[") and key.endswith("]") and sent
    }
    text = _last(name, values).strip()
    if text not in ("", "auto"):
        try:
            chosen = json.loads(text)
        except (ValueError, RecursionError):
            chosen = None
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


def _speakers(values: Values, most: int | None) -> Speakers:
    known = known_speakers.read(_list(known_speakers.NAMES, values), _list(known_speakers.REFERENCES, values))
    if most is not None and most < len(known):
        raise _invalid(f"max_speakers is {most}, but {len(known)} speakers are known.", "max_speakers")
    # OpenAI has the rule for its own model, the only one that it lets tell speakers apart.
    own = _model("model", values).removeprefix("openai/") == openai_models.GPT_4O_TRANSCRIBE_DIARIZE
    chunked = any(name.partition("[")[0] == "chunking_strategy" and any(sent) for name, sent in values.items())
    return Speakers(known, most, chunked=chunked or not own)


def _invalid(message: str, param: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(message, param=param, code=code)


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_value")


# The table.


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, how it is read, and its schema in the OpenAPI document; None: it is not shown there."""

    name: str
    read: Callable[[str, Values], Any]
    schema: Mapping[str, Any] | None


def _choices(name: str, allowed: Sequence[str]) -> Field:
    schema = {"type": "string", "enum": list(allowed), "default": allowed[0]}
    return Field(name, partial(_choice, allowed=allowed), schema)


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _array(description: str = "", allowed: Sequence[str] = ()) -> dict[str, Any]:
    items = {"type": "string"} | ({"enum": list(allowed)} if allowed else {})
    return {"type": "array", "items": items} | ({"description": description} if description else {})


def _limit(name: str, description: str, most: int) -> Field:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "description": description}
    return Field(name, partial(_whole_number, most=most), schema)


FIELDS: Final = (
    Field("model", _model, _string("A served model or an OpenAI name; else the one served.")),
    Field("language", _last, _string("ISO 639 code, BCP 47 tag or English name.")),
    Field("languages", _list, _array("Those that may be spoken; each part is in the likeliest of them.")),
    Field("keywords", _keywords, _array("Spellings to prefer.")),
    Field("prompt", _text, _string("Text taken as having been said before.")),
    _choices("response_format", tuple(CONTENT_TYPES)),
    Field("temperature", _temperature, {"type": "number", "minimum": 0, "maximum": 1, "default": 0}),
    Field("timestamp_granularities", _granularities, _array(allowed=GRANULARITIES)),
    Field("include", _include, _array(allowed=["logprobs"])),
    Field("stream", _flag, {"type": "boolean", "default": False}),
    _limit("max_line_width", "Columns of a line of srt and vtt; a wide letter takes two.", 1000),
    _limit("max_line_count", "Lines of a cue of srt and vtt.", 10),
    _limit("max_words_per_line", "Words of a line of srt and vtt.", 100),
    _choices("window", ("adaptive", "exact")),
    _choices("priority", ("interactive", "bulk")),
    Field("chunking_strategy", _voice, _string("auto, or an object as JSON.")),
    Field("known_speaker_names", _list, _array("With diarized_json: names of up to four speakers.")),
    Field("known_speaker_references", _list, _array("A data URL for each name: 2 to 10 s of that voice.")),
    _limit("max_speakers", "With diarized_json: so many speakers at most.", MOST_SPEAKERS),
)
_FILE: Final = {"type": "string", "format": "binary", "description": "The recording, in any container."}
# The SDKs append brackets to the name of a list.
_PROPERTIES: Final = {"file": _FILE} | {
    field.name + ("[]" if field.schema["type"] == "array" else ""): field.schema for field in FIELDS if field.schema
}
# The body of the speech routes in the OpenAPI document.
OPENAPI_BODY: Final = {
    "required": True,
    "content": {"multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": _PROPERTIES}}},
}


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A form that passed its checks: what is asked for, and how the answer is written."""

    options: Options
    shape: Format
    stream: bool


def model(values: Values) -> str:
    """Return the name of the model that is asked for; empty where the form names none."""
    return _model("model", values)


def parse(values: Values, task: Task, *, known_languages: frozenset[str]) -> SpeechRequest:
    """Check the text fields of a form.

    Raises:
        InvalidRequest: a field is malformed or cannot be honoured; `param` names it.

    """
    sent = {field.name: field.read(field.name, values) for field in FIELDS}
    response_format, logprobs = sent["response_format"], sent["include"]
    if sent["stream"] and response_format not in STREAMABLE:
        message = f"response_format '{response_format}' cannot be streamed."
        raise _unsupported(f"{message} Use 'json', 'text', 'verbose_json' or 'diarized_json'.", "response_format")
    if logprobs and response_format != "json":
        raise _invalid("include[]=logprobs needs response_format 'json'.", "include")
    if task == "translate" and known_languages == {"en"}:
        message = "The model served here knows English alone and cannot translate. Serve a multilingual one."
        raise _unsupported(message, "model")
    diarized = response_format == "diarized_json"
    if diarized and task == "translate":
        raise _unsupported("A translation has no speakers: 'diarized_json' is for transcriptions.", "response_format")
    language, among = _languages(sent["language"], sent["languages"], known_languages)
    granularities = sent["timestamp_granularities"]
    lines = None
    if response_format in TIMED:
        lines = _lines(sent["max_line_width"], sent["max_line_count"], sent["max_words_per_line"])
    decoding = Decoding(
        task=task,
        language=language,
        languages=among,
        prompt=sent["prompt"],
        hotwords=sent["keywords"],
        temperature=sent["temperature"],
        words="word" in granularities or lines is not None or diarized,
        logprobs=logprobs,
    )
    lists_languages = sent["model"].removeprefix("openai/") == openai_models.GPT_TRANSCRIBE
    return SpeechRequest(
        Options(
            decoding,
            sent["chunking_strategy"],
            full_window=sent["window"] == "exact",
            bulk=sent["priority"] == "bulk",
            speakers=_speakers(values, sent["max_speakers"]) if diarized else None,
        ),
        Format(
            response_format,
            segments="segment" in granularities,
            words="word" in granularities,
            logprobs=logprobs,
            languages=among if lists_languages else None,
            lines=lines,
        ),
        stream=sent["stream"],
    )


def _lines(columns: int | None, count: int | None, words: int | None) -> LineLimits | None:
    """Return the limits of lines, None if none was asked for. A limit of words alone leaves the width free."""
    if columns is None and count is None and words is None:
        return None
    default = DEFAULT_WIDTH if words is None else None
    return LineLimits(columns or default, count or DEFAULT_COUNT, words)


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
        remedy = "Serve a multilingual one: large-v3 knows all of Whisper's languages."
        message = f"The language '{shown}' is not supported by the model served here. {remedy}"
        raise _unsupported(message, param)
    if languages.is_language(tag):
        raise _unsupported(f"The language '{shown}' is not supported: Whisper was not trained on it.", param)
    message = f"Invalid language '{shown}'. Language parameter must be specified in ISO-639-1 format."
    raise _invalid(message, param, "invalid_language_format")


def missing_file() -> InvalidRequest:
    """Return the error for a form without an upload."""
    message = "Missing required parameter: 'file'. Send the recording as multipart/form-data, with a file name: "
    return _invalid(message + "curl -F file=@voice.ogg", "file", "missing_required_parameter")


def unreadable(filename: str | None) -> InvalidRequest | None:
    """Return OpenAI's error for an unreadable upload with an ending that OpenAI does not take; None for other names."""
    _, dot, ending = (filename or "").rpartition(".")
    if not dot or not ending or ending.lower() in ENDINGS:
        return None
    shown = re.sub(r"[^a-z0-9]", "?", ending.lower())[:16]
    return _unsupported(f"Unsupported file format {shown}", "file")
