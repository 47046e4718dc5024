"""Stand-ins for chunks, for the queue and the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SHORT = 800  # frames of a voice message


@dataclass(frozen=True)
class Item:
    """What the queue knows of a chunk, and a number to tell it by."""

    number: Any
    frames: int = SHORT

    @property
    def seconds(self) -> float:
        """As long as its window."""
        return self.frames / 100
