"""What may be said of a text that is decoded again and again while its sound grows. Pure.

A word is said once two passes in a row have it and the second has another word after it, or two if it is a draft, which
the acceptance check rejected. It is never taken back. Words are compared without their case and punctuation, which
change as a sentence goes on; so the punctuation after a word is said with the next word.
"""

import itertools
import unicodedata
from dataclasses import dataclass, field

# Writing without spaces between words: there each character counts as one.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Japanese syllables
    (0x3400, 0x9FFF),  # Chinese characters
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A word in a text: without case and punctuation, and where it ends, without the punctuation after it."""

    word: str
    end: int


def units(text: str) -> list[Unit]:
    """Return the words of a text, or its characters where words have no spaces between them."""
    found: list[Unit] = []
    word, end, alone = "", 0, False
    for at, letter in enumerate(text):
        kind = unicodedata.category(letter)[0]
        if kind != "M":  # an accent belongs to the letter before it
            before, alone = alone, any(first <= ord(letter) <= last for first, last in _WITHOUT_SPACES)
            if word and (before or alone or letter.isspace()):
                found.append(Unit(word, end))
                word = ""
        if kind in "LNMS":
            word, end = word + letter.casefold(), at + 1
    return [*found, Unit(word, end)] if word else found


@dataclass(slots=True)
class Agreement:
    """The words said of one stretch of sound, and those of the last pass that were not."""

    said: list[str] = field(default_factory=list)
    _before: list[str] = field(default_factory=list)

    def add(self, text: str, *, draft: bool = False) -> tuple[int, int]:
        """Take the text of the next pass; return which part of it may be said now: from where to where.

        The last word is not, since its sound may not be over; of a draft, which was not accepted, the last two.
        """
        found = units(text)
        first = _after(self.said, found)
        count = 0
        for unit, earlier in zip(found[first : -2 if draft else -1], self._before, strict=False):
            if unit.word != earlier:
                break
            count += 1
        self._before = [unit.word for unit in found[first + count :]]
        self.said += [unit.word for unit in found[first : first + count]]
        begin = found[first - 1].end if first else 0
        return begin, found[first + count - 1].end if count else begin

    def finish(self, text: str) -> tuple[int, int]:
        """Take the last text, of sound that may end before words that were said; return what is still to be said.

        `said` then has the words that were said of later sound.
        """
        found = units(text)
        count, first = _ends(self.said, [unit.word for unit in found])
        self.said = self.said[count:]
        self._before = []
        return (found[first - 1].end if first else 0), len(text.rstrip())


def _after(said: list[str], found: list[Unit]) -> int:
    """Return how many words of a text are those said already, also where a few of them differ.

    That is the beginning of the text with the smallest edit distance from what was said, in letters, since "you're" and
    "you are" are the same words; of several, the one whose number of words is nearest.
    """
    words = [unit.word for unit in found]
    if words[: len(said)] == said:
        return len(said)
    last = _distances(said, words)[-1]
    return min(range(len(last)), key=lambda at: (last[at], abs(at - len(said)), -at))


def _ends(said: list[str], words: list[str]) -> tuple[int, int]:
    """Return how many of the words said are those of a text, and of how many of its words; all of one of the two."""
    table = _distances(said, words)
    borders = [(len(said), at) for at in range(len(words) + 1)] + [(at, len(words)) for at in range(len(said))]
    return min(borders, key=lambda ends: (table[ends[0]][ends[1]], -sum(ends)))


def _distances(said: list[str], words: list[str]) -> list[list[int]]:
    """Return the edit distances in letters between all beginnings of both that end with a word."""
    columns = list(itertools.accumulate(map(len, words), initial=0))
    row = list(range(columns[-1] + 1))
    table = [[row[at] for at in columns]]
    letters = "".join(words)
    for word in said:
        for letter in word:
            before, row = row, [row[0] + 1]
            for at, other in enumerate(letters):
                row.append(min(before[at + 1] + 1, row[at] + 1, before[at] + (letter != other)))
        table.append([row[at] for at in columns])
    return table
