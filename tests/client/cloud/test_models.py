"""How a call is adapted to the cloud's models, and what each costs; pure."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from localwhisper_client.cloud.models import SHUTDOWN, Unsupported, Usage, adapted, cost, saved
from localwhisper_client.shared.languages import NAMES

AFTER = dt.datetime.combine(SHUTDOWN, dt.time(), dt.UTC).timestamp()
BEFORE = AFTER - 1
DIARIZE = "gpt-4o-transcribe-diarize"
SPEECH, TRANSLATION = "/audio/transcriptions", "/audio/translations"


@pytest.mark.parametrize(
    ("asked", "before", "after"),
    [
        ({"model": "large-v3"}, "whisper-1", "gpt-transcribe"),
        ({}, "whisper-1", "gpt-transcribe"),
        ({"model": "large-v3", "response_format": "text"}, "whisper-1", "gpt-transcribe"),
        ({"model": "large-v3", "response_format": "vtt"}, "whisper-1", None),
        ({"model": "large-v3", "response_format": "verbose_json"}, "whisper-1", None),
        ({"model": "whisper-1"}, "whisper-1", "gpt-transcribe"),
        ({"model": "gpt-transcribe"}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "gpt-4o-transcribe"}, "gpt-4o-transcribe", "gpt-transcribe"),
        ({"model": "gpt-4o-transcribe", "response_format": "srt"}, "whisper-1", None),
        ({"model": "gpt-transcribe", "response_format": "verbose_json"}, "whisper-1", None),
        ({"model": "large-v3", "stream": True}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "whisper-1", "stream": True}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "large-v3", "stream": True, "response_format": "srt"}, None, None),
        ({"model": "large-v3", "include": ["logprobs"]}, "gpt-transcribe", "gpt-transcribe"),
        ({"model": "whisper-1", "include": ["logprobs"], "response_format": "vtt"}, None, None),
        ({"model": "large-v3", "response_format": "diarized_json"}, None, None),
        ({"model": DIARIZE, "response_format": "diarized_json"}, DIARIZE, None),
    ],
)
def test_which_cloud_model_is_asked(asked: dict[str, Any], before: str | None, after: str | None) -> None:
    """The caller's own model if it can do it, else whisper-1 until its last day, then its successor if that can."""
    for day, model in ((BEFORE, before), (AFTER, after)):
        if model is None:
            with pytest.raises(Unsupported, match="OpenAI has no model"):
                adapted(SPEECH, asked, day)
        else:
            assert adapted(SPEECH, asked, day) == ({**asked, "model": model}, ())


@pytest.mark.parametrize("asked", [{"model": "large-v3"}, {"model": "gpt-4o-transcribe", "response_format": "srt"}])
def test_translations_end_with_whisper(asked: dict[str, Any]) -> None:
    """No other model translates, and the message says since when."""
    assert adapted(TRANSLATION, asked, BEFORE)[0]["model"] == "whisper-1"
    with pytest.raises(Unsupported, match=r"translation .* since whisper-1 was shut down on 2027-02-26"):
        adapted(TRANSLATION, asked, AFTER)


def test_fields_that_a_model_does_not_take_are_left_out() -> None:
    """Hints for another model, and `language=auto`; the caller's own fields are not changed."""
    asked = {"model": "large-v3", "language": "auto", "keywords": ["x"], "languages": ["en"], "prompt": "p"}
    assert adapted(SPEECH, asked, BEFORE) == ({"model": "whisper-1", "prompt": "p"}, ())
    kept = {"model": "gpt-transcribe", "keywords": ["x"], "languages": ["en"], "prompt": "p"}
    assert adapted(SPEECH, {**asked, "language": "de"}, AFTER) == (kept, ())
    assert asked["language"] == "auto"


# Those that `gpt-transcribe` refuses.
REFUSED = """
    la br eu mn sq pa si km sn yo so oc tg sd am yi lo uz fo ht ps tk nn mt sa lb my bo mg as tt haw ln ha ba jw su
"""


@pytest.mark.parametrize("language", NAMES)
def test_every_language_on_both_sides_of_the_date(language: str) -> None:
    """`whisper-1` takes it as it is; its successor gets it as `languages`, unless it would refuse the code."""
    asked = {"model": "large-v3", "language": language}
    assert adapted(SPEECH, asked, BEFORE) == ({"model": "whisper-1", "language": language}, ())
    taken = {"model": "gpt-transcribe", "languages": [language]}
    dropped = ({"model": "gpt-transcribe"}, (language,))
    assert adapted(SPEECH, asked, AFTER) == (dropped if language in REFUSED.split() else (taken, ()))
    # The successor answers streams before that date, too.
    assert adapted(SPEECH, {**asked, "stream": True}, BEFORE)[1] == ((language,) if language in REFUSED.split() else ())


def test_hints_that_the_successor_refuses_are_dropped() -> None:
    """The others stay, each once; `language` is not sent beside them."""
    asked = {"model": "gpt-transcribe", "languages": ["de", "EU", "en", "de"], "language": "fr"}
    assert adapted(SPEECH, asked, AFTER) == ({"model": "gpt-transcribe", "languages": ["de", "en"]}, ("eu",))


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        ("whisper-1", Usage(seconds=60), 0.006),
        ("gpt-transcribe", Usage(seconds=30), 0.00225),
        ("gpt-4o-transcribe", Usage(None, 1_000_000, 100_000), 3.5),
        ("gpt-4o-transcribe", Usage(None, 1_000_000), 2.5),
        ("gpt-4o-transcribe", Usage(seconds=60), 0.006),
        ("gpt-4o-mini-transcribe", Usage(None, 500, 10), None),
        ("whisper-1", Usage(), None),
        ("large-v3", Usage(seconds=60), None),
    ],
)
def test_costs(model: str, usage: Usage, dollars: float | None) -> None:
    """By tokens if the model is billed so and the answer reports them, else by the minute; unknown is not zero."""
    assert cost(model, usage) == (None if dollars is None else pytest.approx(dollars))


def test_what_a_call_on_the_lan_saves() -> None:
    """The price of its own model if OpenAI has it, else of the one that would replace it on that day."""
    for model, now, dollars in (("gpt-4o-mini-transcribe", AFTER, 0.003), ("m", BEFORE, 0.006), ("m", AFTER, 0.0045)):
        assert saved(model, Usage(60), now) == pytest.approx(dollars)
    assert saved("m", Usage(), AFTER) is None
