"""Error rates on the corpus of `corpus/build.py`: plain faster-whisper, the full window and the adaptive window.

    python benchmarks/accuracy.py --corpus FOLDER [--split tune|test] [--results FOLDER] [--minutes N]

Prints, for one split: rates by group, by language, for clips of 12 to 30 s and for longer recordings, each with a 95 %
interval of the difference between the adaptive and the full window (bootstrap over clips, 2,000 draws); the clips in
which the adaptive window is two or more words worse; how many clips were decoded twice, and in how many of these the
second look changed a word; and words invented where there is no speech, with and without a prompt.

Normalisation is `accuracy.Normalizer`'s: Whisper's English normaliser for English, its basic one elsewhere (lower case,
no punctuation); Japanese, Chinese and Korean are counted in characters.

What plain faster-whisper and the full window make of a clip is kept in ``--results``, by the sound's SHA-256: they are
decoded once. ``--minutes`` ends the decoding early; the tables are then of the clips that every system has. Clips are
decoded in an order drawn from their names, so such a part is a sample of the whole.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import accuracy
import corpus
import numpy as np
from faster_whisper import WhisperModel
from openai import OpenAI

from localwhisper_client.server_process import ServerProcess, serving
from localwhisper_server.whisper import weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DRAWS = 2000
WORSE = 2
"""Words (or characters) from which on a clip is listed."""

PROMPTS = ("", "Welcome to the meeting.")
RETRIES = re.compile(r'^localwhisper_full_window_retries_total\{.*?reason="([^"]*)".*?\} (\S+)', re.MULTILINE)
EASY = frozenset({"clean"})

UNCHECKED = """
from localwhisper_server.whisper import acceptance
acceptance.rejection = lambda *_, **__: None
"""
"""Run at the start of a server's interpreter, this lets every first answer of a short window pass."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A clip, and the SHA-256 of its sound."""

    clip: corpus.Clip
    key: str


@dataclasses.dataclass(slots=True)
class Results:
    """Texts by clip of one system, kept in a folder if it is one that never changes."""

    folder: Path | None
    texts: dict[str, str] = dataclasses.field(default_factory=dict)

    def load(self, rows: Iterable[Row]) -> None:
        """Read what is kept."""
        for row in rows:
            path = self.folder / f"{row.key}.json" if self.folder else None
            if path and path.is_file():
                self.texts[row.key] = json.loads(path.read_text(encoding="utf-8"))["text"]

    def keep(self, row: Row, text: str, seconds: float) -> None:
        """Remember a text."""
        self.texts[row.key] = text
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{row.key}.part{os.getpid()}"
            part.write_text(json.dumps({"text": text, "seconds": seconds, "clip": row.clip.id}), encoding="utf-8")
            part.replace(self.folder / f"{row.key}.json")


def load(folder: Path, split: str) -> list[Row]:
    """Return the clips of ``split`` (``all``: both), in an order drawn from their names."""
    rows = [
        Row(clip, hashlib.sha256(clip.path.read_bytes()).hexdigest()[:24])
        for clip in corpus.built(folder, split)
        if clip.path
    ]
    return sorted(rows, key=lambda row: hashlib.sha256(f"turn of {row.clip.id}".encode()).digest())


def decode(rows: Sequence[Row], transcribe: accuracy.Transcriber, results: Results, until: float) -> int:
    """Transcribe what ``results`` lack, until the clock says ``until``; return how many clips that were."""
    count = 0
    for row in rows:
        if row.key in results.texts:
            continue
        if time.monotonic() > until:
            break
        start = time.monotonic()
        text = transcribe(corpus.as_uploaded(row.clip.audio))
        results.keep(row, text, time.monotonic() - start)
        count += 1
    return count


def retries(url: str) -> float:
    """Return how many chunks a server has decoded a second time."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310 - our own server
        return sum(float(count) for _, count in RETRIES.findall(answer.read().decode()))


def interval(first: Sequence[accuracy.Score], other: Sequence[accuracy.Score]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two error rates, by bootstrap over clips."""
    errors = np.array([b.errors - a.errors for a, b in zip(first, other, strict=True)], float)
    totals = np.array([a.total for a in first], float)
    picks = np.random.default_rng(0).integers(len(errors), size=(DRAWS, len(errors)))
    differences = 100 * errors[picks].sum(1) / np.maximum(totals[picks].sum(1), 1)
    low, high = np.percentile(differences, (2.5, 97.5))
    return float(low), float(high)


