"""Speed of this server and of plain faster-whisper in the simplest server, in turn, in one run.

On a machine with other work only the ratios count. In every part one server works while the other is idle, then the
other, several times.

    python benchmarks/speed.py [--model base] [alone] [clients] [minute] [long] [behind] [hour]
"""

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import corpus
import numpy as np
import openai

from localwhisper_client.cli.demo import serving
from localwhisper_server import server as lan
from localwhisper_server.whisper import weights

ROOT = Path(__file__).resolve().parents[1]
MINUTE = ROOT / "tests" / "voices" / "en-60s.ogg"
SHORT = ROOT / "localwhisper_client" / "demo.ogg"
LONG_SECONDS = 1800.0
PARTS = ("alone", "clients", "minute", "long", "behind", "hour")

Upload = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Rival:
    """A running server, asked through the SDK."""

    name: str
    client: openai.OpenAI
    pid: int

    def ask(self, upload: Upload) -> float:
        """Return the seconds that one transcription takes."""
        started = time.perf_counter()
        self.client.audio.transcriptions.create(file=upload, model="whisper-1", timeout=7200)
        return time.perf_counter() - started

    def memory(self) -> float:
        """Return its resident memory in MB."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def plain(folder: str) -> Iterator[Rival]:
    """Run the plain server."""
    with lan.listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("plain_server.py")), folder, str(port)])
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
    try:
        rival = Rival("plain", client, process.pid)
        for _ in range(600):
            with contextlib.suppress(openai.APIConnectionError):
                rival.ask(upload(SHORT))
                break
            time.sleep(0.1)
        yield rival
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def ours(folder: str) -> Iterator[Rival]:
    """Run localwhisper-server."""
    with serving("--model", folder, "--max-wait", "7200") as running:
        client = openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0)
        yield Rival("ours", client, running.process.pid)


def upload(path: Path) -> Upload:
    """Read a file as the SDK takes it."""
    return path.name, path.read_bytes()


def report(title: str, plain_value: float, our_value: float, unit: str) -> None:
    """Print one comparison."""
    print(
        f"{title:44} plain {plain_value:8.2f} {unit}   ours {our_value:8.2f} {unit}   {our_value / plain_value:.2f} x"
    )
    sys.stdout.flush()


def alone(rivals: Sequence[Rival], clips: Sequence[Upload], rounds: int = 2) -> None:
    """Latency of one client, clip by clip, the servers taking turns."""
    taken: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        for clip in clips:
            for rival in rivals:
                taken[rival.name].append(rival.ask(clip))
    for label, pick in (("p50", statistics.median), ("p95", lambda values: sorted(values)[int(len(values) * 0.95)])):
        report(f"latency alone, {label}", pick(taken["plain"]), pick(taken["ours"]), "s")


def clients(rivals: Sequence[Rival], clips: Sequence[Upload], counts: Sequence[int] = (1, 4, 8, 16)) -> None:
    """Throughput of many clips with several clients at once; more is better."""
    for count in counts:
        pile = list(itertools.islice(itertools.cycle(clips), max(len(clips), 2 * count)))
        walls: dict[str, float] = {}
        for rival in rivals:
            started = time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(rival.ask, pile))
            walls[rival.name] = time.perf_counter() - started
        report(f"throughput, {count} clients", len(pile) / walls["plain"], len(pile) / walls["ours"], "/s")


def minute(rivals: Sequence[Rival], _clips: Sequence[Upload], rounds: int = 3) -> None:
    """Time a recording of 60 s, one client."""
    taken: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        for rival in rivals:
            taken[rival.name].append(rival.ask(upload(MINUTE)))
    report("60 s recording", statistics.median(taken["plain"]), statistics.median(taken["ours"]), "s")


def long(rivals: Sequence[Rival], _clips: Sequence[Upload]) -> None:
    """Thirty minutes, wall and peak memory."""
    walls = {rival.name: watched(rival, joined_to(LONG_SECONDS)) for rival in rivals}
    report("30 minutes", walls["plain"], walls["ours"], "s")


def hour(rivals: Sequence[Rival], _clips: Sequence[Upload]) -> None:
    """Print our memory over an hour-long recording; that of half an hour says whether it grows."""
    taken = watched(next(rival for rival in rivals if rival.name == "ours"), joined_to(2 * LONG_SECONDS))
    print(f"an hour: {taken:.0f} s")


def watched(rival: Rival, recording: Upload) -> float:
    """Transcribe, print the server's memory, and return the seconds it took."""
    rest = rival.memory()
    peak = [rest]
    with sampling(lambda: peak.append(rival.memory())):
        taken = rival.ask(recording)
    print(f"{rival.name}: memory at rest {rest:.0f} MB, peak {max(peak):.0f} MB, bar {1.2 * rest + 200:.0f} MB")
    return taken


def behind(rivals: Sequence[Rival], _clips: Sequence[Upload], times: int = 20) -> None:
    """Time a short message while thirty minutes are being transcribed, against the same on an idle server."""
    rival = next(rival for rival in rivals if rival.name == "ours")
    short = upload(SHORT)
    idle = sorted(rival.ask(short) for _ in range(times))
    recording = joined_to(LONG_SECONDS)
    worker = threading.Thread(target=rival.ask, args=(recording,))
    worker.start()
    time.sleep(3)  # until its batches are full
    busy = []
    while worker.is_alive() and len(busy) < times:
        busy.append(rival.ask(short))
        time.sleep(0.5)
    worker.join()
    at = int(len(busy) * 0.95)
    report(f"short behind long, p95 of {len(busy)} (plain = idle)", idle[int(times * 0.95)], sorted(busy)[at], "s")
    report("short behind long, p50 (plain = idle)", statistics.median(idle), statistics.median(busy), "s")


def joined_to(seconds: float) -> Upload:
    """Join clips to a recording of so many seconds, in one language as recordings are."""
    samples = np.concatenate([clip.audio for clip in _clips(60.0) if clip.language == "en"])
    count = int(seconds * corpus.RATE)
    return "long.wav", corpus.wav(np.tile(samples, count // samples.size + 1)[:count])


@contextlib.contextmanager
def sampling(sample: Callable[[], None], seconds: float = 0.2) -> Iterator[None]:
    """Call `sample` again and again while the block runs."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _clips(longest: float) -> list[corpus.Clip]:
    shared = ROOT.parent / "shared" / "speech"
    found = [clip for clip in corpus.shared(shared) if clip.seconds <= longest and clip.language != corpus.NO_SPEECH]
    if not found:
        sys.exit("speed: no recordings in ../shared/speech")
    return found


def main() -> None:
    """Run the given parts."""
    parser = argparse.ArgumentParser(description="Our server against plain faster-whisper, in turn.")
    parser.add_argument("--model", default="base", help="folder or name of the model")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    options = parser.parse_args()
    clips = [("clip.wav", corpus.wav(clip.audio)) for clip in _clips(15.0)]
    folder = str(weights.find(options.model))
    with plain(folder) as first, ours(folder) as second:
        for part in options.parts or PARTS:
            globals()[part]((first, second), clips)


if __name__ == "__main__":
    main()
