"""Uploads decoded in worker processes: what they give, what they cannot do, and how they die."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from localwhisper_server import audio, chunks, decoder, decoder_worker
from localwhisper_server.decoder_worker import OPENING, READ_BYTES, REQUEST, Channel
from localwhisper_server.errors import Busy, InvalidRequest, UnreadableAudio
from tests.server import hostile
from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = 20.0


@pytest.fixture(scope="module")
def pool() -> Iterator[decoder.Pool]:
    """Give a pool of real workers."""
    with closing(decoder.Pool(environ=os.environ)) as made:
        made.start()
        yield made


def _decode(pool: decoder.Pool, data: bytes, max_seconds: float = 600.0) -> chunks.Samples:
    return np.concatenate(list(pool.blocks(io.BytesIO(data), max_seconds=max_seconds)))


def _until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_worker_hears_what_this_process_does(pool: decoder.Pool, voices: dict[str, Path]) -> None:
    """The same samples, bit for bit, of recordings of one message and of many."""
    for path in voices.values():
        with path.open("rb") as file:
            assert np.array_equal(_decode(pool, path.read_bytes()), decoder.decode(file, max_seconds=600))


def test_the_shared_recordings_come_through(pool: decoder.Pool, shared: Path) -> None:
    """Each of them, from a file; the same as without a worker."""
    for path in sorted((shared / "audio").iterdir()):
        with path.open("rb") as file, path.open("rb") as again:
            samples = np.concatenate(list(pool.blocks(file, max_seconds=600)))
            assert np.array_equal(samples, decoder.decode(again, max_seconds=600)), path.name


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("ogg", "libopus", 48_000),
        ("ogg", "libvorbis", 48_000),
        ("ogg", "flac", 48_000),
        ("webm", "libopus", 48_000),
        ("matroska", "aac", 48_000),
        ("ipod", "aac", 44_100),
        ("ipod", "alac", 44_100),
        ("mp4", "aac", 48_000),
        ("mov", "pcm_s16le", 48_000),
        ("3gp", "aac", 48_000),
        ("adts", "aac", 48_000),
        ("mp3", "libmp3lame", 44_100),
        ("mp2", "mp2", 48_000),
        ("mpegts", "aac", 48_000),
        ("mpeg", "mp2", 48_000),
        ("flac", "flac", 48_000),
        ("wav", "pcm_s24le", 48_000),
        ("wav", "pcm_f32le", 48_000),
        ("wav", "pcm_mulaw", 8_000),
        ("wav", "pcm_alaw", 8_000),
        ("wav", "adpcm_ima_wav", 16_000),
        ("wav", "adpcm_ms", 16_000),
        ("wav", "g726", 8_000),
        ("w64", "pcm_s16le", 48_000),
        ("aiff", "pcm_s16be", 44_100),
        ("caf", "pcm_s16be", 44_100),
        ("caf", "alac", 44_100),
        ("au", "pcm_mulaw", 8_000),
        ("amr", "libopencore_amrnb", 8_000),
        ("asf", "wmav2", 44_100),
        ("avi", "libmp3lame", 44_100),
    ],
)
def test_what_speech_comes_in_is_read(pool: decoder.Pool, container: str, codec: str, rate: int) -> None:
    """Containers and codecs of phones, messengers, browsers, recorders and telephones, by their bytes alone."""
    try:
        data = encode(tone(2.0, rate), container=container, codec=codec, rate=rate)
    except (av.error.FFmpegError, ValueError) as failure:
        pytest.skip(f"this FFmpeg does not write it: {failure}")
    assert _decode(pool, data).size / 16_000 == pytest.approx(2.0, abs=0.15)


def test_samples_come_block_by_block(pool: decoder.Pool, wav: Callable[..., bytes]) -> None:
    """A long recording is never in memory as a whole; its upload is read as it is needed."""
    source = io.BytesIO(wav(600.0))
    with closing(pool.blocks(source, max_seconds=600)) as blocks:
        assert max(next(blocks).size for _ in range(10)) <= READ_BYTES // audio.SAMPLE_BYTES
        assert source.tell() < len(source.getvalue()) / 4


def test_errors_are_those_of_the_decoder(pool: decoder.Pool, wav: Callable[..., bytes]) -> None:
    """With their words, parameters and codes; the worker goes on."""
    before = pool.pids
    for data, max_seconds, kind in ((b"no sound", 9, UnreadableAudio), (wav(0.05), 9, InvalidRequest)):
        with pytest.raises(kind) as there:
            _decode(pool, data, max_seconds)
        with pytest.raises(kind) as here:
            decoder.decode(io.BytesIO(data), max_seconds=max_seconds)
        assert there.value.body() == here.value.body()
    with pytest.raises(InvalidRequest, match=r"longer than 2\.5 seconds"):
        _decode(pool, wav(60.0), 2.5)
    assert pool.pids == before


@pytest.mark.parametrize("name", sorted(hostile.REFUSED))
@pytest.mark.timeout(30)
def test_hostile_files_are_refused_at_once(pool: decoder.Pool, tmp_path: Path, name: str) -> None:
    """Playlists, scripts, pictures, archives and liars: a 400 within two seconds; canary and bait untouched."""
    canary = tmp_path / "canary.wav"
    canary.write_bytes(encode(tone(1.0)))
    read_before = canary.stat().st_atime_ns
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0)
        data = hostile.REFUSED[name](canary, bait.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(InvalidRequest):
            _decode(pool, data, 6 * 3600.0)
        assert time.monotonic() - started < 2
        with pytest.raises(BlockingIOError):
            bait.accept()
    assert canary.stat().st_atime_ns == read_before


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "concat:/etc/passwd", "a.srt", "http://127.0.0.1/a"])
def test_the_name_of_an_upload_plays_no_part(pool: decoder.Pool, tmp_path: Path, name: str) -> None:
    """FFmpeg would believe an ending; it is never told one."""
    canary = tmp_path / "canary.wav"
    canary.write_bytes(encode(tone(1.0)))
    source = io.BytesIO(f"#EXTM3U\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n".encode())
    source.name = name  # type: ignore[misc]
    with pytest.raises(UnreadableAudio):
        list(pool.blocks(source, max_seconds=9))


def test_ten_hours_in_two_megabytes_end_early(pool: decoder.Pool) -> None:
    """By the length that its header claims, and where that lies, as soon as six hours are decoded or time is up."""
    data = hostile.opus_of_silence(hours=10)
    assert len(data) < 2_000_000
    started = time.monotonic()
    with pytest.raises(InvalidRequest, match="longer than 60 seconds"):
        _decode(pool, data, 60.0)
    assert time.monotonic() - started < 2
    with pytest.raises(InvalidRequest, match="longer than 60 seconds"):
        _decode(pool, hostile.without_end(data), 60.0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_has_nothing(pool: decoder.Pool, monkeypatch: pytest.MonkeyPatch, wav: Callable[..., bytes]) -> None:
    """No file but its pipes, no way to open another, no memory without bound, and no key in its environment."""
    monkeypatch.setenv("LOCALWHISPER_SERVER_API_KEY", "made-up")
    _decode(pool, wav(1.0))
    pid = pool.pids[0]
    _until(lambda: "Max open files            3 " in _proc(pid, "limits"))
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]  # noqa: PTH208 - numbers, not paths
    limits = _proc(pid, "limits")
    assert "Max file size             0 " in limits
    assert f"Max data size             {decoder_worker.MEMORY_BYTES} " in limits
    with closing(decoder.Pool(environ=os.environ)) as other:
        other.start()
        for pid in other.pids:
            assert "made-up" not in _proc(pid, "environ")


def _proc(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}") as file:  # noqa: PTH123 - not a path of ours
        return file.read()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_worker_killed_at_work_costs_its_upload_alone(pool: decoder.Pool, wav: Callable[..., bytes]) -> None:
    """That one is a 400; another at the same time goes on, and the next finds a new worker."""
    data = wav(300.0)
    with closing(pool.blocks(io.BytesIO(data), max_seconds=600)) as first:
        next(first)
        busy = {worker.pid for worker in pool._workers - set(pool._idle)}
        with closing(pool.blocks(io.BytesIO(data), max_seconds=600)) as second:
            next(second)
            (victim,) = busy
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(UnreadableAudio):
                list(first)
            assert sum(block.size for block in second) > 295 * 16_000
    assert victim not in pool.pids
    assert _decode(pool, wav(1.0)).size == 16_000


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_worker_killed_at_rest_costs_nobody_anything(pool: decoder.Pool, wav: Callable[..., bytes]) -> None:
    """It is replaced when its turn comes."""
    before = pool.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    _until(lambda: not any(worker.alive for worker in pool._idle))
    assert _decode(pool, wav(1.0)).size == 16_000
    assert not set(before) & set(pool.pids)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_stop_sent_to_all_leaves_the_workers_to_the_server(pool: decoder.Pool, wav: Callable[..., bytes]) -> None:
    """Ctrl-C reaches every process of a terminal; what the server lets finish needs its decoder."""
    with closing(pool.blocks(io.BytesIO(wav(60.0)), max_seconds=600)) as blocks:
        next(blocks)
        for pid in pool.pids:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert sum(block.size for block in blocks) > 50 * 16_000


def test_closing_early_frees_the_worker(pool: decoder.Pool, wav: Callable[..., bytes]) -> None:
    """It takes the next upload in its place; no process is lost over it."""
    _decode(pool, wav(1.0))
    before = set(pool.pids)
    for _ in range(5):
        blocks = pool.blocks(io.BytesIO(wav(60.0)), max_seconds=600)
        next(blocks)
        blocks.close()
    assert set(pool.pids) <= before
    assert _decode(pool, wav(1.0)).size == 16_000


def test_an_upload_that_is_closed_meanwhile_ends_its_worker(pool: decoder.Pool, wav: Callable[..., bytes]) -> None:
    """The caller hung up in the middle of a read: nobody waits for ever, nothing is left."""
    source = io.BytesIO(wav(600.0))
    blocks = pool.blocks(source, max_seconds=600)
    next(blocks)
    source.close()
    with pytest.raises(ValueError, match="closed"):
        list(blocks)
    assert _decode(pool, wav(1.0)).size == 16_000


def test_recordings_beyond_the_last_worker_are_told_to_come_back(wav: Callable[..., bytes]) -> None:
    """And those that are at it are not disturbed."""
    with closing(decoder.Pool(environ=os.environ, spare=1, most=1)) as small:
        with closing(small.blocks(io.BytesIO(wav(60.0)), max_seconds=600)) as first:
            next(first)
            with pytest.raises(Busy):
                _decode(small, wav(1.0))
        assert _decode(small, wav(1.0)).size == 16_000


def test_a_worker_is_replaced_after_many_uploads(monkeypatch: pytest.MonkeyPatch, wav: Callable[..., bytes]) -> None:
    """Whatever FFmpeg leaks goes with the process."""
    monkeypatch.setattr(decoder, "JOBS_PER_WORKER", 2)
    with closing(decoder.Pool(environ=os.environ, spare=1, most=2)) as small:
        small.start()
        first = small.pids
        for _ in range(5):
            _decode(small, wav(0.2))
        assert not set(first) & set(small.pids)
        assert len(small.pids) <= 2


def test_closing_the_pool_ends_its_processes(wav: Callable[..., bytes]) -> None:
    """Those at work, too; what they were decoding is an error, and no new one is left behind by it."""
    closing_pool = decoder.Pool(environ=os.environ)
    blocks = closing_pool.blocks(io.BytesIO(wav(600.0)), max_seconds=600)
    next(blocks)
    processes = [worker._process for worker in closing_pool._workers]
    closing_pool.close()
    assert all(process.poll() is not None for process in processes)
    with pytest.raises((UnreadableAudio, ValueError)):
        list(blocks)
    assert closing_pool.pids == ()


def _talking(*replies: bytes) -> tuple[str, ...]:
    """Return the command of a worker that sends these bytes, whatever it is told."""
    return (
        sys.executable,
        "-c",
        f"import sys; sys.stdout.buffer.write({b''.join(replies)!r}); sys.stdout.flush(); sys.stdin.read()",
    )


def _message(kind: bytes, payload: bytes = b"") -> bytes:
    return decoder_worker.HEADER.pack(kind, len(payload)) + payload


@pytest.mark.parametrize(
    "replies",
    [
        [b"not a message at all"],
        [_message(b"X")],
        [_message(b"U"), _message(b"X")],
        [_message(b"U"), _message(b"F", b"{")],
        [_message(b"U"), _message(b"F", b"[]")],
        [_message(b"U"), decoder_worker.HEADER.pack(b"S", 1 << 31)],
    ],
)
def test_a_worker_that_was_taken_over_is_not_believed(replies: list[bytes], wav: Callable[..., bytes]) -> None:
    """Whatever it says, the upload is refused, the worker ended, and the server's memory its own."""
    with closing(decoder.Pool(environ=os.environ, spare=0, most=1, command=_talking(*replies))) as taken:
        with pytest.raises(UnreadableAudio):
            _decode(taken, wav(1.0))
        assert taken.pids == ()


