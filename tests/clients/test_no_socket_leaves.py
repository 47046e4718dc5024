"""Clients of other projects under `localwhisper run`: the LAN server answers, and no socket leaves the LAN."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from localwhisper_client import server_process
from tests.client.fault_server import TEXT, serving
from tests.client.leaving import LEAVES, run
from tests.clients.recordings import ENGLISH, as_wav

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localwhisper_client.server_process import ServerProcess

WORDS = "bread on the way home"
SCRIPTS = Path(__file__).with_name("scripts")
# Each program prints transcripts.
AGENTS = """
import asyncio
import numpy as np
from openai import AsyncOpenAI
from agents.voice import AudioInput, OpenAISTTModel, STTModelSettings
from agents import set_tracing_disabled
set_tracing_disabled(True)
async def main():
    model = OpenAISTTModel("gpt-4o-transcribe", AsyncOpenAI(api_key="k"))
    print(await model.transcribe(AudioInput(np.zeros(16000, np.int16)), STTModelSettings(), False, False))
asyncio.run(main())
"""
LIVEKIT = """
import asyncio
from livekit import rtc
from livekit.plugins import openai
async def main():
    stt = openai.STT(api_key="k", model="whisper-1")
    frame = rtc.AudioFrame(bytes(32000), 16000, 1, 16000)
    print((await stt.recognize(frame)).alternatives[0].text)
asyncio.run(main())
"""
PIPECAT = """
import asyncio
from pipecat.services.openai.stt import OpenAISTTService
async def main():
    print((await OpenAISTTService(api_key="k")._transcribe(b"x")).text)
asyncio.run(main())
"""
LITELLM = """
import litellm
print(litellm.transcription(model="openai/whisper-1", file=("a.ogg", b"x"), api_key="k").text)
print(litellm.transcription(model="whisper-1", file=("a.ogg", b"x"), api_key="k", response_format="json").text)
"""
PROGRAMS = {
    "agents.voice": (AGENTS, [TEXT]),
    "livekit.plugins.openai": (LIVEKIT, [TEXT]),
    "pipecat.services": (PIPECAT, [TEXT]),
    "litellm": (LITELLM, [TEXT, TEXT]),
}
# The programs of `nox -s clients` that open realtime sessions.
LIVE = {
    "websockets": "openai_realtime.py",
    "agents.voice": "agents_realtime.py",
    "livekit.plugins.openai": "livekit_realtime.py",
    "pipecat.services": "pipecat_realtime.py",
}
CONVERSATION = """
import asyncio
import openai
async def main():
    try:
        await openai.AsyncOpenAI(api_key="k").realtime.connect(model="gpt-realtime").enter()
    except openai.OpenAIError as error:
        print(type(error).__name__)
try:
    openai.OpenAI(api_key="k").realtime.connect(model="gpt-realtime").enter()
except openai.OpenAIError as error:
    print(type(error).__name__)
asyncio.run(main())
"""


def _missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ImportError:
        return True


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("policy", ["local_only", "wait"])
def test_audio_stays(name: str, policy: str, tmp_path: Path) -> None:
    """Recordings go to the LAN server."""
    if _missing(name):
        pytest.skip(f"{name} is not installed")
    program, expected = PROGRAMS[name]
    with serving() as lan:
        done = run(
            program,
            tmp_path,
            LOCALWHISPER_BASE_URL=lan.url,
            LOCALWHISPER_POLICY=policy,
            LITELLM_LOCAL_MODEL_COST_MAP="True",
        )
        paths = [call.path for call in lan.calls]
    assert done.stdout.splitlines()[-len(expected) :] == expected, done.stdout + done.stderr
    assert paths == ["/v1/audio/transcriptions"] * len(expected)
    assert LEAVES not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def real() -> Iterator[ServerProcess]:
    """A real server with a key."""
    with server_process.serving("--model", "base", "--api-key", "the-servers-key") as running:
        yield running


@pytest.mark.model
@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("policy", ["local_only", "wait"])
def test_words_spoken_live_stay(name: str, policy: str, real: ServerProcess, tmp_path: Path) -> None:
    """A session that the program opens to the cloud gets its words from the LAN server; nothing leaves the LAN."""
    if _missing(name):
        pytest.skip(f"{name} is not installed")
    voice = as_wav(ENGLISH, tmp_path / "voice.wav")
    script = (SCRIPTS / LIVE[name]).read_text()
    done = run(
        f"import sys\nsys.argv[1:] = [{str(ENGLISH)!r}, {str(voice)!r}]\n{script}",
        tmp_path,
        LOCALWHISPER_BASE_URL=real.base_url,
        LOCALWHISPER_API_KEY="the-servers-key",
        LOCALWHISPER_POLICY=policy,
        OPENAI_API_KEY="a-made-up-key-of-the-cloud",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    transcripts = json.loads(done.stdout.splitlines()[-1])
    assert not {kind: text for kind, text in transcripts.items() if WORDS not in text}
    assert LEAVES not in done.stderr, done.stderr


def test_a_conversation_is_refused(tmp_path: Path) -> None:
    """Before a socket: the LAN server holds none."""
    if _missing("websockets"):
        pytest.skip("websockets is not installed")
    with serving() as lan:
        done = run(CONVERSATION, tmp_path, LOCALWHISPER_BASE_URL=lan.url)
        assert not lan.calls
    assert done.stdout.splitlines() == ["CloudNotAllowed"] * 2, done.stdout + done.stderr
    assert LEAVES not in done.stderr, done.stderr
