from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_client.shared.languages import NAMES
from localwhisper_server.api import form
from localwhisper_server.errors import InvalidRequest
from localwhisper_server.types import Decoding, Options, Voice

KNOWN = frozenset(NAMES)


def _parse(model: str = "whisper-1", task: Any = "transcribe", known: Any = KNOWN, **fields: Any) -> form.SpeechRequest:
    """Parse keyword arguments as a form; `x__` stands for the name `x[]`."""
    fields["model"] = model
    named = {name.replace("__", "[]"): [value] if isinstance(value, str) else value for name, value in fields.items()}
    return form.parse(named, task, known_languages=known)


def test_defaults() -> None:
    """A form with nothing but its model: json, segments, no words, temperature fallback, no hints."""
    assert _parse() == form.SpeechRequest(Options(Decoding(), Voice()), "json", stream=False, segments=True)


@pytest.mark.parametrize(
    ("field", "longest", "longer"),
    [
        ("prompt", "x" * form.LONGEST_TEXT, "x" * (form.LONGEST_TEXT + 1)),
        ("keywords__", ["x" * 38] * (form.LONGEST_TEXT // 40), ["x" * 38] * (form.LONGEST_TEXT // 40 + 1)),
    ],
)
def test_hints_are_bounded(field: str, longest: Any, longer: Any) -> None:
    """The error names the field and the limit."""
    _parse(**{field: longest})
    with pytest.raises(InvalidRequest, match=str(form.LONGEST_TEXT)) as refused:
        _parse(**{field: longer})
    assert refused.value.param == field.removesuffix("__")
    assert refused.value.param in refused.value.message


ACCEPTED: list[tuple[dict[str, Any], str, Any]] = [
    ({"response_format": "srt"}, "response_format", "srt"),
    ({"response_format": ""}, "response_format", "json"),
    ({"response_format": ["text", "vtt"]}, "response_format", "vtt"),
    ({"stream": "true"}, "stream", True),
    ({"stream": "True"}, "stream", True),
    ({"stream": "1"}, "stream", True),
    ({"stream": "false"}, "stream", False),
    ({"stream": "0"}, "stream", False),
    ({"stream": ""}, "stream", False),
    ({"stream": "true", "response_format": "text"}, "response_format", "text"),
    ({"temperature": "0"}, "temperature", 0.0),
    ({"temperature": "0.0"}, "temperature", 0.0),
    ({"temperature": "0.2"}, "temperature", 0.2),
    ({"temperature": "1"}, "temperature", 1.0),
    ({"temperature": ""}, "temperature", None),
    ({"prompt": "Umlaut ä"}, "prompt", "Umlaut ä"),
    ({"language": "de"}, "language", "de"),
    ({"language": "DE"}, "language", "de"),
    ({"language": "jv"}, "language", "jw"),
    ({"language": ""}, "language", None),
    ({"language": "auto"}, "language", None),
    ({"language": "zh-tw"}, "language", "zh"),
    ({"language": "pt_BR"}, "language", "pt"),
    ({"language": "English"}, "language", "en"),
    ({"languages__": ["de"]}, "language", "de"),
    ({"languages": ["de"]}, "language", "de"),
    ({"languages__": ["de", "en"]}, "language", None),
    ({"languages__": ["", "fr"]}, "language", "fr"),
    ({"keywords__": ["Müller", " GmbH "]}, "hotwords", "Müller, GmbH"),
    ({"keywords": ["Ada"]}, "hotwords", "Ada"),
    ({"include__": "logprobs"}, "logprobs", True),
    ({"include": "logprobs"}, "logprobs", False),
    ({"include": "anything"}, "logprobs", False),
    ({"response_format": "verbose_json", "timestamp_granularities__": ["word"]}, "segments", False),
    ({"response_format": "verbose_json", "timestamp_granularities": ["word"]}, "words", True),
    ({"response_format": "verbose_json", "timestamp_granularities__": ["word", "segment"]}, "segments", True),
    ({"response_format": "verbose_json", "timestamp_granularities__": ["segment"]}, "words", False),
    ({"response_format": "verbose_json"}, "segments", True),
    ({"window": "exact"}, "full_window", True),
    ({"window": "adaptive"}, "full_window", False),
    ({"priority": "bulk"}, "bulk", True),
    ({"priority": "interactive"}, "bulk", False),
    ({"known_speaker_names__": [""]}, "response_format", "json"),
    ({"some_new_field": "x", "user[name]": "y"}, "response_format", "json"),
]


@pytest.mark.parametrize(("fields", "name", "value"), ACCEPTED, ids=lambda value: str(value)[:60])
def test_accepted_fields(fields: dict[str, Any], name: str, value: Any) -> None:
    """Every field in every spelling that OpenAI's clients send; unknown fields are ignored, as by the live API."""
    asked = _parse(**fields)
    decoding = asked.options.decoding
    holder = next(part for part in (asked, asked.options, decoding) if hasattr(part, name))
    assert getattr(holder, name) == value


GRANULARITIES = "Supported values are: 'segment', 'word'."
FORMATS = "Supported values are: 'json', 'text', 'srt', 'verbose_json', 'vtt'."
BOOLEAN = "Invalid value for 'stream': expected a boolean."
TEMPERATURE = "Invalid value for 'temperature': expected a number between 0 and 1."
STRATEGY = "Invalid value for 'chunking_strategy': expected 'auto' or an object with type 'server_vad'."
KEYWORDS = "Keywords must be single lines without '<' or '>'."
GRANULAR = "timestamp_granularities needs response_format 'verbose_json'."

REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"response_format": "xml"}, "response_format", "invalid_value", f"Invalid value: 'xml'. {FORMATS}"),
    (
        {"response_format": "diarized_json"},
        "response_format",
        "unsupported_value",
        f"Invalid value: 'diarized_json'. {FORMATS} This server does no speaker diarization.",
    ),
    *(
        (
            {"response_format": name, "stream": "true"},
            "response_format",
            "unsupported_value",
            f"response_format '{name}' cannot be streamed. Use 'json', 'text' or 'verbose_json' with stream=true.",
        )
        for name in ("srt", "vtt")
    ),
    (
        {"window": "short"},
        "window",
        "invalid_value",
        "Invalid value: 'short'. Supported values are: 'adaptive', 'exact'.",
    ),
    (
        {"priority": "high"},
        "priority",
        "invalid_value",
        "Invalid value: 'high'. Supported values are: 'interactive', 'bulk'.",
    ),
    ({"stream": "perhaps"}, "stream", "invalid_type", BOOLEAN),
    *(({"temperature": value}, "temperature", "invalid_value", TEMPERATURE) for value in ("-0.1", "1.1", "nan", "hot")),
    *(
        (
            {"language": tag},
            "language",
            "invalid_language_format",
            f"Invalid language '{tag}'. Language parameter must be specified in ISO-639-1 format.",
        )
        for tag in ("xx", "de,en", '["de"]', "en; q=1", "german speech please")
    ),
    *(
        (
            {field: tag},
            field.rstrip("_"),
            "unsupported_value",
            f"The language '{tag}' is not supported: Whisper was not trained on it.",
        )
        for field, tag in (("language", "ga"), ("language", "ga-IE"), ("languages__", "zul"))
    ),
    (
        {"languages__": ["de", "klingon"]},
        "languages",
        "invalid_language_format",
        "Invalid language 'klingon'. Language parameter must be specified in ISO-639-1 format.",
    ),
    (
        {"language": "de", "languages__": ["de"]},
        "languages",
        "invalid_value",
        "'language' and 'languages[]' cannot be used together.",
    ),
    *(({"keywords__": [word]}, "keywords", "invalid_value", KEYWORDS) for word in ("<b>", "a>b", "two\nlines", "a\rb")),
    (
        {"include__": ["logprobs", "usage"]},
        "include",
        "invalid_value",
        "Invalid value: 'usage'. Supported values are: 'logprobs'.",
    ),
    (
        {"include__": "logprobs", "response_format": "text"},
        "include",
        "invalid_value",
        "include[]=logprobs needs response_format 'json'.",
    ),
    (
        {"timestamp_granularities__": "char", "response_format": "verbose_json"},
        "timestamp_granularities",
        "invalid_value",
        f"Invalid value: 'char'. {GRANULARITIES}",
    ),
    ({"timestamp_granularities__": "word"}, "timestamp_granularities", "invalid_value", GRANULAR),
    (
        {"timestamp_granularities__": "word", "response_format": "srt"},
        "timestamp_granularities",
        "invalid_value",
        GRANULAR,
    ),
    *(
        (
            {f"{name}{brackets}": ["agent"]},
            name,
            "unsupported_value",
            f"{name} needs speaker diarization, which this server does not do.",
        )
        for name in ("known_speaker_names", "known_speaker_references")
        for brackets in ("__", "")
    ),
    *(
        ({"chunking_strategy": value}, "chunking_strategy", "invalid_value", STRATEGY)
        for value in ("manual", "{", "[]", "null", "{}", "[" * 100_000)
    ),
    *(
        (
            {"chunking_strategy": value},
            "chunking_strategy",
            "invalid_value",
            "Invalid value for 'chunking_strategy': its type must be 'server_vad'.",
        )
        for value in ('{"type":"semantic_vad"}', '{"threshold":0.5}', '{"type":["server_vad"]}')
    ),
    *(
        (
            {"chunking_strategy": json.dumps({"type": "server_vad", key: value})},
            "chunking_strategy",
            "invalid_value",
            f"Invalid value for 'chunking_strategy.{key}': expected a number between 0 and {most}.",
        )
        for key, value, most in [
            ("threshold", 1.5, "1"),
            ("threshold", "loud", "1"),
            ("threshold", None, "1"),
            ("threshold", 10**400, "1"),
            ("prefix_padding_ms", -1, "10000"),
            ("silence_duration_ms", [200], "30000"),
        ]
    ),
]


