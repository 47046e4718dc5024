from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.types import Span
from localwhisper_server.whisper import tokens
from localwhisper_server.whisper.tokens import ParsedTokens, TimedText, in_speech, parse_tokens, prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN, EOT = 1000, 900


class Vocabulary:
    """GPT-2's letters for bytes, for the tokens a test needs."""

    def id_to_token(self, token: int) -> str:
        """A space is written Ġ; é is two bytes, of which 1 is the first and 2 the second."""
        return {1: "Ã", 2: "©", 3: "Ġcaf", 4: "Ċ", 5: "Ġ"}[token]


@dataclass
class Tokenizer:
    """One letter for a token; words begin with a space, as in Whisper's vocabulary."""

    timestamp_begin: int = BEGIN
    eot: int = EOT
    sot_prev: int = 901
    sot_sequence: tuple[int, ...] = (902, 903, 904)
    tokenizer: Any = None

    def decode(self, tokens: Sequence[int]) -> str:
        """Join the letters."""
        return "".join(chr(token) for token in tokens if token < EOT)

    def split_to_word_tokens(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Begin a word at each space and each mark; the end of text is one of its own."""
        groups: list[list[int]] = []
        for token in tokens:
            if not groups or token == EOT or chr(token) in " ,.":
                groups.append([])
            groups[-1].append(token)
        return [self.decode(group) for group in groups], groups


def _at(seconds: float) -> int:
    return BEGIN + round(seconds / tokens.TIMESTAMP_SECONDS)


def _tokens(*parts: int | str) -> list[int]:
    return [token for part in parts for token in (map(ord, part) if isinstance(part, str) else [part])]


@pytest.mark.parametrize(
    ("parts", "texts", "last", "ends", "continues_at"),
    [
        ((_at(0), " hi", _at(2)), [(0.0, 2.0, " hi")], 2.0, True, None),
        ((_at(0), " a", _at(2), _at(2), " b", _at(4)), [(0.0, 2.0, " a"), (2.0, 4.0, " b")], 4.0, True, None),
        ((_at(0), " a", _at(2), _at(3), " b", _at(4)), [(0.0, 2.0, " a"), (3.0, 4.0, " b")], 4.0, True, None),
        ((_at(0), " a", _at(2), _at(2)), [(0.0, 2.0, " a")], 2.0, True, 2.0),
        ((_at(0), " a", _at(2), _at(2), " b"), [(0.0, 2.0, " a"), (2.0, 5.0, " b")], 2.0, False, None),
        ((_at(0), " a", _at(9)), [(0.0, 5.0, " a")], 9.0, True, None),
        ((_at(8), " a", _at(9)), [(5.0, 5.0, " a")], 9.0, True, None),
        ((" a",), [(0.0, 5.0, " a")], 0.0, False, None),
        ((_at(0), "  ", _at(2), _at(2), " b", _at(3)), [(2.0, 3.0, " b")], 3.0, True, None),
        ((_at(0), _at(0)), [], 0.0, True, None),
        ((), [], 0.0, False, None),
    ],
    ids=[
        *("one", "two", "a gap", "more begins", "no end", "past the end", "all past the end", "no timestamps"),
        *("blank", "timestamps alone", "nothing"),
    ],
)
def test_tokens_are_cut_at_their_timestamps(
    parts: Any,
    texts: list[tuple[float, float, str]],
    last: float,
    ends: bool,  # noqa: FBT001 - a table's column
    continues_at: float | None,
) -> None:
    """Texts with words in them, inside the five seconds; two timestamps at the end mean that speech goes on there."""
    assert parse_tokens(_tokens(*parts), Tokenizer(), 5.0) == ParsedTokens(
        tuple(TimedText(start, end, tuple(_tokens(text))) for start, end, text in texts), last, ends, continues_at
    )


@given(st.lists(st.one_of(st.sampled_from(_tokens(" ab")), st.integers(BEGIN, BEGIN + 1500))), st.floats(0.1, 30))
def test_no_text_lies_past_the_end(sequence: list[int], seconds: float) -> None:
    """Whatever the model decodes; all words are kept, in order."""
    parsed = parse_tokens(sequence, Tokenizer(), seconds)
    assert all(0 <= text.start <= seconds and 0 <= text.end <= seconds for text in parsed.texts)
    said = [chr(token) for text in parsed.texts for token in text.tokens if chr(token) != " "]
    assert said == [chr(token) for token in sequence if token < EOT and chr(token) != " "]


@pytest.mark.parametrize(
    ("path", "count", "starts"),
    [
        ([(0, 5), (0, 6), (1, 10), (1, 20)], 2, [0.1, 0.2, 0.4]),
        ([(0, 0), (1, 3), (2, 4)], 2, [0.0, 0.06, 0.08]),  # the end of the text has a step of its own
        ([(0, 5), (2, 9)], 3, [0.1, 0.18, 0.18, 0.18]),
        ([], 1, [0.0, 0.0]),
    ],
)
def test_token_starts(path: list[tuple[int, int]], count: int, starts: list[float]) -> None:
    """The first step of each token; one without a step, and the end, are where the path ends."""
    assert tokens.token_starts(path, count) == pytest.approx(starts)


def test_tokens_are_joined_to_words() -> None:
    """Punctuation belongs to the word before it, and takes none of its time; the text is all there."""
    sequence = _tokens(" ab, c.")
    starts = [0.0, 0.0, 0.5, 1.0, 1.5, 1.5, 2.0, 2.5]
    words = tokens.words(sequence, starts, Tokenizer(), seconds=5.0)
    assert [(word.text, word.start, word.end) for word in words] == [(" ab,", 0.0, 1.0), (" c.", 1.5, 2.0)]


def test_punctuation_before_any_word_stands_alone() -> None:
    """There is nothing it could belong to."""
    words = tokens.words(_tokens(". a"), [0.0, 0.1, 0.2, 0.3], Tokenizer(), seconds=5.0)
    assert [word.text for word in words] == [".", " a"]


@given(st.text(" ab,.", max_size=20), st.data())
def test_words_never_lie_past_the_end_or_backwards(text: str, data: st.DataObject) -> None:
    """However an alignment came out; together they are the text."""
    starts = data.draw(st.lists(st.floats(0, 40), min_size=len(text) + 1, max_size=len(text) + 1))
    words = tokens.words(_tokens(text), sorted(starts), Tokenizer(), seconds=30.0)
    assert "".join(word.text for word in words) == text
    assert all(0 <= word.start <= word.end <= 30.0 for word in words)
    assert all(before.start <= after.start for before, after in pairwise(words))


def test_logprobs_are_of_bytes() -> None:
    """A token may hold half a character; a probability of zero has a logarithm too."""
    found = tokens.logprobs([3, 1, 2, 4], [1.0, 0.5, 0.0, 1e-30], Tokenizer(tokenizer=Vocabulary()))
    assert [one.data for one in found] == [b" caf", b"\xc3", b"\xa9", b"\n"]
    assert b"".join(one.data for one in found).decode() == " café\n"
    assert [one.logprob for one in found] == pytest.approx([0.0, math.log(0.5), math.log(1e-10), math.log(1e-10)])


@pytest.mark.parametrize(
    ("hotwords", "previous", "expected"),
    [
        ((), (), []),
        ((), (1, 2), [901, 1, 2]),
        ((7,), (1, 2), [901, 7, 1, 2]),
        ((7, 8), (1, 2, 3, 4), [901, 7, 8, 3, 4]),
        ((5, 6, 7, 8, 9), (1, 2), [901, 5, 6, 7, 8]),
    ],
    ids=["none", "text", "hotwords", "too much text", "too many hotwords"],
)
def test_the_prompt_leaves_room_to_decode(
    hotwords: tuple[int, ...], previous: tuple[int, ...], expected: list[int]
) -> None:
    """Here four tokens: hotwords come first, and the end of the text is kept; then language and task."""
    assert prompt_tokens(hotwords, previous, Tokenizer(), room=4) == [*expected, 902, 903, 904]  # type: ignore[arg-type]


SPEECH = (Span(5.0, 6.0), Span(6.5, 7.0), Span(12.0, 13.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ((5.2, 5.6), (5.2, 5.6)),
        ((0.0, 5.6), (4.8, 5.6)),  # the first word of a recording that begins with silence
        ((6.8, 12.4), (6.8, 12.4)),  # speech at both ends: a sentence with a pause in it
        ((7.0, 12.4), (11.8, 12.4)),
        ((6.6, 11.9), (6.6, 7.2)),
        ((0.0, 20.0), (4.8, 13.2)),
        ((8.0, 9.0), (8.0, 9.0)),  # the detector missed it
        ((4.9, 5.1), (4.9, 5.1)),
    ],
)
def test_a_text_lasts_as_long_as_its_speech(text: tuple[float, float], expected: tuple[float, float]) -> None:
    """Without the silence before and after it, but for a margin of what the detector may have missed."""
    assert in_speech(*text, SPEECH) == pytest.approx(expected)
    assert in_speech(*text, ()) == text