def table(parts: dict[str, list[int]], scores: dict[str, list[accuracy.Score]]) -> list[str]:
    """Return a Markdown table: a row for each part, a column for each system."""
    names = list(scores)
    lines = [f"| clips | count, words | {' | '.join(names)} | adaptive - full, 95 % |"]
    lines.append("|---|---|---|" + "---|" * len(names))
    for label, indices in parts.items():
        if not indices:
            continue
        part = {name: [scores[name][index] for index in indices] for name in names}
        low, high = interval(part["full"], part["adaptive"])
        rates = {name: accuracy.rate(part[name]) for name in names}
        total = sum(score.total for score in part["full"])
        cells = " | ".join(f"{rates[name]:.2f} ({sum(s.errors for s in part[name])})" for name in names)
        difference = rates["adaptive"] - rates["full"]
        lines.append(f"| {label} | {len(indices)}, {total} | {cells} | {difference:+.2f} [{low:+.2f}, {high:+.2f}] |")
    return lines


def parts(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Return the indices of the clips of each row of the tables."""
    found: dict[str, list[int]] = {"all up to 30 s": [i for i, row in enumerate(rows) if row.clip.group != "long"]}
    for group in sorted({row.clip.group for row in rows} - {"long"}):
        found[group] = [i for i, row in enumerate(rows) if row.clip.group == group]
    for language in sorted({row.clip.language for row in rows}):
        unit = "CER" if language in accuracy.CHARACTERS | {"ko"} else "WER"
        found[f"{language} ({unit})"] = [
            i for i, row in enumerate(rows) if row.clip.language == language and row.clip.group != "long"
        ]
    real = [
        i for i, row in enumerate(rows) if "made" not in row.clip.kind and row.clip.group in {"clean", "spontaneous"}
    ]
    found["real recordings as they came"] = real
    found["12 to 30 s"] = [i for i, row in enumerate(rows) if 12 < row.clip.seconds <= 30]
    found["longer than 30 s"] = [i for i, row in enumerate(rows) if row.clip.group == "long"]
    found["… not joined"] = [i for i, row in enumerate(rows) if row.clip.group == "long" and "whole" in row.clip.kind]
    return found


def report(
    rows: Sequence[Row], texts: dict[str, dict[str, str]], doubted: dict[str, float], unchecked: dict[str, str]
) -> list[str]:
    """Return the tables of the clips that every system has."""
    normalize = Normalizer()
    rows = [row for row in rows if row.clip.reference and all(row.key in part for part in texts.values())]
    scores = {
        name: [accuracy.score(row.clip, part[row.key], 0.0, normalize) for row in rows] for name, part in texts.items()
    }
    lines = table(parts(rows), scores)
    pairs = list(zip(rows, scores["full"], scores["adaptive"], strict=True))
    worse = [(row, full, ours) for row, full, ours in pairs if ours.errors - full.errors >= WORSE]
    better = sum(full.errors - ours.errors >= WORSE for _, full, ours in pairs)
    lines += [
        "",
        f"{len(worse)} of {len(rows)} clips are {WORSE} or more words worse than the full window, {better} better.",
    ]
    for row, full, ours in sorted(worse, key=lambda item: item[1].errors - item[2].errors):
        kind = f"{row.clip.group}, {row.clip.kind}, {row.clip.language}, {row.clip.seconds:.1f} s"
        twice_mark = ", decoded twice" if doubted.get(row.key) else ""
        lines += [
            f"- {row.clip.id} ({kind}): {full.errors} -> {ours.errors} of {full.total}{twice_mark}",
            f"  - said: {row.clip.reference[:160]!r}",
            f"  - full: {full.text[:160]!r}",
            f"  - adaptive: {ours.text[:160]!r}",
        ]
    lines += [
        "",
        "| group | clips up to 30 s | decoded twice | of these, another text | wrong words without, with it |",
    ]
    lines += ["|---|---|---|---|---|"]
    for label, members in (
        ("easy (clean)", [pair for pair in pairs if pair[0].clip.group in EASY]),
        ("hard (others)", [pair for pair in pairs if pair[0].clip.group not in EASY | {"long"}]),
    ):
        twice = [pair for pair in members if doubted.get(pair[0].key)]
        looked = [(row, ours) for row, _, ours in twice if row.key in unchecked]
        before = [accuracy.score(row.clip, unchecked[row.key], 0.0, normalize) for row, _ in looked]
        changed = sum(
            normalize(old.text, row.clip.language) != normalize(ours.text, row.clip.language)
            for (row, ours), old in zip(looked, before, strict=True)
        )
        words = f"{sum(old.errors for old in before)}, {sum(ours.errors for _, ours in looked)}"
        share = f"{len(twice)} ({100 * len(twice) / max(1, len(members)):.1f} %)"
        lines.append(f"| {label} | {len(members)} | {share} | {changed} of {len(looked)} | {words} |")
    return lines


class Normalizer(accuracy.Normalizer):
    """`accuracy.Normalizer`, and Korean in characters."""

    def __call__(self, text: str, language: str) -> str:
        """Return ``text`` as units separated by single spaces."""
        units = super().__call__(text, language)
        return " ".join(units.replace(" ", "")) if language == "ko" else units


def invented(client: OpenAI, silent: Sequence[Row]) -> list[str]:
    """Return lines that say how many words each window makes of clips without speech."""
    lines = []
    for prompt in PROMPTS:
        counts = []
        for fields in ({}, {"window": "exact"}):
            transcribe = accuracy.server(client, "whisper-1", prompt=prompt, **fields)
            heard = [transcribe(corpus.as_uploaded(row.clip.audio)) for row in silent]
            counts.append(sum(len(text.split()) for text in heard))
        lines.append(f"Prompt {prompt!r}: {counts[0]} words adaptive, {counts[1]} full, in {len(silent)} clips.")
    return lines


def windows(
    process: ServerProcess, rows: Sequence[Row], adaptive: Results, full: Results, until: float
) -> dict[str, float]:
    """Decode each clip with both windows in turn; return how many chunks of each were decoded twice."""
    client = OpenAI(base_url=process.base_url, api_key="none", max_retries=0, timeout=600)
    exact = accuracy.server(client, "whisper-1", window="exact")
    doubted: dict[str, float] = {}
    for row in rows:
        before = retries(process.url)
        if decode([row], accuracy.server(client, "whisper-1"), adaptive, until):
            doubted[row.key] = retries(process.url) - before
        decode([row], exact, full, until)
    return doubted


def main(arguments: Sequence[str]) -> int:
    """Decode what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description="Error rates on the corpus that corpus/build.py makes.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--split", choices=["tune", "test", "all"], default="tune")
    parser.add_argument("--model", default="base", help="folder or name of the model")
    parser.add_argument("--results", type=Path, default=Path.home() / ".cache" / "localwhisper-bench" / "results")
    parser.add_argument("--minutes", type=float, default=600.0, help="end the decoding early")
    parser.add_argument("--no-plain", action="store_true", help="leave plain faster-whisper out")
    parser.add_argument("--threads", type=int, default=0, help="threads of plain faster-whisper")
    options = parser.parse_args(arguments)
    folder = weights.find(options.model)
    rows = load(options.corpus, options.split)
    spoken = [row for row in rows if row.clip.reference]
    kept = options.results / folder.name
    plain, full, adaptive, unchecked = Results(kept / "plain"), Results(kept / "full"), Results(None), Results(None)
    for results in (plain, full):
        results.load(rows)
    until = time.monotonic() + 60 * options.minutes
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(serving("--model", str(folder)))
        if not options.no_plain:
            model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=options.threads)
            beside = threading.Thread(target=decode, args=(spoken, accuracy.faster_whisper(model), plain, until))
            beside.start()
            stack.callback(beside.join)
        doubted = windows(process, spoken, adaptive, full, until)
        client = OpenAI(base_url=process.base_url, api_key="none", max_retries=0, timeout=600)
        silence = invented(client, [row for row in rows if not row.clip.reference])
    with contextlib.ExitStack() as stack:
        patch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (patch / "sitecustomize.py").write_text(UNCHECKED, encoding="utf-8")
        environ = {**os.environ, "PYTHONPATH": str(patch)}
        process = stack.enter_context(serving("--model", str(folder), environ=environ))
        client = OpenAI(base_url=process.base_url, api_key="none", max_retries=0, timeout=600)
        again = [row for row in spoken if doubted.get(row.key) and row.clip.group != "long"]
        decode(again, accuracy.server(client, "whisper-1"), unchecked, float("inf"))
    texts = {} if options.no_plain else {"plain": plain.texts}
    texts |= {"full": full.texts, "adaptive": adaptive.texts}
    print(f"# {options.split}, {folder.name}\n")
    print("\n".join(report(spoken, texts, doubted, unchecked.texts)))
    print("\nInvented words without speech:\n" + "\n".join(silence))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
