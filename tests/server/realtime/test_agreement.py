"""What two passes agree on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.realtime.agreement import Agreement, units


def play(*texts: str, last: str | None = None) -> list[str]:
    """Give an agreement some texts and perhaps the last; return what was said each time."""
    agreement = Agreement()
    said = []
    for text in texts:
        begin, end = agreement.add(text)
        said.append(text[begin:end])
    if last is not None:
        begin, end = agreement.finish(last)
        said.append(last[begin:end])
    return said


@pytest.mark.parametrize(
    ("texts", "last", "said"),
    [
        ([" And", " And so", " And so my"], " And so my fellow.", ["", " And", " so", " my fellow."]),
        # a word is not said before a second pass has it, nor while it is the last
        ([" asked not", " ask not", " asked not", " ask not what"], None, ["", "", "", ""]),
        ([" ask not", " asked", " asked not"], None, ["", "", " asked"]),
        ([" and", " and", " engraved in"], " engraved in.", ["", "", "", " engraved in."]),
        # punctuation and case do not matter, and are said as the newer pass has them
        ([" hello world.", " Hello, world and"], " Hello, world and all!", ["", " Hello, world", " and all!"]),
        # what was said and is heard otherwise now stays said, and what follows it is said
        ([" a b c d", " a b c d", " a x c d", " a x c d e"], " a x c d e f", ["", " a b c", "", " d", " e f"]),
        # also where two words became one, or one two
        ([" when you're at", " when you're at"], " when you are there", ["", " when you're", " there"]),
        # a text that got shorter takes nothing back
        ([" a b c", " a b c", ""], "", ["", " a b", "", ""]),
        # no words at all
        (["", ""], "", ["", "", ""]),
        ([" ...", " ..."], " ...", ["", "", " ..."]),
        # Chinese and Japanese have no spaces; a character may be said alone
        (["今天天", "今天天气很", "今天天气很好。"], "今天天气很好。", ["", "今天天", "气很", "好。"]),
        (["はい、そう", "はい、そうです"], "はい、そうです。", ["", "はい、そう", "です。"]),
    ],
)
def test_only_what_two_passes_have_is_said(texts: list[str], last: str | None, said: list[str]) -> None:
    """Each step, with what it adds."""
    assert play(*texts, last=last) == said


def test_a_draft_says_a_word_less() -> None:
    """A text that was not accepted is more often wrong at its end."""
    agreement = Agreement()
    assert agreement.add(" for all the", draft=True) == (0, 0)
    assert agreement.add(" for although the", draft=True) == (0, len(" for"))
    assert agreement.add(" for although the", draft=True) == (len(" for"), len(" for"))
    assert agreement.add(" for although the") == (len(" for"), len(" for although"))


@pytest.mark.parametrize(
    ("said", "last", "adds", "later", "rest"),
    [
        (" a b c d", " a b", "", " c d e", " e"),  # the sound of "c d" comes after the cut
        (" a b c d", " a x", "", " c d e", " e"),
        (" a b", " a b c", " c", " d", " d"),
        (" a b x", " a b c", "", " d", " d"),  # heard otherwise, and said already
        ("", " a", " a", " b", " b"),
    ],
)
def test_words_said_of_later_sound_are_not_said_again(said: str, last: str, adds: str, later: str, rest: str) -> None:
    """Where a window is cut before words that were said, the next one begins with them."""
    agreement = Agreement(said.split())
    begin, end = agreement.finish(last)
    assert last[begin:end] == adds
    begin, end = agreement.finish(later)
    assert later[begin:end] == rest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" Don't stop!", ["dont", "stop"]),
        (" 5 % of $20", ["5", "of", "$20"]),
        ("¿Qué? — sí", ["qué", "sí"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("ก่อน", ["ก่", "อ", "น"]),
        ("猫cat", ["猫", "cat"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    """Case and punctuation are not part of a word."""
    assert [unit.word for unit in units(text)] == words


@given(st.lists(st.text("ab .,é今天\u0301", max_size=30), max_size=8), st.text("ab .,é今天\u0301", max_size=30))
def test_any_texts_say_parts_in_order(texts: list[str], last: str) -> None:
    """Whatever the passes give, what is said are parts of the texts, and the count of words never falls."""
    agreement, before = Agreement(), 0
    for text in texts:
        begin, end = agreement.add(text)
        assert 0 <= begin <= end <= len(text)
        assert len(agreement.said) >= before
        before = len(agreement.said)
    begin, end = agreement.finish(last)
    assert 0 <= begin <= len(last)
    assert len(agreement.said) <= before


@given(st.lists(st.sampled_from(["so", "it", "goes", "on,", "and", "on."]), max_size=20), st.data())
def test_a_growing_text_is_said_whole_and_once(words: list[str], data: st.DataObject) -> None:
    """If every pass hears the beginning of the same text, the parts add up to it."""
    text = "".join(f" {word}" for word in words)
    counts = sorted(data.draw(st.lists(st.integers(0, len(words)), max_size=6)))
    passes = ["".join(f" {word}" for word in words[:count]) for count in counts]
    assert "".join(play(*passes, last=text)) == text
