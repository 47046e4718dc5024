"""Where the audio of a call may go, and which of several wishes about it wins."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Policy(StrEnum):
    """Where audio may go; listed from the strictest to the loosest."""

    LOCAL_ONLY = "local_only"
    """The LAN server or an error: nothing ever leaves it."""

    WAIT = "wait"
    """The LAN server alone, asked again and again until the call's deadline."""

    CLOUD = "cloud"
    """The LAN server first, then OpenAI."""

    @property
    def leaves_lan(self) -> bool:
        """Whether a call under this policy may send audio to the cloud."""
        return self is Policy.CLOUD


_within: ContextVar[Policy | None] = ContextVar("localwhisper_policy", default=None)


def strictest(wishes: Iterable[Policy | None]) -> Policy:
    """Return the strictest of the wishes that were uttered; `local_only` where none was."""
    uttered = {wish for wish in wishes if wish is not None}
    return next((policy for policy in Policy if policy in uttered), Policy.LOCAL_ONLY)


def current() -> Policy | None:
    """Return the policy of the block that the calling task or thread is in; `None` outside of any."""
    return _within.get()


@contextmanager
def within(wish: Policy) -> Iterator[None]:
    """Hold every call that this task or thread makes inside the block to a policy; the strictest of nested ones.

    Work that runs elsewhere is not held: a pool's threads, or a response that is made here and entered later. For
    those, call a client that is held to it wherever it is used: `client.with_policy(...)`.
    """
    token = _within.set(strictest([_within.get(), wish]))
    try:
        yield
    finally:
        _within.reset(token)