# The worker's own side, in this process, over a pair of pipes.


class _Still(decoder_worker.Clock):
    """Counts no time, so that this process gets no limits."""

    def begin(self) -> None:
        pass

    def allow(self, seconds: float) -> None:
        pass

    def rest(self) -> None:
        pass


@pytest.fixture
def worker() -> Iterator[Channel]:
    """Give the server's end of a worker that runs in a thread."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rwb") as near, theirs.makefile("rwb") as far:
        thread = threading.Thread(target=decoder_worker.serve, args=(Channel(far, far), _Still()))  # type: ignore[arg-type]
        thread.start()
        channel = Channel(near, near)  # type: ignore[arg-type]
        assert channel.receive() == (b"U", b"")
        yield channel
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)
        assert not thread.is_alive()


def _open(data: bytes, max_seconds: float = 60.0, *, sent: int = READ_BYTES) -> bytes:
    return OPENING.pack(max_seconds, len(data)) + data[:sent]


def _answers(channel: Channel, data: bytes) -> list[tuple[bytes, bytes]]:
    """Return what the worker says to an upload until its end, giving it the bytes it asks for."""
    answers: list[tuple[bytes, bytes]] = []
    while not answers or answers[-1][0] in b"RS":
        kind, payload = channel.receive()
        answers.append((kind, payload))
        if kind == b"R":
            offset, size = REQUEST.unpack(payload)
            channel.send(b"D", data[offset : offset + size])
        elif kind == b"S":
            channel.send(b"N")
    return answers


def test_a_short_upload_needs_one_message(worker: Channel, wav: Callable[..., bytes]) -> None:
    """Its bytes come with the opening; the next upload follows on the heels of the last."""
    for _ in range(2):
        data = wav(5.0)
        worker.send(b"O", _open(data))
        answers = _answers(worker, data)
        assert [kind for kind, _ in answers][-1] == b"E"
        assert {kind for kind, _ in answers} == {b"S", b"E"}
        assert sum(len(payload) for kind, payload in answers if kind == b"S") == 5 * 32_000


def test_a_long_upload_is_asked_for(worker: Channel, wav: Callable[..., bytes]) -> None:
    """Where the decoder wants to read, and no more than that at a time."""
    data = wav(30.0)
    worker.send(b"O", _open(data, sent=1000))
    answers = _answers(worker, data)
    assert answers[-1][0] == b"E"
    assert sum(kind == b"R" for kind, _ in answers) >= len(data) // READ_BYTES


def test_a_new_upload_drops_the_one_before(worker: Channel, wav: Callable[..., bytes]) -> None:
    """As a caller does who hung up."""
    long, short = wav(60.0), wav(1.0)
    worker.send(b"O", _open(long))
    while worker.receive()[0] == b"R":
        worker.send(b"D", long[READ_BYTES : 2 * READ_BYTES])
    worker.send(b"O", _open(short))
    assert sum(len(payload) for _, payload in _answers(worker, short)) == 32_000


def test_failures_are_told(worker: Channel, monkeypatch: pytest.MonkeyPatch, wav: Callable[..., bytes]) -> None:
    """The caller's as they are; what nobody thought of as an upload that cannot be read."""
    for data, said in ((b"no sound", b"null"), (wav(0.01), b"audio_too_short")):
        worker.send(b"O", _open(data))
        kind, payload = _answers(worker, data)[-1]
        assert kind == b"F"
        assert said in payload

    def surprise(*_: Any, **__: Any) -> Iterator[bytes]:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(audio, "pcm", surprise)
    worker.send(b"O", _open(b"x"))
    assert worker.receive()[0] == b"F"


