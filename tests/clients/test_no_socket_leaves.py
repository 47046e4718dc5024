"""Clients of other projects under `localwhisper run`: the LAN server answers, and no socket leaves the LAN."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from tests.client.fault_server import TEXT, serving
from tests.client.leaving import LEAVES, run

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = "refused"
# Each program prints transcripts, or REFUSED if it may not open a session.
AGENTS = """
import asyncio
import numpy as np
from openai import AsyncOpenAI
from agents.voice import AudioInput, OpenAISTTModel, STTModelSettings, StreamedAudioInput
from agents import set_tracing_disabled
set_tracing_disabled(True)
async def main():
    model = OpenAISTTModel("gpt-4o-transcribe", AsyncOpenAI(api_key="k"))
    print(await model.transcribe(AudioInput(np.zeros(16000, np.int16)), STTModelSettings(), False, False))
    spoken = StreamedAudioInput()
    await spoken.add_audio(np.zeros(16000, np.int16))
    session = await model.create_session(spoken, STTModelSettings(), False, False)
    try:
        async for turn in session.transcribe_turns():
            print(turn)
    except Exception as error:
        print(REFUSED if "CloudNotAllowed" in repr(error) + repr(error.__cause__) else repr(error))
asyncio.run(main())
"""
LIVEKIT = """
import asyncio
import aiohttp
from livekit import rtc
from livekit.agents import APIConnectOptions
from livekit.plugins import openai
async def main():
    async with aiohttp.ClientSession() as http:
        stt = openai.STT(api_key="k", model="whisper-1")
        frame = rtc.AudioFrame(bytes(32000), 16000, 1, 16000)
        print((await stt.recognize(frame)).alternatives[0].text)
        stt._session = http
        try:
            await stt._connect_ws(5)
        except Exception as error:
            print(REFUSED if "CloudNotAllowed" in repr(error) else repr(error))
asyncio.run(main())
"""
PIPECAT = """
import asyncio
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
async def main():
    print((await OpenAISTTService(api_key="k")._transcribe(b"x")).text)
    service = OpenAIRealtimeSTTService(api_key="k")
    try:
        await service._websocket_connect("wss://api.openai.com/v1/realtime?intent=transcription")
    except Exception as error:
        print(REFUSED if "CloudNotAllowed" in repr(error) else repr(error))
asyncio.run(main())
"""
LITELLM = """
import litellm
print(litellm.transcription(model="openai/whisper-1", file=("a.ogg", b"x"), api_key="k").text)
print(litellm.transcription(model="whisper-1", file=("a.ogg", b"x"), api_key="k", response_format="json").text)
"""
REALTIME = """
import asyncio
from openai import AsyncOpenAI, OpenAI
try:
    OpenAI(api_key="k").realtime.connect(model="m", extra_query={"intent": "transcription"}).enter()
except Exception as error:
    print(REFUSED if "CloudNotAllowed" in repr(error) else repr(error))
async def main():
    try:
        await AsyncOpenAI(api_key="k").realtime.connect(model="gpt-realtime").enter()
    except Exception as error:
        print(REFUSED if "CloudNotAllowed" in repr(error) else repr(error))
asyncio.run(main())
"""
PROGRAMS = {
    "agents.voice": (AGENTS, [TEXT, REFUSED]),
    "livekit.plugins.openai": (LIVEKIT, [TEXT, REFUSED]),
    "pipecat.services": (PIPECAT, [TEXT, REFUSED]),
    "litellm": (LITELLM, [TEXT, TEXT]),
    "websockets": (REALTIME, [REFUSED, REFUSED]),
}


def _missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ImportError:
        return True


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("policy", ["local_only", "wait"])
def test_audio_stays(name: str, policy: str, tmp_path: Path) -> None:
    """Recordings go to the LAN server. A realtime session, which it does not answer yet, is refused before a socket."""
    if _missing(name):
        pytest.skip(f"{name} is not installed")
    program, expected = PROGRAMS[name]
    with serving() as lan:
        done = run(
            f"REFUSED = {REFUSED!r}\n{program}",
            tmp_path,
            LOCALWHISPER_BASE_URL=lan.url,
            LOCALWHISPER_POLICY=policy,
            LITELLM_LOCAL_MODEL_COST_MAP="True",
        )
        paths = [call.path for call in lan.calls]
    assert done.stdout.splitlines()[-len(expected) :] == expected, done.stdout + done.stderr
    assert paths == ["/v1/audio/transcriptions"] * expected.count(TEXT)
    assert LEAVES not in done.stderr, done.stderr
