"""Being started, watched and stopped, without a process: what systemd hears, when an engine is stuck, how to leave."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.lifespan.off import LifespanOff

from localwhisper_server import cli, server
from localwhisper_server import server as server_module
from localwhisper_server.operations import watchdog
from localwhisper_server.operations.watchdog import Notifier, watchdog_seconds
from localwhisper_server.whisper import weights

unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="sd_notify is for Unix")


@unix
@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_the_words_of_sd_notify(tmp_path: Path, *, abstract: bool) -> None:
    """In datagrams, to a path or to an abstract name."""
    if abstract and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = f"@localwhisper-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(name.replace("@", "\0") if abstract else name)
        hearing.settimeout(5)
        notifier = Notifier(name)
        notifier.ready()
        notifier.alive()
        notifier.stopping(1.5)
        assert [hearing.recv(99) for _ in range(3)] == [
            b"READY=1",
            b"WATCHDOG=1",
            b"STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000",
        ]


@unix
@pytest.mark.parametrize("address", [None, "", "/nowhere/at/all", "@" + "x" * 300])
def test_nobody_to_notify_is_no_trouble(address: str | None) -> None:
    """Neither without systemd nor with a name that leads nowhere."""
    Notifier(address).ready()


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
def test_the_watchdogs_time(environ: dict[str, str], seconds: float | None) -> None:
    """sd_watchdog_enabled(3): only where it is meant for this process."""
    assert watchdog_seconds(environ, 7) == seconds


@pytest.mark.anyio
async def test_the_watchdog_is_petted_only_while_all_is_well() -> None:
    """Once a period, and not when the examination fails."""
    answers = [True, False, True]
    said: list[str] = []
    slept: list[float] = []

    class ChunkPipeline(Notifier):
        def alive(self) -> None:
            said.append("alive")

    async def well() -> bool:
        return answers.pop(0)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not answers:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await watchdog.watch(well, ChunkPipeline(None), seconds=75.0, sleep=sleep)
    assert said == ["alive", "alive"]
    assert slept == [75.0] * 4


class _Backend:
    open_requests = 1

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.given_up = asyncio.Event()

    def drain(self, seconds: float) -> None:
        self.told.append(seconds)

    def give_up(self) -> None:
        self.given_up.set()


def _server(backend: _Backend, left: list[int], drain: float = 30.0) -> server.Server:
    config = uvicorn.Config(lambda: None, log_config=None)
    return server.Server(config, backend, Notifier(None), drain=drain, leave=left.append)


@pytest.mark.parametrize(
    ("signals", "left"),
    [
        ([signal.SIGTERM], []),
        ([signal.SIGTERM, signal.SIGTERM], [0]),
        ([signal.SIGINT], [130]),
        ([signal.SIGTERM, signal.SIGINT], [130]),
        ([server.SIGHUP], []),
        ([server.SIGHUP, server.SIGHUP], []),
        ([server.SIGHUP, signal.SIGTERM], [0]),
    ],
)
def test_one_sigterm_stops_and_anything_more_leaves(signals: list[signal.Signals], left: list[int]) -> None:
    """Ctrl-C at once, a second SIGTERM too. SIGHUP stops, however often a closed terminal sends it."""
    gone: list[int] = []
    server = _server(_Backend(), gone)
    for number in signals:
        server.handle_exit(number, None)
    assert server.should_exit
    assert gone == left


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_with_a_drain(*, ignored: bool) -> None:
    """SIGHUP begins a stop like SIGTERM, but not under nohup, which ignores it; afterwards its handler is as before."""
    server = _server(_Backend(), [])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with server.capture_signals():
            signal.raise_signal(signal.SIGHUP)
        assert server.should_exit is not ignored
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_as_many_open_files_as_the_user_may_have() -> None:
    """The soft limit is raised to the hard one, and told."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        files = server.raise_file_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    most = server.MOST_FILES
    assert files == soft == (most if hard == resource.RLIM_INFINITY else min(hard, most))


@pytest.mark.anyio
async def test_no_file_for_a_connection_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """No traceback; what else no code caught is logged with one."""
    server = _server(_Backend(), [])
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
    assert (lack.getMessage(), lack.exc_info) == ("no connection can be taken at the moment: Too many open files", None)
    assert fault.exc_info


@pytest.mark.anyio
async def test_a_stop_drains_first_and_gives_up_when_time_is_over() -> None:
    """The backend is told how long there is; what is left then is sent away before connections are cut."""
    backend = _Backend()
    server = _server(backend, [], drain=0.05)
    server.servers = []
    server.lifespan = LifespanOff(server.config)  # type: ignore[assignment]
    server.server_state.connections.add(object.__new__(_Connection))  # type: ignore[arg-type]
    stopping = asyncio.create_task(server.shutdown())
    await asyncio.wait_for(backend.given_up.wait(), 5)
    server.server_state.connections.clear()
    await asyncio.wait_for(stopping, 5)
    assert backend.told == [0.05]


class _Connection:
    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (errno.EADDRINUSE, 71, "Is another server running"),
        (errno.EACCES, 77, "below 1024"),
        (errno.EADDRNOTAVAIL, 71, "no address of this machine"),
        (errno.EAFNOSUPPORT, 71, "Is --host right"),
    ],
)
def test_a_port_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failure: int, code: int, said: str
) -> None:
    """And an exit code that says which trouble it is."""

    def listen(_host: str, _port: int) -> None:
        raise OSError(failure, "that is how it is")

    monkeypatch.setattr(server_module, "listen", listen)
    _fails_with(code, said, capfd)


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (weights.ModelDamaged(Path("/models/base"), RuntimeError("File model.bin is incomplete")), 65, "Delete that"),
        (weights.ModelError("No model is called so"), 69, "No model is called so"),
        (RuntimeError("CUDA driver version is insufficient"), 70, "CUDA driver"),
        (MemoryError(), 70, "MemoryError"),
        (PermissionError(errno.EACCES, "Permission denied"), 77, "Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 73, "No space left"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failure: Exception, code: int, said: str
) -> None:
    """Damaged, unknown, refused by the device, out of bounds: each its own code."""

    def run(*_: Any, **__: Any) -> bool:
        raise failure

    monkeypatch.setattr(server_module, "run", run)
    _fails_with(code, said, capfd)


def _fails_with(code: int, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        with pytest.raises(SystemExit) as exiting:
            cli.main(["--port", "0"])
    finally:
        signal.signal(signal.SIGTERM, handler)
        root.handlers, root.level = handlers, level
    assert exiting.value.code == code
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
