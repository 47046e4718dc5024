"""What `benchmarks/tune.py` computes from recorded answers."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the script as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(FOLDER))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the first import of whisper_normalizer
        return importlib.import_module("tune")


def clip(tune: Any, name: str, reference: str, group: str = "clean") -> Any:
    """Return a clip without sound."""
    return tune.corpus.Clip(name, 3.0, "en" if reference else "zxx", reference, group, "read", "none")


@pytest.fixture
def recorded(tune: Any) -> tuple[list[Any], dict[str, Any]]:
    """Give three clips: one right at once, one wrong and unsure, one that invents words with certainty."""
    answer, window = tune.Answer, tune.key(tune.WINDOW_IN_USE)
    clips = [clip(tune, "a", "the cat sat down"), clip(tune, "b", "a dog ran", "noise"), clip(tune, "c", "")]
    texts = [
        (answer(" The cat sat down.", 1.0, -0.2, 0.9), answer(" The cat sat down.", 3.0)),
        (answer(" Dog.", 1.0, -0.7, 0.9), answer(" A dog ran.", 3.0)),
        (answer(" Thanks.", 1.0, -0.1, 0.6), answer("", 3.0)),
    ]
    records = [
        tune.Record(one.id, [{window: short, tune.FULL: full}]) for one, (short, full) in zip(clips, texts, strict=True)
    ]
    return records, {one.id: one for one in clips}


@pytest.mark.parametrize(
    ("logprob", "language", "errors", "invented", "seconds"),
    [(-1.0, 0.0, 2, 1, 3.0), (-0.6, 0.0, 0, 1, 6.0), (-1.0, 0.8, 2, 0, 6.0), (-0.6, 0.8, 0, 0, 9.0)],
)
def test_thresholds_decide_which_answer_counts(
    tune: Any, recorded: Any, logprob: float, language: float, errors: int, invented: int, seconds: float
) -> None:
    """A rejected chunk has the full window's words, and the time of both."""
    found = tune.outcome(*recorded, tune.key(tune.WINDOW_IN_USE), logprob, language)
    assert (found.errors, found.invented, found.seconds) == (errors, invented, seconds)
    assert found.worse == (0.5 if errors else 0)


def test_shares_by_group(tune: Any, recorded: Any) -> None:
    """What is decoded twice, of the clean clips and of the others."""
    found = tune.outcome(*recorded, tune.key(tune.WINDOW_IN_USE), -0.6, 0.0)
    assert (found.again, found.again_easy, found.again_hard) == (pytest.approx(1 / 3), 0.0, 1.0)


def test_another_sign_rejects_whatever_the_thresholds(tune: Any) -> None:
    """A loop is a loop, however sure the model is."""
    assert tune.Answer("", 1.0, -0.1, 1.0, "repetition").rejected(-1.0, 0.0)
    assert not tune.Answer("", 1.0, -0.1, 1.0).rejected(-1.0, 0.0)


@pytest.mark.model
def test_a_real_model_is_measured_once(shared: Path, tmp_path: Path) -> None:
    """A second run reads the records of the first, and prints the same."""
    records = tmp_path / "records.jsonl"
    command = [sys.executable, str(FOLDER / "tune.py"), "--model", "tiny.en", "--device", "cpu", "--clips", "2"]
    command += ["--max-seconds", "6", "--records", str(records)]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=140, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert len(records.read_text().splitlines()) == 2
    assert "2 of 2 clips" in outputs[0]
    (first, *_) = (json.loads(line) for line in records.read_text().splitlines())
    assert {"full", "3 s, 10 s"} <= set(first["chunks"][0])
    assert all(answer["seconds"] > 0 for answer in first["chunks"][0].values())