@pytest.mark.parametrize(("fields", "param", "code", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused_fields(fields: dict[str, Any], param: str, code: str, message: str) -> None:
    """400 in OpenAI's words, which name the field, what is wrong and what would be right."""
    with pytest.raises(InvalidRequest) as failure:
        _parse(**fields)
    assert failure.value.status == 400
    assert failure.value.body() == {
        "error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    }


VAD = {"type": "server_vad", "threshold": 0.7, "prefix_padding_ms": 100, "silence_duration_ms": 900}


@pytest.mark.parametrize(
    ("fields", "voice"),
    [
        ({"chunking_strategy": "auto"}, Voice()),
        ({"chunking_strategy": ""}, Voice()),
        ({"chunking_strategy": json.dumps(VAD)}, Voice(0.7, 100, 900)),
        ({f"chunking_strategy[{key}]": str(value) for key, value in VAD.items()}, Voice(0.7, 100, 900)),
        ({"chunking_strategy": '{"type":"server_vad"}'}, Voice(0.5, 300, 200)),
        ({"chunking_strategy[type]": "server_vad"}, Voice(0.5, 300, 200)),
    ],
    ids=["auto", "empty", "one JSON string", "a part per key", "JSON defaults", "parts' defaults"],
)
def test_chunking_strategy_in_every_wire_form(fields: dict[str, Any], voice: Voice) -> None:
    """As Python, Node and go-openai send it; the object's defaults are those of OpenAI's description."""
    assert _parse(**fields).options.voice == voice


def test_gpt_transcribe_alone_lists_languages() -> None:
    """OpenAI's json has the field for this model alone."""
    assert _parse(model="gpt-transcribe").lists_languages
    assert not _parse(model="gpt-4o-transcribe").lists_languages


def test_a_language_the_model_does_not_know() -> None:
    """An English-only model refuses German instead of writing it as English."""
    with pytest.raises(InvalidRequest, match="'de-AT' is not supported by the model served here") as failure:
        _parse(known=frozenset({"en"}), language="de-AT")
    assert (failure.value.param, failure.value.code) == ("language", "unsupported_value")
    assert _parse(known=frozenset({"en"}), language="en").options.decoding.language == "en"


def test_an_english_only_model_cannot_translate() -> None:
    """The task is refused for it, and accepted for a multilingual one."""
    with pytest.raises(InvalidRequest, match="cannot translate") as failure:
        _parse(known=frozenset({"en"}), task="translate")
    assert failure.value.param == "model"
    assert _parse(task="translate").options.decoding.task == "translate"


@pytest.mark.parametrize("fields", [{}, {"model": []}, {"model": [""]}, {"model": ["  "]}])
def test_a_missing_model(fields: dict[str, list[str]]) -> None:
    """The name is empty; the routes then take the served model."""
    assert form.requested_model(fields) == ""


@pytest.mark.parametrize(
    "model", ["gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe", "openai/gpt-4o-transcribe"]
)
@pytest.mark.parametrize("values", [["segment"], ["word"], ["word", "segment"], ["anything"]])
def test_granularities_of_a_gpt_model_without_timestamps(model: str, values: list[str]) -> None:
    """They are ignored, as by OpenAI: Vercel's AI SDK 5 and 6 send them whenever any option is set."""
    asked = _parse(model, timestamp_granularities__=values, response_format="json")
    assert (asked.response_format, asked.options.decoding.words) == ("json", False)


@pytest.mark.parametrize("value", ["segment", "word", "word,segment", "anything"])
@pytest.mark.parametrize("format_", ["", "json", "text", "srt"])
def test_bare_granularities_without_timestamps(value: str, format_: str) -> None:
    """OpenAI does not know the name without brackets, for any model; AI SDK 4 sends it."""
    asked = _parse(timestamp_granularities=value, response_format=format_)
    assert (asked.response_format, asked.options.decoding.words) == (format_ or "json", False)


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities__"])
def test_a_list_of_granularities_in_one_field(name: str) -> None:
    """Commas separate them, in a field with or without brackets."""
    asked = _parse(response_format="verbose_json", **{name: "word, segment"})
    assert (asked.segments, asked.options.decoding.words) == (True, True)


@pytest.mark.parametrize(
    ("hints", "single", "among"),
    [
        (["de", "en"], None, ("de", "en")),
        (["en-US", "German", "ger", "pt_BR"], None, ("en", "de", "pt")),
        (["de", "de-AT", "deu"], "de", ()),
        (["auto"], None, ()),
        (["de", "auto"], None, ()),
    ],
)
def test_hints_of_several_languages(hints: list[str], single: str | None, among: tuple[str, ...]) -> None:
    """Detection chooses among them. One language by several names is one; `auto` allows any."""
    decoding = _parse(languages__=hints).options.decoding
    assert (decoding.language, decoding.languages) == (single, among)


def test_the_last_model_counts() -> None:
    """So it is with every field that is sent twice."""
    assert form.requested_model({"model": ["a", " whisper-1 "]}) == "whisper-1"


@pytest.mark.parametrize(
    ("filename", "shown"),
    [("notes.bin", "bin"), ("a.b.TXT", "txt"), ("x.<script>", "?script?"), ("x." + "y" * 99, "y" * 16)],
)
def test_an_unreadable_upload_with_an_unsupported_ending(filename: str, shown: str) -> None:
    """OpenAI's error for it; signs in it are replaced."""
    failure = form.unreadable(filename)
    assert failure is not None
    assert failure.body()["error"] == {
        "message": f"Unsupported file format {shown}",
        "type": "invalid_request_error",
        "param": "file",
        "code": "unsupported_value",
    }


@pytest.mark.parametrize("filename", [None, "", "upload", "voice.ogg", "VOICE.OGA", "dot."])
def test_an_unreadable_upload_with_a_supported_ending_or_none(filename: str | None) -> None:
    """The name is not at fault, so the error of the audio stands."""
    assert form.unreadable(filename) is None


# Letters of one to four bytes, line ends, and the signs of numbers and JSON.
LETTERS = "aZ\u00e4\u20ac\U0001f3a4\u2028\0\n\r\t <>,.:-+019eEnul{}[]\"'\\"
WIRE_NAMES = st.sampled_from(
    [
        *(f"{field.name}{brackets}" for field in form.FIELDS for brackets in ("", "[]")),
        *("chunking_strategy[type]", "chunking_strategy[threshold]"),
    ]
)
VALID = st.sampled_from(
    ["true", "0", "1e999", "-0", "en", "auto", "verbose_json", "json", "word", "logprobs", "server_vad", "é", "\0"]
)
OBJECTS = st.dictionaries(
    st.sampled_from(["type", "threshold", "prefix_padding_ms", "x"]),
    st.one_of(st.just("server_vad"), st.integers(), st.floats(), st.none(), st.lists(st.integers()), st.text(LETTERS)),
).map(json.dumps)


@given(st.dictionaries(WIRE_NAMES, st.lists(st.one_of(VALID, OBJECTS, st.text(LETTERS)), max_size=3)))
def test_no_value_raises_anything_else(fields: dict[str, list[str]]) -> None:
    """Every form is understood, or refused with the name of a field."""
    try:
        asked = form.parse(fields, "transcribe", known_languages=KNOWN)
    except InvalidRequest as failure:
        assert failure.body()["error"]["param"]  # noqa: PT017 - either outcome is right, and each is checked
    else:
        assert 0 <= asked.options.voice.threshold <= 1
        assert asked.response_format in form.FORMATS
