from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.whisper.alignment import logprobs_of, token_starts, words_of
from tests.server.engine_double import chunk
from tests.server.whisper.vocabulary import Tokenizer, tokens_of


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
    assert token_starts(path, count) == pytest.approx(starts)


def test_tokens_are_joined_to_words() -> None:
    """Punctuation belongs to the word before it, if there is one, and takes none of its time."""
    starts = [0.0, 0.0, 0.5, 1.0, 1.5, 1.5, 2.0, 2.5]
    words = words_of(tokens_of(" ab, c."), starts, Tokenizer(), chunk(60.0, 5.0))
    assert [(word.text, word.start, word.end) for word in words] == [(" ab,", 60.0, 61.0), (" c.", 61.5, 62.0)]
    words = words_of(tokens_of(". a"), [0.0, 0.1, 0.2, 0.3], Tokenizer(), chunk(seconds=5.0))
    assert [word.text for word in words] == [".", " a"]


@given(st.text(" ab,.", max_size=20), st.data())
def test_words_never_lie_past_the_end_or_backwards(text: str, data: st.DataObject) -> None:
    """However an alignment came out; together they are the text."""
    starts = data.draw(st.lists(st.floats(0, 40), min_size=len(text) + 1, max_size=len(text) + 1))
    words = words_of(tokens_of(text), sorted(starts), Tokenizer(), chunk(seconds=30.0))
    assert "".join(word.text for word in words) == text
    assert all(0 <= word.start <= word.end <= 30.0 for word in words)
    assert all(before.start <= after.start for before, after in pairwise(words))


def test_logprobs_are_of_bytes() -> None:
    """A token may hold half a character; a probability of zero has a logarithm too."""
    found = logprobs_of([3, 1, 2, 4], [1.0, 0.5, 0.0, 1e-30], Tokenizer())
    assert [one.data for one in found] == [b" caf", b"\xc3", b"\xa9", b"\n"]
    assert [one.logprob for one in found] == pytest.approx([0.0, math.log(0.5), math.log(1e-10), math.log(1e-10)])
