"""Fixtures of the server's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def wav() -> Callable[..., bytes]:
    """Give a function that makes a WAV of a tone: seconds, then rate, channels and codec."""

    def make(seconds: float, rate: int = 16_000, channels: int = 1, codec: str = "pcm_s16le") -> bytes:
        return encode(tone(seconds, rate, channels), codec=codec, rate=rate)

    return make


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder that the real weights are put together in, once for all tests."""
    return tmp_path_factory.mktemp("models")