def test_the_upload_is_a_file_to_read(wav: Callable[..., bytes]) -> None:
    """Reads at its end give nothing; seeks go where files' seeks go, never before the start."""
    data = wav(1.0)
    upload = decoder_worker._Upload(None, len(data), data)  # type: ignore[arg-type]
    assert upload.read(4) == b"RIFF"
    assert upload.seek(-4, io.SEEK_CUR) == 0
    assert upload.seek(-2, io.SEEK_END) == len(data) - 2
    assert upload.read() == data[-2:]
    assert upload.read(9) == b""
    assert upload.seek(-1) == upload.tell() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_a_decoder_that_gives_nothing_is_ended_by_the_kernel() -> None:
    """Processor time without sound in return is limited: the process dies of it."""
    code = (
        "import sys; from localwhisper_server import decoder_worker as w; w.GRACE_SECONDS = 0\n"
        "clock = w.Clock(); clock.begin()\nwhile True: pass"
    )
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGXCPU


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of others counts differently")
def test_a_decoder_that_takes_all_memory_gets_none() -> None:
    """An allocation beyond the limit fails in the worker, and only there."""
    code = (
        "from localwhisper_server import decoder_worker as w; w.confine()\n"
        "try: bytearray(w.MEMORY_BYTES)\nexcept MemoryError: raise SystemExit(7)"
    )
    import subprocess

    # Pipes: with its own files the worker could not even say goodbye.
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True)
    assert done.returncode == 7


