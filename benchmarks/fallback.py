"""The cost of a local server that is down, for a call that falls back to the cloud: ours, the plain SDK, and LiteLLM.

A stand-in for the cloud on loopback answers at once. Ours and the plain SDK are called in turn within one run, so that
other load on the machine affects both alike. Reported are p50 and p95 of each, and the difference. LiteLLM is measured
if it is installed.

| case | bar |
|---|---|
| breaker open, policy cloud | p95 of ours at most 5 ms over the plain SDK's |
| refused, first call | the cloud's request is there within 50 ms |
| blackholed, first call | …within the connect timeout and 50 ms |

    python benchmarks/fallback.py [CALLS]
"""

import contextlib
import logging
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

from localwhisper_client import LocalWhisper

AUDIO = ("voice.ogg", bytes(20_000))
CONNECT_TIMEOUT = 0.25


class Cloud(BaseHTTPRequestHandler):
    """Answers at once, and notes when it was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    asked: float = 0.0

    def do_POST(self) -> None:
        """Answer a transcription."""
        Cloud.asked = time.perf_counter()
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"text": "Hello.", "usage": {"type": "duration", "seconds": 5}}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def cloud() -> Iterator[str]:
    """Serve the stand-in; gives its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """Give an address that refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """Give an address that never answers."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003 - the standard library's signature
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def ask(client: openai.OpenAI) -> None:
    """Make one call."""
    assert client.audio.transcriptions.create(model="whisper-1", file=AUDIO).text == "Hello."


def timed(call: Callable[[], object]) -> float:
    """Return a call's milliseconds."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def to_cloud(call: Callable[[], object]) -> float:
    """Return the milliseconds until the cloud was asked."""
    started = time.perf_counter()
    call()
    return (Cloud.asked - started) * 1000


def report(name: str, taken: list[float]) -> float:
    """Print p50 and p95; return the latter."""
    p95 = statistics.quantiles(taken, n=20)[18]
    print(f"{name:34} p50 {statistics.median(taken):8.2f} ms   p95 {p95:8.2f} ms   n={len(taken)}")
    return p95


def breaker_open(url: str, calls: int) -> None:
    """Compare ours, its breaker open, with the plain SDK, in turn."""
    with refusing() as lan, openai.OpenAI(base_url=url, api_key="any") as plain, ours(lan) as client:
        for _ in range(20):
            ask(plain)
            ask(client)
        taken: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(calls):
            taken["plain"].append(timed(lambda: ask(plain)))
            taken["ours"].append(timed(lambda: ask(client)))
    stock = report("plain SDK", taken["plain"])
    added = report("ours, breaker open", taken["ours"]) - stock
    median = statistics.median(taken["ours"]) - statistics.median(taken["plain"])
    print(f"{'added':34} p50 {median:8.2f} ms   p95 {added:8.2f} ms   bar 5 ms")


def first_calls(url: str) -> None:
    """Measure calls that find the server down themselves, each with a new client."""
    for name, dead, bar in (
        ("refused, first call to the cloud", refusing, 50.0),
        ("blackholed, first call to the cloud", blackhole, CONNECT_TIMEOUT * 1000 + 50),
    ):
        taken = []
        with dead() as lan:
            for _ in range(20):
                with ours(lan) as client:
                    client.models  # noqa: B018 - what the SDK imports when first used is no part of a fallback
                    client.audio.transcriptions  # noqa: B018 - as above
                    taken.append(to_cloud(lambda client=client: ask(client)))
        report(name, taken)
        print(f"{'':34} bar {bar:.0f} ms")
    del url


def ours(lan: str) -> LocalWhisper:
    """Return our client, with a cloud to fall back to."""
    return LocalWhisper(local_base_url=lan, policy="cloud", api_key="any", connect_timeout=CONNECT_TIMEOUT)


def litellm_router(url: str) -> None:
    """Measure LiteLLM's router, with its defaults, with the same dead server before the same cloud."""
    try:
        import litellm  # noqa: PLC0415 - beside ours where it is installed
    except ImportError:
        print("LiteLLM is not installed here: skipped")
        return
    import asyncio  # noqa: PLC0415 - for this alone

    async def run(lan: str) -> list[float]:
        router = litellm.Router(
            model_list=[
                {
                    "model_name": name,
                    "litellm_params": {"model": "openai/whisper-1", "api_base": base, "api_key": "any"},
                }
                for name, base in (("lan", lan), ("cloud", url))
            ],
            fallbacks=[{"lan": ["cloud"]}],
        )
        taken = []
        for _ in range(5):
            started = time.perf_counter()
            await router.atranscription(model="lan", file=AUDIO)
            taken.append((time.perf_counter() - started) * 1000)
        return taken

    with refusing() as lan:
        report("LiteLLM router, refused", asyncio.run(run(lan)))


def main() -> None:
    """Print the figures."""
    logging.disable()
    with cloud() as url:
        os.environ["LOCALWHISPER_CLOUD_BASE_URL"] = url
        breaker_open(url, int(sys.argv[1]) if len(sys.argv) > 1 else 500)
        first_calls(url)
        litellm_router(url)


if __name__ == "__main__":
    main()
