from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from localwhisper_client.cloud.ledger import Day, Ledger, Row, default_path, named

LAN = Row(100.0, "http://pc/v1", cloud=False, reason="", audio_seconds=30.0, seconds=0.5, cost_usd=0.0, saved_usd=0.003)
PAID = replace(LAN, at=200.0, backend="https://cloud/v1", cloud=True, audio_seconds=60.0, seconds=None, cost_usd=None)
PAID = replace(PAID, reason="refused", saved_usd=0.0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Also by the next process, in a folder that had to be made; what is unknown stays unknown."""
    path = tmp_path / "new" / "ledger.sqlite3"
    unknown = replace(LAN, at=101.0, audio_seconds=None, saved_usd=None)
    with Ledger.open(path) as ledger:
        ledger.record(unknown)
        ledger.record(LAN)
    with Ledger.open(str(path)) as ledger:
        assert ledger.rows() == (LAN, unknown)
        assert ledger.rows(since=101.0) == (unknown,)


def test_days_are_summed(tmp_path: Path) -> None:
    """LocalServers and cloud apart, money spent and saved, and the calls of which something is unknown."""
    with Ledger.open(tmp_path / "l") as ledger:
        for row in (LAN, LAN, replace(LAN, audio_seconds=None, saved_usd=None), replace(PAID, cost_usd=0.25)):
            ledger.record(row)
        ledger.record(replace(LAN, at=100.0 + 86400))
        first, second = ledger.rows_by_day(timezone=dt.UTC)
    assert first == Day(dt.date(1970, 1, 1), 4, 1, 60.0, 60.0, 0.25, 0.006)
    assert second == Day(dt.date(1970, 1, 2), 1, 0, 30.0, 0.0, 0.0, 0.003)


def test_what_is_held_counts_until_it_is_settled(tmp_path: Path) -> None:
    """And for ever where the cost stays unknown; a settled cost takes its place; other periods do not count."""
    with Ledger.open(tmp_path / "l") as ledger:
        ledger.record(replace(PAID, at=1.0, cost_usd=100.0))
        number = ledger.reserve(PAID, reserved_usd=0.75, limit_usd=1.0, since=100.0)
        assert number is not None
        assert ledger.reserve(PAID, reserved_usd=0.5, limit_usd=1.0, since=100.0) is None
        assert ledger.spent(100.0) == 0.75
        ledger.settle(number, replace(PAID, seconds=2.0))
        assert ledger.spent(100.0) == 0.75
        ledger.settle(number, replace(PAID, seconds=2.0, cost_usd=0.5))
        assert ledger.spent(100.0) == 0.5
        assert ledger.rows(100.0) == (replace(PAID, seconds=2.0, cost_usd=0.5),)
        assert ledger.reserve(PAID, reserved_usd=0.5, limit_usd=1.0, since=100.0) is not None
        assert ledger.reserve(PAID, reserved_usd=9.0, limit_usd=None, since=100.0) is not None


def _reserve_many(path: Path) -> int:
    with Ledger.open(path) as ledger:
        return sum(ledger.reserve(PAID, 0.25, 5.0, 0.0) is not None for _ in range(15))


def test_many_threads_and_processes_overspend_nothing(tmp_path: Path) -> None:
    """Of sixty wishes for a quarter, five dollars grant twenty."""
    path = tmp_path / "l"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        granted = pool.map_async(_reserve_many, [path, path])
        with Ledger.open(path) as ledger, ThreadPoolExecutor(10) as threads:
            mine = list(threads.map(lambda _: ledger.reserve(PAID, 0.25, 5.0, 0.0), range(30)))
            assert sum(granted.get(60)) + sum(number is not None for number in mine) == 20
            assert ledger.spent(0.0) == 5.0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """Parent and child go on writing, and neither loses a row."""
    with Ledger.open(tmp_path / "l") as ledger:
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
        assert len(ledger.rows()) == 3


def test_a_failed_write_leaves_the_ledger_usable(tmp_path: Path) -> None:
    """The transaction is taken back, and the lock given up."""
    with Ledger.open(tmp_path / "l") as ledger:
        with pytest.raises(sqlite3.Error):
            ledger.record(replace(LAN, reason=None))  # type: ignore[arg-type]
        ledger.record(LAN)
        assert ledger.rows() == (LAN,)


def test_the_table_is_one_that_every_sqlite_reads(tmp_path: Path) -> None:
    """`STRICT` tables came with SQLite 3.37; Debian 11 and Ubuntu 20.04 have older ones."""
    Ledger.open(tmp_path / "l").close()
    db = sqlite3.connect(tmp_path / "l")
    ((schema,),) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'calls'").fetchall()
    db.close()
    assert "STRICT" not in schema


@pytest.mark.parametrize("word", ["off", "OFF", "0", "false", "no", " No "])
def test_a_ledger_can_be_switched_off(word: str) -> None:
    """By any of the usual words, none of which is a file's name."""
    assert named(word, {"HOME": "/home/me"}) is None


@pytest.mark.parametrize(
    ("value", "path"),
    [("1", "/home/me/.local/state/localwhisper/ledger.sqlite3"), ("yes", None), ("", None), ("/x/y", "/x/y")],
)
def test_where_a_ledger_is_named_to_be(value: str, path: str | None) -> None:
    """In the usual place, or at a path."""
    environ = {"HOME": "/home/me"}
    assert named(value, environ) == (Path(path) if path else default_path(environ))


def test_what_is_no_ledger_is_an_error(tmp_path: Path) -> None:
    """Not overwritten, and said when it is opened."""
    path = tmp_path / "l"
    path.write_bytes(b"a letter of many words, and no database" * 100)
    with pytest.raises(sqlite3.Error):
        Ledger.open(path)
    assert path.read_bytes().startswith(b"a letter")


@pytest.mark.parametrize(
    ("environ", "platform", "path"),
    [
        ({"HOME": "/home/me"}, "linux", "/home/me/.local/state/localwhisper/ledger.sqlite3"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "linux", "/state/localwhisper/ledger.sqlite3"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "state"}, "linux", "/home/me/.local/state/localwhisper/ledger.sqlite3"),
        ({"HOME": "/Users/me"}, "darwin", "/Users/me/Library/Application Support/localwhisper/ledger.sqlite3"),
        ({"USERPROFILE": "/me"}, "win32", "/me/AppData/Local/localwhisper/ledger.sqlite3"),
        ({"USERPROFILE": "/me", "LOCALAPPDATA": "/data"}, "win32", "/data/localwhisper/ledger.sqlite3"),
    ],
)
def test_where_it_lives(environ: dict[str, str], platform: str, path: str) -> None:
    """In the user's folder for state, as each system has it."""
    assert default_path(environ, platform) == Path(path)
