"""The ledger: one row a call in a SQLite file that many processes share. Never the text, never a file's name.

A row says when, by whom and why there, how long the audio was, how long it took, and what it cost or saved. What is not
known is NULL and read back as `None`: an unknown cost is not a cost of nothing. A paid call's row is written before the
call, with the most it may cost (`reserved_usd`), and settled after it; until then, and for ever if the answer never came,
the budget counts what was held.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Self

from localwhisper_client import _background

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

# Seconds to wait for another process to finish its write.
_PATIENCE = 5.0
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
    """One call."""

    at: float
    """When it began, in seconds since the epoch."""
    backend: str
    """The backend's base URL, without credentials."""
    cloud: bool
    reason: str
    """Why it went there: empty on the LAN, else what kept the LAN server from answering; or how the call failed."""
    audio_seconds: float | None
    seconds: float | None
    """How long it took; `None` for a paid call whose end nobody saw."""
    cost_usd: float | None
    """What the cloud asks for it; 0 on the LAN; `None` where unknown."""
    saved_usd: float | None
    """What the cloud would have asked for it; 0 in the cloud; `None` where unknown."""


@dataclass(frozen=True, slots=True)
class Day:
    """The sums of one day; of what is unknown, only the number of calls is in them."""

    day: date
    calls: int
    unknown_calls: int
    """Calls whose audio's length, cost or saving is not known."""
    lan_seconds: float
    """Seconds of audio transcribed on the LAN."""
    cloud_seconds: float
    cost_usd: float
    saved_usd: float


@dataclass
class _Sums:
    calls: int = 0
    unknown: int = 0
    audio: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    cost: float = 0.0
    saved: float = 0.0


def default_path(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Return where the ledger lives unless told otherwise: in the user's folder for state, which may not exist yet."""
    home = Path(environ.get("HOME") or environ.get("USERPROFILE") or Path.home())
    if platform == "win32":
        folder = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        state = Path(environ.get("XDG_STATE_HOME", ""))
        # The specification: a relative path is to be ignored.
        folder = state if state.is_absolute() else home / ".local" / "state"
    return folder / "localwhisper" / "ledger.sqlite3"


def named(value: str, environ: Mapping[str, str]) -> Path | None:
    """Return the path that `LOCALWHISPER_LEDGER` means: the usual one for `1` or `yes`, none for `0`, `off` or `no`."""
    word = value.strip().lower()
    if word in ("0", "off", "false", "no"):
        return None
    return default_path(environ) if word in ("", "1", "on", "true", "yes") else Path(value.strip()).expanduser()


class Ledger:
    """An open ledger; threads may share it, and a forked child gets a connection of its own.

    Every method raises `sqlite3.Error` when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _background.renewed(self._renew)

    def _renew(self) -> None:
        # In a forked child the parent's connection is forgotten, not closed: its locks are the parent's.
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the ledger, and make it if there is none.

        Raises:
            OSError: its folder cannot be made.
            sqlite3.Error: it cannot be opened, or is something else.

        """
        ledger = cls(Path(path).expanduser())
        ledger.path.parent.mkdir(parents=True, exist_ok=True)
        with ledger._writing():
            pass
        return ledger

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def record(self, row: Row) -> None:
        """Write one call that is over."""
        with self._writing() as db:
            _insert(db, row, None)

    def reserve(self, row: Row, reserved_usd: float, limit_usd: float | None, since: float) -> int | None:
        """Write a paid call before it is made, if it fits; return its number, or `None` if it does not.

        It fits when what was spent and held from `since` on, in seconds since the epoch, and `reserved_usd` together stay
        within `limit_usd`; always where that is `None`. Check and entry are one transaction: of many callers, in one
        process or several, no more get through than there is money for.
        """
        with self._writing() as db:
            if limit_usd is not None and _spent(db, since) + reserved_usd > limit_usd:
                return None
            return _insert(db, row, reserved_usd)

    def settle(self, number: int, row: Row) -> None:
        """Replace a reserved call's row by what became of it; while its cost is unknown, what was held stays so."""
        with self._writing() as db:
            db.execute(
                "UPDATE calls SET reason = ?, audio_seconds = ?, seconds = ?, cost_usd = ?, saved_usd = ? WHERE id = ?",
                (row.reason, row.audio_seconds, row.seconds, row.cost_usd, row.saved_usd, number),
            )

    def spent(self, since: float) -> float:
        """Return the dollars spent and held from `since` on, in seconds since the epoch."""
        with self._open() as db:
            return _spent(db, since)

    def rows(self, since: float = 0.0) -> tuple[Row, ...]:
        """Return the calls from `since` on, oldest first."""
        with self._open() as db:
            found = db.execute(
                "SELECT at, backend, cloud, reason, audio_seconds, seconds, cost_usd, saved_usd FROM calls"
                " WHERE at >= ? ORDER BY at, id",
                (since,),
            ).fetchall()
        return tuple(Row(at, backend, bool(cloud), *rest) for at, backend, cloud, *rest in found)

    def rows_by_day(self, since: float = 0.0, timezone: tzinfo | None = None) -> tuple[Day, ...]:
        """Return the sums of each day with calls, from `since` on, oldest first; days are local unless told."""
        days: dict[date, _Sums] = {}
        for row in self.rows(since):
            sums = days.setdefault(datetime.fromtimestamp(row.at, timezone).date(), _Sums())
            sums.calls += 1
            sums.unknown += None in (row.audio_seconds, row.cost_usd, row.saved_usd)
            sums.audio[row.cloud] += row.audio_seconds or 0.0
            sums.cost += row.cost_usd or 0.0
            sums.saved += row.saved_usd or 0.0
        return tuple(
            Day(day, sums.calls, sums.unknown, sums.audio[False], sums.audio[True], sums.cost, sums.saved)
            for day, sums in sorted(days.items())
        )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                self._connection = _connected(self.path)
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            # The lock for writing is taken before anything is read, so that what was read stays true.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # In WAL mode this loses no integrity, and at a power cut the last rows at most; and costs no sync a call.
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _insert(db: sqlite3.Connection, row: Row, reserved_usd: float | None) -> int:
    cursor = db.execute(
        "INSERT INTO calls (at, backend, cloud, reason, audio_seconds, seconds, cost_usd, saved_usd, reserved_usd)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.at,
            row.backend,
            row.cloud,
            row.reason,
            row.audio_seconds,
            row.seconds,
            row.cost_usd,
            row.saved_usd,
            reserved_usd,
        ),
    )
    return int(cursor.lastrowid or 0)


def _spent(db: sqlite3.Connection, since: float) -> float:
    (spent,) = db.execute(
        "SELECT TOTAL(COALESCE(cost_usd, reserved_usd)) FROM calls WHERE at >= ?", (since,)
    ).fetchone()
    return float(spent)
