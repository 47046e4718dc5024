"""Subtitles whose lines fit the screen: from words with their times to cues of a few short lines. Pure.

Whisper's segments are as long as its sentences. A viewer reads two lines of about 42 characters, for one to seven
seconds, at up to 21 characters a second: the limits of Netflix's and the BBC's guides for subtitles.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise, zip_longest
from typing import Final, Literal

from localwhisper_server.types import Segment

DEFAULT_WIDTH: Final = 42
DEFAULT_COUNT: Final = 2
SHORTEST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 7.0
FASTEST: Final = 21.0  # columns a second
# No cue stays over a pause of this length.
LONGEST_PAUSE: Final = 2.0
# Where a speaker rests for so long, a new cue begins without a jolt.
REST: Final = 0.4

# Relative weights of what makes a cue bad; chosen by reading the cues of some recordings, not by a measurement.
_EACH_CUE = 1.0
_AFTER = {"sentence": 0.0, "clause": 0.4, "rest": 0.3, "nothing": 2.0}
_SENTENCE_INSIDE = 0.6
_SECOND_TOO_LONG = 20.0
_SECOND_TOO_SHORT = 3.0
_COLUMN_TOO_FAST = 0.3
_NATURAL = 0.8  # how even a line counts as that ends with punctuation

_SENTENCE_ENDS = ".!?…。！？؟۔।"  # noqa: RUF001 - other scripts have their own
_CLAUSE_ENDS = ",;:—–、，；：،؛"  # noqa: RUF001 - these signs are meant
_CLOSING = "\"'”’»)]」』）"  # noqa: RUF001 - these signs are meant

_ENDS = _SENTENCE_ENDS + _CLAUSE_ENDS + _CLOSING
_OPENING = "([{「『（《〈【〔“‘«¿¡เแโใไເແໂໃໄ"  # noqa: RUF001 - with the vowels that Thai and Lao write first
# Letters of scripts that have no spaces between words: Thai, Lao, Burmese, Khmer, Chinese and Japanese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u3190-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff]"
)
# Such a period ends no sentence: a name follows.
_TITLE = re.compile(r"(?<!\w)(Mr|Mrs|Ms|Dr|St|Prof|Sr|Sra|Mme|[A-HJ-Z])\.$")
# What of these scripts begins no line: small kana, marks of repetition and length, vowels that follow their consonant.
_FOLLOWING = "ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶーｰ々ゝゞヽヾะาำๅๆฯະາຳໆ・"
_KATAKANA = re.compile("[\u30a0-\u30ff\uff66-\uff9f]")


@dataclass(frozen=True, slots=True)
class LineLimits:
    """How much a line and a cue may hold: columns of a line, lines of a cue, words of a line; None: any number.

    A wide character, as Chinese and Japanese have them, takes two columns. A word longer than a line is not cut.
    """

    max_width: int | None = DEFAULT_WIDTH
    max_count: int = DEFAULT_COUNT
    max_words: int | None = None


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines, and when they are shown, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


def width(text: str) -> int:
    """Return how many columns a text takes on the screen."""
    return sum(_columns(letter) for letter in text)


@lru_cache(maxsize=4096)
def _columns(letter: str) -> int:
    if unicodedata.category(letter) in {"Mn", "Me", "Cf"}:  # marks over other letters, and what is never seen
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


@dataclass(frozen=True, slots=True)
class _Word:
    """A word with the space before it. `columns` counts both, `space` the space alone. `mark` is what it ends."""

    text: str
    start: float
    end: float
    columns: int
    space: int
    mark: Literal["sentence", "clause", "nothing"]


def cues(segments: Sequence[Segment], limits: LineLimits) -> list[Cue]:
    """Return the cues of a transcript, in order, none over another.

    A break comes at the end of a sentence, at a comma or in a pause wherever the limits leave a choice.
    """
    words = [word for segment in segments for word in _timed(segment, limits.max_width)]
    cuts = [at for at in range(1, len(words)) if words[at].start - words[at - 1].end >= LONGEST_PAUSE]
    groups = []
    for first, last in pairwise([0, *cuts, len(words)] if words else []):
        block = words[first:last]
        groups += [block[begin:end] for begin, end in pairwise([0, *_ends_of_cues(block, limits)])]
    return _shown(groups, limits)


def _timed(segment: Segment, columns: int | None) -> list[_Word]:
    """Return the parts of a segment that are never cut: words; in a script without spaces, what has a time of its own.

    Only such a script's parts are cut within, where they are wider than a line's `columns`.
    """
    text, owners, times = segment.text, *_owners(segment)
    found = []
    for match in re.finditer(r"\S+", text):
        first, last = match.span()
        cuts = [
            at for at in range(first + 1, last) if owners[at] != owners[at - 1] and _may_part(text[at - 1], text[at])
        ]
        for begin, end in pairwise([first, *cuts, last]):
            for start, until in _fitted(text, begin, end, columns):
                # Punctuation may belong to the word before or after; the letters say when the part is spoken.
                spoken = [owners[at] for at in range(start, until) if text[at].isalnum()] or owners[start:until]
                space = " " if start == first and first else ""
                part = space + text[start:until]
                begins, ends = times[spoken[0]][0], times[spoken[-1]][1]
                found.append(_Word(part, begins, max(begins, ends), width(part), len(space), _mark(part)))
    return found


def _owners(segment: Segment) -> tuple[list[int], list[tuple[float, float]]]:
    """Return whose each letter of the text is: the number of a word in the list of times, the second value.

    Where a segment has no times of words, each letter has its own, by its width.
    """
    text = segment.text
    owners: list[int] = []
    for number, word in enumerate(segment.words):
        spoken = word.text.strip()
        found = text.find(spoken, len(owners))
        if found >= 0:
            owners += [number] * (found + len(spoken) - len(owners))
    if owners:
        owners += [owners[-1]] * (len(text) - len(owners))
        return owners, [(word.start, word.end) for word in segment.words]
    clocks = list(accumulate((_columns(letter) for letter in text), initial=0))
    second = (segment.end - segment.start) / max(clocks[-1], 1)
    return list(range(len(text))), [
        (segment.start + first * second, segment.start + last * second) for first, last in pairwise(clocks)
    ]


def _may_part(before: str, after: str) -> bool:
    """Return whether a line may end between two letters without a space."""
    pair = before + after
    return bool(
        _UNSPACED.search(pair)
        and after not in _ENDS + _FOLLOWING
        and unicodedata.category(after)[0] != "M"
        and before not in _OPENING
        and not pair.isdigit()
        and not (_KATAKANA.match(before) and _KATAKANA.match(after))
    )


def _fitted(text: str, first: int, last: int, columns: int | None) -> Iterator[tuple[int, int]]:
    """Yield the part of a text; what is wider than a line is cut beside letters of scripts without spaces."""
    begin = allowed = first
    for at in range(first + 1, last):
        after = text[at]
        if _UNSPACED.search(text[at - 1] + after) and after not in _ENDS and unicodedata.category(after)[0] != "M":
            allowed = at
        if allowed > begin and columns is not None and width(text[begin : at + 1]) > columns:
            yield begin, allowed
            begin = allowed
    yield begin, last


def _ends_of_cues(words: Sequence[_Word], limits: LineLimits) -> list[int]:
    """Return the number of the word before which each cue ends, by the least sum of what is bad about each cue."""
    best: list[tuple[float, int]] = [(0.0, 0), *[(math.inf, 0)] * len(words)]
    for first in range(len(words)):
        before = best[first][0]
        columns, sentences, lines, line = -words[first].space, 0, 1, (0, 0)
        for end in range(first + 1, len(words) + 1):
            # Every sum goes on from that of the last word: a cue may have many words.
            last = words[end - 1]
            columns += last.columns
            line = _with(line, last)
            if not _is_line(*line, limits):
                lines, line = lines + 1, _with((0, 0), last)
            too_long = last.end - words[first].start > LONGEST_SECONDS
            if end > first + 1 and (too_long or lines > limits.max_count):
                break
            bad = before + _badness(words, first, end, columns, sentences)
            if bad < best[end][0]:
                best[end] = bad, first
            sentences += last.mark == "sentence"
    ends, at = [], len(words)
    while at:
        ends.append(at)
        at = best[at][1]
    return ends[::-1]


def _badness(words: Sequence[_Word], first: int, end: int, columns: int, sentences: int) -> float:
    """Return how bad a cue is with these words, so many columns and ends of sentences before its last word."""
    start, last = words[first].start, words[end - 1]
    # The cue may stay until the next one begins.
    until = words[end].start if end < len(words) else last.end + LONGEST_PAUSE
    shown = max(min(until, start + LONGEST_SECONDS) - start, 0.01)
    return (
        _EACH_CUE
        + _AFTER[_kind_of_break(last, words[end] if end < len(words) else None)]
        + _SENTENCE_INSIDE * sentences
        + _SECOND_TOO_LONG * max(last.end - start - LONGEST_SECONDS, 0.0)
        + _SECOND_TOO_SHORT * max(SHORTEST_SECONDS - shown, 0.0)
        + _COLUMN_TOO_FAST * max(columns / shown - FASTEST, 0.0)
    )


def _kind_of_break(last: _Word, following: _Word | None) -> str:
    if following is None or last.mark == "sentence":
        return "sentence"
    if last.mark == "nothing" and following.start - last.end >= REST:
        return "rest"
    return last.mark


def _mark(text: str) -> Literal["sentence", "clause", "nothing"]:
    last = text.rstrip(_CLOSING)[-1:]
    if not last or last not in _SENTENCE_ENDS + _CLAUSE_ENDS or _TITLE.search(text):
        return "nothing"
    return "sentence" if last in _SENTENCE_ENDS else "clause"


def _columns_of(words: Sequence[_Word]) -> int:
    return sum(word.columns for word in words) - words[0].space


def _with(line: tuple[int, int], word: _Word) -> tuple[int, int]:
    """Return how many words and columns a line has with a further word."""
    count, columns = line
    return count + 1, columns + word.columns - (0 if count else word.space)


def _is_line(count: int, columns: int, limits: LineLimits) -> bool:
    if count == 1:
        return True  # a word is never cut
    if limits.max_words is not None and count > limits.max_words:
        return False
    return limits.max_width is None or columns <= limits.max_width


def _lines(words: Sequence[_Word], limits: LineLimits) -> tuple[str, ...]:
    """Return as few lines as hold the words, of widths as equal as can be, broken at punctuation where that is near."""
    # For each word: how uneven the best division of the words from there on is, and the end of its first line. At
    # first into one line, then into one more each time.
    best = [_one_line(words[first:], first, limits) for first in range(len(words))]
    divisions = [best]
    while best[0][0] == math.inf:
        best = [_first_of_several(words, first, best, limits) for first in range(len(words))]
        divisions.append(best)
    found, first = [], 0
    for best in reversed(divisions):
        end = best[first][1]
        found.append("".join(word.text for word in words[first:end]).strip())
        first = end
    return tuple(found)


def _one_line(words: Sequence[_Word], first: int, limits: LineLimits) -> tuple[float, int]:
    columns = _columns_of(words)
    fits = _is_line(len(words), columns, limits)
    return (float(columns) ** 2 if fits else math.inf), first + len(words)


def _first_of_several(
    words: Sequence[_Word], first: int, rest: Sequence[tuple[float, int]], limits: LineLimits
) -> tuple[float, int]:
    best, line = (math.inf, len(words)), (0, 0)
    for end in range(first + 1, len(words)):
        last = words[end - 1]
        line = _with(line, last)
        if not _is_line(*line, limits):
            break
        uneven = float(line[1]) ** 2 * (1.0 if last.mark == "nothing" else _NATURAL)
        best = min(best, (uneven + rest[end][0], end))
    return best


def _shown(groups: Sequence[Sequence[_Word]], limits: LineLimits) -> list[Cue]:
    """Give the cues their times: each stays long enough to be read, if the next one leaves the time."""
    made: list[Cue] = []
    for words, following in zip_longest(groups, groups[1:]):
        start = max(words[0].start, made[-1].end if made else 0.0)
        to_read = max(SHORTEST_SECONDS, _columns_of(words) / FASTEST)
        end = min(max(words[-1].end, start + to_read), start + LONGEST_SECONDS)
        if following:
            end = max(min(end, following[0].start), start)
        made.append(Cue(start, end, _lines(words, limits)))
    return made
