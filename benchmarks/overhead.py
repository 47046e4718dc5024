"""The server's own time, without the model's: upload, decoding, voice activity, routing, rendering.

A real server on a real socket, whose engine answers at once, is asked over one connection for a five-second voice
message again and again. What a request takes is then all the server's own. Bar: p50 under 25 ms.

    python benchmarks/overhead.py [REQUESTS]
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import uvicorn

from localwhisper_server import api, server
from localwhisper_server.batch import Chunk, ChunkResult
from localwhisper_server.chunks import Piece
from localwhisper_server.config import Settings
from localwhisper_server.decoder import decode
from localwhisper_server.devices import Device
from localwhisper_server.engine import find_speech
from localwhisper_server.options import Decoding, Voice
from localwhisper_server.transcript import Segment

VOICE = Path(__file__).parents[1] / "localwhisper_client" / "demo.ogg"


class Instant:
    """An engine that takes no time."""

    languages = frozenset({"en"})

    def __init__(self, _folder: Path, _device: Device) -> None:
        pass

    def warm_up(self) -> None:
        """Nothing to warm."""

    def prepare(self, piece: Piece, decoding: Decoding, *, full: bool = False) -> Chunk:
        """Return a chunk without features, which nobody will look at."""
        return Chunk(np.empty((80, 0), np.float32), piece.seconds, piece.offset, decoding, full=full)

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Answer each chunk with one segment."""
        return [
            ChunkResult("en", (Segment(chunk.offset, chunk.offset + chunk.seconds, " Hello."),)) for chunk in chunks
        ]


@contextmanager
def serving() -> Iterator[str]:
    """Run the app with the instant engine in a thread; gives its base URL."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.bin").touch()
        backend = server.Backend(Settings(model=folder), load=Instant, cuda_devices=0)  # type: ignore[arg-type]
        backend.start()
        listening = server.listen("127.0.0.1", 0)
        config = uvicorn.Config(api.create_app(backend, max_upload=1 << 30), log_config=None, access_log=False)
        serve = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: serve.run(sockets=[listening]))
        thread.start()
        try:
            yield f"{server.url(listening)}/v1"
        finally:
            serve.should_exit = True
            thread.join()
            backend.stop()


def main() -> None:
    """Print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with serving() as url, openai.OpenAI(base_url=url, api_key="any") as client:
        taken = []
        for _ in range(count + 20):
            started = time.perf_counter()
            transcript = client.audio.transcriptions.create(file=VOICE, model="whisper-1", language="en")
            taken.append((time.perf_counter() - started) * 1000)
            assert transcript.text == "Hello."
    taken = sorted(taken[20:])  # the first warm the connection and the detector
    parts = []
    for _ in range(count):
        started = time.perf_counter()
        with VOICE.open("rb") as voice:
            samples = decode(voice, max_seconds=60)
        decoded = time.perf_counter()
        find_speech(samples, Voice())
        parts.append(((decoded - started) * 1000, (time.perf_counter() - decoded) * 1000))
    print(f"request, SDK and all  p50 {statistics.median(taken):6.1f} ms   p95 {taken[int(count * 0.95)]:6.1f} ms")
    print(f"  of it decoding      p50 {statistics.median(part[0] for part in parts):6.1f} ms")
    print(f"  of it voice activity p50 {statistics.median(part[1] for part in parts):5.1f} ms")


if __name__ == "__main__":
    main()
