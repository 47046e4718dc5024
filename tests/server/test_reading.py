from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server import reading

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN, EOT = 1000, 900
SECONDS = 5.0


class Tokenizer:
    """A token is its letter; timestamps begin at BEGIN; a word begins at each space."""

    timestamp_begin, eot = BEGIN, EOT
    tokenizer: Any = None

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the letters."""
        return "".join(chr(token) for token in tokens if token < EOT)

    def split_to_word_tokens(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Split before each space and each mark, and before the end."""
        groups: list[list[int]] = []
        for token in tokens:
            if not groups or token in (ord(" "), ord(","), ord("."), EOT):
                groups.append([])
            groups[-1].append(token)
        return [self.decode(group) for group in groups], groups


def _at(seconds: float) -> int:
    return BEGIN + round(seconds / reading.TIMESTAMP_SECONDS)


def _tokens(*parts: int | str) -> list[int]:
    return [token for part in parts for token in (map(ord, part) if isinstance(part, str) else [part])]


@pytest.mark.parametrize(
    ("parts", "pieces", "stops_at"),
    [
        ((_at(0), " hi", _at(2)), [(0.0, 2.0, " hi")], None),
        ((_at(0), " a", _at(2), _at(2), " b", _at(4)), [(0.0, 2.0, " a"), (2.0, 4.0, " b")], None),
        ((_at(0), " a", _at(2), _at(3), " b", _at(4)), [(0.0, 2.0, " a"), (3.0, 4.0, " b")], None),
        ((_at(0), " a", _at(2), _at(2)), [(0.0, 2.0, " a")], 2.0),
        ((_at(0), " a", _at(2), _at(2), " b"), [(0.0, 2.0, " a"), (2.0, 5.0, " b")], None),
        ((_at(0), " a", _at(9)), [(0.0, 5.0, " a")], None),
        ((_at(8), " a", _at(9)), [(5.0, 5.0, " a")], None),
        ((" a",), [(0.0, 5.0, " a")], None),
        ((_at(0), "  ", _at(2), _at(2), " b", _at(3)), [(2.0, 3.0, " b")], None),
        ((_at(0), _at(0)), [], None),
        ((), [], None),
    ],
    ids=[
        *("one", "two", "a gap", "stopped short", "no end", "past the end", "all past the end", "no timestamps"),
        *("blank", "timestamps alone", "nothing"),
    ],
)
def test_tokens_are_cut_at_their_timestamps(
    parts: Any, pieces: list[tuple[float, float, str]], stops_at: float | None
) -> None:
    """Pieces with words in them, inside the chunk; a pair of timestamps at the end says that more follows."""
    read = reading.read(_tokens(*parts), Tokenizer(), SECONDS)
    assert [(piece.start, piece.end, Tokenizer().decode(piece.tokens)) for piece in read.pieces] == pieces
    assert read.stops_at == stops_at
    assert read.closed == bool(parts and not isinstance(parts[-1], str))


def test_the_last_timestamp_is_told_as_written() -> None:
    """Past the end, too: that is what gives an invented ending away."""
    assert reading.read(_tokens(_at(0), " a", _at(9)), Tokenizer(), SECONDS).last == pytest.approx(9.0)
    assert reading.read(_tokens(" a"), Tokenizer(), SECONDS).last == 0.0


@given(st.lists(st.one_of(st.integers(32, 120), st.integers(BEGIN, BEGIN + 1500)), max_size=60), st.floats(0.1, 30))
def test_no_sequence_leaves_its_chunk(tokens: list[int], seconds: float) -> None:
    """Whatever a model writes: no text is lost or doubled, and no time lies outside."""
    read = reading.read(tokens, Tokenizer(), seconds)
    assert all(0 <= piece.start <= piece.end <= seconds for piece in read.pieces)
    kept = "".join(Tokenizer().decode(piece.tokens) for piece in read.pieces)
    written = "".join(chr(token) for token in tokens if token < BEGIN)
    assert "".join(kept.split()) == "".join(written.split())
    assert read.stops_at is None or 0 < read.stops_at <= seconds


def test_compression() -> None:
    """High where a text repeats itself, and nothing to divide by is no error."""
    assert reading.compression_ratio("") == 0.0
    assert reading.compression_ratio("a quick brown fox") < 1.0
    assert reading.compression_ratio("he " * 100) > 5


def test_token_starts() -> None:
    """The first step of each token; one without a step, and the end, are where the path ends."""
    assert reading.token_starts([(0, 5), (0, 6), (1, 10), (1, 20)], 2) == pytest.approx([0.1, 0.2, 0.4])
    assert reading.token_starts([(0, 5), (1, 20)], 3) == pytest.approx([0.1, 0.4, 0.4, 0.4])
    assert reading.token_starts([], 1) == [0.0, 0.0]


def _words(text: str, starts: Sequence[float]) -> list[tuple[str, float, float]]:
    tokens = _tokens(text)
    found = reading.words(tokens, starts, Tokenizer(), seconds=SECONDS)
    return [(word.text, word.start, word.end) for word in found]


def test_words_end_where_the_next_begins() -> None:
    """Punctuation belongs to the word before it and takes no time of its own."""
    starts = [0.0, 0.1, 0.5, 0.6, 0.7, 0.8]  # of " ", "a", ",", " ", "b", and the end
    assert _words(" a, b", starts) == [(" a,", 0.0, 0.5), (" b", 0.6, 0.8)]


def test_words_stay_in_the_chunk() -> None:
    """An alignment into the padding is cut, and no word ends before it begins."""
    assert _words(" a b", [4.0, 4.5, 5.5, 6.0, 7.0]) == [(" a", 4.0, 5.0), (" b", 5.0, 5.0)]
    assert _words(" a b", [4.0, 4.0, 3.0, 3.0, 3.5])[0] == (" a", 4.0, 4.0)


def test_punctuation_without_a_word_stands_alone() -> None:
    """There is nothing to join it to."""
    assert _words(", a", [0.0, 0.5, 0.6, 1.0])[0][0] == ","


def test_logprobs_are_natural_and_finite() -> None:
    """With the bytes of GPT-2's letters; a probability of zero has a logarithm, too."""

    class Vocabulary:
        def id_to_token(self, token: int) -> str:
            return {1: "Ġhi", 2: "Ã"}[token]

    tokenizer = Tokenizer()
    tokenizer.tokenizer = Vocabulary()
    first, second = reading.logprobs([1, 2], [1.0, 0.0], tokenizer)
    assert (first.data, first.logprob) == (b" hi", 0.0)
    assert second.data == b"\xc3"
    assert second.logprob == pytest.approx(-23.03, abs=0.01)


def test_every_byte_has_a_letter() -> None:
    """So that no token of any language is without its bytes."""
    table = reading._byte_of_letter()
    assert sorted(table.values()) == list(range(256))
