"""Where the audio of a call may go, and which of two wishes about it wins."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Policy(StrEnum):
    """Where audio may go; listed from the strictest to the loosest."""

    LOCAL_ONLY = "local_only"
    """The house or an error: nothing ever leaves it."""

    WAIT = "wait"
    """The house alone, asked again and again until the call's deadline."""

    CLOUD = "cloud"
    """The house first, then OpenAI."""

    @property
    def leaves_house(self) -> bool:
        """Whether a call under this policy may send audio to the cloud."""
        return self is Policy.CLOUD


def strictest(wishes: Iterable[Policy | None]) -> Policy:
    """Return the strictest of the wishes that were uttered; `local_only` where none was."""
    uttered = {wish for wish in wishes if wish is not None}
    return next((policy for policy in Policy if policy in uttered), Policy.LOCAL_ONLY)
