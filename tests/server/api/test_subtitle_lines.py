"""Cues and lines that fit the screen."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.api.subtitle_lines import FASTEST, LONGEST_SECONDS, SHORTEST_SECONDS, LineLimits, cues, width
from localwhisper_server.types import Segment, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

SECOND_A_LETTER = 1 / 15


def spoken(text: str, start: float = 0.0, *, spaces: bool = True, pause: float = 0.5) -> Segment:
    """Return a segment whose words take their letters' time, with a pause after each sentence."""
    words, at = [], start
    for part in text.split() if spaces else text:
        end = at + len(part) * SECOND_A_LETTER
        words.append(Word(part, at, end))
        at = end + (pause if part[-1] in ".?!。" else 0.0)
    return Segment(start, at, f" {text}" if spaces else text, words=tuple(words))


def shown(segments: Sequence[Segment], **limits: int) -> list[tuple[str, ...]]:
    """Return the lines of each cue."""
    return [cue.lines for cue in cues(segments, LineLimits(**limits))]


def test_breaks_come_at_punctuation() -> None:
    """A sentence is not begun at the end of a cue where it fits into the next one."""
    text = (
        "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
    )
    lines = [line for cue in shown([spoken(text)]) for line in cue]
    assert lines == [
        "And so, my fellow Americans,",
        "ask not what your country can do for you,",
        "ask what you can do for your country.",
    ]


def test_a_title_ends_no_sentence() -> None:
    """The name that follows stays with it."""
    text = "I could not help watching your face with some anxiety, when Mr. Thornton made his confession."
    lines = [line for cue in shown([spoken(text, pause=0.0)]) for line in cue]
    assert not any(line.endswith("Mr.") for line in lines)


def test_lines_are_of_like_width() -> None:
    """The second line is not one lonely word."""
    ((first, second),) = shown([spoken("the patriotism of the Californian was never doubted")])
    assert abs(width(first) - width(second)) < 10


def test_a_long_pause_ends_a_cue() -> None:
    """Words are not shown seconds before they are spoken."""
    segments = [spoken("Wait for it"), spoken("here it is", 5.0)]
    first, second = cues(segments, LineLimits())
    assert (first.lines, second.lines) == (("Wait for it",), ("here it is",))
    assert first.end < 2.5
    assert second.start == 5.0


def test_short_cues_stay_long_enough_to_be_read() -> None:
    """But never into the next one."""
    (alone,) = cues([Segment(3.0, 3.2, " Yes.", words=(Word("Yes.", 3.0, 3.2),))], LineLimits())
    assert alone.end - alone.start == pytest.approx(SHORTEST_SECONDS)
    fast = Segment(0.0, 1.0, " Extraordinarily incomprehensible.", words=(
        Word("Extraordinarily", 0.0, 0.4), Word("incomprehensible.", 0.4, 1.0),
    ))  # fmt: skip
    (read,) = cues([fast], LineLimits())
    assert width(read.lines[0]) / (read.end - read.start) <= FASTEST + 0.01


@pytest.mark.parametrize(
    ("text", "spaces"),
    [
        ("これは日本語の字幕の例です。長い文は、二行に分けられて、画面に収まるように表示されます。", False),
        ("这是一个中文字幕的例子。很长的句子会被分成两行，这样观众就可以轻松地阅读。", False),  # noqa: RUF001 - these signs are meant
        ("이것은 한국어 자막의 예입니다. 긴 문장은 두 줄로 나누어서 화면에 맞게 표시됩니다.", True),
        ("هذا مثال على الترجمة العربية، والجمل الطويلة تقسم إلى سطرين حتى تناسب الشاشة.", True),
        ("Это пример русских субтитров, и длинные предложения делятся на две строки.", True),
        ("זוהי דוגמה לכתוביות בעברית, ומשפטים ארוכים מחולקים לשתי שורות.", True),
    ],
    ids=["ja", "zh", "ko", "ar", "ru", "he"],
)
@pytest.mark.parametrize("timed", [True, False])
def test_other_scripts(text: str, *, spaces: bool, timed: bool) -> None:
    """A wide letter takes two columns, a mark over a letter none, and no line begins with a comma."""
    segment = spoken(text, spaces=spaces)
    if not timed:
        segment = Segment(0.0, 9.0, segment.text)
    lines = [line for cue in shown([segment], max_width=26) for line in cue]
    assert len(lines) >= 2
    assert all(width(line) <= 26 for line in lines)
    assert ("" if not spaces else " ").join(lines) == text
    if not timed:
        assert not any(line[0] in "、。" for line in lines)


def test_words_of_a_line() -> None:
    """`max_words` alone gives one short line after the other, as for films on a phone."""
    made = shown([spoken("one two three four five six seven")], max_width=None, max_count=1, max_words=3)
    assert all(len(lines) == 1 and len(lines[0].split()) <= 3 for lines in made)


def test_a_word_longer_than_a_line_is_not_cut() -> None:
    """It has a line of its own."""
    lines = [
        line for cue in shown([spoken("see donaudampfschifffahrtsgesellschaft now")], max_width=10) for line in cue
    ]
    assert lines == ["see", "donaudampfschifffahrtsgesellschaft", "now"]


