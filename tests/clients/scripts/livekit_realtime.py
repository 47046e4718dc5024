"""livekit-plugins-openai as its documentation says: openai.STT with use_realtime, a stream of frames."""

import asyncio
import json
import sys
import wave

import aiohttp
from livekit import rtc
from livekit.agents import stt, utils
from livekit.plugins import openai

SILENCE_SECONDS = 1.5


def frames():
    with wave.open(sys.argv[2]) as file:
        rate = file.getframerate()
        sound = file.readframes(file.getnframes()) + bytes(int(2 * rate * SILENCE_SECONDS))
    size = rate // 10 * 2
    pieces = [sound[at : at + size] for at in range(0, len(sound), size)]
    return [rtc.AudioFrame(piece, rate, 1, len(piece) // 2) for piece in pieces]


async def ask(**fields):
    recognizer = openai.STT(use_realtime=True, **fields)
    stream = recognizer.stream()
    for frame in frames():
        stream.push_frame(frame)
    stream.flush()
    texts = []
    async with asyncio.timeout(60):
        async for event in stream:
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                texts.append(event.alternatives[0].text)
            elif event.type == stt.SpeechEventType.RECOGNITION_USAGE and "home" in " ".join(texts):
                break
    await stream.aclose()
    await recognizer.aclose()
    return " ".join(texts)


async def main():
    async with aiohttp.ClientSession() as session:
        utils.http_context._ContextVar.set(lambda: session)  # outside of a worker there is none
        transcripts = {
            "default": await ask(),
            "whisper-1": await ask(model="whisper-1", detect_language=True, prompt="Shopping."),
        }
    print(json.dumps(transcripts))


asyncio.run(main())
