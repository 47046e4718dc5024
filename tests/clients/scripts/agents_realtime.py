"""openai-agents as its documentation says: a VoicePipeline over a StreamedAudioInput, which uses the realtime API."""

import asyncio
import json
import sys
import wave

import agents
import numpy as np
from agents.voice import StreamedAudioInput, STTModelSettings, VoicePipeline, VoicePipelineConfig, VoiceWorkflowBase

agents.set_tracing_disabled(disabled=True)  # it goes to OpenAI
RATE = 24_000


class Listener(VoiceWorkflowBase):
    """A workflow that keeps its input and has no output."""

    def __init__(self):
        self.transcripts = []

    async def run(self, transcription):
        self.transcripts.append(transcription)
        for answer in ():
            yield answer


def sound():
    with wave.open(sys.argv[2]) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        times = np.arange(round(samples.size * RATE / file.getframerate())) * file.getframerate() / RATE
    return np.interp(times, np.arange(samples.size), samples).astype(np.int16)


async def ask(model=None, **settings):
    audio = StreamedAudioInput()
    workflow = Listener()
    config = VoicePipelineConfig(tracing_disabled=True, stt_settings=STTModelSettings(**settings))
    result = await VoicePipeline(workflow=workflow, stt_model=model, config=config).run(audio)
    for piece in np.array_split(sound(), 50):
        await audio.add_audio(piece)
    await audio.add_audio(None)
    async for event in result.stream():
        if event.type == "voice_stream_event_error":
            raise event.error
    return " ".join(workflow.transcripts)


async def main():
    transcripts = {
        "default": await ask(),
        "server vad": await ask("gpt-4o-transcribe", language="en", turn_detection={"type": "server_vad"}),
        "live": await ask("gpt-live-transcribe", language="en", keywords=["milk", "bread"]),
    }
    print(json.dumps(transcripts))


asyncio.run(main())