@pytest.mark.parametrize(("letters", "columns"), [(56, 12), (300, 120)])
def test_many_lines_of_many_words_take_no_longer_than_their_number(letters: int, columns: int) -> None:
    """Not every division into ten lines is tried: of these there are more than could ever be."""
    times = [at * LONGEST_SECONDS / letters for at in range(letters + 1)]
    words = tuple(Word("字", start, end) for start, end in pairwise(times))
    (cue,) = cues([Segment(0.0, times[-1], "字" * letters, words=words)], LineLimits(columns, 10))
    assert "".join(cue.lines) == "字" * letters
    assert max(map(width, cue.lines)) - min(map(width, cue.lines)) <= 2


def pieces(*texts: str, each: float = 0.4) -> Segment:
    """Return a segment of the words that a tokenizer makes of a text; a space begins a word that follows one."""
    text, words, at = "", [], 0.0
    for part in texts:
        text += part
        words.append(Word(part.strip(), at, at + each))
        at += each
    return Segment(0.0, at, text, words=tuple(words))


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ([" It", " costs", " 3", ".5", " million"], ["It", "costs", "3.5", "million"]),
        ([" a", " well", "-known", " man"], ["a", "well-known", "man"]),
        ([" he", " said", " (", "so)", " twice"], ["he", "said", "(so)", "twice"]),
        ([" 이것은", " 10", "%의", " 예입니다"], ["이것은", "10%의", "예입니다"]),
        (["東京", "の", "イン", "ター", "ネット", "は"], ["東京", "の", "インターネット", "は"]),
        (["彼は", "「", "は", "い」", "と"], ["彼は", "「は", "い」", "と"]),
        (["Git", "Hub", "を", "使", "っ", "た"], ["GitHub", "を", "使っ", "た"]),
        (["きゃ", "ー", "12", "３", "人"], ["きゃー", "12３", "人"]),  # noqa: RUF001 - these signs are meant
        (["เ", "พื่อน", "ข", "า"], ["เพื่อน", "ขา"]),
        ([" مرحبا", "،", " يا", " أصدقاء"], ["مرحبا،", "يا", "أصدقاء"]),
        ([" fine", " 👨\u200d👩\u200d👧", "!"], ["fine", "👨\u200d👩\u200d👧!"]),
    ],
    ids=["decimal", "hyphen", "bracket", "ko", "katakana", "quote", "latin-in-ja", "small-kana", "th", "ar", "emoji"],
)
def test_where_a_line_may_end(parts: list[str], lines: list[str]) -> None:
    """A tokenizer cuts at punctuation and within words; a line ends at a space, or where a script has none."""
    made = cues([pieces(*parts)], LineLimits(max_width=None, max_count=1, max_words=1))
    assert [line for cue in made for line in cue.lines] == lines
    assert all(cue.end > cue.start for cue in made)


def test_a_script_without_spaces_is_cut_where_a_line_must_end() -> None:
    """So is a loop that the model fell into."""
    text = "ー" * 50 + "。"
    lines = [line for cue in cues([Segment(0.0, 6.0, text)], LineLimits(max_width=20)) for line in cue.lines]
    assert "".join(lines) == text
    assert max(map(width, lines)) <= 20


def test_no_cue_is_longer_than_seven_seconds() -> None:
    """A word whose time is wrong is not shown for half a minute."""
    (cue,) = cues([Segment(0.0, 30.0, " Hm.", words=(Word("Hm.", 0.0, 30.0),))], LineLimits())
    assert (cue.start, cue.end) == (0.0, LONGEST_SECONDS)


def test_no_speech_has_no_cues() -> None:
    """So has a segment of spaces."""
    assert cues([], LineLimits()) == []
    assert cues([Segment(0.0, 1.0, "  ")], LineLimits()) == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["a", "the", "word,", "done.", "extraordinary", "字", "幕。", "naïve", "e\u0301tude", "(so)"]
            ),
            st.floats(0, 2),
            st.floats(0, 3),
        ),
        max_size=60,
    ),
    st.integers(1, 60),
    st.integers(1, 3),
    st.none() | st.integers(1, 8),
)
def test_limits_hold(parts: list[tuple[str, float, float]], columns: int, count: int, words: int | None) -> None:
    """Whatever is said and however fast: all words in order, no overlap, no line too wide, no cue of too many."""
    timed, at = [], 0.0
    for text, lasts, pause in parts:
        timed.append(Word(text, at, at + lasts))
        at += lasts + pause
    segment = Segment(0.0, at, "".join(f" {word.text}" for word in timed), words=tuple(timed))
    made = cues([segment], LineLimits(columns, count, words))
    assert [word for cue in made for line in cue.lines for word in line.split()] == [text for text, _, _ in parts]
    for cue in made:
        assert cue.start <= cue.end
        assert len(cue.lines) <= count
        assert all(width(line) <= columns or " " not in line for line in cue.lines)
        assert words is None or all(len(line.split()) <= words for line in cue.lines)
        spoken_words = sum(len(line.split()) for line in cue.lines)
        assert spoken_words == 1 or cue.end - cue.start <= LONGEST_SECONDS + 0.01
    assert all(before.end <= after.start for before, after in pairwise(made))
