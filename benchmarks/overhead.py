"""The server's own time, without the model's: upload, audio decoding, voice activity, routing, formatting.

A real server on a real socket has an engine that answers at once. It is sent a five-second voice message repeatedly,
over one connection. Bar: p50 under 25 ms.

    python benchmarks/overhead.py [REQUESTS]
"""

import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import openai
import uvicorn
from measuring import VOICE, percentile

from localwhisper_server import runtime, server
from localwhisper_server.api import routes
from localwhisper_server.audio.pool import decode
from localwhisper_server.operations import host
from localwhisper_server.settings import Settings
from localwhisper_server.types import Voice
from localwhisper_server.whisper.chunks import find_speech
from tests.server.engine_double import EngineDouble


@contextmanager
def serving() -> Iterator[str]:
    """Run the application with the instant engine in a thread; yields its base URL."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.bin").touch()
        backend = runtime.Runtime(Settings(model=folder), load=lambda *_: EngineDouble(), cuda_devices=0)  # type: ignore[arg-type, return-value]
        backend.start()
        listening = host.listen("127.0.0.1", 0)
        config = uvicorn.Config(routes.create_app(backend), log_config=None, access_log=False)
        serve = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: serve.run(sockets=[listening]))
        thread.start()
        try:
            yield f"{server.url(listening)}/v1"
        finally:
            serve.should_exit = True
            thread.join()
            backend.stop()


def request() -> tuple[bytes, dict[str, str]]:
    """Return a form with the voice message, and its headers, as the SDK sends them."""
    boundary = "a-boundary"
    fields = {"model": "whisper-1", "language": "en"}
    form = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="demo.ogg"\r\n\r\n'
    body = form.encode() + head.encode() + VOICE.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def timed(work: Callable[[], object], count: int) -> list[float]:
    """Return the milliseconds of `count` calls, sorted, after twenty that warm up."""
    taken = []
    for _ in range(count + 20):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return sorted(taken[20:])


def main() -> None:
    """Print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    body, headers = request()
    with VOICE.open("rb") as voice:
        samples = decode(voice, max_seconds=60)

    def decoded() -> None:
        with VOICE.open("rb") as voice:
            decode(voice, max_seconds=60)

    with serving() as url, openai.OpenAI(base_url=url, api_key="any") as client:
        address = urlsplit(url)
        line = http.client.HTTPConnection(address.hostname or "", address.port)

        def ask() -> None:
            line.request("POST", "/v1/audio/transcriptions", body, headers)
            answer = line.getresponse()
            assert json.load(answer)["text"] == "Hello."

        def ask_by_sdk() -> None:
            client.audio.transcriptions.create(file=VOICE, model="whisper-1", language="en")

        whole, sdk = timed(ask, count), timed(ask_by_sdk, count)
        line.close()
    detector, decoding = timed(lambda: find_speech(samples, Voice()), count), timed(decoded, count)
    for name, taken in (
        ("request", whole),
        ("  voice activity detection alone, a model", detector),
        ("  audio decoding alone, in this process", decoding),
        ("request through the SDK, its time included", sdk),
    ):
        print(f"{name:42} p50 {statistics.median(taken):6.1f} ms   p95 {percentile(taken, 0.95):6.1f} ms")
    print(f"own time beyond the models', p50: {statistics.median(whole) - statistics.median(detector):.1f} ms (bar 25)")


if __name__ == "__main__":
    main()
