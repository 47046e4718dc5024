"""A double of faster-whisper's tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Tokenizer:
    """One letter for a token; words begin with a space, as in Whisper's vocabulary."""

    timestamp_begin = 1000
    eot = 900
    sot_prev = 901
    sot_sequence = (902, 903, 904)

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary."""
        return self

    def id_to_token(self, token: int) -> str:
        """GPT-2's letters for bytes: a space is written Ġ; é is two bytes, of which 1 is the first and 2 the second."""
        return {1: "Ã", 2: "©", 3: "Ġcaf", 4: "Ċ", 5: "Ġ"}[token]

    def decode(self, tokens: Sequence[int]) -> str:
        """Join the letters."""
        return "".join(chr(token) for token in tokens if token < self.eot)

    def split_to_word_tokens(self, tokens: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Begin a word at each space and each mark; the end of text is one of its own."""
        groups: list[list[int]] = []
        for token in tokens:
            if not groups or token == self.eot or chr(token) in " ,.":
                groups.append([])
            groups[-1].append(token)
        return [self.decode(group) for group in groups], groups


def at(seconds: float) -> int:
    """Return a timestamp's token."""
    return Tokenizer.timestamp_begin + round(seconds * 50)


def tokens_of(*parts: int | str) -> list[int]:
    """Return the tokens of texts and timestamps."""
    return [token for part in parts for token in (map(ord, part) if isinstance(part, str) else [part])]
