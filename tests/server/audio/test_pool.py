"""Uploads decoded in confined worker processes: what they give, what they cannot do, and how they end."""

from __future__ import annotations

import io
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server import types
from localwhisper_server.audio import decoding
from localwhisper_server.audio import worker as worker_module
from localwhisper_server.audio.pool import COMMAND, Pool, decode
from localwhisper_server.audio.worker import OPENING, READ_BYTES, REQUEST, Server, TimeLimit, Upload
from localwhisper_server.errors import Busy, InvalidRequest, UnreadableAudio
from tests.server import hostile
from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

SECONDS = 60.0


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Give a pool of real workers."""
    with closing(Pool(environ=os.environ)) as made:
        made.start()
        yield made


def _decode(pool: Pool, data: bytes, max_seconds: float = 600.0) -> types.Samples:
    return np.concatenate(list(pool.blocks(io.BytesIO(data), max_seconds=max_seconds)))


def _processes(pool: Pool) -> list[subprocess.Popen[bytes]]:
    return [worker._process for worker in pool._workers]


def _pids(pool: Pool) -> set[int]:
    return {process.pid for process in _processes(pool)}


def _until(condition: Callable[[], object]) -> None:
    until, pause = time.monotonic() + SECONDS, threading.Event()
    while not condition():
        assert time.monotonic() < until
        pause.wait(0.01)


def test_a_worker_decodes_as_this_process_does(pool: Pool, voices: dict[str, Path]) -> None:
    """The same samples, bit for bit."""
    for path in voices.values():
        with path.open("rb") as file:
            assert np.array_equal(_decode(pool, path.read_bytes()), decode(file, max_seconds=600))


def test_a_worker_imports_nothing_of_the_folders_around(tmp_path: Path) -> None:
    """Neither from the current folder nor from PYTHONPATH or the front of the server's import path."""
    for name in ("json", "secrets", "struct", "av"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    code = """import io, os, sys
from localwhisper_server.audio.pool import Pool
pool = Pool(environ=os.environ)
print(sum(part.size for part in pool.blocks(io.BytesIO(sys.stdin.buffer.read()), max_seconds=9)))
pool.close()"""
    # The server itself has the right modules already; the test is about the path that it gives to its workers.
    started = f"import sys, json, secrets, struct, av; sys.path.insert(0, {str(tmp_path)!r})\n{code}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", started],
        input=encode(tone(1.0)),
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        check=True,
    )
    assert int(done.stdout) == 16_000


def test_samples_come_block_by_block(pool: Pool, wav: Callable[..., bytes]) -> None:
    """A long recording is never in memory as a whole, and its upload is read when needed."""
    source = io.BytesIO(wav(600.0))
    with closing(pool.blocks(source, max_seconds=600)) as blocks:
        assert max(next(blocks).size for _ in range(10)) <= READ_BYTES // decoding.SAMPLE_BYTES
        assert source.tell() < len(source.getvalue()) / 4


def test_errors_are_those_of_the_decoder(pool: Pool, wav: Callable[..., bytes]) -> None:
    """With their messages, parameters and codes. The worker goes on."""
    before = _pids(pool)
    for data, max_seconds, kind in ((b"no sound", 9, UnreadableAudio), (wav(0.05), 9, InvalidRequest)):
        with pytest.raises(kind) as there:
            _decode(pool, data, max_seconds)
        with pytest.raises(kind) as here:
            decode(io.BytesIO(data), max_seconds=max_seconds)
        assert there.value.body() == here.value.body()
    with pytest.raises(InvalidRequest, match=r"longer than 2\.5 seconds"):
        _decode(pool, wav(60.0), 2.5)
    assert _pids(pool) == before


