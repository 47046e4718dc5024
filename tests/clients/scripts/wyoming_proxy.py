"""wyoming-openai as its README says, asked in the Wyoming protocol as Home Assistant does."""

import asyncio
import json
import os
import subprocess
import sys
import wave

from ports import free_port
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioStart, AudioStop, wav_to_chunks
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info


async def connect(port, process):
    while process.poll() is None:
        client = AsyncTcpClient("127.0.0.1", port)
        try:
            await client.connect()
        except OSError:
            await asyncio.sleep(0.2)
        else:
            return client
    sys.exit("the proxy stopped")


async def receive(client, kind):
    while event := await client.read_event():
        if kind.is_type(event.type):
            return kind.from_event(event)
    sys.exit(f"no {kind.__name__} came")


async def ask(client, model):
    await client.write_event(Transcribe(name=model, language="en").event())
    with wave.open(sys.argv[2]) as file:
        shape = {"rate": file.getframerate(), "width": file.getsampwidth(), "channels": file.getnchannels()}
        await client.write_event(AudioStart(**shape).event())
        for chunk in wav_to_chunks(file, 1024):
            await client.write_event(chunk.event())
    await client.write_event(AudioStop().event())
    return (await receive(client, Transcript)).text


async def main():
    port = free_port()
    options = {
        "--uri": f"tcp://127.0.0.1:{port}",
        "--stt-openai-url": os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
        "--stt-openai-key": os.environ["OPENAI_API_KEY"],
        "--stt-models": "whisper-1",
        "--stt-streaming-models": "gpt-transcribe",
        "--stt-realtime-models": "gpt-live-transcribe",
    }
    command = [sys.executable, "-m", "wyoming_openai", *[part for option in options.items() for part in option]]
    proxy = subprocess.Popen(command, stdout=sys.stderr)
    try:
        client = await connect(port, proxy)
        await client.write_event(Describe().event())
        assert (await receive(client, Info)).asr
        models = ("whisper-1", "gpt-transcribe", "gpt-live-transcribe")
        transcripts = {model: await ask(client, model) for model in models}
        await client.disconnect()
    finally:
        proxy.terminate()
        proxy.wait(30)
    print(json.dumps(transcripts))


asyncio.run(main())
