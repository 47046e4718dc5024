from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.whisper import window


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [
        (0.1, 1000),
        (7.0, 1000),
        (7.01, 1100),
        (8.0, 1100),
        (8.5, 1200),
        (12.0, 1500),
        (26.5, 3000),
        (27.0, 3000),
        (60, 3000),
    ],
)
def test_frames(seconds: float, frames: int) -> None:
    """Room behind the sound, at least ten seconds, whole seconds, at most Whisper's own window."""
    assert window.frames(seconds, full=False) == frames
    assert window.frames(seconds, full=True) == 3000


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 16), (1.0, 27), (5.0, 71), (18.9, 224), (30.0, 224)])
def test_most_tokens(seconds: float, tokens: int) -> None:
    """Twice what fast speech needs, at most what the model can write."""
    assert window.most_tokens(seconds, full=False) == tokens
    assert window.most_tokens(seconds, full=True) == 224


@given(st.floats(0, 30), st.floats(0, 30))
def test_more_sound_never_gets_less(one: float, other: float) -> None:
    """Neither frames nor tokens; and never less than the sound itself."""
    shorter, longer = sorted((one, other))
    assert window.frames(shorter, full=False) <= window.frames(longer, full=False)
    assert window.most_tokens(shorter, full=False) <= window.most_tokens(longer, full=False)
    assert window.frames(longer, full=False) >= min(3000, (longer + window.MARGIN_SECONDS) * 100 - 1e-6)


@pytest.mark.parametrize(("padding", "most"), [(0.0, 12.0), (0.3, 11.4), (3.0, 6.0), (7.5, 6.0), (10.0, 6.0)])
def test_padding_leaves_room_for_speech(padding: float, most: float) -> None:
    """Padding may be up to 10 s on both sides, but takes at most half of the chunk."""
    assert window.most_speech(padding) == most
