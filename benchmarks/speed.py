"""Speed of our server and of plain faster-whisper behind a minimal threaded server, in turn in one run.

Other programs slow the machine down, so only the ratios of one run can be compared. In every part one server works
while the other is idle, then the other way round, several times.

    python benchmarks/speed.py [--model base] [--corpus FOLDER] [alone] [clients] [minute] [long] [behind] [hour]

The clips of `alone` and `clients` are the shared ones, or with `--corpus` some of the test part of the corpus of
`corpus/build.py`: always the same ones, of all groups.
"""

import argparse
import hashlib
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import corpus
from measuring import MINUTE, ROOT, VOICE, Rival, Upload, joined_to, ours, percentile, plain, sampling, upload

from localwhisper_server.whisper import weights

LONG_SECONDS = 1800.0
CLIP_SECONDS = 15.0
CORPUS_CLIPS = 40
PARTS = ("alone", "clients", "minute", "long", "behind", "hour")


def report(title: str, plain_value: float, our_value: float, unit: str) -> None:
    """Print one comparison."""
    print(
        f"{title:44} plain {plain_value:8.2f} {unit}   ours {our_value:8.2f} {unit}   {our_value / plain_value:.2f} x"
    )
    sys.stdout.flush()


def alone(rivals: Sequence[Rival], clips: Sequence[Upload], rounds: int = 2) -> None:
    """Measure the latency of one client, clip by clip, the servers in turn."""
    taken: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        for clip in clips:
            for rival in rivals:
                taken[rival.name].append(rival.ask(clip))
    for label, pick in (("p50", statistics.median), ("p95", lambda values: percentile(values, 0.95))):
        report(f"latency alone, {label}", pick(taken["plain"]), pick(taken["ours"]), "s")


def clients(rivals: Sequence[Rival], clips: Sequence[Upload], counts: Sequence[int] = (1, 4, 8, 16)) -> None:
    """Measure the throughput of several clients at once, in clips a second; more is better."""
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
    """Measure a recording of 60 s, one client."""
    taken: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        for rival in rivals:
            taken[rival.name].append(rival.ask(upload(MINUTE)))
    report("60 s recording", statistics.median(taken["plain"]), statistics.median(taken["ours"]), "s")


def long(rivals: Sequence[Rival], _clips: Sequence[Upload]) -> None:
    """Measure a recording of thirty minutes: seconds and peak memory."""
    walls = {rival.name: watched(rival, long_recording(LONG_SECONDS)) for rival in rivals}
    report("30 minutes", walls["plain"], walls["ours"], "s")


def hour(rivals: Sequence[Rival], _clips: Sequence[Upload]) -> None:
    """Print our memory during an hour-long recording; compared with half an hour, it shows whether memory grows."""
    taken = watched(next(rival for rival in rivals if rival.name == "ours"), long_recording(2 * LONG_SECONDS))
    print(f"an hour: {taken:.0f} s")


def watched(rival: Rival, recording: Upload) -> float:
    """Transcribe a recording, print the server's memory meanwhile, and return the seconds it took."""
    rest = rival.memory()
    peak = [rest]
    with sampling(lambda: peak.append(rival.memory())):
        taken = rival.ask(recording)
    print(f"{rival.name}: memory at rest {rest:.0f} MB, peak {max(peak):.0f} MB, bar {1.2 * rest + 200:.0f} MB")
    return taken


def behind(rivals: Sequence[Rival], _clips: Sequence[Upload], times: int = 20) -> None:
    """Measure a short message while thirty minutes are being transcribed, against an idle server."""
    rival = next(rival for rival in rivals if rival.name == "ours")
    short = upload(VOICE)
    idle = [rival.ask(short) for _ in range(times)]
    recording = long_recording(LONG_SECONDS)
    worker = threading.Thread(target=rival.ask, args=(recording,))
    worker.start()
    time.sleep(3)  # until chunks of it are being decoded
    busy: list[float] = []
    while worker.is_alive() and len(busy) < times:
        busy.append(rival.ask(short))
        time.sleep(0.5)
    worker.join()
    p95 = f"short behind long, p95 of {len(busy)} (plain = idle)"
    report(p95, percentile(idle, 0.95), percentile(busy, 0.95), "s")
    report("short behind long, p50 (plain = idle)", statistics.median(idle), statistics.median(busy), "s")


def long_recording(seconds: float) -> Upload:
    """Join English clips to one recording of so many seconds."""
    return joined_to(seconds, [clip for clip in _clips(60.0) if clip.language == "en"])


def _clips(longest: float) -> list[corpus.Clip]:
    shared = ROOT.parent / "shared" / "speech"
    found = [clip for clip in corpus.shared(shared) if clip.seconds <= longest and clip.language != corpus.NO_SPEECH]
    if not found:
        sys.exit("speed: no recordings in ../shared/speech")
    return found


def _from_corpus(folder: Path) -> list[Upload]:
    """Return some of its test clips with speech, drawn from their names."""
    clips = [clip for clip in corpus.built(folder, "test") if clip.reference and clip.seconds <= CLIP_SECONDS]
    paths = [clip.path for clip in clips if clip.path]
    paths.sort(key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
    return [upload(path) for path in paths[:CORPUS_CLIPS]]


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description="Our server against plain faster-whisper, in turn.")
    parser.add_argument("--model", default="base", help="folder or name of the model")
    parser.add_argument("--corpus", type=Path, help="folder with manifest.tsv, whose test clips are sent")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    options = parser.parse_args()
    if options.corpus:
        clips = _from_corpus(options.corpus)
    else:
        clips = [("clip.wav", corpus.wav(clip.audio)) for clip in _clips(CLIP_SECONDS)]
    folder = str(weights.find(options.model))
    with plain(folder) as first, ours(folder) as second:
        for part in options.parts or PARTS:
            globals()[part]((first, second), clips)


if __name__ == "__main__":
    main()
