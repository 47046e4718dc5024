"""Prose written for this corpus and spoken by synthesisers that are not on the tune side.

``prose.tsv`` lists the texts: what kind each is, who speaks it, how fast (Kokoro's voices), and where.
``prose/ID.txt`` has the words. A line that begins with a number and a colon is a turn of a conversation, by the voice
of that number; any other line is a paragraph. Sentences are spoken without a break for as long as the synthesiser can
(about 25 s of Kokoro, a paragraph of Pico), so that what one voice speaks counts as whole; a conversation counts as
joined.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from typing import TYPE_CHECKING

import numpy as np

import corpus
from corpus import pico
from corpus.places import draw, far, mixed
from corpus.sources import HERE, Recording
from corpus.voices import Kokoro

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

PICO = "pico-"
"""What the names of SVOX Pico's voices begin with, before language and country; every other name is Kokoro's."""

PAUSE_SECONDS = {"paragraph": (0.6, 1.2), "turn": (0.15, 0.8)}

ROOM_TONE = 0.0003
"""The noise behind a clean recording; digital silence would make the cutting easier than it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A row of ``prose.tsv`` and its words, as (number of the voice, what it says)."""

    id: str
    language: str
    kind: str
    accent: str
    voices: tuple[str, ...]
    speed: float
    place: str
    parts: tuple[tuple[int, str], ...]

    @property
    def conversation(self) -> bool:
        """Whether more than one voice speaks."""
        return len(self.voices) > 1

    @property
    def needs_kokoro(self) -> bool:
        """Whether one of its voices is Kokoro's."""
        return not all(voice.startswith(PICO) for voice in self.voices)

    @property
    def words(self) -> str:
        """What is said, without the numbers of the voices."""
        return ("" if self.language in {"ja", "zh"} else " ").join(part for _, part in self.parts)


def texts(folder: Path = HERE) -> Iterator[Text]:
    """Yield the texts that ``prose.tsv`` lists; raises ValueError where a turn has no voice."""
    with (folder / "prose.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        voices = tuple(row["voices"].split())
        parts = []
        for line in (folder / "prose" / f"{row['id']}.txt").read_text(encoding="utf-8").splitlines():
            turn = re.match(r"(\d+): ", line)
            voice = int(turn[1]) - 1 if turn else 0
            if not 0 <= voice < len(voices):
                raise ValueError(f"{row['id']} has no voice {voice + 1}")
            parts.append((voice, line[turn.end() :] if turn else line))
        yield Text(
            row["id"], row["language"], row["kind"], row["accent"], voices, float(row["speed"]), row["place"],
            tuple(parts),
        )  # fmt: skip


def spoken(root: Path) -> Iterator[Recording]:
    """Yield every text as a recording, from the packages unpacked in ``root``; say which cannot be had."""
    try:
        kokoro = Kokoro(root)
    except (FileNotFoundError, ImportError) as error:
        kokoro = None
        print(f"corpus: no voices of Kokoro ({error})", file=sys.stderr)
    for text in texts():
        try:
            if text.needs_kokoro and kokoro is None:
                continue
            samples = located(text, speech(text, root, kokoro))
        except (OSError, ImportError) as error:
            print(f"corpus: {text.id} is left out ({error})", file=sys.stderr)
            continue
        yield Recording(
            id=f"prose-{text.id}",
            text=text.words,
            language=text.language,
            kind=f"made {text.kind}, {'joined' if text.conversation else 'whole'}",
            speaker=" ".join(text.voices),
            source="kokoro-82m" if text.needs_kokoro else "svox-pico",
            licence="none (synthetic)",
            file=samples,
        )


def speech(text: Text, root: Path, kokoro: Kokoro | None) -> NDArray[np.float32]:
    """Return ``text`` spoken in a quiet place, as samples at `corpus.RATE`."""
    rng = draw(f"{text.id} spoken")
    pieces: list[NDArray[np.float32]] = []
    for voice, words in text.parts:
        name = text.voices[voice]
        if name.startswith(PICO):
            pieces.append(pico.speak(root, words, name.removeprefix(PICO)))
        elif kokoro:
            pieces.append(kokoro.speak(words, name, text.accent, text.speed, rng))
        pause = rng.uniform(*PAUSE_SECONDS["turn" if text.conversation else "paragraph"])
        pieces.append(np.zeros(int(pause * corpus.RATE), np.float32))
    return np.concatenate(pieces)


def located(text: Text, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``samples`` as they sound in the place of ``text``: clean, a room, or noise so many dB below."""
    rng = draw(f"{text.id} located")
    place, _, decibels = text.place.partition(" ")
    if place == "room":
        return far(samples, rng)
    seconds = samples.size / corpus.RATE + 0.1
    if place == "noise":
        return mixed(samples, corpus.noise(rng, seconds, 0.5), float(decibels))
    tone = ROOM_TONE * corpus.noise(rng, seconds, 0.5)[: samples.size]
    quiet: NDArray[np.float32] = (samples + tone).astype(np.float32)
    return quiet
