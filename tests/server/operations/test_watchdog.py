"""Being started, watched and stopped, without a process: what systemd hears, when an engine is stuck, how to leave."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.lifespan.off import LifespanOff

from localwhisper_server import server
from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.operations import watchdog
from localwhisper_server.operations.watchdog import Notifier, watchdog_seconds
from localwhisper_server.runtime import FAILURES_IN_A_ROW, SelfTest
from localwhisper_server.transcription.queue import FairQueue, Limits
from localwhisper_server.transcription.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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


class _Engine:
    requests = 0
    running_seconds: float | None = None
    failures = 0

    def __init__(self, **state: Any) -> None:
        vars(self).update(state)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("state", "always", "outcome", "tested", "well"),
    [
        ({}, False, None, 0, True),
        ({}, True, None, 1, True),
        ({}, True, EngineFailed(), 1, False),
        ({}, True, Busy("memory", retry_after=1), 1, True),
        ({"failures": 1}, False, None, 1, True),
        ({"failures": 1}, False, EngineFailed(), 1, False),
        ({"requests": 1}, True, None, 0, True),
        ({"requests": 1, "failures": FAILURES_IN_A_ROW - 1}, True, None, 0, True),
        ({"requests": 1, "failures": FAILURES_IN_A_ROW}, True, None, 0, False),
        ({"running_seconds": 4.0}, True, None, 0, True),
        ({"running_seconds": 6.0}, True, None, 0, False),
        ({"running_seconds": 6.0, "requests": 1}, False, None, 0, False),
    ],
)
async def test_when_an_engine_is_well(
    state: dict[str, Any], outcome: Exception | None, tested: int, *, always: bool, well: bool
) -> None:
    """By its work where it has some; by a test where it has none and there is a reason; never when it is stuck."""
    tests = 0

    async def test() -> None:
        nonlocal tests
        tests += 1
        if outcome:
            raise outcome

    assert await SelfTest(_Engine(**state), test, patience=5.0, always=always).well() is well
    assert tests == tested


@pytest.mark.anyio
async def test_one_recording_that_fails_is_not_the_engines_fault() -> None:
    """`/ready` turns 503 after several failed batches in a row or a failed test, and back after one that works."""
    outcomes: list[Exception | None] = [None, EngineFailed(), EngineFailed()]
    engine = _Engine()

    async def test() -> None:
        if outcome := outcomes.pop(0):
            raise outcome

    examiner = SelfTest(engine, test, patience=5.0)
    for failures, failing in ((0, False), (1, False), (FAILURES_IN_A_ROW - 1, False), (FAILURES_IN_A_ROW, True)):
        engine.failures = failures
        assert examiner.failing is failing
    engine.failures = 1
    assert await examiner.well()
    assert not examiner.failing
    assert not await examiner.well()
    assert examiner.failing
    engine.failures = 0
    assert not examiner.failing


@pytest.mark.anyio
async def test_a_test_that_does_not_come_back_is_a_failure() -> None:
    """In bounded time; it is called off."""
    ended = asyncio.Event()

    async def test() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert not await SelfTest(_Engine(), test, patience=0.01, always=True).well()
    assert ended.is_set()


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


# What a scheduler does with those who wait.


class _Sound:
    frames = 100

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


LIMITS = Limits(items=1, frames=10_000, share=10_000)


def test_the_late_are_those_who_have_not_begun_and_would_not_be_through() -> None:
    """In order of their turns; who was served stays, whatever it still has waiting."""
    queue: FairQueue[_Sound] = FairQueue(capacity=9, limits=LIMITS)
    for key, seconds in (("begun", 5.0), ("soon", 5.0), ("later", 5.0)):
        queue.admit(key)
        queue.put(key, [(_Sound(seconds), None)])  # type: ignore[list-item]
        if key == "begun":
            queue.take()
    queue.put("begun", [(_Sound(1000.0), None)])  # type: ignore[list-item]
    assert queue.late(100.0) == []
    assert queue.late(7.0) == ["later"]
    assert queue.late(0.0) == ["soon", "later"]


def test_a_stopping_scheduler_sends_away_whom_it_must() -> None:
    """First those who would be late; at the end all, the batch in flight too, whose results nobody hears of."""
    entered, gate = threading.Event(), threading.Event()

    def run(items: Sequence[_Sound]) -> list[str]:
        entered.set()
        assert gate.wait(10)
        return ["heard" for _ in items]

    now = 0.0
    scheduler: Scheduler[_Sound, str] = Scheduler(run, capacity=5, limits=LIMITS, clock=lambda: now)
    first, second, third = (scheduler.admit() for _ in range(3))
    running = first.submit([_Sound(1.0)])[0]
    assert entered.wait(10)
    now = 3.0
    assert scheduler.running_seconds == 3.0
    waiting, late = second.submit([_Sound(1.0)])[0], third.submit([_Sound(1000.0)])[0]
    refusal = Busy("stopping", retry_after=9)
    scheduler.send_away(refusal, later_than=30.0)
    assert late.exception(5) is refusal
    assert not waiting.done()
    scheduler.refuse(refusal)
    assert waiting.exception(5) is refusal
    assert running.exception(5) is refusal
    assert first.submit([_Sound(1.0)])[0].exception(5) is refusal
    gate.set()
    assert scheduler.close(5)
    assert scheduler.running_seconds is None


def test_a_scheduler_counts_the_batches_that_failed_in_a_row() -> None:
    """Those of which no chunk gave anything, until one works; `/ready` and the watchdog ask."""

    def run(items: Sequence[_Sound]) -> list[str]:
        if any(item.seconds < 1 for item in items):
            raise RuntimeError("an illegal memory access was encountered")
        return ["heard" for _ in items]

    scheduler: Scheduler[_Sound, str] = Scheduler(run, capacity=5, limits=LIMITS, clock=lambda: 0.0)
    ticket, counted = scheduler.admit(), []
    for seconds in (0.5, 0.5, 1.0, 0.5):
        ticket.submit([_Sound(seconds)])[0].exception(5)
        counted.append(scheduler.failures)
    assert scheduler.close(5)
    assert (counted, scheduler.failures) == ([1, 2, 0, 1], 1)
