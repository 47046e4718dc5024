from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_client.shared.languages import NAMES
from localwhisper_client.shared.openai_models import GPT_4O_TRANSCRIBE_DIARIZE as DIARIZE
from localwhisper_server.api import form
from localwhisper_server.api.formats import CONTENT_TYPES, Format
from localwhisper_server.api.subtitle_lines import LineLimits
from localwhisper_server.errors import InvalidRequest
from localwhisper_server.types import Decoding, KnownSpeaker, Options, Speakers, Voice

KNOWN = frozenset(NAMES)


def _parse(model: str = "whisper-1", task: Any = "transcribe", known: Any = KNOWN, **fields: Any) -> form.SpeechRequest:
    """Parse keyword arguments as a form; `x__` stands for the name `x[]`."""
    fields.setdefault("model", model)
    named = {name.replace("__", "[]"): [value] if isinstance(value, str) else value for name, value in fields.items()}
    return form.parse(named, task, known_languages=known)


def test_defaults() -> None:
    """A form with nothing but its model: json, segments, no words, temperature fallback, no hints."""
    assert _parse() == form.SpeechRequest(Options(Decoding(), Voice()), Format("json", segments=True), stream=False)


@pytest.mark.parametrize(
    ("sent", "name"), [(["a", " base "], "base"), (["base"], "base"), ([], ""), ([""], ""), (["  "], "")]
)
def test_the_model_that_is_asked_for(sent: list[str], name: str) -> None:
    """The last name counts; without one, the routes take the first served model."""
    assert form.model({"model": sent}) == name


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


FORMATS = "'json', 'text', 'srt', 'verbose_json', 'vtt', 'diarized_json'."
STREAMED = "Use 'json', 'text', 'verbose_json' or 'diarized_json'."
ISO = "Language parameter must be specified in ISO-639-1 format."
GRANULARITIES = "timestamp_granularities"
STREAM, VERBOSE = {"stream": "true"}, {"response_format": "verbose_json"}
NO_LIMITS = ("0", "-1", "1.5", "many", "9999999999")
DIARIZED = {"response_format": "diarized_json"}
SPEAKERS, REFERENCES = "known_speaker_names", "known_speaker_references"
SPOKEN = "data:audio/wav;base64,UklGRg=="


def _known(*names: str, reference: str = SPOKEN) -> dict[str, Any]:
    """Return a form with known speakers, who all have one reference."""
    return {**DIARIZED, f"{SPEAKERS}__": list(names), f"{REFERENCES}__": [reference] * len(names)}


def _two(**fields: Any) -> Speakers:
    return Speakers((KnownSpeaker("Ann", b"RIFF"), KnownSpeaker("Bo", b"RIFF")), **fields)


