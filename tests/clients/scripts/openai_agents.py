"""openai-agents as its documentation says: a VoicePipeline over a recording (AudioInput)."""

import asyncio
import importlib
import json
import os
import sys
import wave

import agents
import numpy as np
from agents.voice import AudioInput, STTModelSettings, VoicePipeline, VoicePipelineConfig, VoiceWorkflowBase

agents.set_tracing_disabled(disabled=True)  # it goes to OpenAI
if "SDK" in os.environ:
    agents.set_default_openai_client(importlib.import_module(os.environ["SDK"]).AsyncOpenAI())


class Listener(VoiceWorkflowBase):
    """A workflow that keeps its input and has no output."""

    def __init__(self):
        self.transcript = ""

    async def run(self, transcription):
        self.transcript = transcription
        for answer in ():
            yield answer


async def ask(model=None, **settings):
    with wave.open(sys.argv[2]) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
        audio = AudioInput(buffer=sound, frame_rate=file.getframerate())
    workflow = Listener()
    config = VoicePipelineConfig(tracing_disabled=True, stt_settings=STTModelSettings(**settings))
    result = await VoicePipeline(workflow=workflow, stt_model=model, config=config).run(audio)
    async for event in result.stream():
        if event.type == "voice_stream_event_error":
            raise event.error
    return workflow.transcript


async def main():
    transcripts = {
        "default": await ask(),
        "default language": await ask(language="en"),
        "whisper-1": await ask("whisper-1", language="en", prompt="Shopping.", temperature=0),
        "gpt-4o-transcribe": await ask("gpt-4o-transcribe"),
    }
    print(json.dumps(transcripts))


asyncio.run(main())
