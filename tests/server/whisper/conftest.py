"""The real models, each loaded once for all tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ctranslate2
import faster_whisper
import pytest

from localwhisper_server.whisper import weights
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path


class Engines(dict[str, Engine]):
    """The models on the CPU, by name; `aligned` has the rows and the batch size of each alignment."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        ctranslate2.set_random_seed(0)  # high temperatures sample at random
        self.aligned: list[tuple[int, int]] = []

    def folder(self, model: str) -> Path:
        """Return the folder of a model."""
        return weights.find(model, cache_dir=self.cache_dir)

    def __missing__(self, model: str) -> Engine:
        workers = Workers(1, 2)
        self[model] = Engine(self.folder(model), Device("cpu", "int8", "test"), workers, load_model=self._load)
        return self[model]

    def _load(self, *given: Any, **options: Any) -> Any:
        whisper = faster_whisper.WhisperModel(*given, **options)
        whisper.model = Counting(whisper.model, self.aligned)
        return whisper


class Counting:
    """CTranslate2's model, with a count of its alignments."""

    def __init__(self, model: Any, aligned: list[tuple[int, int]]) -> None:
        self._model, self._aligned = model, aligned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def align(self, encoded: Any, start: list[int], texts: list[list[int]], frames: list[int]) -> Any:
        """Count and align."""
        self._aligned.append((len(texts), encoded.shape[0]))
        return self._model.align(encoded, start, texts, frames)


@pytest.fixture(scope="session")
def engines(model_cache: Path) -> Engines:
    """Give the engines by name."""
    return Engines(model_cache)


@pytest.fixture
def base(engines: Engines) -> Engine:
    """Give the base model."""
    return engines["base"]


@pytest.fixture
def tiny_en(engines: Engines) -> Engine:
    """Give an English-only model, the smallest one."""
    return engines["tiny.en"]