@pytest.mark.parametrize("name", sorted(hostile.REFUSED))
def test_hostile_files_are_refused_at_once(pool: Pool, tmp_path: Path, name: str) -> None:
    """Playlists, scripts, pictures, archives and false headers: an error and no sample; no file or port is opened."""
    canary = tmp_path / "canary.wav"
    canary.write_bytes(encode(tone(1.0)))
    read_before = canary.stat().st_atime_ns
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0)
        data = hostile.REFUSED[name](canary, bait.getsockname()[1])
        with pytest.raises(InvalidRequest):
            next(pool.blocks(io.BytesIO(data), max_seconds=6 * 3600.0))
        with pytest.raises(BlockingIOError):
            bait.accept()
    assert canary.stat().st_atime_ns == read_before


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "concat:/etc/passwd", "a.srt", "http://127.0.0.1/a"])
def test_the_name_of_an_upload_is_ignored(pool: Pool, tmp_path: Path, name: str) -> None:
    """FFmpeg would trust its ending."""
    canary = tmp_path / "canary.wav"
    canary.write_bytes(encode(tone(1.0)))
    source = io.BytesIO(f"#EXTM3U\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n".encode())
    source.name = name  # type: ignore[misc]
    with pytest.raises(UnreadableAudio):
        list(pool.blocks(source, max_seconds=9))


def test_ten_hours_in_two_megabytes_end_early(pool: Pool) -> None:
    """By the length in the header, before the first block; if that is missing, when the maximum is reached."""
    data = hostile.opus_of_silence(hours=10)
    assert len(data) < 2_000_000
    with pytest.raises(InvalidRequest, match="longer than 60 seconds"):
        next(pool.blocks(io.BytesIO(data), max_seconds=60.0))
    sizes: list[int] = []
    with pytest.raises(InvalidRequest, match="longer than 60 seconds"):
        sizes.extend(block.size for block in pool.blocks(io.BytesIO(hostile.without_end(data)), max_seconds=60.0))
    assert sum(sizes) <= 60 * 16_000


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_is_confined(pool: Pool, monkeypatch: pytest.MonkeyPatch, wav: Callable[..., bytes]) -> None:
    """It has no file but its socket and cannot open one, its memory is bounded, and its environment has no key."""
    monkeypatch.setenv("LOCALWHISPER_SERVER_API_KEY", "made-up")
    _decode(pool, wav(1.0))
    pid = min(_pids(pool))
    _until(lambda: "Max open files            3 " in _proc(pid, "limits"))
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]  # noqa: PTH208 - numbers, not paths
    limits = _proc(pid, "limits")
    assert "Max file size             0 " in limits
    assert f"Max data size             {worker_module.MEMORY_BYTES} " in limits
    with closing(Pool(environ=os.environ)) as other:
        other.start()
        for pid in _pids(other):
            assert "made-up" not in _proc(pid, "environ")


def _proc(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}") as file:  # noqa: PTH123 - not a path of ours
        return file.read()


def test_a_worker_killed_at_work_fails_its_upload_alone(pool: Pool, wav: Callable[..., bytes]) -> None:
    """Another upload goes on, and the next one gets a new worker."""
    data = wav(300.0)
    with closing(pool.blocks(io.BytesIO(data), max_seconds=600)) as first:
        next(first)
        (victim,) = [worker._process.pid for worker in pool._workers - set(pool._idle)]
        with closing(pool.blocks(io.BytesIO(data), max_seconds=600)) as second:
            next(second)
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(UnreadableAudio):
                list(first)
            assert sum(block.size for block in second) > 290 * 16_000
    assert victim not in _pids(pool)
    assert _decode(pool, wav(1.0)).size == 16_000


def test_a_worker_killed_while_idle_fails_no_upload(pool: Pool, wav: Callable[..., bytes]) -> None:
    """It is replaced when it is needed."""
    before = _pids(pool)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    _until(lambda: all(process.poll() is not None for process in _processes(pool)))
    assert _decode(pool, wav(1.0)).size == 16_000
    assert not before & _pids(pool)


def test_a_worker_ignores_the_signals_that_stop_the_server(pool: Pool, wav: Callable[..., bytes]) -> None:
    """Ctrl-C reaches every process of a terminal, but open requests may finish and need their decoders."""
    with closing(pool.blocks(io.BytesIO(wav(60.0)), max_seconds=600)) as blocks:
        next(blocks)
        for pid in _pids(pool):
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert sum(block.size for block in blocks) > 50 * 16_000


