"""What a forked child process needs anew.

A fork copies one thread. A lock that another thread held stays locked in the child for ever, a thread's work never ends
there, and a connection would be shared with the parent, so that each could read the other's answer.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_methods: set[weakref.WeakMethod[Callable[[], None]]] = set()


def renewed(method: Callable[[], None]) -> None:
    """Call a bound method now, and again in each forked child for as long as its object lives."""
    _methods.add(weakref.WeakMethod(method, _methods.discard))
    method()


def _in_child() -> None:
    for reference in list(_methods):
        method = reference()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_in_child)