NO_LANGUAGES = ("xx", "de,en", '["de"]', "en; q=1", "german speech please")
# A field by its name, forms, and the value that each must give it.
ACCEPTED: list[tuple[str, Any, list[dict[str, Any]]]] = [
    ("name", "srt", [{"response_format": "srt"}]),
    (
        "name",
        "json",
        [{}, {"response_format": ""}, {"known_speaker_names__": [""]}, {"some_new_field": "x", "u[n]": ""}],
    ),
    ("name", "text", [{"stream": "true", "response_format": "text"}]),
    ("name", "vtt", [{"response_format": ["text", "vtt"]}]),
    ("stream", True, [{"stream": value} for value in ("true", "True", "1")]),
    ("stream", False, [{"stream": value} for value in ("false", "0", "")]),
    ("temperature", 0.0, [{"temperature": value} for value in ("0", "0.0")]),
    ("temperature", 0.2, [{"temperature": "0.2"}]),
    ("temperature", None, [{"temperature": ""}]),
    ("prompt", "Umlaut ä", [{"prompt": "Umlaut ä"}]),
    (
        "language",
        "de",
        [{"language": value} for value in ("de", "DE")] + [{"languages__": ["de"]}, {"languages": ["de"]}],
    ),
    ("language", "jw", [{"language": "jv"}]),
    ("language", None, [{"language": ""}, {"language": "auto"}, {"languages__": ["de", "en"]}]),
    ("language", "zh", [{"language": "zh-tw"}]),
    ("language", "pt", [{"language": "pt_BR"}]),
    ("language", "en", [{"language": "English"}]),
    ("language", "fr", [{"languages__": ["", "fr"]}]),
    ("hotwords", "Müller, GmbH", [{"keywords__": ["Müller", " GmbH "]}, {"keywords": ["Müller", "GmbH"]}]),
    ("logprobs", True, [{"include__": "logprobs"}]),
    ("logprobs", False, [{"include": "logprobs"}, {"include": "anything"}]),
    ("segments", True, [VERBOSE, {**VERBOSE, f"{GRANULARITIES}__": ["word", "segment"]}]),
    ("segments", False, [{**VERBOSE, f"{GRANULARITIES}__": ["word"]}]),
    ("words", True, [{**VERBOSE, GRANULARITIES: ["word"]}, {**VERBOSE, GRANULARITIES: "word, segment"}]),
    ("words", False, [{**VERBOSE, f"{GRANULARITIES}__": ["segment"]}]),
    # AI SDK 4 sends the name without brackets, 5 and 6 send the field to gpt models; OpenAI ignores both.
    ("words", False, [{GRANULARITIES: "word,segment"}, {GRANULARITIES: "anything", "response_format": "srt"}]),
    ("words", False, [{f"{GRANULARITIES}__": ["word"], "model": "gpt-4o-mini-transcribe"}]),
    ("words", False, [{f"{GRANULARITIES}__": ["anything"], "model": "openai/gpt-transcribe"}]),
    # OpenAI's json has the field for this model alone.
    ("languages", ("de", "en"), [{"model": "gpt-transcribe", "languages__": ["de", "en"]}]),
    ("languages", (), [{"model": "openai/gpt-transcribe"}]),
    ("languages", None, [{"model": "gpt-4o-transcribe"}]),
    ("lines", None, [{"response_format": "srt"}, {"max_line_width": "42"}, {**VERBOSE, "max_line_count": ""}]),
    ("lines", LineLimits(30, 2), [{"response_format": "srt", "max_line_width": "30"}]),
    ("lines", LineLimits(42, 1), [{"response_format": "vtt", "max_line_count": "1"}]),
    ("lines", LineLimits(None, 2, 3), [{**VERBOSE, "max_words_per_line": "3"}]),
    ("full_window", True, [{"window": "exact"}]),
    ("full_window", False, [{"window": "adaptive"}]),
    ("bulk", True, [{"priority": "bulk"}]),
    ("bulk", False, [{"priority": "interactive"}]),
    # Speakers are told apart for the format that shows them alone, whatever else is sent.
    ("speakers", None, [{"model": DIARIZE}, {"model": DIARIZE, **_known("a"), "response_format": "text"}]),
    ("speakers", Speakers(), [DIARIZED, {**DIARIZED, "model": DIARIZE, "chunking_strategy": "auto"}]),
    ("speakers", Speakers(), [{**DIARIZED, "model": DIARIZE, "chunking_strategy[type]": "server_vad"}]),
    ("speakers", Speakers(chunked=False), [{**DIARIZED, "model": name} for name in (DIARIZE, f"openai/{DIARIZE}")]),
    ("speakers", Speakers(most=3), [{**DIARIZED, "max_speakers": "3"}]),
    ("speakers", _two(most=2), [{**_known("Ann", " Bo"), "max_speakers": "2"}]),
    ("speakers", _two(), [_known("Ann", "Bo", reference=SPOKEN.replace("audio/wav", "audio/ogg; codecs=opus"))]),
    # As the `base64` command breaks lines, and as the letters of a URL may be escaped.
    (
        "speakers",
        _two(),
        [
            _known("Ann", "Bo", reference=f"data:audio/wav;base64,{written}")
            for written in ("UklG\r\nRg==\n", " UklGRg==", "UklGRg%3D%3D")
        ],
    ),
]


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [(name, value, fields) for name, value, forms in ACCEPTED for fields in forms],
    ids=lambda value: str(value)[:60],
)
def test_accepted_fields(name: str, value: Any, fields: dict[str, Any]) -> None:
    """Every field in every spelling that OpenAI's clients send; unknown fields are ignored, as by the live API."""
    asked = _parse(**fields)
    holder = next(part for part in (asked, asked.shape, asked.options, asked.options.decoding) if hasattr(part, name))
    assert getattr(holder, name) == value


