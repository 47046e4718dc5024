"""How much a chunk is given of Whisper's window: frames to encode, tokens to write. Pure.

Whisper was trained on windows of 30 s and pays for 30 s; it also hears shorter ones, which are several times cheaper.
Too tight a window loops or invents an ending, so a chunk gets room behind it. The numbers come from measurements
(BENCHMARKS.md): with 3 s of room and 8 s in all, more words go wrong than the gate catches; with 10 s none do.
"""

import math

FRAMES_PER_SECOND = 100
FULL_SECONDS = 30.0
FULL_FRAMES = int(FULL_SECONDS * FRAMES_PER_SECOND)
# A chunk is cut no longer than this: on a CPU, short chunks cost less than long ones (BENCHMARKS.md).
LONGEST_SECONDS = 12.0
MARGIN_SECONDS = 3.0
SHORTEST_SECONDS = 10.0
# Windows are rounded up to whole seconds, so that chunks of about one length share a batch.
GRID_SECONDS = 1.0

# The model's own limit for one window.
MOST_TOKENS = 224
# Fast speech is five to six tokens a second; twice that is a loop that would hold up its whole batch.
TOKENS_PER_SECOND = 11.0
SPARE_TOKENS = 16


def frames(seconds: float, *, full: bool) -> int:
    """Return the frames of 10 ms to encode for a chunk of this length; the full window where `full`."""
    if full:
        return FULL_FRAMES
    wanted = max(seconds + MARGIN_SECONDS, SHORTEST_SECONDS)
    return min(FULL_FRAMES, math.ceil(wanted / GRID_SECONDS) * int(GRID_SECONDS * FRAMES_PER_SECOND))


def most_speech(padding: float, longest: float = LONGEST_SECONDS) -> float:
    """Return the most seconds from the start of a chunk's first word to the end of its last.

    `longest` is the chunk's greatest length. `padding` seconds on both sides are subtracted, but at most half of it.
    """
    return max(longest - 2 * padding, longest / 2)


def most_tokens(seconds: float, *, full: bool) -> int:
    """Return how many tokens a chunk of this length may be answered with."""
    if full:
        return MOST_TOKENS
    return min(MOST_TOKENS, SPARE_TOKENS + math.ceil(TOKENS_PER_SECOND * seconds))
