"""livekit-plugins-openai as its documentation says: openai.STT without realtime, a frame at a time."""

import asyncio
import importlib
import json
import os
import sys
import wave

from livekit import rtc
from livekit.plugins import openai


def frame():
    with wave.open(sys.argv[2]) as file:
        count = file.getnframes()
        return rtc.AudioFrame(file.readframes(count), file.getframerate(), 1, count)


async def ask(**fields):
    if "SDK" in os.environ:
        fields["client"] = importlib.import_module(os.environ["SDK"]).AsyncOpenAI()
    stt = openai.STT(**fields)
    try:
        event = await stt.recognize(frame())
    finally:
        await stt.aclose()
    return event.alternatives[0].text


async def main():
    transcripts = {
        "default": await ask(),
        "whisper-1": await ask(model="whisper-1", detect_language=True),
        "gpt-4o-transcribe": await ask(model="gpt-4o-transcribe", language="en", prompt="Shopping."),
        "gpt-transcribe": await ask(model="gpt-transcribe", language=["en", "de"], keywords=["milk", "bread"]),
    }
    print(json.dumps(transcripts))


asyncio.run(main())
