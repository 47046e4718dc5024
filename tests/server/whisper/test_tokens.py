from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.types import Span
from localwhisper_server.whisper import tokens as reading
from localwhisper_server.whisper.tokens import Piece, Reading

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
    return BEGIN + round(seconds / reading.TIMESTAMP_SECONDS)


def _tokens(*parts: int | str) -> list[int]:
    return [token for part in parts for token in (map(ord, part) if isinstance(part, str) else [part])]


@pytest.mark.parametrize(
    ("parts", "pieces", "last", "closed", "stops_at"),
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
    pieces: list[tuple[float, float, str]],
    last: float,
    closed: bool,  # noqa: FBT001 - a table's column
    stops_at: float | None,
) -> None:
    """Pieces with words in them, inside five seconds; a pair of timestamps at the end says that more begins there."""
    assert reading.read(_tokens(*parts), Tokenizer(), 5.0) == Reading(
        tuple(Piece(start, end, tuple(_tokens(text))) for start, end, text in pieces), last, closed, stops_at
    )


@given(st.lists(st.one_of(st.sampled_from(_tokens(" ab")), st.integers(BEGIN, BEGIN + 1500))), st.floats(0.1, 30))
def test_nothing_read_lies_past_the_end(tokens: list[int], seconds: float) -> None:
    """Whatever a model makes up; all words are kept, in order."""
    read = reading.read(tokens, Tokenizer(), seconds)
    assert all(0 <= piece.start <= seconds and 0 <= piece.end <= seconds for piece in read.pieces)
    said = [chr(token) for piece in read.pieces for token in piece.tokens if chr(token) != " "]
    assert said == [chr(token) for token in tokens if token < EOT and chr(token) != " "]


@pytest.mark.parametrize(
    ("text", "least", "most"), [("", 0, 0), ("a quick brown fox", 0.5, 0.9), ("he " * 60, 9, 99), ("ы" * 9, 1, 2)]
)
def test_compression_ratio(text: str, least: float, most: float) -> None:
    """Of the text's bytes; high for a loop, 0 for nothing."""
    assert least <= reading.compression_ratio(text) <= most


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
    assert reading.token_starts(path, count) == pytest.approx(starts)


def test_tokens_are_joined_to_words() -> None:
    """Punctuation belongs to the word before it, and takes none of its time; the text is all there."""
    tokens = _tokens(" ab, c.")
    starts = [0.0, 0.0, 0.5, 1.0, 1.5, 1.5, 2.0, 2.5]
    words = reading.words(tokens, starts, Tokenizer(), seconds=5.0)
    assert [(word.text, word.start, word.end) for word in words] == [(" ab,", 0.0, 1.0), (" c.", 1.5, 2.0)]


def test_punctuation_before_any_word_stands_alone() -> None:
    """There is nothing it could belong to."""
    words = reading.words(_tokens(". a"), [0.0, 0.1, 0.2, 0.3], Tokenizer(), seconds=5.0)
    assert [word.text for word in words] == [".", " a"]


@given(st.text(" ab,.", max_size=20), st.data())
def test_words_never_lie_past_the_end_or_backwards(text: str, data: st.DataObject) -> None:
    """However an alignment came out; together they are the text."""
    starts = data.draw(st.lists(st.floats(0, 40), min_size=len(text) + 1, max_size=len(text) + 1))
    words = reading.words(_tokens(text), sorted(starts), Tokenizer(), seconds=30.0)
    assert "".join(word.text for word in words) == text
    assert all(0 <= word.start <= word.end <= 30.0 for word in words)
    assert all(before.start <= after.start for before, after in pairwise(words))


def test_logprobs_are_of_bytes() -> None:
    """A token may hold half a character; a probability of nothing still has a logarithm."""
    found = reading.logprobs([3, 1, 2, 4], [1.0, 0.5, 0.0, 1e-30], Tokenizer(tokenizer=Vocabulary()))
    assert [one.data for one in found] == [b" caf", b"\xc3", b"\xa9", b"\n"]
    assert b"".join(one.data for one in found).decode() == " café\n"
    assert [one.logprob for one in found] == pytest.approx([0.0, math.log(0.5), math.log(1e-10), math.log(1e-10)])


def test_every_byte_has_a_letter() -> None:
    """And every letter its byte."""
    table = reading._byte_of_letter()
    assert sorted(table.values()) == list(range(256))
    assert len(table) == 256
    assert (table["a"], table["Ġ"], table["Ċ"]) == (ord("a"), ord(" "), ord("\n"))


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
    """The silence before and after it does not count, except for what the detector may have missed."""
    assert reading.in_speech(*text, SPEECH) == pytest.approx(expected)
    assert reading.in_speech(*text, ()) == text