def test_warming_up_decodes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of its own making, which the decoder takes."""
    heard: list[bytes] = []
    decode = audio.pcm

    def listening(*how: Any, **limits: Any) -> Iterator[bytes]:
        for part in decode(*how, **limits):
            heard.append(part)
            yield part

    monkeypatch.setattr(audio, "pcm", listening)
    decoder_worker.warm_up()
    assert sum(map(len, heard)) == audio.SAMPLE_RATE


@pytest.mark.skipif(sys.platform == "win32", reason="no such priorities there")
def test_a_decoder_that_takes_long_gives_way() -> None:
    """To the model and to the decoders of short recordings; no other upload is given to it."""
    own = os.getpriority(os.PRIO_PROCESS, 0)

    def priorities(pool: decoder.Pool) -> set[int]:
        return {os.getpriority(os.PRIO_PROCESS, pid) for pid in pool.pids}

    with closing(decoder.Pool(environ=os.environ, spare=1)) as pool:
        _decode(pool, encode(tone(1.0)))
        assert priorities(pool) == {own}
        with closing(pool.blocks(io.BytesIO(hostile.opus_of_silence(hours=5)), max_seconds=36_000)) as blocks:
            for _ in blocks:
                if max(priorities(pool)) > own:
                    break
            assert max(priorities(pool)) == min(19, own + decoder_worker.NICENESS)
        assert priorities(pool) == {own}
        _decode(pool, encode(tone(1.0)))


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_time_is_allowed_in_proportion_to_the_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """And counts only from the beginning of an upload, while the decoder works."""
    limits: list[int] = []
    alarms: list[int] = []
    monkeypatch.setattr(decoder_worker.resource, "setrlimit", lambda _kind, limit: limits.append(limit[0]))
    monkeypatch.setattr(signal, "alarm", alarms.append)
    timers: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "setitimer", lambda *timer: timers.append(timer))
    monkeypatch.setattr(time, "process_time", lambda: 100.0)
    clock = decoder_worker.Clock()
    clock.begin()
    clock.allow(2000.0)
    clock.rest()
    assert limits == [111, 211]
    assert timers == [(signal.ITIMER_PROF, decoder_worker.PROMPT_SECONDS)]
    assert alarms == [decoder_worker.STUCK_SECONDS, decoder_worker.STUCK_SECONDS, 0]


def test_the_rate_is_the_projects() -> None:
    """Said twice, since the worker goes without NumPy: both say the same."""
    assert audio.SAMPLE_RATE == chunks.SAMPLE_RATE
    assert struct.calcsize("h") == audio.SAMPLE_BYTES
