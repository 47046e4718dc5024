"""Who spoke when, on mixes of known speakers: error rate, number of speakers, known speakers, time and memory.

::

    python benchmarks/diarization.py --models FOLDER [--tuning]

FOLDER holds `segmentation.onnx` and `embedding.onnx` (`nox -s diarize` makes them). A mix has 2, 3 or 4 speakers in 20
turns of 1 to 15 s; about a tenth of the time of speech has two of them at once, other turns are up to 1 s apart. The
volume differs by up to 6 dB between speakers, and a faint noise lies under everything.

Speakers come from the recordings of `corpus`. The thresholds of `localwhisper_server.diarization` were chosen with
`--tuning`, on mixes of the prompts' voices (Allison, June, Carlo, Ivrvoice), a German reader (LibriVox), an English one
(pocketsphinx) and Thorsten; the margin of `timeline` on English speakers of the corpus of `corpus/build.py`. Without
`--tuning`, the mixes are of other speakers: five readers of LibriSpeech test-other and Linda Johnson (LJ Speech).

The reference is where a voice activity detector (Silero, through faster-whisper) hears speech in the clean turn, pauses
under 0.5 s bridged. Diarization error rate: missed speech, false alarms and confusion over all speech, overlaps
included, with 0.25 s on both sides of each reference edge forgiven.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import itertools
import os
import random
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import corpus
import numpy as np
import openai
from faster_whisper.vad import VadOptions, get_speech_timestamps

from localwhisper_client.server_process import serving
from localwhisper_server.diarization.clustering import SIMILAR, cluster
from localwhisper_server.diarization.diarizer import embedded
from localwhisper_server.diarization.networks import Embedding, OnnxNetworks
from localwhisper_server.diarization.timeline import Timeline
from localwhisper_server.diarization.windows import Window, Windower

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

RATE = corpus.RATE
COLLAR = 0.25
GRID = 100
"""Frames a second in which errors are counted."""
TURNS = 20
OVERLAP = 0.1
SETS = 8
"""Mixes of each number of speakers."""
BLOCK = 4 * RATE
REFERENCE = 8 * RATE
"""The last samples of each speaker are a reference, and in no mix."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spoken:
    """Somebody's speech, in seconds."""

    speaker: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True, slots=True)
class Mix:
    """A made recording, and who speaks when in it."""

    samples: Samples
    spoken: list[Spoken]
    speakers: list[str]

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.samples.size / RATE


def speaker(clip: corpus.Clip) -> tuple[str, bool] | None:
    """Return who speaks in a clip, and whether thresholds may be chosen on it; None where that is not known."""
    family, *parts = clip.id.split("-")
    if family == "ls" and parts[0] == "other" and clip.kind != "noisy":
        return f"LibriSpeech {parts[1]}", False
    if family == "lj":
        return "Linda Johnson", False
    if family == "ast" and parts[0] != "es":  # the Spanish voice is the English one's
        return corpus.VOICES[parts[0]], True
    if clip.id == "long-de-andiefreude":
        return "German reader", True
    if family in ("sphinx", "thorsten"):
        return {"sphinx": "English reader", "thorsten": "Thorsten"}[family], True
    return None


def voices(clips: Sequence[corpus.Clip], *, tuning: bool, least: float = 20.0) -> dict[str, Samples]:
    """Return the speech of each speaker of one kind, of those with at least `least` seconds."""
    found: dict[str, list[Samples]] = defaultdict(list)
    for clip in clips:
        known = speaker(clip)
        if known is not None and known[1] == tuning and sum(part.size for part in found[known[0]]) < 200 * RATE:
            found[known[0]].append(clip.audio)
    joined = {name: np.concatenate(parts) for name, parts in sorted(found.items())}
    return {name: samples for name, samples in joined.items() if samples.size >= least * RATE}


