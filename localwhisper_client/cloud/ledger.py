"""The ledger: one row for each call, in a SQLite file that many processes share. It holds no text and no file name.

What is unknown is NULL, and `None` in Python: an unknown cost is not a cost of zero. A paid call is written before it
is sent, with the most that it may cost (`reserved_usd`). Afterwards its row gets the real cost; if no answer came, the
budget counts the reserved amount for good.

A ledger that cannot be written stops no call, except where a budget has to be checked: then the cloud is not asked.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import date, datetime, tzinfo
from typing import TYPE_CHECKING

from localwhisper_client import _background
from localwhisper_client.cloud.budget import Budget, OverBudget
from localwhisper_client.events import log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Seconds to wait for another process to finish its write.
_LOCK_TIMEOUT = 5.0
_ERRORS = (sqlite3.Error, OSError)
_COLUMNS = "at, backend, cloud, reason, audio_seconds, seconds, cost_usd, saved_usd"
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
    audio_seconds: float | None
    seconds: float | None
    """How long it took; `None` for a paid call that never ended."""
    cost_usd: float | None
    """What the cloud charges for it; 0 on the LAN; `None` if unknown."""
    saved_usd: float | None
    """What the cloud would have charged; 0 in the cloud; `None` if unknown."""


@dataclass(slots=True)
class Day:
    """The sums of one day. Unknown amounts are left out of the sums; `unknown_calls` counts the calls that have any."""

    day: date
    calls: int = 0
    unknown_calls: int = 0
    lan_seconds: float = 0.0
    """Seconds of audio transcribed on the LAN."""
    cloud_seconds: float = 0.0
    cost_usd: float = 0.0
    saved_usd: float = 0.0


class Ledger:
    """A ledger file, opened at its first use; `None` for a path means that nothing is written.

    Threads may share it, and a forked child opens a connection of its own. Every method but the constructor may block.
    Those that read raise `sqlite3.Error` or `OSError` if the file cannot be read; those that write only log a warning.
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
        if not self.enabled:
            return
        try:
            with self._writing() as db:
                _insert(db, row, None)
        except _ERRORS as error:
            self._warn(error)

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
        try:
            with self._writing() as db:
                if budget is not None:
                    note = "" if row.audio_seconds is not None else _UNMEASURED
                    (spent,) = db.execute(
                        "SELECT TOTAL(COALESCE(cost_usd, reserved_usd)) FROM calls WHERE at >= ?",
                        (budget.since(row.at),),
                    ).fetchone()
                    budget.check(spent, most_usd or 0.0, note)
                return _insert(db, row, most_usd or 0.0)
        except _ERRORS as error:
            if budget is not None:
                raise OverBudget(f"the budget of ${budget} cannot be checked: {error}") from error
            self._warn(error)
            return None

    def commit(self, number: int, row: Row) -> None:
        """Replace a reserved call's row; while its cost is unknown, the reserved amount goes on counting."""
        try:
            with self._writing() as db:
                db.execute(
                    "UPDATE calls SET reason = ?, audio_seconds = ?, seconds = ?, cost_usd = ?, saved_usd = ?"
                    " WHERE id = ?",
                    (row.reason, row.audio_seconds, row.seconds, row.cost_usd, row.saved_usd, number),
                )
        except _ERRORS as error:
            self._warn(error)

    def rows(self, since: float = 0.0) -> tuple[Row, ...]:
        """Return the calls from `since` on, in seconds since the epoch, oldest first."""
        with self._open() as db:
            found = db.execute(f"SELECT {_COLUMNS} FROM calls WHERE at >= ? ORDER BY at, id", (since,)).fetchall()  # noqa: S608 - our own names
        return tuple(Row(at, backend, bool(cloud), *rest) for at, backend, cloud, *rest in found)

    def days(self, since: float = 0.0, timezone: tzinfo | None = None) -> tuple[Day, ...]:
        """Return the sums of each day with calls, from `since` on, oldest first. The default time zone is local."""
        days: dict[date, Day] = {}
        for row in self.rows(since):
            day = datetime.fromtimestamp(row.at, timezone).date()
            sums = days.setdefault(day, Day(day))
            sums.calls += 1
            sums.unknown_calls += None in (row.audio_seconds, row.cost_usd, row.saved_usd)
            if row.cloud:
                sums.cloud_seconds += row.audio_seconds or 0.0
            else:
                sums.lan_seconds += row.audio_seconds or 0.0
            sums.cost_usd += row.cost_usd or 0.0
            sums.saved_usd += row.saved_usd or 0.0
        return tuple(days[day] for day in sorted(days))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._path is None:
                raise FileNotFoundError("there is no ledger")
            if self._connection is None:
                self._connection = _connected(self._path)
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            # The write lock is taken before anything is read, so that what was read stays true.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _warn(self, error: Exception) -> None:
        log.warning("the ledger %s cannot be written, the call goes on: %s", self._path, error)


_UNMEASURED = (
    " (estimated from the file's size, since nothing could measure its length: "
    "pip install 'localwhisper-lan[transcode]' does)"
)


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


def _insert(db: sqlite3.Connection, row: Row, reserved_usd: float | None) -> int:
    cursor = db.execute(
        f"INSERT INTO calls ({_COLUMNS}, reserved_usd) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own names
        (*astuple(row), reserved_usd),
    )
    return int(cursor.lastrowid or 0)
