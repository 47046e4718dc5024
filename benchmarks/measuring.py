"""What several benchmarks need: recordings, percentiles, servers and their memory, and the tests' helpers."""

import contextlib
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import corpus
import numpy as np
import openai

from localwhisper_client.server_process import ServerNotStarted, serving
from localwhisper_server.operations import host

ROOT = Path(__file__).resolve().parents[1]
VOICE = ROOT / "localwhisper_client" / "demo.ogg"
MINUTE = ROOT / "tests" / "voices" / "en-60s.ogg"

START_SECONDS = 300.0
ENGLISH_WORDS = 51_864  # in the vocabulary of an English-only model

Upload = tuple[str, bytes]

sys.path.insert(0, str(ROOT))  # for `tests.server`


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def memory(pid: int, *, children: bool = True) -> float:
    """Return the resident memory of a process, and of its children, in MB."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split() if children else []
    total = 0
    for each in (str(pid), *found):
        try:
            lines = Path(f"/proc/{each}/status").read_text(encoding="ascii").splitlines()
        except OSError:
            continue  # a decoder that has just ended
        total += next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
    return total / 1024


def multilingual(folder: Path) -> bool:
    """Whether a model knows languages but English: by the size of its vocabulary, as faster-whisper decides it."""
    listed = folder / "vocabulary.json"
    if listed.is_file():
        return len(json.loads(listed.read_text(encoding="utf-8"))) > ENGLISH_WORDS
    return len((folder / "vocabulary.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")) > ENGLISH_WORDS


@dataclass(frozen=True, slots=True)
class Rival:
    """A running server, asked through the SDK."""

    name: str
    client: openai.OpenAI
    pid: int

    def ask(self, upload: Upload, timeout: float = 7200.0) -> float:
        """Return the seconds that one transcription takes."""
        return self.answer(upload, timeout)[1]

    def answer(self, upload: Upload, timeout: float = 7200.0) -> tuple[str, float]:
        """Return a transcript and the seconds it takes.

        Raises:
            openai.OpenAIError: the server refuses, or needs more than `timeout` seconds.

        """
        started = time.perf_counter()
        text = self.client.audio.transcriptions.create(file=upload, model="whisper-1", timeout=timeout).text
        return text.strip(), time.perf_counter() - started

    def memory(self) -> float:
        """Return its resident memory in MB."""
        return memory(self.pid, children=False)


@contextlib.contextmanager
def plain(model: str, *options: str, name: str = "plain", within: float = START_SECONDS) -> Iterator[Rival]:
    """Run `plain_server.py` with these options until the block ends.

    Raises:
        ServerNotStarted: it ended, or was not ready `within` seconds.

    """
    with host.listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    script = str(Path(__file__).with_name("plain_server.py"))
    process = subprocess.Popen([sys.executable, script, model, str(port), *options])
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
    rival, until = Rival(name, client, process.pid), time.monotonic() + within
    try:
        while True:
            with contextlib.suppress(openai.APIConnectionError):
                rival.ask(upload(VOICE))
                break
            if process.poll() is not None or time.monotonic() > until:
                raise ServerNotStarted(f"the server {name} did not start")
            time.sleep(0.1)
        yield rival
    finally:
        client.close()
        process.terminate()
        process.wait()


@contextlib.contextmanager
def ours(model: str, *options: str, within: float = START_SECONDS) -> Iterator[Rival]:
    """Run localwhisper-server with these options until the block ends; `ServerNotStarted` as for `plain`."""
    with (
        serving("--model", model, "--max-wait", "7200", *options, ready_within=within) as running,
        openai.OpenAI(base_url=running.base_url, api_key="any", max_retries=0) as client,
    ):
        yield Rival("ours", client, running.process.pid)


def upload(path: Path) -> Upload:
    """Read a file as the SDK takes it."""
    return path.name, path.read_bytes()


def joined_to(seconds: float, clips: Sequence[corpus.Clip]) -> Upload:
    """Join clips, over and over, to one recording of so many seconds."""
    samples = np.concatenate([clip.audio for clip in clips])
    count = int(seconds * corpus.RATE)
    return "long.wav", corpus.wav(np.tile(samples, count // samples.size + 1)[:count])


@contextlib.contextmanager
def sampling(sample: Callable[[], None], seconds: float = 0.2) -> Iterator[None]:
    """Call `sample` every `seconds` while the block runs."""
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