def speech(samples: Samples) -> list[tuple[float, float]]:
    """Return where somebody speaks, in seconds."""
    options = VadOptions(min_silence_duration_ms=500, speech_pad_ms=30)
    return [(span["start"] / RATE, span["end"] / RATE) for span in get_speech_timestamps(samples, options)]


def make(people: Mapping[str, Samples], count: int, seed: int) -> Mix:
    """Mix `count` of the speakers; the same for the same seed."""
    choose = random.Random(f"{count} {seed}")  # noqa: S311 - no secret
    who = choose.sample(sorted(people), count)
    volume = {name: 10 ** (choose.uniform(-3, 3) / 20) for name in who}
    at = {name: choose.randrange(people[name].size) for name in who}
    mixed = np.zeros(TURNS * 16 * RATE, np.float32)
    spoken: list[Spoken] = []
    order = [*who, *itertools.repeat(None, TURNS - count)]
    clock, last, before, overlapped, total = 0.5, "", 0.0, 0.0, 0.0
    for chosen in order:
        name = chosen or choose.choice([other for other in who if other != last])
        length = int(choose.uniform(1, 15) * RATE)
        source = people[name]
        part = np.take(source, np.arange(at[name], at[name] + length), mode="wrap")
        at[name] = (at[name] + length) % source.size
        part = part / np.sqrt((part**2).mean()) * 0.05 * volume[name]
        seconds = length / RATE
        if last and overlapped < OVERLAP * total:
            # Less than half of either turn, so that no three overlap.
            shared = min(choose.uniform(0.5, 3.0), 0.45 * seconds, 0.45 * before)
            clock -= shared
            overlapped += shared
        else:
            clock += choose.uniform(0.1, 1.0)
        first = round(clock * RATE)
        mixed[first : first + length] += part.astype(np.float32)
        spoken += [Spoken(name, clock + start, clock + end) for start, end in speech(part.astype(np.float32))]
        clock, last, before, total = clock + seconds, name, seconds, total + seconds
    mixed = mixed[: round((clock + 0.5) * RATE)]
    noise = np.random.default_rng(seed).standard_normal(mixed.size).astype(np.float32)
    return Mix(mixed + np.float32(0.0005) * noise, spoken, who)


def error_rate(mix: Mix, heard: Sequence[Spoken]) -> tuple[float, dict[str, str]]:
    """Return the diarization error rate, and which heard speaker is which true one."""
    frames = int(mix.seconds * GRID) + 1
    counted = np.ones(frames, bool)
    for part in mix.spoken:
        for edge in (part.start, part.end):
            counted[max(0, round((edge - COLLAR) * GRID)) : round((edge + COLLAR) * GRID)] = False

    def grid(parts: Sequence[Spoken], names: Sequence[str]) -> NDArray[np.bool_]:
        found = np.zeros((len(names), frames), bool)
        for part in parts:
            found[names.index(part.speaker), round(part.start * GRID) : round(part.end * GRID)] = True
        return found[:, counted]

    names = sorted({part.speaker for part in heard}, key=lambda name: name)
    true, found = grid(mix.spoken, mix.speakers), grid(heard, names)
    together = (true[:, None] & found[None]).sum(axis=-1)
    right, pairs = best_pairs(together)
    most = np.maximum(true.sum(axis=0), found.sum(axis=0)).sum()
    return float((most - right) / true.sum()), {names[other]: mix.speakers[one] for one, other in pairs}


def best_pairs(together: NDArray[np.int64]) -> tuple[int, list[tuple[int, int]]]:
    """Return the assignment of rows to columns with the largest sum, for up to five rows, and the sum."""
    rows, columns = together.shape
    padded = np.pad(together, ((0, 0), (0, max(0, rows - columns))))
    # With many columns, only those that are someone's best five can matter.
    useful = sorted({int(at) for row in padded for at in np.argsort(-row)[: rows + 1]})
    chosen = max(
        itertools.permutations(useful, rows), key=lambda pick: sum(padded[at, to] for at, to in enumerate(pick))
    )
    pairs = [(at, to) for at, to in enumerate(chosen) if to < columns]
    return int(sum(together[pair] for pair in pairs)), pairs


