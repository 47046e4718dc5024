"""Where in a stream somebody speaks, from the detector's probabilities. Pure; positions count samples of the stream."""

from dataclasses import dataclass, field

from localwhisper_server.types import SAMPLE_RATE

# The detector gives one probability for each window of so many samples.
WINDOW = 512
# Speech is reported after so many windows of it (96 ms), since a click is no word.
MIN_WINDOWS = 3
# A probability below the threshold by this much is silence; between the two, nothing changes. Silero's own value.
HYSTERESIS = 0.15
# Two spans of speech have a pause of at least this between them, as in `types.Voice`.
PAUSE = 160 * SAMPLE_RATE // 1000


@dataclass(slots=True)
class SpeechSpan:
    """Speech from `start` to `end`, in samples of the stream."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Started:
    """Speech began at a sample."""

    at: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Speech ended at a sample, and the silence after it has lasted long enough."""

    at: int


@dataclass(slots=True)
class SpeechTracker:
    """Follows one stream. `silence` is how many samples of silence end a turn; `spans` is the speech found so far.

    `position` is the end of the last window. `quiet_since` is where the present silence began; None while somebody
    speaks.
    """

    threshold: float = 0.5
    silence: int = SAMPLE_RATE // 2
    position: int = 0
    speaking: bool = False
    quiet_since: int | None = 0
    spans: list[SpeechSpan] = field(default_factory=list)
    _run: int = 0  # windows of speech in a row before it is reported

    @property
    def quiet(self) -> int:
        """How many samples the present silence has lasted."""
        return 0 if self.quiet_since is None else self.position - self.quiet_since

    def add(self, probability: float) -> Started | Stopped | None:
        """Take the next window; return what it shows."""
        begin, self.position = self.position, self.position + WINDOW
        if not self.speaking:
            return self._add_to_silence(probability)
        if probability >= self.threshold:
            if self.quiet_since is not None and begin - self.quiet_since >= PAUSE:
                self.spans.append(SpeechSpan(begin, self.position))
            self.quiet_since = None
        elif probability < self.threshold - HYSTERESIS and self.quiet_since is None:
            self.quiet_since = begin
        if self.quiet_since is None:
            self.spans[-1].end = self.position
        elif self.quiet >= self.silence:
            self.speaking, self._run = False, 0
            return Stopped(self.quiet_since)
        return None

    def _add_to_silence(self, probability: float) -> Started | None:
        if probability < self.threshold:
            self._run = 0
            return None
        self._run += 1
        if self._run < MIN_WINDOWS:
            return None
        start = self.position - self._run * WINDOW
        self.speaking, self.quiet_since = True, None
        self.spans.append(SpeechSpan(start, self.position))
        return Started(start)

    def interrupt(self) -> None:
        """Forget the speech so far: what follows is a new turn, even if it goes on without a pause."""
        self.speaking, self.quiet_since, self._run = False, self.position, 0
        self.spans = []