INVALID, UNSUPPORTED, LANGUAGE = "invalid_value", "unsupported_value", "invalid_language_format"
# The parameter named, the code, the end of the message, and forms that are refused so.
REFUSED: list[tuple[str, str, str, list[dict[str, Any]]]] = [
    ("response_format", INVALID, "'xml'. Supported values are: " + FORMATS, [{"response_format": "xml"}]),
    ("response_format", UNSUPPORTED, "'srt' cannot be streamed. " + STREAMED, [{**STREAM, "response_format": "srt"}]),
    ("response_format", UNSUPPORTED, "'vtt' cannot be streamed. " + STREAMED, [{**STREAM, "response_format": "vtt"}]),
    *(
        (
            name,
            INVALID,
            f"a whole number between 1 and {most}.",
            [{"response_format": "srt", name: x} for x in NO_LIMITS],
        )
        for name, most in (("max_line_width", 1000), ("max_line_count", 10), ("max_words_per_line", 100))
    ),
    ("window", INVALID, "Supported values are: 'adaptive', 'exact'.", [{"window": "short"}]),
    ("priority", INVALID, "Supported values are: 'interactive', 'bulk'.", [{"priority": "high"}]),
    ("stream", "invalid_type", "Invalid value for 'stream': expected a boolean.", [{"stream": "perhaps"}]),
    ("temperature", INVALID, "a number between 0 and 1.", [{"temperature": x} for x in ("-0.1", "1.1", "nan", "hot")]),
    ("language", LANGUAGE, "must be specified in ISO-639-1 format.", [{"language": x} for x in NO_LANGUAGES]),
    ("languages", LANGUAGE, f"Invalid language 'klingon'. {ISO}", [{"languages__": ["de", "klingon"]}]),
    ("language", UNSUPPORTED, "'ga' is not supported: Whisper was not trained on it.", [{"language": "ga"}]),
    ("language", UNSUPPORTED, "'ga-IE' is not supported: Whisper was not trained on it.", [{"language": "ga-IE"}]),
    ("languages", UNSUPPORTED, "'zul' is not supported: Whisper was not trained on it.", [{"languages__": "zul"}]),
    ("languages", INVALID, "cannot be used together.", [{"language": "de", "languages__": ["de"]}]),
    ("keywords", INVALID, "without '<' or '>'.", [{"keywords__": [x]} for x in ("<b>", "a>b", "two\nlines", "a\rb")]),
    ("include", INVALID, "'usage'. Supported values are: 'logprobs'.", [{"include__": ["logprobs", "usage"]}]),
    ("include", INVALID, "needs response_format 'json'.", [{"include__": "logprobs", "response_format": "text"}]),
    (GRANULARITIES, INVALID, "Supported values are: 'segment', 'word'.", [{f"{GRANULARITIES}__": "char", **VERBOSE}]),
    (GRANULARITIES, INVALID, "needs response_format 'verbose_json'.", [{f"{GRANULARITIES}__": "word"}]),
    (
        SPEAKERS,
        INVALID,
        "There are 1 names and 0 references. Send one for each other.",
        [{**DIARIZED, SPEAKERS: "agent"}],
    ),
    (SPEAKERS, INVALID, "There are 5 known speakers. 4 are the most.", [_known(*"abcde")]),
    (SPEAKERS, INVALID, "The names must differ, and have 1 to 100 characters.", [_known("a", "a "), _known("a" * 101)]),
    (
        REFERENCES,
        INVALID,
        "Expected a data URL with base64: data:audio/wav;base64,…",
        [_known("a", reference="UklGRg==")],
    ),
    (
        REFERENCES,
        INVALID,
        "The data URL's base64 is not valid.",
        [_known("a", reference=f"data:audio/wav;base64,{wrong}") for wrong in ("UklG-Rg=", "UklGR", "UklG%", "ä")],
    ),
    (
        "max_speakers",
        INVALID,
        "expected a whole number between 1 and 32.",
        [{"max_speakers": value} for value in ("0", "33", "-1", "two", "1.5", "²", "9" * 5000)],
    ),
    (
        "max_speakers",
        INVALID,
        "max_speakers is 1, but 2 speakers are known.",
        [{**_known("a", "b"), "max_speakers": "1"}],
    ),
    (
        "chunking_strategy",
        INVALID,
        "expected 'auto' or an object with type 'server_vad'.",
        [{"chunking_strategy": value} for value in ("manual", "{", "[]", "null", "{}", "[" * 100_000)],
    ),
    (
        "chunking_strategy",
        INVALID,
        "its type must be 'server_vad'.",
        [{"chunking_strategy": value} for value in ('{"type":"semantic_vad"}', '{"threshold":0.5}', '{"type":[""]}')],
    ),
    *(
        (
            "chunking_strategy",
            INVALID,
            f"'chunking_strategy.{key}': expected a number between 0 and {most}.",
            [{"chunking_strategy": json.dumps({"type": "server_vad", key: value})} for value in values],
        )
        for key, values, most in [
            ("threshold", [1.5, "loud", None, 10**400], "1"),
            ("prefix_padding_ms", [-1], "10000"),
            ("silence_duration_ms", [[200]], "30000"),
        ]
    ),
]


