"""The words of a transcript to the speakers of a timeline. Pure."""

import itertools
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from localwhisper_server.diarization.timeline import Timeline
from localwhisper_server.types import Segment, Word

# Fewer seconds of another speaker between words of one are an error of the words' times, not a remark.
LEAST_REMARK_SECONDS = 0.25


def assign(segments: Sequence[Segment], timeline: Timeline, names: Sequence[str]) -> tuple[Segment, ...]:
    """Return the segments with a `speaker` each, split where the speaker changes.

    The first speakers of the timeline have the `names`; the others are A, B and so on in the order of their first
    word. A segment without words is its most active speaker's.
    """
    columns: list[int] = []  # of the speakers without a name, in order
    found: list[Segment] = []
    before = 0
    for segment in segments:
        for part, column in _parts(segment, timeline, before):
            before = column
            if column >= len(names) and column not in columns:
                columns.append(column)
            found.append(replace(part, speaker=_name(column, names, columns)))
    return tuple(found)


def _parts(segment: Segment, timeline: Timeline, before: int) -> Iterator[tuple[Segment, int]]:
    """Yield the parts of a segment, each with its speaker's column; `before` counts where nobody is heard."""
    words = [word for word in segment.words if word.text]
    if not words:
        found = timeline.speaker(segment.start, segment.end)
        yield segment, before if found is None else found
        return
    columns = [timeline.speaker(word.start, word.end) for word in words]
    runs = _runs(words, [before if column is None else column for column in columns])
    starts = _starts(segment.text, words)
    if len(runs) == 1 or starts is None:
        yield segment, max(runs, key=lambda run: sum(word.end - word.start for word in words[run[0] : run[1]]))[2]
        return
    for first, last, column in runs:
        text = segment.text[starts[first] if first else 0 : starts[last] if last < len(words) else None]
        yield (
            replace(
                segment,
                start=words[first].start if first else segment.start,
                end=words[last - 1].end if last < len(words) else segment.end,
                text=text,
                tokens=(),
                logprobs=(),
                words=tuple(words[first:last]),
            ),
            column,
        )


def _runs(words: Sequence[Word], columns: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return runs of words of one speaker: the first word's index, the one after the last, the speaker."""
    runs = _grouped(columns)
    smooth = list(columns)
    for before, run, after in zip(runs, runs[1:], runs[2:], strict=False):
        if before[2] == after[2] and words[run[1] - 1].end - words[run[0]].start < LEAST_REMARK_SECONDS:
            smooth[run[0] : run[1]] = [before[2]] * (run[1] - run[0])
    return _grouped(smooth)


def _grouped(columns: Iterable[int]) -> list[tuple[int, int, int]]:
    runs = []
    first = 0
    for column, members in itertools.groupby(columns):
        last = first + len(list(members))
        runs.append((first, last, column))
        first = last
    return runs


def _starts(text: str, words: Sequence[Word]) -> list[int] | None:
    """Return where each word begins in the text, with the blank before it; None if one is not in it."""
    starts: list[int] = []
    position = 0
    for word in words:
        at = text.find(word.text, position)
        if at < 0:
            return None
        start = at
        while start > position and text[start - 1].isspace():
            start -= 1
        starts.append(start)
        position = at + len(word.text)
    return starts


def _name(column: int, names: Sequence[str], others: Sequence[int]) -> str:
    if column < len(names):
        return names[column]
    letters = (label for label in _labels() if label not in names)
    return next(itertools.islice(letters, others.index(column), None))


def _labels() -> Iterator[str]:
    """Yield A to Z, then AA to ZZ and so on."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_uppercase, repeat=length):
            yield "".join(letters)
