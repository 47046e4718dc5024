"""Mutated recordings, a hundred in the suite and two thousand in the nox session `fuzz`; none may give a 5xx."""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.driving import transcribe
from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from localwhisper_server.runtime import Runtime

COUNT = int(os.environ.get("UPLOADS", "100"))
SEED = int(os.environ.get("SEED", "1"))
# Longer ones are cut first: mutations near the start find more.
LONGEST = 300_000
REST_BYTES = 64 << 20

MADE = (
    ("ogg", "libopus", 48_000),
    ("webm", "libopus", 48_000),
    ("mp4", "aac", 48_000),
    ("ipod", "alac", 44_100),
    ("adts", "aac", 48_000),
    ("mpegts", "aac", 48_000),
    ("mp3", "libmp3lame", 44_100),
    ("flac", "flac", 48_000),
    ("wav", "pcm_f32le", 16_000),
    ("wav", "adpcm_ms", 16_000),
    ("aiff", "pcm_s16be", 44_100),
    ("caf", "pcm_s16be", 44_100),
    ("w64", "pcm_s16le", 16_000),
    ("au", "pcm_mulaw", 8_000),
    ("avi", "libmp3lame", 44_100),
    ("mpeg", "mp2", 48_000),
)


def _originals(voices: dict[str, Path]) -> list[bytes]:
    """Return recordings in every container that can be made or is in `shared`."""
    shared = Path(__file__).parents[3] / "shared" / "speech" / "audio"
    files = [*voices.values(), *(sorted(shared.iterdir()) if shared.is_dir() else ())]
    made = [encode(tone(2.0, rate), container=container, codec=codec, rate=rate) for container, codec, rate in MADE]
    return [file.read_bytes()[:LONGEST] for file in files] + made


def _mutated(original: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Return a recording with up to 16 mutations, most of them near its start, where headers are."""
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        reach = chance.choice((64, 512, 8192, len(data)))
        at = chance.randrange(max(1, min(reach, len(data))))
        length = chance.choice((1, 2, 4, 8, 64, 1024))
        match chance.randrange(8):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + length] = chance.randbytes(length)
            case 2:
                data[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0")
                )
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
            case 5:
                del data[at:]
            case 6:
                other = chance.choice(others)
                data[at:] = other[chance.randrange(max(1, len(other))) :]
            case _:
                data[at:at] = bytes(length)
    return bytes(data)


def _resident() -> int:
    gc.collect()
    if sys.platform != "linux":
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.anyio
@pytest.mark.timeout(3600)
async def test_mutated_uploads(
    app: ASGIApp, runtime: Runtime, voices: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 or 400, each within seconds; afterwards no file, request, thread or memory is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    chance = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
    originals = _originals(voices)
    statuses: dict[int, int] = {}
    slowest, rested, threads = 0.0, 0, 0
    for number in range(COUNT):
        if number == min(COUNT // 4, 200):
            rested, threads = _resident(), threading.active_count()
        data = _mutated(chance.choice(originals), originals, chance)
        started = time.monotonic()
        answer = await transcribe(app, ("language", "en"), file=data)
        slowest = max(slowest, time.monotonic() - started)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        assert answer.status in (200, 400), (SEED, number, answer.body)
    grown = _resident() - rested
    print(f"{COUNT} uploads: {statuses}, slowest {slowest:.2f} s, memory {grown / 2**20:+.1f} MiB")  # noqa: T201 - the session shows it
    assert statuses.get(200)
    assert statuses.get(400)
    assert slowest < 30
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 - a listing of a folder in memory, in a test
    assert runtime.health()["requests"] == 0
    assert threading.active_count() <= threads + 2
    assert grown < REST_BYTES