def windows_of(networks: OnnxNetworks, samples: Samples) -> list[Window]:
    """Return the windows of a recording, as the server makes them of blocks."""
    windower = Windower(networks)
    found: list[Window] = []
    for at in range(0, samples.size, BLOCK):
        found += windower.add(samples[at : at + BLOCK])
    return found + list(windower.end())


def timeline_of(windows: Sequence[Window], references: Sequence[Embedding] = (), similar: float = SIMILAR) -> Timeline:
    """Return who speaks when, by the server's clustering; the speakers of the references come first."""
    people = [voice for window in windows for voice in window.voices]
    found = cluster(people, references=references, similar=similar)
    return Timeline.of(windows, found)


def named_right(mix: Mix, timeline: Timeline) -> tuple[int, int]:
    """Return of how many segments of 2 s and more the known speaker is right, and how many there are.

    A segment is one stretch of speech of one speaker, for the most part without another's. It is named as the server
    names a segment of those times.
    """
    right = total = 0
    for part in mix.spoken:
        seconds = part.end - part.start
        others = (other for other in mix.spoken if other.speaker != part.speaker)
        shared = sum(max(0.0, min(part.end, other.end) - max(part.start, other.start)) for other in others)
        if seconds >= 2 and shared < seconds / 2:
            total += 1
            right += timeline.speaker(part.start, part.end) == mix.speakers.index(part.speaker)
    return right, total


def print_rates(mixes: Sequence[Mix], made: Sequence[Sequence[Window]], similar: float) -> None:
    """Print the error rates and how often the number of speakers is right, with one threshold."""
    rates, right = defaultdict(list), 0
    for mix, windows in zip(mixes, made, strict=True):
        turns = timeline_of(windows, similar=similar).turns()
        heard = [Spoken(str(turn.speaker), turn.start, turn.end) for turn in turns]
        rates[len(mix.speakers)].append(error_rate(mix, heard)[0])
        right += len({part.speaker for part in heard}) == len(mix.speakers)
    each = ", ".join(f"{count} speakers {np.mean(found):.1%}" for count, found in rates.items())
    every = [rate for found in rates.values() for rate in found]
    print(f"threshold {similar}: diarization error rate {np.mean(every):.1%} (worst {max(every):.1%}; {each})")
    print(f"  number of speakers right in {right} of {len(mixes)} mixes")


def print_known(
    networks: OnnxNetworks, people: Mapping[str, Samples], mixes: Sequence[Mix], made: Sequence[Sequence[Window]]
) -> None:
    """Print how often known speakers are named right. Their references are not in the mixes."""
    references = {name: embedded(networks, samples[-REFERENCE:]) for name, samples in people.items()}
    counts = [
        named_right(mix, timeline_of(windows, [references[name] for name in mix.speakers]))
        for mix, windows in zip(mixes, made, strict=True)
    ]
    right, total = sum(count[0] for count in counts), sum(count[1] for count in counts)
    print(f"known speakers: {right} of {total} segments of 2 s and more have the right name ({right / total:.1%})")


def data_url(samples: Samples) -> str:
    """Return a recording as a reference of the API."""
    return f"data:audio/wav;base64,{base64.b64encode(corpus.wav(samples)).decode()}"


def segments_right(mix: Mix, segments: Sequence[Any], *, alone: bool = False) -> tuple[int, int]:
    """Return how many of an answer's segments of 2 s and more name their speaker, and how many there are.

    The true speaker of a segment is the one who speaks in most of it. With `alone`, only segments count in which the
    others together speak for less than half of the time, as in `named_right`.
    """
    right = total = 0
    for segment in segments:
        seconds = segment.end - segment.start
        heard: dict[str, float] = defaultdict(float)
        for part in mix.spoken:
            heard[part.speaker] += max(0.0, min(part.end, segment.end) - max(part.start, segment.start))
        true = max(heard, key=lambda name: heard[name])
        if seconds >= 2 and not (alone and sum(heard.values()) - heard[true] >= seconds / 2):
            total += 1
            right += segment.speaker == true
    return right, total


