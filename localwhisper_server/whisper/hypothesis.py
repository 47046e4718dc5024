"""One decoded token sequence, and whether it will do. Pure.

The rules and their values (thresholds, the temperature ladder) are those of the Whisper paper, §4.5, as its reference
code has them (https://github.com/openai/whisper, `whisper/transcribe.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
COMPRESSION_RATIO_THRESHOLD = 2.4
LOGPROB_THRESHOLD = -1.0
NO_SPEECH_THRESHOLD = 0.6


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded token sequence with what the thresholds look at."""

    tokens: tuple[int, ...]
    text: str
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float

    @property
    def silent(self) -> bool:
        """Whether nobody speaks: the model thinks so, and is not sure of what it wrote either."""
        return self.no_speech_prob > NO_SPEECH_THRESHOLD and self.avg_logprob <= LOGPROB_THRESHOLD

    @property
    def accepted(self) -> bool:
        """Whether it stands; if not, a higher temperature is tried."""
        if self.silent:
            return True
        return self.compression_ratio <= COMPRESSION_RATIO_THRESHOLD and self.avg_logprob >= LOGPROB_THRESHOLD


def ladder(temperature: float | None) -> tuple[float, ...]:
    """Return the temperatures to try, in order."""
    # OpenAI documents 0 as "raise the temperature by itself where needed", so 0 and nothing are the same here.
    return (temperature,) if temperature else TEMPERATURES


def best(tried: Sequence[Hypothesis]) -> Hypothesis:
    """Return the accepted one, which is the last, or the likeliest of those that do not repeat themselves."""
    if tried[-1].accepted:
        return tried[-1]
    varied = [hypothesis for hypothesis in tried if hypothesis.compression_ratio <= COMPRESSION_RATIO_THRESHOLD]
    return max(varied or tried, key=lambda hypothesis: hypothesis.avg_logprob)
