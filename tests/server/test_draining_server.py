"""Signals and the drain, without a process of their own; and the limit of open files."""

from __future__ import annotations

import asyncio
import errno
import resource
import signal
from typing import Any

import pytest
import uvicorn
from uvicorn.lifespan.off import LifespanOff

from localwhisper_server import server as composition
from localwhisper_server.server import DrainingServer


class _Runtime:
    """Keeps what it is told."""

    open_requests = 1

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.given_up = asyncio.Event()

    def drain(self, seconds: float) -> None:
        self.told.append(seconds)

    def give_up(self) -> None:
        self.given_up.set()


def _server(runtime: _Runtime, left: list[int], drain: float = 30.0) -> DrainingServer:
    config = uvicorn.Config(lambda: None, log_config=None)
    return DrainingServer(config, runtime, runtime.told.append, drain=drain, leave=left.append)


@pytest.mark.parametrize(
    ("signals", "left"),
    [
        ([signal.SIGTERM], []),
        ([signal.SIGTERM, signal.SIGTERM], [0]),
        ([signal.SIGINT], [130]),
        ([signal.SIGTERM, signal.SIGINT], [130]),
        ([signal.SIGHUP], []),
        ([signal.SIGHUP, signal.SIGHUP], []),
        ([signal.SIGHUP, signal.SIGTERM], [0]),
    ],
)
def test_one_sigterm_drains_and_a_second_one_ends_at_once(signals: list[signal.Signals], left: list[int]) -> None:
    """Ctrl-C ends at once, too. SIGHUP drains, however often a closed terminal sends it."""
    gone: list[int] = []
    server = _server(_Runtime(), gone)
    for number in signals:
        server.handle_exit(number, None)
    assert server.should_exit
    assert gone == left


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_drains(*, ignored: bool) -> None:
    """SIGHUP stops like SIGTERM, but not under nohup, which ignores it; afterwards its handler is as before."""
    server = _server(_Runtime(), [])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with server.capture_signals():
            signal.raise_signal(signal.SIGHUP)
        assert server.should_exit is not ignored
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_as_many_open_files_as_the_user_may_have() -> None:
    """The soft limit is raised to the hard one, and returned."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        files = composition.raise_file_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    most = composition.MOST_FILES
    assert files == soft == (most if hard == resource.RLIM_INFINITY else min(hard, most))


@pytest.mark.anyio
async def test_a_lack_of_open_files_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Without a traceback; any other error that no code caught has one."""
    server = _server(_Runtime(), [])
    server.lifespan = LifespanOff(server.config)  # type: ignore[assignment]
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    try:
        await server.startup(sockets=[])
        for failure in (OSError(errno.EMFILE, "Too many open files"), RuntimeError("a fault")):
            loop.call_exception_handler({"message": "socket.accept() failed", "exception": failure})
    finally:
        loop.set_exception_handler(before)
    lack, fault = caplog.records
    assert (lack.getMessage(), lack.exc_info) == (
        "no connection can be accepted at the moment: Too many open files",
        None,
    )
    assert fault.exc_info


@pytest.mark.anyio
async def test_a_stop_drains_and_then_refuses_the_rest() -> None:
    """The runtime is told how long the drain is; after it, the rest is refused before connections are cut."""
    runtime = _Runtime()
    server = _server(runtime, [], drain=0.05)
    server.servers = []
    server.lifespan = LifespanOff(server.config)  # type: ignore[assignment]
    server.server_state.connections.add(object.__new__(_Connection))  # type: ignore[arg-type]
    stopping = asyncio.create_task(server.shutdown())
    await asyncio.wait_for(runtime.given_up.wait(), 60)
    server.server_state.connections.clear()
    await asyncio.wait_for(stopping, 60)
    assert runtime.told == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=6050000", 0.05]


class _Connection:
    def shutdown(self) -> None:
        pass