def print_server(models: Path, people: Mapping[str, Samples], mixes: Sequence[Mix]) -> None:
    """Send mixes to a server with the model `base`, without and with speakers, and print what it took."""
    took: dict[str, float] = defaultdict(float)
    peak: dict[str, float] = {}
    counts = {False: np.zeros(2, int), True: np.zeros(2, int)}  # by whether others speak for less than half of it
    options = ("--model", "base", "--diarization-models", str(models))
    with serving(*options) as server, openai.OpenAI(base_url=server.base_url, api_key="any", timeout=3600) as client:
        for response_format in ("json", "diarized_json"):
            for mix in mixes:
                names = mix.speakers if response_format == "diarized_json" else []
                before = processor_seconds(server.process.pid)
                answer = client.audio.transcriptions.create(
                    file=("mix.wav", corpus.wav(mix.samples)),
                    model="whisper-1",
                    response_format=response_format,  # type: ignore[arg-type]  # diarized_json is not in every SDK
                    known_speaker_names=names,
                    known_speaker_references=[data_url(people[name][-REFERENCE:]) for name in names],
                    language="en",
                )
                took[response_format] += processor_seconds(server.process.pid) - before
                if names:
                    for alone in counts:
                        counts[alone] += segments_right(mix, answer.segments, alone=alone)  # type: ignore[attr-defined]
            peak[response_format] = peak_memory(server.process.pid)
    seconds = sum(mix.seconds for mix in mixes)
    print(f"through a server, {len(mixes)} mixes of {seconds / 60:.0f} min with known speakers:")
    for alone, (right, total) in counts.items():
        which = ", of those in which others speak for less than half" if alone else ""
        print(f"  {right} of {total} segments of 2 s and more have the right name ({right / total:.1%}){which}")
    for name, spent in took.items():
        print(f"  {name}: {spent / seconds:.1%} of the length in processor time, peak memory {peak[name]:.0f} MB")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, its decoders apart."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> float:
    """Return the largest amount of memory that a process had so far, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--sets", type=int, default=SETS, help="mixes of each number of speakers")
    parser.add_argument("--through", type=int, default=6, help="mixes that are sent to a server")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/localwhisper-bench").expanduser())
    asked = parser.parse_args()
    people = voices(corpus.load(Path(__file__).resolve().parents[1], asked.cache), tuning=asked.tuning)
    print(", ".join(f"{name} ({samples.size / RATE:.0f} s)" for name, samples in people.items()))
    mixes = [
        make({name: samples[:-REFERENCE] for name, samples in people.items()}, count, seed)
        for seed in range(asked.sets)
        for count in (2, 3, 4)
    ]
    before = memory()
    networks = OnnxNetworks(asked.models / "segmentation.onnx", asked.models / "embedding.onnx")
    made, took, total = [], 0.0, 0.0
    for mix in mixes:
        started = time.thread_time()
        made.append(windows_of(networks, mix.samples))
        took += time.thread_time() - started
        total += mix.seconds
    print(
        f"{len(mixes)} mixes, {total / 60:.0f} min: {took / total:.1%} of their length in processor time of one core, "
        f"{memory() - before:.0f} MB more memory at the peak"
    )
    for similar in (0.3, 0.4, 0.5, 0.6) if asked.tuning else (SIMILAR,):
        print_rates(mixes, made, similar)
    print_known(networks, people, mixes, made)
    if not asked.tuning:
        print_server(asked.models, people, mixes[: asked.through])


def memory() -> float:
    """Return the largest amount of memory that this process had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