def test_closing_early_frees_the_worker(pool: Pool, wav: Callable[..., bytes]) -> None:
    """It takes the next upload; no process is started or lost."""
    _decode(pool, wav(1.0))
    before = _pids(pool)
    for _ in range(5):
        blocks = pool.blocks(io.BytesIO(wav(60.0)), max_seconds=600)
        next(blocks)
        blocks.close()
    assert _pids(pool) <= before
    assert _decode(pool, wav(1.0)).size == 16_000


def test_an_upload_that_is_closed_meanwhile_ends_its_worker(pool: Pool, wav: Callable[..., bytes]) -> None:
    """The caller hung up in the middle of a read; the next upload is decoded as usual."""
    source = io.BytesIO(wav(600.0))
    blocks = pool.blocks(source, max_seconds=600)
    next(blocks)
    source.close()
    with pytest.raises(ValueError, match="closed"):
        list(blocks)
    assert _decode(pool, wav(1.0)).size == 16_000


def test_an_upload_too_many_is_busy(wav: Callable[..., bytes]) -> None:
    """The others are not disturbed."""
    with closing(Pool(environ=os.environ, spare=1, most=1)) as small:
        with closing(small.blocks(io.BytesIO(wav(60.0)), max_seconds=600)) as first:
            next(first)
            with pytest.raises(Busy):
                _decode(small, wav(1.0))
        assert _decode(small, wav(1.0)).size == 16_000


def test_a_worker_is_replaced_after_many_uploads(wav: Callable[..., bytes]) -> None:
    """Memory that FFmpeg has leaked is freed with the process."""
    with closing(Pool(environ=os.environ, spare=1, most=2, jobs=2)) as small:
        small.start()
        first = _pids(small)
        for _ in range(5):
            _decode(small, wav(0.2))
        assert not first & _pids(small)
        assert len(_pids(small)) <= 2


def test_closing_the_pool_ends_its_processes(wav: Callable[..., bytes]) -> None:
    """Busy ones included. Their uploads fail, and no new process is started."""
    closing_pool = Pool(environ=os.environ)
    blocks = closing_pool.blocks(io.BytesIO(wav(600.0)), max_seconds=600)
    next(blocks)
    processes = _processes(closing_pool)
    closing_pool.close()
    assert all(process.poll() is not None for process in processes)
    with pytest.raises((UnreadableAudio, ValueError)):
        list(blocks)
    with pytest.raises(Busy):
        _decode(closing_pool, wav(1.0))
    assert not _pids(closing_pool)


def _replying(*replies: bytes) -> tuple[str, ...]:
    """Return the command of a worker that sends these bytes, whatever it receives."""
    return (sys.executable, "-c", f"import os, sys; os.write(0, {b''.join(replies)!r}); sys.stdin.read()")


def _message(message: bytes) -> bytes:
    """Return a message as `multiprocessing.connection` sends it."""
    return struct.pack("!i", len(message)) + message


@pytest.mark.parametrize(
    "replies",
    [
        [b"not a message at all"],
        [_message(b"X")],
        [_message(b"U"), _message(b"X")],
        [_message(b"U"), _message(b"")],
        [_message(b"U"), _message(b"F{")],
        [_message(b"U"), _message(b"F[]")],
        [_message(b"U"), struct.pack("!i", 1 << 30)],
    ],
)
def test_a_worker_that_breaks_the_protocol_is_ended(replies: list[bytes], wav: Callable[..., bytes]) -> None:
    """The upload is refused, and the server reads no more than a message may have."""
    with closing(Pool(environ=os.environ, spare=0, most=1, command=_replying(*replies))) as broken:
        with pytest.raises(UnreadableAudio):
            _decode(broken, wav(1.0))
        assert not _pids(broken)


