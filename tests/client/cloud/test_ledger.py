"""The ledger's rows, its reservations, and the budget that they are checked against."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import multiprocessing
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from localwhisper_client.cloud.ledger import Budget, Day, Ledger, OverBudget, Row

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC).timestamp()
DAY = 86400.0
LAN = Row(NOW, "http://pc/v1", cloud=False, reason="", audio_seconds=30.0, seconds=0.5, cost_usd=0.0, saved_usd=0.003)
PAID = replace(LAN, backend="https://cloud/v1", cloud=True, reason="refused", audio_seconds=60.0)
PAID = replace(PAID, seconds=None, cost_usd=None, saved_usd=0.0)


def rows(path: Path) -> list[Row]:
    """Read a ledger's calls, oldest first."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT * FROM calls ORDER BY at, id").fetchall()
    return [Row(at, backend, bool(cloud), *rest) for _, at, backend, cloud, *rest, _ in found]


def spent(path: Path) -> float:
    """Return the dollars spent and reserved."""
    with closing(sqlite3.connect(path)) as db:
        return float(db.execute("SELECT TOTAL(COALESCE(cost_usd, reserved_usd)) FROM calls").fetchone()[0])


def test_budgets() -> None:
    """An amount for a day or a month, each of which begins at midnight."""
    budget = Budget.parse(" $5.00 / Month ")
    assert (budget, str(budget)) == (Budget(5.0, "month"), "5.00/month")
    assert budget.since(NOW, dt.UTC) == dt.datetime(2026, 11, 1, tzinfo=dt.UTC).timestamp()
    assert Budget(1, "day").since(NOW, dt.UTC) == dt.datetime(2026, 11, 22, tzinfo=dt.UTC).timestamp()
    for wrong in ("5", "5/week", "x/day", "-1/day", "nan/day", "inf/month", ""):
        with pytest.raises(ValueError, match=r".*"):
            Budget.parse(wrong)


def test_rows_are_written(tmp_path: Path) -> None:
    """Into a folder that had to be made; what is unknown stays unknown. Without a path nothing is written."""
    path = tmp_path / "new" / "ledger.sqlite3"
    unknown = replace(LAN, at=NOW + 1, audio_seconds=None, saved_usd=None)
    with closing(Ledger(path)) as ledger:
        ledger.record(unknown)
        ledger.record(LAN)
    assert rows(path) == [LAN, unknown]
    nowhere = Ledger(None)
    assert not nowhere.enabled
    assert nowhere.reserve(PAID, 1.0) is None
    with pytest.raises(FileNotFoundError):
        nowhere.days()


def test_days_are_summed(tmp_path: Path) -> None:
    """LAN and cloud apart, money spent and saved, and the number of calls with an unknown amount."""
    with closing(Ledger(tmp_path / "l")) as ledger:
        for row in (LAN, LAN, replace(LAN, audio_seconds=None, saved_usd=None), replace(PAID, cost_usd=0.25)):
            ledger.record(row)
        ledger.record(replace(LAN, at=NOW + DAY))
        first, second = ledger.days()
        assert ledger.days(NOW + DAY) == [second]
    assert first == Day("2026-11-22", 4, 1, 60.0, 60.0, 0.25, 0.006)
    assert second == Day("2026-11-23", 1, 0, 30.0, 0.0, 0.0, 0.003)


def test_a_reservation_counts_until_it_is_committed(tmp_path: Path) -> None:
    """It counts for good if the cost stays unknown; a committed cost replaces it; other periods do not count."""
    with closing(Ledger(tmp_path / "l", Budget(1.0, "day"))) as ledger:
        ledger.record(replace(PAID, at=NOW - 2 * DAY, cost_usd=100.0))
        number = ledger.reserve(PAID, 0.75)
        assert number is not None
        with pytest.raises(OverBudget, match=r"no room for up to \$0.5000: \$0.7500 is spent or reserved"):
            ledger.reserve(PAID, 0.5)
        ledger.commit(number, replace(PAID, seconds=2.0))
        with pytest.raises(OverBudget, match=r"\$0.7500 is spent or reserved"):
            ledger.reserve(PAID, 0.5)
        ledger.commit(number, replace(PAID, seconds=2.0, cost_usd=0.5))
        assert rows(tmp_path / "l")[1:] == [replace(PAID, seconds=2.0, cost_usd=0.5)]
        assert ledger.reserve(PAID, 0.5) is not None
    with closing(Ledger(tmp_path / "l")) as unlimited:
        assert unlimited.reserve(PAID, 9.0) is not None


def test_a_budget_needs_a_price(tmp_path: Path) -> None:
    """A call of unknown cost is refused; without a budget it is written down."""
    with pytest.raises(OverBudget, match="price is not known"):
        Ledger(tmp_path / "l", Budget(1.0, "day")).reserve(PAID, None)
    assert Ledger(tmp_path / "l").reserve(PAID, None) is not None


def _reserve_many(path: Path, times: int = 15) -> int:
    ledger, granted = Ledger(path, Budget(5.0, "day")), 0
    for _ in range(times):
        with contextlib.suppress(OverBudget):
            granted += ledger.reserve(PAID, 0.25) is not None
    ledger.close()
    return granted


def test_many_threads_and_processes_keep_the_budget(tmp_path: Path) -> None:
    """Of sixty calls at a quarter dollar each, five dollars pay for twenty."""
    path = tmp_path / "l"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        granted = pool.map_async(_reserve_many, [path, path])
        with ThreadPoolExecutor(10) as threads:
            mine = sum(threads.map(lambda _: _reserve_many(path, 3), range(10)))
            assert sum(granted.get(60)) + mine == 20
    assert spent(path) == 5.0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """Parent and child go on writing, and neither loses a row."""
    with closing(Ledger(tmp_path / "l")) as ledger:
        ledger.record(LAN)
        child = os.fork()
        if child == 0:
            try:
                ledger.record(LAN)
                ledger.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        ledger.record(LAN)
        assert len(rows(tmp_path / "l")) == 3


def test_a_failed_write_leaves_the_ledger_usable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is rolled back and logged, and the lock is released."""
    with closing(Ledger(tmp_path / "l")) as ledger, caplog.at_level(logging.WARNING, "localwhisper"):
        ledger.record(replace(LAN, reason=None))  # type: ignore[arg-type]
        assert "cannot be written, the call goes on" in caplog.text
        ledger.record(LAN)
        assert rows(tmp_path / "l") == [LAN]
    with closing(sqlite3.connect(tmp_path / "l")) as db:
        ((schema,),) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'calls'").fetchall()
    assert "STRICT" not in schema  # such tables came with SQLite 3.37; Debian 11 and Ubuntu 20.04 have older ones


def test_another_file_is_no_ledger(tmp_path: Path) -> None:
    """It is not overwritten, and reading it is an error."""
    path = tmp_path / "l"
    path.write_bytes(b"a letter of many words, and no database" * 100)
    with pytest.raises(sqlite3.Error):
        Ledger(path).days()
    assert path.read_bytes().startswith(b"a letter")
