"""A stream of sound, cut into items, and the passes that transcribe them. Pure: the detector is a function.

With turn detection, an item begins with speech and ends after a silence. Without, it lasts from one commit to the next.
Either way silence is not decoded, and the items of one stream are transcribed one after the other.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from localwhisper_server.realtime.item import Completed, Delta, Failed, Item, Outcome, Pass
from localwhisper_server.realtime.speech import MIN_WINDOWS, WINDOW, SpeechTracker, Started, Stopped
from localwhisper_server.types import SAMPLE_RATE, Decoding, Samples, Voice

Detect = Callable[[Samples], Sequence[float]]
"""Gives the probability of speech for each window of `speech.WINDOW` samples; knows the stream so far."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech began, and with it an item, whose sound begins at `ms`."""

    item: Item
    ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The silence after speech has lasted long enough; the item's sound ends at `ms`."""

    item: Item
    ms: int


@dataclass(frozen=True, slots=True)
class Committed:
    """An item is complete; its text may take a moment. `previous` is the id of the item committed before."""

    item: Item
    previous: str | None


Happening = SpeechStarted | SpeechStopped | Committed | Delta | Completed | Failed


class Turns:
    """One stream. `new_detector` gives a detector for a new stream, `new_id` the id of the next item.

    `decoding` is what the next items are decoded with; `voice` says how turns are detected, None for not at all. After
    every call, run what `next_pass` returns and give the outcome to `take`; there is one pass at a time.
    """

    def __init__(
        self, new_detector: Callable[[], Detect], new_id: Callable[[], str], decoding: Decoding, voice: Voice | None
    ) -> None:
        self._new_detector = new_detector
        self._new_id = new_id
        self.decoding = decoding
        self._detect = new_detector()
        self._tracker = SpeechTracker()
        self._rest: Samples = np.empty(0, np.float32)  # less than a window
        self._held: Samples = np.empty(0, np.float32)  # before an item begins
        self._since = 0  # where the sound that is not committed begins
        self._cleared = 0  # samples that were cleared before they filled a window
        self._current: Item | None = None
        self._pending: deque[Item] = deque()
        self._in_flight: Pass | None = None
        self._previous: str | None = None
        self._voice: Voice | None = None
        self.configure(voice)

    def configure(self, voice: Voice | None) -> None:
        """Set how turns are detected from now on."""
        self._voice = voice
        settings = voice or Voice(silence_duration_ms=500)
        self._tracker.threshold = settings.threshold
        self._tracker.silence = max(WINDOW, settings.silence_duration_ms * SAMPLE_RATE // 1000)

    @property
    def uncommitted(self) -> float:
        """Seconds of sound since the last commit."""
        return (self._tracker.position - self._since + self._rest.size) / SAMPLE_RATE

    @property
    def backlog(self) -> float:
        """Seconds of sound that are held because they are not transcribed yet."""
        current = [self._current] if self._current else []
        return sum(item.waiting for item in (*self._pending, *current)) / SAMPLE_RATE

    @property
    def idle(self) -> bool:
        """Whether every committed item is done."""
        return not self._pending

    def hear(self, samples: Samples) -> list[Happening]:
        """Take the next sound."""
        samples = np.concatenate([self._rest, samples])
        whole = samples.size // WINDOW * WINDOW
        self._rest = samples[whole:].copy()
        found: list[Happening] = []
        if whole:
            windows = samples[:whole].reshape(-1, WINDOW)
            for window, probability in zip(windows, self._detect(samples[:whole]), strict=True):
                found += self._add(window, probability)
        return [*found, *self._settle()]

    def _add(self, window: Samples, probability: float) -> list[Happening]:
        begin = self._tracker.position
        if self._current is None and self._voice is None:
            self._begin(begin, window[:0])
        if self._current is not None:
            self._current.add(window)
        else:
            self._held = np.concatenate([self._held, window])[-self._lead :]
        change = self._tracker.add(probability)
        if self._voice is None:
            return []
        if isinstance(change, Started) and self._current is None:
            first = max(self._since, self._tracker.position - self._held.size, change.at - self._padding)
            item = self._begin(first, self._held[self._held.size - (self._tracker.position - first) :])
            return [SpeechStarted(item, self._ms(first))]
        if isinstance(change, Stopped) and self._current is not None:
            stopped = SpeechStopped(self._current, self._ms(self._tracker.position))
            return [stopped, *self._commit(self._current)]
        return []

    @property
    def _padding(self) -> int:
        return (self._voice.prefix_padding_ms if self._voice else 0) * SAMPLE_RATE // 1000

    @property
    def _lead(self) -> int:
        """How much sound is held until speech begins."""
        return self._padding + MIN_WINDOWS * WINDOW

    def _begin(self, at: int, samples: Samples) -> Item:
        item = self._current = Item(self._new_id(), at, self.decoding, self._tracker.spans)
        item.add(samples)
        self._held = self._held[:0]
        return item

    def commit(self) -> list[Happening]:
        """End the present item here, with or without speech in it."""
        item = self._current or Item(self._new_id(), self._since, self.decoding, [])
        return [*self._commit(item), *self._settle()]

    def commit_speech(self) -> list[Happening]:
        """End the present item here if somebody spoke in it."""
        item = self._current
        return self.commit() if item is not None and (item.text or item.speech) else []

    def _commit(self, item: Item) -> list[Happening]:
        item.commit(self._tracker.position)
        self._forget()
        self._pending.append(item)
        previous, self._previous = self._previous, item.id
        return [Committed(item, previous)]

    def clear(self) -> None:
        """Drop the sound that is not committed."""
        if self._current is not None:
            self._current.dropped = True
        self._cleared += self._rest.size
        self._rest = self._rest[:0]
        self._forget()
        self._detect = self._new_detector()

    def _forget(self) -> None:
        self._current = None
        self._tracker.interrupt()
        self._held = self._held[:0]
        self._since = self._tracker.position

    def next_pass(self) -> Pass | None:
        """Return the next pass, once; None if none is due, or the last one is not back.

        One that is not back is outdated where the speaker has gone on until a pause since it began. The next pass then
        replaces it, and its outcome must not be given to `take`.
        """
        item, quiet = (self._pending[0], 0) if self._pending else (self._current, self._tracker.quiet)
        if item is None or (self._in_flight is not None and not item.outdates(self._in_flight, quiet)):
            return None
        work = item.next_pass(quiet)
        self._in_flight = work or self._in_flight
        return work

    def take(self, work: Pass, outcome: Outcome) -> list[Happening]:
        """Take what a pass gave."""
        self._in_flight = None
        said = [] if work.item.dropped else work.item.take(work, outcome)
        return [*said, *self._settle()]

    def _settle(self) -> list[Happening]:
        if self._in_flight is not None and not self._in_flight.item.dropped:
            return []  # its text decides
        found: list[Happening] = []
        while self._pending:
            settled = self._pending[0].settle(0)
            found += settled
            if not (settled and isinstance(settled[-1], Completed | Failed)):
                return found
            self._pending.popleft()
        if self._current is not None:
            found += self._current.settle(self._tracker.quiet)
        return found

    def _ms(self, position: int) -> int:
        return (position + self._cleared) * 1000 // SAMPLE_RATE