def test_a_worker_that_cannot_be_started_is_busy(wav: Callable[..., bytes]) -> None:
    """As when the system is out of files or memory. No worker is lost, and later uploads are decoded as usual."""
    command = ["/nowhere/python", *COMMAND[1:]]
    with closing(Pool(environ=os.environ, spare=1, most=2, command=command)) as short:
        for _ in range(5):
            with pytest.raises(Busy):
                _decode(short, wav(1.0))
        assert not _pids(short)
        command[0] = COMMAND[0]
        short.start()
        (pid,) = _pids(short)
        command[0] = "/nowhere/python"  # for the spare one that is started when the first is taken
        for _ in range(5):
            assert _decode(short, wav(1.0)).size == 16_000
        assert _pids(short) == {pid}
        command[0] = COMMAND[0]
        assert _decode(short, wav(1.0)).size == 16_000
        assert len(_pids(short)) == 2


# The worker's own side, in this process.


class NoLimit(TimeLimit):
    """Sets no limits, since they would hold for the process of the tests."""

    def begin(self) -> None:
        pass

    def allow(self, seconds: float) -> None:
        pass

    def pause(self) -> None:
        pass


@contextmanager
def _serving(pcm: Any = decoding.pcm) -> Iterator[Connection]:
    """Give the server's end of a worker that runs in a thread."""
    ours, theirs = Pipe()
    with theirs:
        thread = threading.Thread(target=worker_module.serve, args=(Server(theirs.fileno()), NoLimit(), pcm))
        thread.start()
        with ours:
            assert ours.recv_bytes() == b"U"
            yield ours
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def worker() -> Iterator[Connection]:
    """Give the server's end of a worker."""
    with _serving() as connection:
        yield connection


def _open(data: bytes, max_seconds: float = 60.0, *, sent: int = READ_BYTES) -> bytes:
    return b"O" + OPENING.pack(max_seconds, len(data), b"") + data[:sent]


def _answers(worker: Connection, data: bytes) -> list[bytes]:
    """Return the worker's messages about an upload until its end; send the bytes it asks for."""
    answers = [b"S"]
    while answers[-1][:1] in b"RS":
        answers.append(worker.recv_bytes())
        if answers[-1].startswith(b"R"):
            offset, size = REQUEST.unpack(answers[-1][1:])
            worker.send_bytes(b"D" + data[offset : offset + size])
        elif answers[-1].startswith(b"S"):
            worker.send_bytes(b"N")
    return answers[1:]


def _samples_in(answers: list[bytes]) -> int:
    return sum(len(answer) - 1 for answer in answers if answer.startswith(b"S"))


def test_a_short_upload_needs_one_message(worker: Connection, wav: Callable[..., bytes]) -> None:
    """Its bytes come with the opening, and its samples in one block. The next upload may follow at once."""
    for _ in range(2):
        data = wav(5.0)
        worker.send_bytes(_open(data))
        samples, end = _answers(worker, data)
        assert (len(samples), end) == (1 + 5 * 32_000, b"E")


def test_the_bytes_of_a_long_upload_are_asked_for(worker: Connection, wav: Callable[..., bytes]) -> None:
    """When the decoder reads them, a bounded number at a time."""
    data = wav(30.0)
    worker.send_bytes(_open(data, sent=1000))
    answers = _answers(worker, data)
    assert answers[-1] == b"E"
    assert _samples_in(answers) == 30 * 32_000
    assert sum(answer.startswith(b"R") for answer in answers) >= len(data) // READ_BYTES
    assert max(map(len, answers)) <= 1 + READ_BYTES


def test_a_new_upload_ends_the_one_before(worker: Connection, wav: Callable[..., bytes]) -> None:
    """Its caller may have hung up."""
    long, short = wav(60.0), wav(1.0)
    worker.send_bytes(_open(long))
    while (answer := worker.recv_bytes()).startswith(b"R"):
        offset, size = REQUEST.unpack(answer[1:])
        worker.send_bytes(b"D" + long[offset : offset + size])
    worker.send_bytes(_open(short))
    assert _samples_in(_answers(worker, short)) == 32_000


