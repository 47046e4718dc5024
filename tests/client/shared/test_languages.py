from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_client.shared.languages import NAMES, is_language, means_detect, whisper_code


def test_every_language_has_a_lowercase_name() -> None:
    """Whisper's hundred, each understood by its code and by its name, in any case."""
    assert len(NAMES) == 100
    for code, name in NAMES.items():
        assert name == name.lower()
        assert {whisper_code(tag) for tag in (code, code.upper(), name, name.title())} == {code}


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        *(("en-US", "en"), ("zh-tw", "zh"), ("pt_BR", "pt"), ("zh-Hant-TW", "zh"), ("zh-cmn-Hans-CN", "zh")),
        *(("zh-yue", "yue"), ("zh_yue_HK", "yue"), ("yue-Hant", "yue"), ("nb-NO", "no"), ("sr-Latn-RS", "sr")),
        *(("eng", "en"), ("deu", "de"), ("ger", "de"), ("cmn", "zh"), ("chi", "zh"), ("fil", "tl"), ("arb", "ar")),
        *(("jv", "jw"), ("jav", "jw"), ("iw", "he"), ("in", "id"), ("nb", "no"), ("mo", "ro"), ("haw", "haw")),
        *(("English", "en"), ("haitian creole", "ht"), ("Mandarin", "zh"), ("Farsi", "fa"), ("Flemish", "nl")),
        *((" de ", "de"), ("en_US.UTF-8", "en"), ("Chinese (Simplified)", "zh"), ("Norwegian Bokmål", "no")),
    ],
)
def test_tags_of_known_languages(tag: str, code: str) -> None:
    """ISO 639-1, 639-2 of both forms and 639-3, BCP 47 with either mark, a locale, an English name."""
    assert whisper_code(tag) == code
    assert is_language(tag)
    assert not means_detect(tag)


@pytest.mark.parametrize("tag", ["ga", "ga-IE", "gle", "zu", "eo", "tlh", "TI"])
def test_tags_of_languages_that_whisper_does_not_know(tag: str) -> None:
    """Real ones, of which a caller may be told more than that the tag is wrong."""
    assert whisper_code(tag) is None
    assert is_language(tag)


@pytest.mark.parametrize(
    "tag", ["", " ", "xx", "de,en", "en;de", '["en"]', "en-", "-en", "english please", "e" * 9999, "\0en"]
)
def test_what_is_no_tag(tag: str) -> None:
    """No list, no sentence."""
    assert whisper_code(tag) is None
    assert not is_language(tag)
    assert not means_detect(tag)


@pytest.mark.parametrize("tag", ["auto", "AUTO ", "und", "mul", "detect"])
def test_tags_that_leave_it_open(tag: str) -> None:
    """They name no language and forbid none."""
    assert means_detect(tag)
    assert whisper_code(tag) is None


@given(st.text("enzhyue-_. ()\n\0é", max_size=30))
def test_any_text_is_read(tag: str) -> None:
    """Without an exception, to a code of Whisper's or none."""
    assert whisper_code(tag) in {None, *NAMES}
    assert isinstance(is_language(tag), bool)
