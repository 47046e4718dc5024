"""One item: a stretch of sound whose text is decoded again as it grows, until it is committed. Pure.

The sound that is not settled yet is the window. A pass decodes the window up to now, and what two passes agree on is
said. The window is settled, and a new one begins, at the item's end, in a pause, or when it gets too long. A pass that
heard all speech of a window settles it without a further one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from localwhisper_server.errors import ServerError
from localwhisper_server.realtime.agreement import Agreement
from localwhisper_server.realtime.speech import SpeechSpan
from localwhisper_server.types import SAMPLE_RATE, Decoding, Draft, Samples, Span, TokenLogprob, Transcript

# In samples. The longest window is that of a file's chunks: on a CPU longer ones cost more (BENCHMARKS.md).
LONGEST = 12 * SAMPLE_RATE
# From this length on, the next pause of PAUSE settles a window; a shorter one is as cheap to decode whole.
LONG = 9 * SAMPLE_RATE
PAUSE = 3 * SAMPLE_RATE // 10
# No window is cut before this, but for its end.
SHORTEST_CUT = 3 * SAMPLE_RATE
# After so much silence an item that goes on is settled up to there, so that silence is not decoded again and again.
LONG_SILENCE = SAMPLE_RATE
# A pass begins when there is so much new sound since the last, and so much speech in all.
STEP = 3 * SAMPLE_RATE // 10
LEAST_SPEECH = 3 * SAMPLE_RATE // 10
# After so much silence the speaker has probably ended: one more pass hears all of it before the turn is over.
EARLY_SILENCE = 160 * SAMPLE_RATE // 1000
# A text that is rejected with less silence after the speech is decoded again with more: it is mostly accepted then, and
# that takes a third of the time of the full window.
ENOUGH_SILENCE = 3 * SAMPLE_RATE // 10
# Sound kept after the end of speech; a word may end more softly than the detector notices.
TAIL = SAMPLE_RATE // 20
# Sound kept before speech that has not begun yet.
LEAD = 3 * SAMPLE_RATE // 10
# Where no pause is long enough, a window is cut at the quietest place of its last part.
QUIETEST_IN = 3 * SAMPLE_RATE
_QUIET_STEP = SAMPLE_RATE // 50


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that is added to an item's, with the log probabilities of its tokens if they were asked for."""

    item: "Item"
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completed:
    """All of a committed item is said: its `text` is the sum of its deltas."""

    item: "Item"


