"""The whole server but the model: a real decoder, a real scheduler, and an engine that answers at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from localwhisper_client.shared.languages import NAMES
from localwhisper_server.api import routes
from localwhisper_server.runtime import Runtime
from localwhisper_server.settings import Settings
from localwhisper_server.types import AudioChunk, Segment
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from starlette.types import ASGIApp

    from localwhisper_server.types import Decoding


class Instant:
    """An engine that takes no time."""

    languages = frozenset(NAMES)

    def warm_up(self) -> None:
        pass

    def prepare(self, piece: AudioChunk, decoding: Decoding, *, full_window: bool = False) -> Chunk:
        return Chunk(np.empty((80, 0), np.float32), piece.seconds, piece.offset, decoding, full_window=full_window)

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        return [
            ChunkResult("en", (Segment(chunk.offset, chunk.offset + chunk.seconds, " Hello."),)) for chunk in chunks
        ]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Give a runtime with that engine."""
    folder: Path = tmp_path_factory.mktemp("model")
    (folder / "model.bin").touch()
    settings = Settings(model=str(folder), max_seconds=30.0)
    made = Runtime(settings, load=lambda *_: Instant(), cuda_devices=0, environ=os.environ)  # type: ignore[arg-type, return-value]
    made.start()
    yield made
    assert made.stop()


@pytest.fixture(scope="module")
def app(runtime: Runtime) -> ASGIApp:
    """Give the app around it."""
    return routes.create_app(runtime)
