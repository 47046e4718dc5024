"""The ledger: one row for each call, in a SQLite file that many processes share. It holds no text and no file name.

What is unknown is NULL, and `None` in Python: an unknown cost is not a cost of zero. A paid call is written before it
is sent, with the most that it may cost (`reserved_usd`). Afterwards its row gets the real cost; if no answer came, the
budget counts the reserved amount for good.

A ledger that cannot be written stops no call, except where a budget has to be checked: then the cloud is not asked.
"""

from __future__ import annotations

import math
import sqlite3
import threading
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Self

from localwhisper_client import _background
from localwhisper_client.events import log
from localwhisper_client.shared import install_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Seconds to wait for another process to finish its write.
_LOCK_TIMEOUT = 5.0
_ERRORS = (sqlite3.Error, OSError)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    backend TEXT NOT NULL,
    cloud INTEGER NOT NULL,
    reason TEXT NOT NULL,
    audio_seconds REAL,
    seconds REAL,
    cost_usd REAL,
    saved_usd REAL,
    reserved_usd REAL
);
CREATE INDEX IF NOT EXISTS calls_at ON calls (at);
"""
_INSERT = "INSERT INTO calls VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE = "UPDATE calls SET reason = ?, audio_seconds = ?, seconds = ?, cost_usd = ? WHERE id = ?"
_SPENT = "SELECT TOTAL(COALESCE(cost_usd, reserved_usd)) FROM calls WHERE at >= ?"
_DAYS = """
SELECT
    date(at, 'unixepoch', 'localtime') AS day,
    COUNT(*),
    SUM(audio_seconds IS NULL OR cost_usd IS NULL OR saved_usd IS NULL),
    TOTAL(audio_seconds * (1 - cloud)),
    TOTAL(audio_seconds * cloud),
    TOTAL(cost_usd),
    TOTAL(saved_usd)
FROM calls WHERE at >= ? GROUP BY day ORDER BY day
"""
_UNMEASURED = (
    f" (estimated from the file's size, since nothing could measure its length: {install_command('transcode')} does)"
)


class OverBudget(Exception):
    """The budget has no room for a call, or cannot be checked; says why."""


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount for each day or each month of the calendar."""

    dollars: float
    period: str
    """`day` or `month`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `5.00/month` or `0.50/day`.

        Raises:
            ValueError: it is neither.

        """
        amount, _, period = (part.strip() for part in text.lower().partition("/"))
        dollars = float(amount.removeprefix("$"))
        if period not in ("day", "month") or not math.isfinite(dollars) or dollars < 0:
            raise ValueError(text)
        return cls(dollars, period)

    def since(self, now: float, timezone: tzinfo | None = None) -> float:
        """Return when the current period began. Both times are seconds since the epoch; the default zone is local."""
        start = datetime.fromtimestamp(now, timezone).replace(hour=0, minute=0, second=0, microsecond=0)
        return (start.replace(day=1) if self.period == "month" else start).timestamp()

    def __str__(self) -> str:
        cents = f"{self.dollars:.2f}"
        return f"{cents if float(cents) == self.dollars else self.dollars}/{self.period}"


@dataclass(frozen=True, slots=True)
class Row:
    """One call. The fields are the table's columns, in their order."""

    at: float
    """When it began, in seconds since the epoch."""
    backend: str
    """The backend's base URL, without credentials."""
    cloud: bool
    reason: str
    """Why the LAN server did not answer, or how the cloud failed; empty if the LAN server answered."""
    audio_seconds: float | None = None
    seconds: float | None = None
    """How long it took; `None` for a paid call that never ended."""
    cost_usd: float | None = None
    """What the cloud charges for it; 0 on the LAN; `None` if unknown."""
    saved_usd: float | None = 0.0
    """What the cloud would have charged; 0 in the cloud; `None` if unknown."""


@dataclass(frozen=True, slots=True)
class Day:
    """The sums of one day. Unknown amounts are left out of the sums; `unknown_calls` counts the calls that have any."""

    day: str
    """In the local time zone, as in `2026-11-22`."""
    calls: int
    unknown_calls: int
    lan_seconds: float
    """Seconds of audio transcribed on the LAN."""
    cloud_seconds: float
    cost_usd: float
    saved_usd: float


class Ledger:
    """A ledger file, opened at its first use; `None` for a path means that nothing is written.

    Threads may share it, and a forked child opens a connection of its own. Every method but the constructor may block.
    """

    def __init__(self, path: Path | None, budget: Budget | None = None) -> None:
        self._path = path
        self._budget = budget
        _background.renewed(self._renew)

    def _renew(self) -> None:
        # In a forked child the parent's connection is forgotten, not closed: its locks are the parent's.
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @property
    def enabled(self) -> bool:
        """Whether calls are written down."""
        return self._path is not None

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        self.close()

    def record(self, row: Row) -> None:
        """Write a call that cost nothing."""
        self._write(_INSERT, (*astuple(row), None))

    def reserve(self, row: Row, most_usd: float | None) -> int | None:
        """Write a paid call before it is sent; return its number for `commit`, or `None` if nothing was written.

        The budget is checked in the same transaction. So many callers at once, in several processes, cannot spend more
        than it together. `most_usd` is the most that the call may cost, `None` if no price is known.

        Raises:
            OverBudget: the budget has no room for the call, or cannot be checked.

        """
        budget = self._budget
        if not self.enabled:
            return None
        if budget is not None and most_usd is None:
            raise OverBudget(f"the price is not known, so the budget of ${budget} cannot be kept")
        most_usd = most_usd or 0.0
        try:
            with self._open() as db, db:
                # The write lock is taken before anything is read, so that what was read stays true.
                db.execute("BEGIN IMMEDIATE")
                if budget is not None:
                    (spent,) = db.execute(_SPENT, (budget.since(row.at),)).fetchone()
                    if spent + most_usd > budget.dollars:
                        raise OverBudget(
                            f"the budget of ${budget} has no room for up to ${most_usd:.4f}"
                            f"{_UNMEASURED if row.audio_seconds is None else ''}: ${spent:.4f} is spent or reserved"
                        )
                return db.execute(_INSERT, (*astuple(row), most_usd)).lastrowid
        except _ERRORS as error:
            if budget is not None:
                raise OverBudget(f"the budget of ${budget} cannot be checked: {error}") from error
            self._warn(error)
            return None

    def commit(self, number: int, row: Row) -> None:
        """Replace a reserved call's row; while its cost is unknown, the reserved amount goes on counting."""
        self._write(_UPDATE, (row.reason, row.audio_seconds, row.seconds, row.cost_usd, number))

    def days(self, since: float = 0.0) -> list[Day]:
        """Return the sums of each day with calls, from `since` (seconds since the epoch) on, oldest first.

        Raises:
            sqlite3.Error, OSError: the file cannot be read.

        """
        with self._open() as db:
            return [Day(*sums) for sums in db.execute(_DAYS, (since,))]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._path is None:
                raise FileNotFoundError("there is no ledger")
            if self._connection is None:
                self._connection = _connected(self._path)
            yield self._connection

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            with self._open() as db:
                db.execute(statement, values)
        except _ERRORS as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        log.warning("the ledger %s cannot be written, the call goes on: %s", self._path, error)


def _connected(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # In WAL mode this is safe against corruption. A power cut may lose the last rows, and no call waits for a sync.
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