@dataclass(frozen=True, slots=True)
class Failed:
    """A committed item cannot be transcribed."""

    item: "Item"
    error: ServerError


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Work: decode `samples`, shape (n,), in which somebody speaks at `speech`, in seconds from the start.

    The sound ends at `end`, in samples of the stream. `settles` says that the text settles the window. `thorough` says
    that an answer that is not accepted must be decoded again.
    """

    item: "Item"
    samples: Samples
    speech: tuple[Span, ...]
    decoding: Decoding
    end: int
    settles: bool
    thorough: bool


Outcome = Transcript | Draft | ServerError | None
"""What a pass gives: a text, a draft or nothing if the text was not accepted, or an error."""


@dataclass(eq=False, slots=True)
class Item:
    """One item of a stream. Positions count samples of the stream.

    `began` is where its sound begins. `speech` is the list that the tracker writes to until the item is committed.
    `text` is what was said, `logprobs` its tokens' if they were asked for, `languages` those of its windows.
    """

    id: str
    began: int
    decoding: Decoding
    speech: list[SpeechSpan]
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    committed: bool = False
    dropped: bool = False
    error: ServerError | None = None
    ended: int = 0
    _parts: list[Samples] = field(default_factory=list)
    _start: int = 0  # of the window
    _end: int = 0
    _agreement: Agreement = field(default_factory=Agreement)
    _decoded: int = 0  # where the last pass ended
    _heard: tuple[Transcript, int] | None = None  # the last accepted text of this window, and where its pass ended
    _rejected: int | None = None  # where the last pass of this window ended, if its text was not accepted

    def __post_init__(self) -> None:
        self._start = self._end = self._decoded = self.began

    @property
    def seconds(self) -> float:
        """How long its sound is."""
        return ((self.ended if self.committed else self._end) - self.began) / SAMPLE_RATE

    @property
    def waiting(self) -> int:
        """How many samples are not settled."""
        return self._end - self._start

    def add(self, samples: Samples) -> None:
        """Take the next sound."""
        self._parts.append(samples)
        self._end += samples.size
        if self.error is not None:
            self._settled_to(self._end)
        elif not self._speech() and self.waiting > LEAD + SAMPLE_RATE:
            self._settled_to(self._end - LEAD)

    def commit(self, position: int) -> None:
        """End the item here."""
        self.committed, self.ended = True, position

    def settle(self, quiet: int) -> list[Delta | Completed | Failed]:
        """Return what can be said without a further pass; `quiet` is how long the present silence has lasted."""
        found: list[Delta | Completed | Failed] = []
        self._skip_silence()
        while self.error is None and (cut := self._cut(quiet)) is not None:
            if self._heard is None or not self._same_speech(self._heard[1], cut):
                return found
            found += self._finish(self._heard[0], cut)
            self._skip_silence()
        if self.committed and self.error is not None:
            found.append(Failed(self, self.error))
        elif self.committed and not self._speech():
            found.append(Completed(self))
        return found

    def next_pass(self, quiet: int) -> Pass | None:
        """Return the next pass, if one is due; call `settle` first."""
        spans = self._speech()
        if self.error is not None or not spans:
            return None
        rejected = None if self._rejected is None or self._misses(self._rejected) else self._rejected
        certain = rejected is not None and rejected - spans[-1].end >= ENOUGH_SILENCE
        cut = self._cut(quiet)
        if cut is not None:
            # The sound that was rejected already is decoded no second time.
            end = rejected if rejected is not None and certain and self._same_speech(rejected, cut) else cut
            return self._pass(end, settles=True, thorough=True)
        if quiet >= EARLY_SILENCE:
            if rejected is not None and certain:
                # The turn's end will need it, and it takes long.
                return self._pass(rejected, settles=False, thorough=True)
            missed = self._misses(self._decoded) if rejected is None else quiet >= ENOUGH_SILENCE
        else:
            spoken = sum(span.end - span.start for span in spans)
            missed = self._end - self._decoded >= STEP and spoken >= LEAST_SPEECH
        return self._pass(self._end, settles=False, thorough=False) if missed else None

    def outdates(self, work: Pass, quiet: int) -> bool:
        """Return whether a pass that is not back is of no use.

        Either the item or a phrase has ended after what it decodes, or the speaker has gone on after what seemed to be
        the end.
        """
        if work.item.dropped:
            return True
        if work.settles or not (self.committed or quiet >= EARLY_SILENCE or work.thorough):
            return False
        return self._misses(work.end)

    def _misses(self, end: int) -> bool:
        """Whether a pass that ends there misses some of the speech."""
        spans = self._speech()
        return bool(spans) and spans[-1].end + TAIL > end

    def take(self, work: Pass, outcome: Outcome) -> list[Delta]:
        """Take what a pass gave."""
        self._decoded, self._rejected = work.end, None
        if isinstance(outcome, ServerError):
            # A pass that only looks ahead is made again with more sound.
            if work.settles:
                self.error = outcome
                self._settled_to(self._end)
            return []
        if work.settles:
            accepted = outcome if isinstance(outcome, Transcript) else Transcript("transcribe", None, 0.0)
            return self._finish(accepted, work.end)
        if not isinstance(outcome, Transcript) and not work.thorough:
            self._rejected = work.end
        if outcome is None:
            return []
        draft = isinstance(outcome, Draft)
        if isinstance(outcome, Draft):
            outcome = outcome.transcript
        else:
            self._heard = outcome, work.end
        return self._say(outcome, *self._agreement.add(_raw(outcome), draft=draft))

    def _pass(self, end: int, *, settles: bool, thorough: bool) -> Pass:
        self._parts = [np.concatenate(self._parts)]
        samples = self._parts[0][: end - self._start]
        spans = [(max(span.start, self._start), min(span.end, end)) for span in self._speech() if span.start < end]
        speech = tuple(
            Span((first - self._start) / SAMPLE_RATE, (last - self._start) / SAMPLE_RATE) for first, last in spans
        )
        return Pass(self, samples, speech, self.decoding, end, settles, thorough)

    def _speech(self) -> Sequence[SpeechSpan]:
        """Return the speech of the window; spans before it are dropped."""
        while self.speech and self.speech[0].end <= self._start:
            del self.speech[0]
        return self.speech

    def _skip_silence(self) -> None:
        """Drop the silence before a window's first words."""
        spans = self._speech()
        if spans and self._heard is None and spans[0].start > self._start + LEAD + SAMPLE_RATE:
            self._settled_to(spans[0].start - LEAD)

    def _cut(self, quiet: int) -> int | None:
        """Return where the window is to be settled now; None if it may grow, or has no speech."""
        spans = self._speech()
        if not spans:
            return None
        pauses = [
            (after.start - before.end, before.end + min(LEAD, (after.start - before.end) // 2))
            for before, after in itertools.pairwise(spans)
            if self._start + SHORTEST_CUT <= before.end <= self._start + LONGEST - LEAD
        ]
        if self.waiting > LONGEST:
            return max(pauses)[1] if pauses else self._quietest()
        if self.committed:
            return self._end
        if quiet >= LONG_SILENCE:
            return min(self._end, spans[-1].end + LEAD)
        if self.waiting > LONG and quiet < EARLY_SILENCE:  # in a longer pause, a pass hears all of the window
            return next((at for length, at in reversed(pauses) if length >= PAUSE), None)
        return None

    def _quietest(self) -> int:
        """Return the quietest place in the last part of the longest window."""
        self._parts = [np.concatenate(self._parts)]
        first = LONGEST - QUIETEST_IN
        steps = self._parts[0][first:LONGEST].reshape(-1, _QUIET_STEP)
        return self._start + first + int(np.argmin(np.square(steps).sum(axis=1))) * _QUIET_STEP + _QUIET_STEP // 2

    def _same_speech(self, end: int, cut: int) -> bool:
        """Whether a pass that ended at `end` heard the same speech as one that ends at `cut`."""
        low, high = min(end, cut), max(end, cut)
        return not any(span.start < high and span.end + TAIL > low for span in self._speech()) or end == cut

    def _finish(self, transcript: Transcript, cut: int) -> list[Delta]:
        said = self._say(transcript, *self._agreement.finish(_raw(transcript)))
        if transcript.language and transcript.language not in self.languages:
            self.languages.append(transcript.language)
        if self._heard is None or not any(span.end > cut and span.start < self._heard[1] for span in self._speech()):
            self._agreement = Agreement()  # no word of later sound was said
        self._heard = self._rejected = None
        self._settled_to(cut)
        self._decoded = cut
        return said

    def _settled_to(self, position: int) -> None:
        held = np.concatenate(self._parts) if self._parts else np.empty(0, np.float32)
        self._parts = [held[position - self._start :].copy()]
        self._start = position
        self._decoded = max(self._decoded, position)

    def _say(self, transcript: Transcript, begin: int, end: int) -> list[Delta]:
        raw = _raw(transcript)
        text = raw[begin:end]
        if not self.text:
            text = text.lstrip()
        if not text:
            return []
        if transcript.language and not self.decoding.language and not self.decoding.languages:
            # One item is in one language, as one recording is.
            self.decoding = replace(self.decoding, language=transcript.language)
        logprobs = _logprobs(transcript, len(raw[:begin].encode()), len(raw[:end].encode()))
        self.text += text
        self.logprobs += logprobs
        return [Delta(self, text, logprobs)]


def _raw(transcript: Transcript) -> str:
    """Return the text with the model's leading space."""
    return "".join(segment.text for segment in transcript.segments)


def _logprobs(transcript: Transcript, begin: int, end: int) -> tuple[TokenLogprob, ...]:
    """Return the tokens that begin in these bytes of the text."""
    found, position = list[TokenLogprob](), 0
    for segment in transcript.segments:
        at = position
        for token in segment.logprobs:
            if begin <= at < end:
                found.append(token)
            at += len(token.data)
        position += len(segment.text.encode())
    return tuple(found)
