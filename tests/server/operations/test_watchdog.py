from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.operations import watchdog
from localwhisper_server.operations.watchdog import watchdog_seconds

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("abstract", [False, True])
def test_reports_are_those_of_sd_notify(tmp_path: Path, *, abstract: bool) -> None:
    """In datagrams, to a path or to an abstract name."""
    if abstract and sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    name = f"@localwhisper-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(name.replace("@", "\0") if abstract else name)
        receiving.settimeout(5)
        watchdog.notify(name, "READY=1")
        assert receiving.recv(99) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "/nowhere/at/all", "@" + "x" * 300])
def test_without_systemd_nothing_is_reported(address: str | None) -> None:
    """No address, or one that does not exist, raises nothing."""
    watchdog.notify(address, "READY=1")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "300000000"}, 300.0),
        ({"WATCHDOG_USEC": "300000000", "WATCHDOG_PID": "7"}, 300.0),
        ({"WATCHDOG_USEC": "300000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_period(environ: dict[str, str], seconds: float | None) -> None:
    """As sd_watchdog_enabled(3) has it: only if the variables are meant for this process."""
    assert watchdog_seconds(environ, 7) == seconds


@pytest.mark.anyio
async def test_the_watchdog_gets_a_report_only_while_the_server_works() -> None:
    """Once a period, and not if the self-test fails."""
    answers = [True, False, True]
    said: list[str] = []
    slept: list[float] = []

    async def well() -> bool:
        return answers.pop(0)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not answers:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await watchdog.watch(well, said.append, seconds=75.0, sleep=sleep)
    assert said == ["WATCHDOG=1", "WATCHDOG=1"]
    assert slept == [75.0] * 4
