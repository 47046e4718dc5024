"""Speakers in real recordings, with the real networks and a real server, through the stock SDK: `nox -s diarize`."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
from openai.types.audio import TranscriptionDiarized, TranscriptionTextDoneEvent, TranscriptionTextSegmentEvent

from localwhisper_client.server_process import ServerProcess, serving
from localwhisper_server.audio.pool import decode
from localwhisper_server.types import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
# Two synthetic voices that differ as two speakers do.
ENGLISH, GERMAN = ROOT / "localwhisper_client/demo.ogg", ROOT / "tests/voices/de-5s.ogg"
MODELS = Path(os.environ.get("DIARIZATION_MODELS", "nowhere"))
DIARIZE = {"model": "gpt-4o-transcribe-diarize", "response_format": "diarized_json"}

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not MODELS.is_dir(), reason="DIARIZATION_MODELS names no folder (nox -s diarize makes one)"),
    pytest.mark.skipif(importlib.util.find_spec("sherpa_onnx") is None, reason="the extra diarize is not installed"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server with the base model and the real networks."""
    with serving("--model", "base", "--diarization-models", str(MODELS)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """Give the SDK for that server."""
    with openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as made:
        yield made


def _samples(path: Path) -> Samples:
    with path.open("rb") as file:
        return decode(file, max_seconds=100)


def _wav(*parts: Samples) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.concatenate(parts) * 32767).astype(np.int16).tobytes())
    return target.getvalue()


def _dialogue() -> tuple[bytes, list[float]]:
    """Return the English and the German voice in turn, and the middle of each turn in seconds."""
    parts = [_samples(path) for path in (ENGLISH, GERMAN, ENGLISH, GERMAN)]
    ends = np.cumsum([part.size for part in parts]) / SAMPLE_RATE
    return _wav(*parts), [float(end) - part.size / SAMPLE_RATE / 2 for end, part in zip(ends, parts, strict=True)]


def _who(diarized: Any, at: float) -> str:
    """Return who speaks at a time: the segment that is nearest to it."""
    part = min(diarized.segments, key=lambda part: max(part.start - at, at - part.end, 0.0))
    assert isinstance(part.speaker, str)
    return part.speaker


def test_two_speakers(client: openai.OpenAI) -> None:
    """Each turn has its speaker, in the SDK's own type, and the segments have all of the text."""
    sound, middles = _dialogue()
    found = client.audio.transcriptions.create(file=("talk.wav", sound), chunking_strategy="auto", **DIARIZE)  # type: ignore[call-overload]
    assert isinstance(found, TranscriptionDiarized)
    assert [_who(found, at) for at in middles] == ["A", "B", "A", "B"]
    assert "bread on the way home" in found.segments[0].text
    assert " ".join(part.text for part in found.segments) == found.text


def test_known_speakers(client: openai.OpenAI) -> None:
    """One with a reference has the name, the other a letter; reference and recording are in different codecs."""
    sound, middles = _dialogue()
    reference = f"data:audio/ogg;base64,{base64.b64encode(GERMAN.read_bytes()).decode()}"
    found = client.audio.transcriptions.create(  # type: ignore[call-overload]
        file=("talk.wav", sound),
        chunking_strategy="auto",
        known_speaker_names=["Greta"],
        known_speaker_references=[reference],
        **DIARIZE,
    )
    assert [_who(found, at) for at in middles] == ["A", "Greta", "A", "Greta"]


def test_most_speakers(client: openai.OpenAI) -> None:
    """One speaker is heard where one is allowed."""
    sound, _ = _dialogue()
    found = client.audio.transcriptions.create(  # type: ignore[call-overload]
        file=("talk.wav", sound), chunking_strategy="auto", extra_body={"max_speakers": 1}, **DIARIZE
    )
    assert {part.speaker for part in found.segments} == {"A"}


def test_a_stream(client: openai.OpenAI) -> None:
    """A segment event for each part, and the whole text at the end."""
    with ENGLISH.open("rb") as file:
        events = list(client.audio.transcriptions.create(file=file, stream=True, **DIARIZE))  # type: ignore[call-overload]
    parts = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
    assert {part.speaker for part in parts} == {"A"}
    assert isinstance(events[-1], TranscriptionTextDoneEvent)
    assert " ".join(part.text for part in parts) == events[-1].text


def test_more_than_30_s_need_a_chunking_strategy(client: openai.OpenAI) -> None:
    """OpenAI's rule and its words, for its model's name alone."""
    sound = _wav(*[_samples(ENGLISH)] * 8)
    with pytest.raises(openai.BadRequestError, match="chunking_strategy is required") as refused:
        client.audio.transcriptions.create(file=("talk.wav", sound), **DIARIZE)  # type: ignore[call-overload]
    assert (refused.value.param, refused.value.code) == ("chunking_strategy", "invalid_value")
    found = client.audio.transcriptions.create(  # type: ignore[call-overload]
        file=("talk.wav", sound), **DIARIZE | {"model": "whisper-1"}
    )
    assert {part.speaker for part in found.segments} == {"A"}


@pytest.mark.skipif("DIARIZATION_NODE" not in os.environ, reason="DIARIZATION_NODE names no folder with npm packages")
def test_clients_in_node(server: ServerProcess, tmp_path: Path) -> None:
    """OpenAI's SDK for Node, plain and streamed, and the AI SDK, which asks for speakers by itself."""
    folder = Path(os.environ["DIARIZATION_NODE"])
    talk = tmp_path / "talk.wav"
    talk.write_bytes(_dialogue()[0])
    script = shutil.copy(Path(__file__).with_name("node_clients.mjs"), folder)
    environment = os.environ | {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "any"}
    node = folder / "node_modules/.bin/node"
    done = subprocess.run(
        [node, script, talk, GERMAN], env=environment, stdout=subprocess.PIPE, text=True, timeout=200, check=True
    )
    found = json.loads(done.stdout)
    assert set(found["openai"]) == {"A", "Greta"}
    assert set(found["stream"]) == set(found["ai"]) == {"A", "B"}