@pytest.mark.parametrize(
    ("param", "code", "end", "fields"),
    [(param, code, end, fields) for param, code, end, forms in REFUSED for fields in forms],
    ids=lambda value: str(value)[:60],
)
def test_refused_fields(param: str, code: str, end: str, fields: dict[str, Any]) -> None:
    """The message names the field, what is wrong and what would be right."""
    with pytest.raises(InvalidRequest) as failure:
        _parse(**fields)
    assert (failure.value.param, failure.value.code) == (param.removesuffix("__"), code)
    assert failure.value.message.endswith(end)


def test_the_words_of_a_refusal_are_openais() -> None:
    """400 in the envelope."""
    with pytest.raises(InvalidRequest) as failure:
        _parse(language="xx")
    assert failure.value.status == 400
    message = f"Invalid language 'xx'. {ISO}"
    error = {"message": message, "type": "invalid_request_error", "param": "language", "code": LANGUAGE}
    assert failure.value.body() == {"error": error}


def test_speakers_need_the_times_of_words() -> None:
    """Words are decoded with their times, streamed or not."""
    assert _parse(**DIARIZED).options.decoding.words
    assert _parse(**DIARIZED, **STREAM).options.decoding.words
    assert not _parse().options.decoding.words


def test_a_translation_has_no_speakers() -> None:
    """As with OpenAI, the format is one of transcriptions alone."""
    with pytest.raises(InvalidRequest, match="translation") as failure:
        _parse(task="translate", **DIARIZED)
    assert (failure.value.param, failure.value.code) == ("response_format", UNSUPPORTED)


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
        assert asked.shape.name in CONTENT_TYPES


def test_lines_need_the_times_of_words() -> None:
    """They are asked of the model, and are not shown in verbose_json unless asked for."""
    asked = _parse(response_format="verbose_json", max_line_width="30")
    assert asked.options.decoding.words
    assert not asked.shape.words
