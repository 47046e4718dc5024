"""Where the audio of a call may go, and which of several policies wins."""

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
    """The local server or an error: no audio leaves the LAN."""

    WAIT = "wait"
    """The local server only, retried until the call's deadline."""

    CLOUD = "cloud"
    """The local server first, then OpenAI."""

    @property
    def leaves_lan(self) -> bool:
        """Whether a call under this policy may send audio to the cloud."""
        return self is Policy.CLOUD


_within: ContextVar[Policy | None] = ContextVar("localwhisper_policy", default=None)


def strictest(policies: Iterable[Policy | None]) -> Policy:
    """Return the strictest of the policies; `None` sets none, and without any it is `local_only`."""
    given = set(policies)
    return next((policy for policy in Policy if policy in given), Policy.LOCAL_ONLY)


def current() -> Policy | None:
    """Return the policy of the enclosing `within` blocks of this task or thread; `None` outside of any."""
    return _within.get()


@contextmanager
def within(policy: Policy) -> Iterator[None]:
    """Apply a policy to every call that this task or thread makes inside the block; of nested ones, the strictest.

    Other threads, such as a pool's, are not affected, nor is a response that is made inside and entered outside. For
    those use `client.with_policy(...)`.
    """
    token = _within.set(strictest([_within.get(), policy]))
    try:
        yield
    finally:
        _within.reset(token)
