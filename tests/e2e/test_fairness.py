"""A short message beside others' long files, at a real server."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2

from localwhisper_client.server_process import ServerProcess
from tests.e2e.conftest import ENGLISH
from tests.server.hostile import opus_of_silence

SILENT = 3


def _ask(http: httpx2.Client, server: ServerProcess, prompt: str, file: bytes) -> float:
    started = time.perf_counter()
    form = {"model": "whisper-1", "prompt": prompt}
    answer = http.post(f"{server.base_url}/audio/transcriptions", data=form, files={"file": ("voice.ogg", file)})
    assert answer.status_code == 200
    return time.perf_counter() - started


@contextlib.contextmanager
def _silences(server: ServerProcess) -> Iterator[None]:
    """Keep the server busy with files of 5.9 h of silence; their callers hang up at the end."""
    silence = opus_of_silence(hours=5.9)
    clients = [httpx2.Client(timeout=280) for _ in range(SILENT)]
    with ThreadPoolExecutor(SILENT) as pool:
        for number, client in enumerate(clients):
            pool.submit(_ask, client, server, f"silence {number}", silence)
        try:
            until = time.monotonic() + 120
            while server.health()["requests"] < SILENT:
                assert time.monotonic() < until
                time.sleep(0.1)
            yield
        finally:
            server.process.kill()  # a stop would wait for them
    for client in clients:
        client.close()


def test_a_message_does_not_wait_for_hours_of_silence(frail_server: ServerProcess) -> None:
    """It is prepared between the short steps of three such files, which are still at work when the last is answered.

    The bound of time is far below the minutes that the three take; `benchmarks/fairness.py` has a sharper one.
    """
    voice = ENGLISH.read_bytes()
    with httpx2.Client(timeout=280) as http:
        alone = [_ask(http, frail_server, f"alone {number}", voice) for number in range(3)]
        with _silences(frail_server):
            beside = [_ask(http, frail_server, f"beside {number}", voice) for number in range(3)]
            assert frail_server.health()["requests"] == SILENT
    assert statistics.median(beside) < 10 * statistics.median(alone) + 20.0
