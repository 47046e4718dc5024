"""Voice activity detection: where in a recording somebody speaks. The model is Silero's, as faster-whisper ships it."""

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from localwhisper_server.types import SAMPLE_RATE, Samples, Span, Voice
from localwhisper_server.whisper.decoding_rules import LONGEST_SECONDS, most_speech

# A burst shorter than this counts as speech only above the higher threshold. The shortest words ("yes") last 0.3 s;
# so do beeps.
SHORT_SECONDS = 0.25
SHORT_THRESHOLD = 0.7
# The detector finds nothing below -50 dB, so the 99.9th percentile of the samples is raised from below the first level
# to the second. A percentile, since a single click must not count.
FAINT_LEVEL, AUDIBLE_LEVEL = 0.01, 0.03


def find_speech(samples: Samples, voice: Voice, *, longest: float = LONGEST_SECONDS) -> list[Span]:
    """Return the spans of speech in `samples` (shape (n,), 16 kHz), in seconds, without padding.

    Speech that does not fit into a chunk of `longest` seconds is cut at its best pauses.
    """
    level = float(np.quantile(np.abs(samples), 0.999)) if samples.size else 0.0
    if 0 < level < FAINT_LEVEL:
        samples = samples * np.float32(AUDIBLE_LEVEL / level)
    found = _detect(samples, voice, voice.threshold, longest)
    if any(span.seconds < SHORT_SECONDS for span in found):
        certain = _detect(samples, voice, max(voice.threshold, SHORT_THRESHOLD), longest)
        found = [
            span
            for span in found
            if span.seconds >= SHORT_SECONDS or any(span.start < it.end and it.start < span.end for it in certain)
        ]
    return found


def _detect(samples: Samples, voice: Voice, threshold: float, longest: float) -> list[Span]:
    options = VadOptions(
        threshold=threshold,
        min_speech_duration_ms=voice.min_speech_ms,
        min_silence_duration_ms=voice.silence_duration_ms,
        # Segmentation would cut longer speech without regard to pauses.
        max_speech_duration_s=most_speech(voice.prefix_padding_ms / 1000, longest),
        speech_pad_ms=0,
    )
    found = get_speech_timestamps(samples, options)
    return [Span(span["start"] / SAMPLE_RATE, span["end"] / SAMPLE_RATE) for span in found]
