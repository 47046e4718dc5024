"""The books of one client: the ledger, opened when first needed, and the budget that it guards.

A ledger that cannot be written never stops a call on the LAN; a budget that cannot be checked always stops one to the
cloud.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

from localwhisper_client import _background
from localwhisper_client.cloud.ledger import Ledger
from localwhisper_client.events import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localwhisper_client.cloud.budget import Budget
    from localwhisper_client.cloud.ledger import Row

_TROUBLE = (sqlite3.Error, OSError)


class Spent(Exception):
    """The call must not be paid for; says why."""


class Books:
    """Shared by a client and its copies, and by their threads. Every method but the constructor may block."""

    def __init__(self, path: Path | None, budget: Budget | None) -> None:
        self._path = path
        self._budget = budget
        self._ledger: Ledger | None = None
        _background.renewed(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    @property
    def kept(self) -> bool:
        """Whether there is a ledger at all."""
        return self._path is not None

    def enter(self, row: Row, most_usd: float | None) -> int | None:
        """Enter a call that is about to be paid for; return its number for `settle`, `None` where no books are kept.

        `most_usd` is the most that it may cost, `None` where no price is known.

        Raises:
            Spent: the budget has no room for it, or cannot be checked.

        """
        if self._path is None:
            return None
        try:
            if self._budget is None:
                return self._opened(self._path).reserve(row, most_usd or 0.0, None, 0.0)
            if most_usd is None:
                raise Spent(f"the price is not known, so the budget of ${self._budget} cannot be held")
            since = self._budget.since(row.at)
            ledger = self._opened(self._path)
            number = ledger.reserve(row, most_usd, self._budget.dollars, since)
            if number is None:
                counted = (
                    ""
                    if row.audio_seconds is not None
                    else (
                        " (the file's size by its shortest second, for nothing could count it: "
                        "pip install 'localwhisper-lan[transcode]' does)"
                    )
                )
                raise Spent(
                    f"the budget of ${self._budget} has no room for up to ${most_usd:.4f}{counted}: "
                    f"${ledger.spent(since):.4f} is spent or held"
                )
        except _TROUBLE as error:
            if self._budget is not None:
                raise Spent(f"the budget of ${self._budget} cannot be checked: {error}") from error
            self._warn(error)
            return None
        else:
            return number

    def settle(self, number: int, row: Row) -> None:
        """Replace what was entered by what became of it."""
        self._write(lambda ledger: ledger.settle(number, row))

    def record(self, row: Row) -> None:
        """Write a call that cost nothing."""
        self._write(lambda ledger: ledger.record(row))

    def close(self) -> None:
        """Close the ledger; it is opened again when it is needed."""
        with self._lock:
            if self._ledger is not None:
                self._ledger.close()

    def _write(self, write: Callable[[Ledger], None]) -> None:
        if self._path is None:
            return
        try:
            write(self._opened(self._path))
        except _TROUBLE as error:
            self._warn(error)

    def _opened(self, path: Path) -> Ledger:
        with self._lock:
            if self._ledger is None:
                self._ledger = Ledger.open(path)
            return self._ledger

    def _warn(self, error: Exception) -> None:
        log.warning("the ledger %s cannot be written, the call goes on: %s", self._path, error)