def test_failures_are_reported(worker: Connection, wav: Callable[..., bytes]) -> None:
    """The caller's fault with its code, any other exception as an upload that cannot be decoded."""
    for data, said in ((b"no sound", b"null"), (wav(0.01), b"audio_too_short")):
        worker.send_bytes(_open(data))
        answer = _answers(worker, data)[-1]
        assert answer.startswith(b"F")
        assert said in answer

    def surprise(*_: Any, **__: Any) -> Iterator[bytes]:
        raise RuntimeError("an unexpected failure")

    with _serving(surprise) as other:
        other.send_bytes(_open(b"x"))
        assert other.recv_bytes() == b'F{"message": null}'


def test_the_upload_is_a_file_to_read(wav: Callable[..., bytes]) -> None:
    """Reading at its end gives nothing; seeking works as with files, but never before the start."""
    data = wav(1.0)
    upload = Upload(None, len(data), data)  # type: ignore[arg-type]
    assert upload.read(4) == b"RIFF"
    assert upload.seek(-4, io.SEEK_CUR) == 0
    assert upload.seek(-2, io.SEEK_END) == len(data) - 2
    assert upload.read() == data[-2:]
    assert upload.read(9) == b""
    assert upload.seek(-1) == upload.tell() == 0


def test_a_decoder_that_gives_nothing_is_ended_by_the_kernel() -> None:
    """Its processor time is limited."""
    code = (
        "from localwhisper_server.audio import worker as w; w.GRACE_SECONDS = 0\n"
        "w.TimeLimit().begin()\nwhile True: pass"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGXCPU


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of others counts differently")
def test_the_memory_of_a_worker_is_limited() -> None:
    """An allocation beyond the limit fails in the worker, and only there."""
    code = (
        "from localwhisper_server.audio import worker as w; w.confine()\n"
        "try: bytearray(w.MEMORY_BYTES)\nexcept MemoryError: raise SystemExit(7)"
    )
    # Pipes, since a confined process cannot write to files.
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True)
    assert done.returncode == 7


def test_a_decoder_that_takes_long_lowers_its_priority() -> None:
    """Below the model and the decoders of short recordings. It gets no other upload."""
    own = os.getpriority(os.PRIO_PROCESS, 0)

    def priorities(pool: Pool) -> set[int]:
        return {os.getpriority(os.PRIO_PROCESS, pid) for pid in _pids(pool)}

    with closing(Pool(environ=os.environ, spare=1)) as pool:
        _decode(pool, encode(tone(1.0)))
        assert priorities(pool) == {own}
        with closing(pool.blocks(io.BytesIO(hostile.opus_of_silence(hours=5)), max_seconds=36_000)) as blocks:
            for _ in blocks:
                if max(priorities(pool)) > own:
                    break
            assert max(priorities(pool)) == min(19, own + worker_module.NICENESS)
        assert priorities(pool) == {own}
        _decode(pool, encode(tone(1.0)))


def test_processor_time_is_allowed_in_proportion_to_the_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts from the beginning of an upload. Real time counts only while the decoder works."""
    limits: list[int] = []
    alarms: list[int] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, limit: limits.append(limit[0]))
    monkeypatch.setattr(signal, "alarm", alarms.append)
    timers: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "setitimer", lambda *timer: timers.append(timer))
    monkeypatch.setattr(time, "process_time", lambda: 100.0)
    limit = TimeLimit()
    limit.begin()
    limit.allow(2000.0)
    limit.pause()
    assert limits == [111, 211]
    assert timers == [(signal.ITIMER_PROF, worker_module.PROMPT_SECONDS)]
    assert alarms == [worker_module.STUCK_SECONDS, worker_module.STUCK_SECONDS, 0]


def test_the_constants_agree_with_the_types() -> None:
    """The worker has its own, since it does without NumPy."""
    assert decoding.SAMPLE_RATE == types.SAMPLE_RATE
    assert struct.calcsize("h") == decoding.SAMPLE_BYTES
